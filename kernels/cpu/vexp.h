// SPDX-License-Identifier: Apache-2.0
// expf without branches or calls, so that a loop over it vectorises.
//
// exp(x) = 2^n e^r with n = round(x / ln 2): n ln 2 is taken off in two parts
// (Cody and Waite), e^r is Moshier's polynomial (Cephes expf), and 2^n is built in
// two factors so that results under- and overflow as they should: 0 from -104
// down, inf from 89 up, NaN for NaN. Relative error at most 2e-7 where the result
// is a normal number; tests/kern/test_dense.c measures it.
#ifndef KERNELS_CPU_VEXP_H
#define KERNELS_CPU_VEXP_H

#include <stdint.h>
#include <string.h>

static inline float kern_vexp_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t kern_vexp_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Clamps to [-104, 89], NaN included. On the bit patterns, where a comparison is
// no obstacle to vectorising: it cannot trap.
static inline float kern_vexp_clamp(float x)
{
    const uint32_t low = 0xc2d00000u; // -104
    const int32_t high = 0x42b20000;  // 89
    uint32_t bits = kern_vexp_bits(x);
    bits = bits > low ? low : bits;
    int32_t order = (int32_t)bits;
    order = order > high ? high : order;
    return kern_vexp_float((uint32_t)order);
}

static inline float kern_vexpf(float x)
{
    const float shift = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const float c = kern_vexp_clamp(x);
    const float rounded = c * 1.44269504088896341f + shift;
    const float n = rounded - shift;
    float r = c - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // The low bits of `rounded` hold n; biased so that both halves are positive.
    const uint32_t biased = kern_vexp_bits(rounded) - 0x4b400000u + 256u;
    const uint32_t half = biased >> 1;
    p = p * kern_vexp_float((half - 1u) << 23) * kern_vexp_float((biased - half - 1u) << 23);
    const uint32_t quiet = 0u - (uint32_t)((kern_vexp_bits(x) & 0x7fffffffu) > 0x7f800000u);
    return kern_vexp_float(kern_vexp_bits(p) | quiet);
}

#endif
