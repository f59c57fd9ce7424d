// SPDX-License-Identifier: Apache-2.0
// The public operations of the forward: one check each, the same for every
// backend, then the device's table. Nothing to do (no rows) is RT_OK.
#include "kernels/kern_check.h"

#include <limits.h>

static size_t qkv_width(int heads, int kv_heads, int head_dim)
{
    return ((size_t)heads + 2 * (size_t)kv_heads) * (size_t)head_dim;
}

rt_status kern_fill_normal(kern_dev *dev, const kern_fill_normal_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_fill_normal", dev};
    if (args->count == 0)
        return RT_OK;
    RT_TRY(kern_check_weight(&check, "dst", args->dst, args->count, 1));
    return dev->ops->fill_normal(dev, args);
}

static rt_status check_xor(const kern_check *check, const kern_xor_words_args *args)
{
    const kern_buf *src = args->src;
    const kern_dtype dtype = src ? src->dtype : KERN_F32; // any
    const size_t bytes = args->words < SIZE_MAX / 8 ? args->words * 4 : SIZE_MAX / 2;
    const size_t size = kern_dtype_size(dtype), count = (bytes + size - 1) / size;
    RT_TRY(kern_check_buf(check, "src", src, dtype, 1, &count));
    KERN_TRY_BUF(check, args, out, KERN_I32, 1);
    return RT_OK;
}

rt_status kern_xor_words(kern_dev *dev, const kern_xor_words_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_xor_words", dev};
    RT_TRY(check_xor(&check, args));
    return dev->ops->xor_words(dev, args);
}

static rt_status check_embed(const kern_check *check, const kern_embed_args *args)
{
    KERN_TRY_INT(check, args, cols, 1, INT_MAX);
    KERN_TRY_INT(check, args, first_id, 0, INT_MAX);
    KERN_TRY_INT(check, args, shard_rows, 0, INT_MAX - args->first_id);
    const size_t rows = (size_t)args->rows, cols = (size_t)args->cols;
    RT_TRY(kern_check_weight(check, "table", args->table, (size_t)args->shard_rows, cols));
    KERN_TRY_BUF(check, args, ids, KERN_I32, rows);
    KERN_TRY_BUF(check, args, out, KERN_F32, rows, cols);
    return RT_OK;
}

rt_status kern_embed(kern_dev *dev, const kern_embed_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_embed", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    RT_TRY(check_embed(&check, args));
    return dev->ops->embed(dev, args);
}

// f32, or of the type of another operand.
static rt_status check_like(const kern_check *check, const char *field, const kern_buf *buf,
                            kern_dtype dtype, size_t rows, size_t cols)
{
    const bool same = buf && buf->dtype == dtype;
    return kern_check_buf(check, field, buf, same ? dtype : KERN_F32, 2,
                          (const size_t[]){rows, cols});
}

static rt_status check_linear(const kern_check *check, const kern_linear_args *args)
{
    KERN_TRY_INT(check, args, k, 1, INT_MAX);
    const size_t rows = (size_t)args->rows, n = (size_t)args->n, k = (size_t)args->k;
    const kern_dtype dtype = args->w ? args->w->dtype : KERN_F32;
    RT_TRY(check_like(check, "x", args->x, dtype, rows, k));
    RT_TRY(kern_check_weight(check, "w", args->w, n, k));
    if (args->bias)
        KERN_TRY_BUF(check, args, bias, KERN_F32, n);
    return check_like(check, "y", args->y, args->bias ? KERN_F32 : dtype, rows, n);
}

rt_status kern_linear(kern_dev *dev, const kern_linear_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_linear", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    KERN_TRY_INT(&check, args, n, 0, INT_MAX);
    if (args->rows == 0 || args->n == 0)
        return RT_OK;
    RT_TRY(check_linear(&check, args));
    return dev->ops->linear(dev, args);
}

rt_status kern_check_rmsnorm(const kern_check *check, const kern_rmsnorm_args *args)
{
    KERN_TRY_INT(check, args, cols, 1, INT_MAX);
    const size_t rows = (size_t)args->rows, cols = (size_t)args->cols;
    KERN_TRY_BUF(check, args, x, KERN_F32, rows, cols);
    if (args->add)
        KERN_TRY_BUF(check, args, add, KERN_F32, rows, cols);
    if (args->out) {
        KERN_TRY_BUF(check, args, weight, KERN_F32, cols);
        RT_TRY(kern_check_weight(check, "out", args->out, rows, cols));
    }
    return RT_OK;
}

rt_status kern_rmsnorm(kern_dev *dev, const kern_rmsnorm_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_rmsnorm", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    RT_TRY(kern_check_rmsnorm(&check, args));
    return dev->ops->rmsnorm(dev, args);
}

