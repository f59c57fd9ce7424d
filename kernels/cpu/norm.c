// SPDX-License-Identifier: Apache-2.0
// RMSNorm on the CPU.
#include "kernels/cpu/dense.h"
#include "kernels/kern_int.h"

static void norm_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_rmsnorm_args *a = ctx;
    const size_t cols = (size_t)a->cols;
    float *x = kern_f32(a->x) + row * cols;
    if (a->add) {
        const float *add = kern_cf32(a->add) + row * cols;
        for (size_t c = 0; c < cols; c++)
            x[c] += add[c];
    }
    if (!a->out)
        return;
    const float *weight = kern_cf32(a->weight);
    float *out = kern_f32(a->out) + row * cols;
    const float scale = kern_cpu_rms_scale(x, cols, a->eps);
    for (size_t c = 0; c < cols; c++)
        out[c] = x[c] * scale * weight[c];
}

rt_status kern_cpu_rmsnorm(kern_dev *dev, const kern_rmsnorm_args *args)
{
    kern_rmsnorm_args copy = *args;
    const size_t rows = (size_t)args->rows;
    kern_cpu_run(dev, rows, rows * (size_t)args->cols, norm_row, &copy);
    return RT_OK;
}
