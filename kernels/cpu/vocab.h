// SPDX-License-Identifier: Apache-2.0
// What the vocabulary operations of the CPU share: floats as ordered integers,
// and rows of the small per-row buffers.
//
// The key of a float is a u32 with the float's order (sign flip). A logit that is
// NaN counts as -inf and +inf as the largest finite number, so that nothing
// downstream meets inf - inf; -0 counts as 0, so that they tie. Comparing integers
// also lets the loops vectorise.
#ifndef KERNELS_CPU_VOCAB_H
#define KERNELS_CPU_VOCAB_H

#include "kernels/cpu/vexp.h"
#include "kernels/kern_int.h"

enum {
    KERN_STATE_THRESHOLD, // u32 key
    KERN_STATE_FLOOR,     // u32 key
    KERN_STATE_NEED,      // f32: tokens (TOP_K) or mass (TOP_P) still to be found
    KERN_STATE_SPARE,
    KERN_STATE_WORDS,
};
enum { KERN_HIST_BINS = 256 };

// Keys as signed integers: the sign bit of the u32 key flipped.
static inline int32_t kern_vocab_order(float l)
{
    const int32_t lowest = (int32_t)0x807fffffu;            // -inf
    const int32_t largest = 0x7f7fffff;                     // FLT_MAX
    const int32_t bits = (int32_t)kern_vexp_bits(l + 0.0f); // -0 + 0 is 0
    int32_t order = bits ^ (int32_t)((uint32_t)(bits >> 31) & 0x7fffffffu);
    order = order > 0x7f800000 ? lowest : order; // NaN
    order = order < lowest ? lowest : order;     // NaN with a sign
    order = order > largest ? largest : order;
    return order;
}

static inline float kern_vocab_value(int32_t order)
{
    return kern_vexp_float((uint32_t)order ^ ((uint32_t)(order >> 31) & 0x7fffffffu));
}

static inline uint32_t kern_vocab_key(int32_t order)
{
    return (uint32_t)order ^ 0x80000000u;
}

static inline const kern_sample_row *kern_vocab_sample(const kern_buf *sample, size_t row)
{
    return (const kern_sample_row *)sample->ptr + row;
}

#endif
