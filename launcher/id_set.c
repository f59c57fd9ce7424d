// SPDX-License-Identifier: Apache-2.0
// Open addressing, at most half full; 0 is an empty place.
#include "launcher/id_set.h"

#include "runtime/base/mem.h"

struct app_id_set {
    uint64_t *places;
    uint64_t mask, count, most;
};

rt_status app_id_set_open(uint64_t most, app_id_set **out)
{
    app_id_set *s;
    uint64_t size = 16;
    while (size / 2 < most)
        size *= 2;
    RT_TRY(RT_ALLOC(s, 1, "ids"));
    s->mask = size - 1;
    s->most = most;
    const rt_status status = RT_ALLOC(s->places, size, "ids");
    if (status != RT_OK) {
        rt_free(s);
        return status;
    }
    *out = s;
    return RT_OK;
}

void app_id_set_close(app_id_set *s)
{
    if (!s)
        return;
    rt_free(s->places);
    rt_free(s);
}

rt_status app_id_set_add(app_id_set *s, uint64_t hash, bool *known)
{
    const uint64_t value = hash ? hash : 1;
    uint64_t at = value & s->mask;
    while (s->places[at] && s->places[at] != value)
        at = (at + 1) & s->mask;
    *known = s->places[at] == value;
    if (*known)
        return RT_OK;
    RT_CHECK_ARG(s->count < s->most);
    s->places[at] = value;
    s->count++;
    return RT_OK;
}
