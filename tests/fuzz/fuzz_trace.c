// SPDX-License-Identifier: Apache-2.0
// Traces of page plans: what is read lies inside its own head, and packs again the same.
#include "proto/trace.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int holds)
{
    if (!holds)
        abort();
}

static void check_plan(const pb_trace *t, const Pb__TraceEntry *entry)
{
    const Pb__TracePlan *p = entry->plan;
    for (size_t i = 0; i < p->n_active; i++)
        must(p->active[i] < p->rows);
    for (size_t l = 0; l < p->n_lists; l++)
        must(pb_trace_tokens(t, p, l) <= pb_trace_prefix(t, p));
    rt_str frame = {0};
    must(pb_trace_pack(entry, &frame) == RT_OK);
    rt_str_free(&frame);
}

static void read_all(const void *bytes, size_t len)
{
    pb_trace t;
    if (pb_trace_open(bytes, len, &t) != RT_OK)
        return;
    Pb__TraceEntry *entry = NULL;
    while (pb_trace_next(&t, &entry) == RT_OK && entry) {
        check_plan(&t, entry);
        pb_trace_free(entry);
    }
    must(t.at <= t.len);
    pb_trace_close(&t);
}

// The input as a file, and as what follows the magic.
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const size_t magic = strlen(PB_TRACE_MAGIC);
    read_all(data, size);
    uint8_t *file = malloc(magic + size);
    if (!file)
        return 0;
    memcpy(file, PB_TRACE_MAGIC, magic);
    if (size > 0)
        memcpy(file + magic, data, size);
    read_all(file, magic + size);
    free(file);
    return 0;
}
