// SPDX-License-Identifier: Apache-2.0
// A growing array of token ids.
#include "runtime/text/tokenizer.h"

#include "runtime/base/mem.h"

#include <string.h>

enum { FIRST_CAPACITY = 64 };

rt_status rt_ids_append(rt_ids *ids, const int32_t *data, size_t n)
{
    if (n > ids->cap - ids->len) {
        size_t need, cap = ids->cap ? ids->cap : FIRST_CAPACITY;
        if (__builtin_add_overflow(ids->len, n, &need))
            return RT_FAIL(RT_ERR_NOMEM, "out of memory: token ids: %zu + %zu", ids->len, n);
        while (cap < need)
            cap = cap > SIZE_MAX / 2 ? need : cap * 2;
        int32_t *grown = rt_mem_grow(ids->data, ids->len, cap, sizeof *grown, "token ids");
        if (!grown)
            return RT_ERR_NOMEM;
        ids->data = grown;
        ids->cap = cap;
    }
    if (n > 0)
        memcpy(ids->data + ids->len, data, n * sizeof *data);
    ids->len += n;
    return RT_OK;
}

void rt_ids_free(rt_ids *ids)
{
    rt_free(ids->data);
    *ids = (rt_ids){0};
}
