// SPDX-License-Identifier: Apache-2.0
// Upload of weights to a CUDA device: rows are gathered and converted on the host,
// into pinned memory, while earlier pieces are on their way.
#include "kernels/cuda/cuda_int.h"

#include <math.h>
#include <string.h>

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of_half(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t rest = half & 0x7fffu;
    if (rest >= 0x7c00u) // infinity and NaN
        return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    const float magnitude = float_of_bits(rest << 13) * 0x1p112f;
    return sign ? -magnitude : magnitude;
}

static float read_value(const char *src, kern_dtype dtype)
{
    if (dtype == KERN_F32) {
        float value;
        memcpy(&value, src, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, src, sizeof half);
    return dtype == KERN_BF16 ? float_of_bits((uint32_t)half << 16) : float_of_half(half);
}

// Round to nearest, ties to even; NaN stays NaN.
static uint16_t bf16_of_float(float value)
{
    const uint32_t bits = bits_of_float(value);
    if (isnan(value))
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static uint16_t half_of_float(float value)
{
    const uint32_t bits = bits_of_float(value);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const float magnitude = fabsf(value);
    if (isnan(value))
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 65520.0f)
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x1p-14f) // subnormal: a multiple of 2^-24
        return (uint16_t)(sign | (uint16_t)lrintf(magnitude * 0x1p24f));
    const uint32_t rest = bits & 0x7fffffffu;
    return (uint16_t)(sign | (((rest + 0xfffu + (rest >> 13 & 1u)) >> 13) - (112u << 10)));
}

static void write_value(char *dst, kern_dtype dtype, float value)
{
    if (dtype == KERN_F32) {
        memcpy(dst, &value, sizeof value);
        return;
    }
    const uint16_t half = dtype == KERN_BF16 ? bf16_of_float(value) : half_of_float(value);
    memcpy(dst, &half, sizeof half);
}

static void convert(const char *src, kern_dtype from, size_t count, char *dst, kern_dtype to)
{
    const size_t read = kern_dtype_size(from), write = kern_dtype_size(to);
    if (from == to) {
        memcpy(dst, src, count * read);
        return;
    }
    for (size_t i = 0; i < count; i++)
        write_value(dst + i * write, to, read_value(src + i * read, from));
}

// Elements [first, first + count) of the dense [rows, cols] matrix.
static void gather(const kern_upload_args *args, size_t first, size_t count, char *dst)
{
    const size_t read = kern_dtype_size(args->dtype), write = kern_dtype_size(args->dst->dtype);
    while (count > 0) {
        const size_t row = first / args->cols, col = first % args->cols;
        const size_t n = args->cols - col < count ? args->cols - col : count;
        const char *src = (const char *)args->src + (row * args->stride + col) * read;
        convert(src, args->dtype, n, dst, args->dst->dtype);
        dst += n * write;
        first += n;
        count -= n;
    }
}

rt_status kern_cuda_upload(kern_dev *dev, const kern_upload_args *args)
{
    const kern_dtype dtype = args->dst->dtype;
    if (dtype != KERN_F32 && dtype != KERN_BF16 && dtype != KERN_F16)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "kern_upload: dst is %s, want f32, bf16 or f16",
                       kern_dtype_name(dtype));
    const size_t size = kern_dtype_size(dtype), most = KERN_CUDA_STAGE / size;
    const size_t total = args->rows * args->cols;
    for (size_t done = 0; done < total;) {
        const size_t n = total - done < most ? total - done : most;
        void *staged;
        RT_TRY(kern_cuda_stage(dev, n * size, &staged));
        gather(args, done, n, staged);
        char *dst = (char *)args->dst->ptr + (args->first + done) * size;
        RT_TRY(kern_cuda_stage_copy(dev, dst, staged, n * size));
        done += n;
    }
    return RT_OK;
}
