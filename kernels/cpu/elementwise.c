// SPDX-License-Identifier: Apache-2.0
// Embedding, SwiGLU and row gathering on the CPU.
#include "kernels/cpu/vexp.h"
#include "kernels/kern_int.h"

#include <string.h>

static void embed_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_embed_args *a = ctx;
    const size_t cols = (size_t)a->cols;
    const int64_t index = (int64_t)kern_ci32(a->ids)[row] - a->first_id;
    float *out = kern_f32(a->out) + row * cols;
    if (index >= 0 && index < a->shard_rows)
        memcpy(out, kern_cf32(a->table) + (size_t)index * cols, cols * sizeof *out);
    else
        memset(out, 0, cols * sizeof *out);
}

rt_status kern_cpu_embed(kern_dev *dev, const kern_embed_args *args)
{
    kern_embed_args copy = *args;
    const size_t rows = (size_t)args->rows;
    kern_cpu_run(dev, rows, rows * (size_t)args->cols, embed_row, &copy);
    return RT_OK;
}

static void swiglu_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_swiglu_args *a = ctx;
    const size_t cols = (size_t)a->cols;
    const float *restrict gate = kern_cf32(a->gate_up) + row * 2 * cols;
    const float *restrict up = gate + cols;
    float *restrict out = kern_f32(a->out) + row * cols;
    for (size_t c = 0; c < cols; c++)
        out[c] = gate[c] / (1.0f + kern_vexpf(-gate[c])) * up[c];
}

rt_status kern_cpu_swiglu(kern_dev *dev, const kern_swiglu_args *args)
{
    kern_swiglu_args copy = *args;
    const size_t rows = (size_t)args->rows;
    kern_cpu_run(dev, rows, 4 * rows * (size_t)args->cols, swiglu_row, &copy);
    return RT_OK;
}

rt_status kern_cpu_gather_rows(kern_dev *dev, const kern_gather_rows_args *args)
{
    (void)dev;
    const size_t rows = (size_t)args->rows, cols = (size_t)args->cols;
    const size_t held = args->x->count / cols;
    const int32_t *index = kern_ci32(args->index);
    for (size_t r = 0; r < rows; r++) {
        if (index[r] < 0 || (size_t)index[r] >= held)
            return RT_FAIL(RT_ERR_INVALID, "kern_gather_rows: index[%zu] is %d, x has %zu rows", r,
                           index[r], held);
    }
    for (size_t r = 0; r < rows; r++)
        memcpy(kern_f32(args->out) + r * cols, kern_cf32(args->x) + (size_t)index[r] * cols,
               cols * sizeof(float));
    return RT_OK;
}
