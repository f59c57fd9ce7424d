// SPDX-License-Identifier: Apache-2.0
// A number whose exponent is all ones is not finite: a test of bits, the same for the
// three types, that the compiler turns into vector instructions.
#include "runtime/model/finite.h"

#include <stdio.h>
#include <string.h>

static uint32_t exponent_bits(kern_dtype dtype)
{
    return dtype == KERN_F32 ? 0x7f800000u : dtype == KERN_BF16 ? 0x7f80u : 0x7c00u;
}

static uint32_t load(const char *src, kern_dtype dtype, size_t i)
{
    uint32_t word;
    uint16_t half;
    if (dtype == KERN_F32) {
        memcpy(&word, src + i * sizeof word, sizeof word);
        return word;
    }
    memcpy(&half, src + i * sizeof half, sizeof half);
    return half;
}

static bool all_finite(const char *src, kern_dtype dtype, size_t n)
{
    const uint32_t exponent = exponent_bits(dtype);
    unsigned bad = 0;
    if (dtype == KERN_F32) {
        for (size_t i = 0; i < n; i++)
            bad |= (load(src, KERN_F32, i) & exponent) == exponent;
    } else {
        for (size_t i = 0; i < n; i++)
            bad |= (load(src, KERN_BF16, i) & exponent) == exponent;
    }
    return bad == 0;
}

static rt_status complain(const rt_tensor *t, const char *src, int row, int first_col)
{
    const uint32_t exponent = exponent_bits(t->dtype);
    const uint32_t fraction = t->dtype == KERN_F32 ? 0x7fffffu : ~exponent & 0x7fffu;
    size_t i = 0;
    while ((load(src, t->dtype, i) & exponent) != exponent)
        i++;
    char place[32];
    if (t->dims == 1)
        snprintf(place, sizeof place, "[%d]", row);
    else
        snprintf(place, sizeof place, "[%d, %d]", row, first_col + (int)i);
    return RT_FAIL(RT_ERR_FORMAT, "%s: tensor '%s' holds %s at %s (--allow-nonfinite takes it)",
                   t->file, t->name, load(src, t->dtype, i) & fraction ? "NaN" : "infinity", place);
}

rt_status rt_finite_check(const rt_tensor *t, par_range row, par_range col)
{
    const size_t size = kern_dtype_size(t->dtype);
    const size_t stride = t->dims == 1 ? 1 : (size_t)t->shape[1];
    for (int r = row.first; r < row.first + row.count; r++) {
        const char *src = (const char *)t->data + ((size_t)r * stride + (size_t)col.first) * size;
        if (!all_finite(src, t->dtype, (size_t)col.count))
            return complain(t, src, r, col.first);
    }
    return RT_OK;
}
