// SPDX-License-Identifier: Apache-2.0
// Writing K and V to pages on the CPU, with the pages' key bounds.
//
// A KV head is one item and takes the rows in order, since the row at offset 0 of
// a page starts the bounds that the page's later rows widen.
#include "kernels/kern_int.h"

#include <string.h>

static void fold_key(const float *key, size_t dim, bool start, float *low, float *high)
{
    if (start) {
        memcpy(low, key, dim * sizeof *low);
        memcpy(high, key, dim * sizeof *high);
        return;
    }
    for (size_t c = 0; c < dim; c++) {
        low[c] = key[c] < low[c] ? key[c] : low[c];
        high[c] = key[c] > high[c] ? key[c] : high[c];
    }
}

static void write_head(void *ctx, size_t head, int thread)
{
    (void)thread;
    const kern_kv_write_args *a = ctx;
    const kern_kv *kv = &a->kv;
    const size_t dim = (size_t)kv->head_dim, kv_heads = (size_t)kv->kv_heads;
    const size_t heads = (size_t)a->heads, page_size = (size_t)a->batch->page;
    const int32_t *slots = kern_ci32(a->batch->kv_slot);
    for (size_t row = 0; row < (size_t)a->batch->rows; row++) {
        if (slots[row] < 0)
            continue;
        const size_t page = (size_t)slots[row] / page_size, offset = (size_t)slots[row] % page_size;
        const float *key = kern_cf32(a->qkv) + (row * (heads + 2 * kv_heads) + heads + head) * dim;
        const float *value = key + kv_heads * dim;
        const size_t at = ((page * kv_heads + head) * page_size + offset) * dim;
        const size_t meta = (page * kv_heads + head) * dim;
        memcpy(kern_f32(kv->k) + at, key, dim * sizeof(float));
        memcpy(kern_f32(kv->v) + at, value, dim * sizeof(float));
        fold_key(key, dim, offset == 0, kern_f32(kv->kmin) + meta, kern_f32(kv->kmax) + meta);
    }
}

rt_status kern_cpu_kv_write(kern_dev *dev, const kern_kv_write_args *args)
{
    const kern_batch *batch = args->batch;
    const int64_t limit = (int64_t)args->kv.pages * batch->page;
    const int32_t *slots = kern_ci32(batch->kv_slot);
    for (int r = 0; r < batch->rows; r++) {
        if (slots[r] < -1 || slots[r] >= limit)
            return RT_FAIL(RT_ERR_INVALID, "kern_kv_write: kv_slot[%d] is %d, there are %lld slots",
                           r, slots[r], (long long)limit);
    }
    kern_kv_write_args copy = *args;
    const size_t heads = (size_t)args->kv.kv_heads;
    kern_cpu_run(dev, heads, (size_t)batch->rows * heads * (size_t)args->kv.head_dim * 4,
                 write_head, &copy);
    return RT_OK;
}
