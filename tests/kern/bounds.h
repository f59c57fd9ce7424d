// SPDX-License-Identifier: Apache-2.0
// Page bounds in 8 bits, from their definition (kern.h, KV pages).
#ifndef TESTS_KERN_BOUNDS_H
#define TESTS_KERN_BOUNDS_H

#include "tests/kern/kern_testing.h"

static inline float bd_unit(int step)
{
    return ldexpf(1.0f, step - KERN_BOUND_BIAS);
}

// The least step that spans a group; the largest if none does, as for NaN.
static inline int bd_step(const float *low, const float *high)
{
    for (int step = 1; step < 20; step++) {
        bool spans = true;
        for (int c = 0; c < KERN_BOUND_GROUP; c++)
            spans &= fabsf(low[c]) <= 127 * bd_unit(step) && fabsf(high[c]) <= 127 * bd_unit(step);
        if (spans)
            return step;
    }
    return 20;
}

// NaN, the poison of tests, becomes the widest bounds there are.
static inline uint8_t bd_byte(float steps, float poison)
{
    const float x = isnan(steps) ? poison : steps;
    return (uint8_t)(128 + (int)fminf(fmaxf(x, -127.0f), 127.0f));
}

static inline void bd_narrow(const float *low, const float *high, size_t count, uint8_t *low_out,
                             uint8_t *high_out, uint8_t *step_out)
{
    for (size_t i = 0; i < count; i++) {
        const size_t group = i / KERN_BOUND_GROUP, first = group * KERN_BOUND_GROUP;
        const int step = bd_step(low + first, high + first);
        step_out[group] = (uint8_t)step;
        low_out[i] = bd_byte(floorf(low[i] / bd_unit(step)), -127.0f);
        high_out[i] = bd_byte(ceilf(high[i] / bd_unit(step)), 127.0f);
    }
}

static inline float bd_wide(uint8_t byte, uint8_t step)
{
    return (float)(byte - 128) * bd_unit(step);
}

// What 8 bits make of the bounds, in place.
static inline void bd_round(float *low, float *high, size_t count)
{
    uint8_t *l = kt_alloc(count, 1), *h = kt_alloc(count, 1);
    uint8_t *step = kt_alloc(count / KERN_BOUND_GROUP, 1);
    bd_narrow(low, high, count, l, h, step);
    for (size_t i = 0; i < count; i++) {
        low[i] = bd_wide(l[i], step[i / KERN_BOUND_GROUP]);
        high[i] = bd_wide(h[i], step[i / KERN_BOUND_GROUP]);
    }
    rt_free(l);
    rt_free(h);
    rt_free(step);
}

#endif
