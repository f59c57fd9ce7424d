// SPDX-License-Identifier: Apache-2.0
// Head norms and rotary embedding on the CPU.
#include "kernels/cpu/dense.h"
#include "kernels/kern_int.h"

static void norm_head(float *x, size_t dim, const float *weight, float eps)
{
    const float scale = kern_cpu_rms_scale(x, dim, eps);
    for (size_t c = 0; c < dim; c++)
        x[c] *= scale * weight[c];
}

static void rotate_head(float *x, size_t half, const float *cosine, const float *sine)
{
    for (size_t c = 0; c < half; c++) {
        const float a = x[c], b = x[c + half];
        x[c] = a * cosine[c] - b * sine[c];
        x[c + half] = b * cosine[c] + a * sine[c];
    }
}

static void rope_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_qk_rope_args *a = ctx;
    const size_t dim = (size_t)a->head_dim, half = dim / 2;
    const size_t q_heads = (size_t)a->heads, kv_heads = (size_t)a->kv_heads;
    const size_t pos = (size_t)kern_ci32(a->pos)[row];
    const float *cosine = kern_cf32(a->cos) + pos * half;
    const float *sine = kern_cf32(a->sin) + pos * half;
    float *x = kern_f32(a->qkv) + row * (q_heads + 2 * kv_heads) * dim;
    for (size_t h = 0; h < q_heads + kv_heads; h++, x += dim) {
        const kern_buf *weight = h < q_heads ? a->q_norm : a->k_norm;
        if (weight)
            norm_head(x, dim, kern_cf32(weight), a->eps);
        rotate_head(x, half, cosine, sine);
    }
}

rt_status kern_cpu_qk_rope(kern_dev *dev, const kern_qk_rope_args *args)
{
    const size_t rows = (size_t)args->rows;
    const int32_t *pos = kern_ci32(args->pos);
    for (size_t r = 0; r < rows; r++) {
        if (pos[r] < 0 || pos[r] >= args->max_pos)
            return RT_FAIL(RT_ERR_INVALID, "kern_qk_rope: pos[%zu] is %d, max_pos is %d", r, pos[r],
                           args->max_pos);
    }
    kern_qk_rope_args copy = *args;
    const size_t heads = (size_t)args->heads + (size_t)args->kv_heads;
    kern_cpu_run(dev, rows, rows * heads * (size_t)args->head_dim, rope_row, &copy);
    return RT_OK;
}
