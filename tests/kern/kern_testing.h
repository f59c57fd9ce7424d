// SPDX-License-Identifier: Apache-2.0
// Helpers of the kernel tests: devices, random arrays from fixed seeds, buffers
// with a guard area behind the shape, and error reports.
//
// Outputs start poisoned: a value that an operation should have written and did
// not shows as kt_poison. The guard shows a write beyond the shape.
#ifndef TESTS_KERN_KERN_TESTING_H
#define TESTS_KERN_KERN_TESTING_H

#include "kernels/kern.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { KT_GUARD = 67 };                       // elements behind every buffer of these helpers
static const uint32_t kt_poison = 0x7fc0dead; // a NaN; as i32 a wild number

#define KT_OK(expr)                                                                                \
    do {                                                                                           \
        if ((expr) != RT_OK)                                                                       \
            fail_msg("%s: %s", #expr, rt_last_error());                                            \
    } while (0)

#define KT_COUNT(array) (sizeof(array) / sizeof *(array))

static inline kern_dev *kt_open(int threads)
{
    const kern_dev_options options = {.kind = KERN_CPU, .threads = threads};
    kern_dev *dev = NULL;
    KT_OK(kern_dev_open(&options, &dev));
    return dev;
}

// ---- random numbers (splitmix64) ---------------------------------------------

typedef struct kt_rng {
    uint64_t state;
} kt_rng;

static inline uint64_t kt_next(kt_rng *rng)
{
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// Uniform in [low, high).
static inline float kt_uniform(kt_rng *rng, float low, float high)
{
    return low + (high - low) * ((float)(kt_next(rng) >> 40) * 0x1p-24f);
}

// Uniform in [low, high].
static inline int kt_int(kt_rng *rng, int low, int high)
{
    return low + (int)(kt_next(rng) % (uint64_t)(high - low + 1));
}

// Normal with mean 0 (Box and Muller).
static inline float kt_normal(kt_rng *rng, float deviation)
{
    const float u = kt_uniform(rng, 0x1p-24f, 1.0f), v = kt_uniform(rng, 0.0f, 6.2831853f);
    return deviation * sqrtf(-2.0f * logf(u)) * cosf(v);
}

// ---- arrays; free with rt_free -------------------------------------------------

static inline void *kt_alloc(size_t count, size_t size)
{
    void *memory = rt_mem_alloc(count, size, "test array");
    if (!memory)
        fail_msg("%s", rt_last_error());
    return memory;
}

static inline float *kt_floats(size_t count)
{
    return kt_alloc(count, sizeof(float));
}

static inline int32_t *kt_ints(size_t count)
{
    return kt_alloc(count, sizeof(int32_t));
}

static inline float *kt_random(kt_rng *rng, size_t count, float deviation)
{
    float *out = kt_floats(count);
    for (size_t i = 0; i < count; i++)
        out[i] = kt_normal(rng, deviation);
    return out;
}

// ---- buffers --------------------------------------------------------------------

// `count` elements and a guard, all poisoned.
static inline kern_buf *kt_out(kern_dev *dev, kern_dtype dtype, size_t count)
{
    kern_buf *buf = NULL;
    KT_OK(kern_buf_new(dev, dtype, count + KT_GUARD, "test buffer", &buf));
    const size_t words = (count + KT_GUARD) * kern_dtype_size(dtype) / sizeof(uint32_t);
    uint32_t *poison = kt_alloc(words, sizeof *poison);
    for (size_t i = 0; i < words; i++)
        poison[i] = kt_poison;
    KT_OK(kern_write(buf, 0, poison, words * sizeof(uint32_t) / kern_dtype_size(dtype)));
    rt_free(poison);
    return buf;
}

// A buffer (and guard) that starts with a copy of `data`.
static inline kern_buf *kt_in(kern_dev *dev, kern_dtype dtype, const void *data, size_t count)
{
    kern_buf *buf = kt_out(dev, dtype, count);
    KT_OK(kern_write(buf, 0, data, count));
    return buf;
}

static inline kern_buf *kt_in_f32(kern_dev *dev, const float *data, size_t count)
{
    return kt_in(dev, KERN_F32, data, count);
}

static inline kern_buf *kt_in_i32(kern_dev *dev, const int32_t *data, size_t count)
{
    return kt_in(dev, KERN_I32, data, count);
}

static inline kern_buf *kt_out_f32(kern_dev *dev, size_t count)
{
    return kt_out(dev, KERN_F32, count);
}

static inline kern_buf *kt_out_i32(kern_dev *dev, size_t count)
{
    return kt_out(dev, KERN_I32, count);
}

// Checks the guard behind `count` elements and returns a copy of them.
static inline void *kt_take(const kern_buf *buf, size_t count)
{
    const size_t size = kern_dtype_size(kern_buf_dtype(buf));
    char *all = kt_alloc(count + KT_GUARD, size);
    KT_OK(kern_read(buf, 0, all, count + KT_GUARD));
    const size_t poisoned = (count + KT_GUARD) * size / sizeof kt_poison * sizeof kt_poison;
    for (size_t i = count * size; i < poisoned; i++)
        if (all[i] != ((const char *)&kt_poison)[i % sizeof kt_poison])
            fail_msg("written beyond the shape: byte %zu of %zu", i, count * size);
    return all;
}

// ---- comparison -------------------------------------------------------------------

// Largest |got - want| / max(floor, |want|); NaN in either is infinitely wrong.
static inline double kt_error(const float *got, const double *want, size_t count, double floor)
{
    double worst = 0.0;
    for (size_t i = 0; i < count; i++) {
        if (got[i] == (float)want[i]) // equal infinities too
            continue;
        const double error = fabs((double)got[i] - want[i]) / fmax(floor, fabs(want[i]));
        worst = isnan(error) ? (double)INFINITY : fmax(worst, error);
    }
    return worst;
}

#define KT_NEAR(got, want, count, floor, tolerance)                                                \
    do {                                                                                           \
        const double kt_worst_ = kt_error((got), (want), (count), (floor));                        \
        if (!(kt_worst_ <= (tolerance)))                                                           \
            fail_msg("%s: error %g, allowed %g", #got, kt_worst_, (double)(tolerance));            \
    } while (0)

#define KT_SAME(a, b, count, what)                                                                 \
    do {                                                                                           \
        if (memcmp((a), (b), (count) * sizeof *(a)) != 0)                                          \
            fail_msg("%s: %s and %s are not bitwise equal", (what), #a, #b);                       \
    } while (0)

// The call is refused, and the message names both the operation and the field.
#define KT_REFUSED(call, code, op, field)                                                          \
    do {                                                                                           \
        assert_int_equal((call), (code));                                                          \
        if (!strstr(rt_last_error(), (op)) || !strstr(rt_last_error(), (field)))                   \
            fail_msg("\"%s\" does not name %s and %s", rt_last_error(), (op), (field));            \
    } while (0)

#endif