static rt_status check_qk_rope(const kern_check *check, const kern_qk_rope_args *args)
{
    RT_TRY(kern_check_heads(check, args->heads, args->kv_heads, args->head_dim));
    KERN_TRY_INT(check, args, max_pos, 1, INT_MAX);
    if (args->head_dim % 2)
        return RT_FAIL(RT_ERR_INVALID, "%s: head_dim is %d, want an even number", check->op,
                       args->head_dim);
    const size_t rows = (size_t)args->rows, dim = (size_t)args->head_dim;
    const size_t positions = (size_t)args->max_pos;
    KERN_TRY_BUF(check, args, qkv, KERN_F32, rows,
                 qkv_width(args->heads, args->kv_heads, args->head_dim));
    if (args->q_norm)
        KERN_TRY_BUF(check, args, q_norm, KERN_F32, dim);
    if (args->k_norm)
        KERN_TRY_BUF(check, args, k_norm, KERN_F32, dim);
    KERN_TRY_BUF(check, args, pos, KERN_I32, rows);
    KERN_TRY_BUF(check, args, cos, KERN_F32, positions, dim / 2);
    KERN_TRY_BUF(check, args, sin, KERN_F32, positions, dim / 2);
    return RT_OK;
}

rt_status kern_qk_rope(kern_dev *dev, const kern_qk_rope_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_qk_rope", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    RT_TRY(check_qk_rope(&check, args));
    return dev->ops->qk_rope(dev, args);
}

rt_status kern_swiglu(kern_dev *dev, const kern_swiglu_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_swiglu", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    KERN_TRY_INT(&check, args, cols, 0, INT_MAX / 2);
    if (args->rows == 0 || args->cols == 0)
        return RT_OK;
    const size_t rows = (size_t)args->rows, cols = (size_t)args->cols;
    RT_TRY(kern_check_weight(&check, "gate_up", args->gate_up, rows, 2 * cols));
    RT_TRY(kern_check_weight(&check, "out", args->out, rows, cols));
    return dev->ops->swiglu(dev, args);
}

rt_status kern_gather_rows(kern_dev *dev, const kern_gather_rows_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_gather_rows", dev};
    KERN_TRY_INT(&check, args, rows, 0, INT_MAX);
    KERN_TRY_INT(&check, args, cols, 1, INT_MAX);
    if (args->rows == 0)
        return RT_OK;
    const size_t rows = (size_t)args->rows, cols = (size_t)args->cols;
    RT_TRY(kern_check_weight(&check, "x", args->x, 1, cols)); // how many rows, the index says
    KERN_TRY_BUF(&check, args, index, KERN_I32, rows);
    KERN_TRY_BUF(&check, args, out, args->x->dtype, rows, cols);
    return dev->ops->gather_rows(dev, args);
}

rt_status kern_kv_write(kern_dev *dev, const kern_kv_write_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_kv_write", dev};
    RT_TRY(kern_check_batch(&check, args->batch, KERN_NEED_KV_SLOT));
    if (args->batch->rows == 0)
        return RT_OK;
    const kern_kv *kv = &args->kv;
    RT_TRY(kern_check_kv(&check, kv, args->batch));
    RT_TRY(kern_check_kv_meta(&check, kv));
    RT_TRY(kern_check_heads(&check, args->heads, kv->kv_heads, kv->head_dim));
    KERN_TRY_BUF(&check, args, qkv, KERN_F32, (size_t)args->batch->rows,
                 qkv_width(args->heads, kv->kv_heads, kv->head_dim));
    return dev->ops->kv_write(dev, args);
}

static rt_status check_attn(const kern_check *check, const kern_attn_args *args)
{
    const kern_kv *kv = &args->kv;
    const size_t rows = (size_t)args->batch->rows, heads = (size_t)args->heads;
    const size_t dim = (size_t)kv->head_dim;
    RT_TRY(kern_check_plan(check, args->batch, args->plan));
    RT_TRY(kern_check_kv(check, kv, args->batch));
    RT_TRY(kern_check_heads(check, args->heads, kv->kv_heads, kv->head_dim));
    RT_TRY(kern_check_lists(check, args->plan, kv->kv_heads));
    KERN_TRY_BUF(check, args, qkv, KERN_F32, rows,
                 qkv_width(args->heads, kv->kv_heads, kv->head_dim));
    KERN_TRY_BUF(check, args, o, KERN_F32, rows, heads, dim);
    KERN_TRY_BUF(check, args, lse, KERN_F32, rows, heads);
    KERN_TRY_BUF(check, args, cache_o, KERN_F32, 0); // how many slots, cache_slot says
    KERN_TRY_BUF(check, args, cache_lse, KERN_F32, 0);
    RT_TRY(kern_check_weight(check, "out", args->out, rows, heads * dim));
    if (args->page_lse) {
        RT_TRY(kern_check_batch(check, args->batch, KERN_NEED_KV_SLOT | KERN_NEED_SEG_MASS));
        KERN_TRY_BUF(check, args, page_lse, KERN_F32, (size_t)args->batch->mass_segs,
                     (size_t)args->batch->block, heads, (size_t)args->batch->max_pages);
    }
    return RT_OK;
}

rt_status kern_attn(kern_dev *dev, const kern_attn_args *args)
{
    KERN_TRY_ENTRY(dev, args);
    const kern_check check = {"kern_attn", dev};
    RT_TRY(kern_check_batch(&check, args->batch,
                            KERN_NEED_POS | KERN_NEED_ROW_SEG | KERN_NEED_SEG_ROW0 |
                                KERN_NEED_PAGE_TABLE | KERN_NEED_CACHE_SLOT));
    if (args->batch->rows == 0)
        return RT_OK;
    RT_TRY(check_attn(&check, args));
    return dev->ops->attn(dev, args);
}
