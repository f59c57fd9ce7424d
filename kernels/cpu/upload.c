// SPDX-License-Identifier: Apache-2.0
// Upload of weights to the CPU device: bf16 and f16 become f32, exactly.
#include "kernels/kern_int.h"

#include <string.h>

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Moves sign, exponent and fraction to their places in an f32 and corrects the
// exponent's bias by a multiplication, which also normalises subnormal numbers.
static float float_of_half(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t rest = half & 0x7fffu;
    if (rest >= 0x7c00u) // infinity and NaN
        return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    const float magnitude = float_of_bits(rest << 13) * 0x1p112f;
    return sign ? -magnitude : magnitude;
}

static void convert_row(const char *src, kern_dtype dtype, size_t cols, float *out)
{
    if (dtype == KERN_F32) {
        memcpy(out, src, cols * sizeof *out);
        return;
    }
    for (size_t c = 0; c < cols; c++) {
        uint16_t half;
        memcpy(&half, src + c * sizeof half, sizeof half);
        out[c] = dtype == KERN_BF16 ? float_of_bits((uint32_t)half << 16) : float_of_half(half);
    }
}

static void upload_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_upload_args *a = ctx;
    const char *src = (const char *)a->src + row * a->stride * kern_dtype_size(a->dtype);
    convert_row(src, a->dtype, a->cols, kern_f32(a->dst) + a->first + row * a->cols);
}

rt_status kern_cpu_upload(kern_dev *dev, const kern_upload_args *args)
{
    if (args->dst->dtype != KERN_F32)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "kern_upload: dst is %s, the CPU keeps weights in f32",
                       kern_dtype_name(args->dst->dtype));
    kern_upload_args copy = *args;
    kern_cpu_run(dev, args->rows, args->rows * args->cols, upload_row, &copy);
    return RT_OK;
}
