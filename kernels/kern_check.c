// SPDX-License-Identifier: Apache-2.0
#include "kernels/kern_check.h"

#include <limits.h>

static size_t elements(int rank, const size_t dims[])
{
    size_t total = 1;
    for (int i = 0; i < rank; i++) {
        if (dims[i] == 0)
            return 0;
        total = total > SIZE_MAX / dims[i] ? SIZE_MAX : total * dims[i];
    }
    return total;
}

rt_status kern_check_int(const kern_check *check, const char *field, int value, int low, int high)
{
    if (value >= low && value <= high)
        return RT_OK;
    if (high == INT_MAX)
        return RT_FAIL(RT_ERR_INVALID, "%s: %s is %d, want at least %d", check->op, field, value,
                       low);
    return RT_FAIL(RT_ERR_INVALID, "%s: %s is %d, want %d to %d", check->op, field, value, low,
                   high);
}

rt_status kern_check_buf(const kern_check *check, const char *field, const kern_buf *buf,
                         kern_dtype dtype, int rank, const size_t dims[])
{
    if (!buf)
        return RT_FAIL(RT_ERR_INVALID, "%s: %s is NULL", check->op, field);
    if (buf->dev != check->dev)
        return RT_FAIL(RT_ERR_INVALID, "%s: %s is a buffer of another device", check->op, field);
    if (buf->dtype != dtype)
        return RT_FAIL(RT_ERR_INVALID, "%s: %s is %s, want %s", check->op, field,
                       kern_dtype_name(buf->dtype), kern_dtype_name(dtype));
    const size_t need = elements(rank, dims);
    if (buf->count < need)
        return RT_FAIL(RT_ERR_INVALID, "%s: %s holds %zu elements, its shape needs %zu", check->op,
                       field, buf->count, need);
    return RT_OK;
}

rt_status kern_check_weight(const kern_check *check, const char *field, const kern_buf *buf,
                            size_t rows, size_t cols)
{
    kern_dtype dtype = KERN_F32;
    if (buf) {
        dtype = kern_dev_weight_dtype(check->dev, buf->dtype);
        if (buf->dtype != KERN_BF16 && buf->dtype != KERN_F16)
            dtype = KERN_F32; // never a weight, whatever the backend answers
    }
    return kern_check_buf(check, field, buf, dtype, 2, (const size_t[]){rows, cols});
}

rt_status kern_check_batch(const kern_check *check, const kern_batch *batch, unsigned need)
{
    if (!batch)
        return RT_FAIL(RT_ERR_INVALID, "%s: batch is NULL", check->op);
    RT_TRY(kern_check_int(check, "batch.rows", batch->rows, 0, INT_MAX));
    RT_TRY(kern_check_int(check, "batch.segs", batch->segs, 0, INT_MAX - 1));
    RT_TRY(kern_check_int(check, "batch.sparse_rows", batch->sparse_rows, 0, batch->rows));
    RT_TRY(kern_check_int(check, "batch.sparse_segs", batch->sparse_segs, 0, batch->segs));
    RT_TRY(kern_check_int(check, "batch.scan_segs", batch->scan_segs, 0, batch->sparse_segs));
    RT_TRY(kern_check_int(check, "batch.mass_segs", batch->mass_segs, 0, batch->segs));
    RT_TRY(kern_check_int(check, "batch.block", batch->block, 1, INT_MAX));
    RT_TRY(kern_check_int(check, "batch.page", batch->page, 1, KERN_PAGE_MAX));
    RT_TRY(kern_check_int(check, "batch.max_pages", batch->max_pages, 0, INT_MAX));
    if (batch->page & (batch->page - 1))
        return RT_FAIL(RT_ERR_INVALID, "%s: batch.page is %d, want a power of two", check->op,
                       batch->page);
    if (batch->rows == 0 && batch->segs == 0)
        return RT_OK;
    const size_t rows = (size_t)batch->rows, segs = (size_t)batch->segs;
    const struct {
        unsigned bit;
        const char *field;
        const kern_buf *buf;
        size_t count, width;
    } table[] = {
        {KERN_NEED_POS, "batch.pos", batch->pos, rows, 1},
        {KERN_NEED_ROW_STATE, "batch.row_state", batch->row_state, rows, 1},
        {KERN_NEED_ROW_SEG, "batch.row_seg", batch->row_seg, rows, 1},
        {KERN_NEED_SEG_ROW0, "batch.seg_row0", batch->seg_row0, segs + 1, 1},
        {KERN_NEED_SEG_KIND, "batch.seg_kind", batch->seg_kind, segs, 1},
        {KERN_NEED_PAGE_TABLE, "batch.page_table", batch->page_table, segs,
         (size_t)batch->max_pages},
        {KERN_NEED_KV_SLOT, "batch.kv_slot", batch->kv_slot, rows, 1},
        {KERN_NEED_CACHE_SLOT, "batch.cache_slot", batch->cache_slot, rows, 1},
        {KERN_NEED_SEG_SLOT, "batch.seg_slot", batch->seg_slot, segs, 1},
        {KERN_NEED_SEG_MASS, "batch.seg_mass", batch->seg_mass, segs, 1},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (need & table[i].bit)
            RT_TRY(kern_check_buf(check, table[i].field, table[i].buf, KERN_I32, 2,
                                  (const size_t[]){table[i].count, table[i].width}));
    }
    return RT_OK;
}

