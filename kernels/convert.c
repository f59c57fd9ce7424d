// SPDX-License-Identifier: Apache-2.0
// A number whose exponent is all ones is not finite: a test of bits, the same for the three
// types. It runs over a block just before the block is converted, while it is in the cache.
#include "kernels/convert.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 4096 };

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

static bool all_finite_words(const char *src, size_t n)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, src + i * sizeof word, sizeof word);
        bad |= (word & 0x7f800000u) == 0x7f800000u;
    }
    return bad == 0;
}

static bool all_finite_halves(const char *src, size_t n, uint16_t exponent)
{
    uint16_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, src + i * sizeof half, sizeof half);
        bad |= (uint16_t)((half & exponent) == exponent);
    }
    return bad == 0;
}

static bool all_finite(const char *src, kern_dtype dtype, size_t n)
{
    if (dtype == KERN_F32)
        return all_finite_words(src, n);
    return all_finite_halves(src, n, dtype == KERN_BF16 ? 0x7f80u : 0x7c00u);
}

static void widen_bf16(const char *src, size_t n, char *dst)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, src + i * sizeof half, sizeof half);
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(dst + i * sizeof bits, &bits, sizeof bits);
    }
}

static void convert_block(const char *src, kern_dtype from, size_t n, char *dst, kern_dtype to)
{
    const size_t read = kern_dtype_size(from), write = kern_dtype_size(to);
    if (from == to)
        memcpy(dst, src, n * read);
    else if (from == KERN_BF16 && to == KERN_F32)
        widen_bf16(src, n, dst);
    else
        for (size_t i = 0; i < n; i++)
            write_value(dst + i * write, to, read_value(src + i * read, from));
}

bool kern_convert(const void *src, kern_dtype from, size_t n, void *dst, kern_dtype to)
{
    const size_t read = kern_dtype_size(from), write = kern_dtype_size(to);
    bool finite = true;
    for (size_t i = 0; i < n; i += BLOCK) {
        const char *block = (const char *)src + i * read;
        const size_t count = n - i < BLOCK ? n - i : BLOCK;
        finite &= all_finite(block, from, count);
        convert_block(block, from, count, (char *)dst + i * write, to);
    }
    return finite;
}
