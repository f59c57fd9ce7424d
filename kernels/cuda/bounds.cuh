// SPDX-License-Identifier: Apache-2.0
// Page bounds in 8 bits (kern.h, KV pages): 16 channels share a step, a power of two, and
// are rounded outward to multiples of it. The step byte is the exponent field of an f16, so
// that two integer operations make the f16 numbers that tensor cores multiply: those are
// BOUND_SCALE times too small, which queries make up for.
#ifndef KERNELS_CUDA_BOUNDS_CUH
#define KERNELS_CUDA_BOUNDS_CUH

#include "kernels/cuda/common.cuh"

enum { BOUND_GROUP = KERN_BOUND_GROUP, STEP_LEAST = 1, STEP_MOST = 20 };
static const float BOUND_SCALE = 4.0f;
static const unsigned BOUND_EXPONENTS = 0x64646464u; // the upper bytes of those numbers

// The smallest step with which |x| <= most lies within 127 multiples.
__device__ inline int bound_step(float most)
{
    int exponent;
    frexpf(most, &exponent);
    exponent -= 7;
    exponent += most > ldexpf(127.0f, exponent);
    return min(max(exponent + KERN_BOUND_BIAS, (int)STEP_LEAST), (int)STEP_MOST);
}

// x, a multiple of the step after rounding, as a byte.
__device__ inline unsigned char bound_byte(float multiple)
{
    return (unsigned char)(128 + (int)fminf(fmaxf(multiple, -127.0f), 127.0f));
}

// The f16 pair {step, step} / BOUND_SCALE.
__device__ inline __half2 step_pair(unsigned char step)
{
    const unsigned bits = (unsigned)step * 0x04000400u;
    return *(const __half2 *)&bits;
}

// Bytes 0 and 1 (high: 2 and 3) of a word as multiples of the step: 0x6400 | b is the f16
// number 1024 + b, and adding before multiplying would round nothing either. `exponents` are
// BOUND_EXPONENTS.
template <bool HIGH>
__device__ inline unsigned bound_pair(unsigned bytes, unsigned exponents, __half2 step,
                                      __half2 shift)
{
    const unsigned raw = __byte_perm(bytes, exponents, HIGH ? 0x4342 : 0x4140);
    const __half2 pair = __hfma2(*(const __half2 *)&raw, step, shift);
    return *(const unsigned *)&pair;
}

// What bound_pair adds: -(1024 + 128) steps.
__device__ inline __half2 step_shift(__half2 step)
{
    return __hmul2(step, __float2half2_rn(-1152.0f));
}

#endif