rt_status kern_check_plan(const kern_check *check, const kern_batch *batch, const kern_plan *plan)
{
    if (!plan)
        return RT_FAIL(RT_ERR_INVALID, "%s: plan is NULL", check->op);
    const size_t rows = (size_t)batch->rows, segs = (size_t)batch->segs;
    const size_t pages = (size_t)batch->max_pages;
    RT_TRY(kern_check_int(check, "plan.lists", plan->lists, 1, INT_MAX));
    RT_TRY(kern_check_int(check, "plan.act_cap", plan->act_cap, 0, INT_MAX));
    const size_t lists = (size_t)plan->lists;
    RT_TRY(kern_check_buf(check, "plan.act_rows", plan->act_rows, KERN_I32, 1, &rows));
    RT_TRY(kern_check_buf(check, "plan.act_count", plan->act_count, KERN_I32, 1, &segs));
    RT_TRY(kern_check_buf(check, "plan.pages", plan->pages, KERN_I32, 3,
                          (const size_t[]){segs, lists, pages}));
    return kern_check_buf(check, "plan.page_count", plan->page_count, KERN_I32, 2,
                          (const size_t[]){segs, lists});
}

rt_status kern_check_lists(const kern_check *check, const kern_plan *plan, int kv_heads)
{
    if (plan->lists == 1)
        return RT_OK;
    return kern_check_int(check, "plan.lists", plan->lists, kv_heads, kv_heads);
}

static rt_status check_kv_shape(const kern_check *check, const kern_kv *kv)
{
    RT_TRY(kern_check_int(check, "kv.pages", kv->pages, 0, INT_MAX));
    RT_TRY(kern_check_int(check, "kv.kv_heads", kv->kv_heads, 1, INT_MAX));
    return kern_check_int(check, "kv.head_dim", kv->head_dim, 1, INT_MAX);
}

rt_status kern_check_kv(const kern_check *check, const kern_kv *kv, const kern_batch *batch)
{
    RT_TRY(check_kv_shape(check, kv));
    const size_t dims[] = {(size_t)kv->pages, (size_t)kv->kv_heads, (size_t)batch->page,
                           (size_t)kv->head_dim};
    const kern_dtype dtype = kern_dev_kv_dtype(check->dev);
    RT_TRY(kern_check_buf(check, "kv.k", kv->k, dtype, 4, dims));
    return kern_check_buf(check, "kv.v", kv->v, dtype, 4, dims);
}

rt_status kern_check_kv_meta(const kern_check *check, const kern_kv *kv)
{
    RT_TRY(check_kv_shape(check, kv));
    const size_t dims[] = {(size_t)kv->pages, (size_t)kv->kv_heads, (size_t)kv->head_dim};
    const kern_dtype dtype = kern_dev_bound_dtype(check->dev, kv->head_dim);
    RT_TRY(kern_check_buf(check, "kv.kmin", kv->kmin, dtype, 3, dims));
    RT_TRY(kern_check_buf(check, "kv.kmax", kv->kmax, dtype, 3, dims));
    if (dtype == KERN_F32)
        return kv->kstep
                   ? RT_FAIL(RT_ERR_INVALID, "%s: kv.kstep: these bounds have no steps", check->op)
                   : RT_OK;
    const size_t groups[] = {dims[0], dims[1], dims[2] / KERN_BOUND_GROUP};
    return kern_check_buf(check, "kv.kstep", kv->kstep, dtype, 3, groups);
}

rt_status kern_check_heads(const kern_check *check, int heads, int kv_heads, int head_dim)
{
    RT_TRY(kern_check_int(check, "kv_heads", kv_heads, 1, INT_MAX));
    RT_TRY(kern_check_int(check, "heads", heads, 1, INT_MAX));
    RT_TRY(kern_check_int(check, "head_dim", head_dim, 1, INT_MAX));
    if (heads % kv_heads)
        return RT_FAIL(RT_ERR_INVALID, "%s: heads is %d, not a multiple of kv_heads %d", check->op,
                       heads, kv_heads);
    return RT_OK;
}

// The q columns of a [rows, stride] matrix.
rt_status kern_check_query(const kern_check *check, const kern_buf *q, int rows, int stride,
                           int heads, const kern_kv *kv)
{
    RT_TRY(kern_check_heads(check, heads, kv->kv_heads, kv->head_dim));
    const size_t cols = (size_t)heads * (size_t)kv->head_dim;
    if (stride < 1 || (size_t)stride < cols)
        return RT_FAIL(RT_ERR_INVALID, "%s: stride is %d, want at least heads * head_dim = %zu",
                       check->op, stride, cols);
    return kern_check_buf(check, "q", q, KERN_F32, 2,
                          (const size_t[]){(size_t)rows, (size_t)stride});
}
