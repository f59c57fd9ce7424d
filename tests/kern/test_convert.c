// SPDX-License-Identifier: Apache-2.0
// Numbers of a checkpoint against their definition: sign, exponent, fraction.
#include "kernels/convert.h"
#include "runtime/base/rng.h"
#include "tests/kern/kern_testing.h"

#include <math.h>

// The value of a bf16 or f16 by its fields; NaN where the exponent is all ones and more.
static double value_of(uint32_t bits, kern_dtype dtype)
{
    const int fraction_bits = dtype == KERN_BF16 ? 7 : 10, bias = dtype == KERN_BF16 ? 127 : 15;
    const uint32_t fraction = bits & ((1u << fraction_bits) - 1);
    const int all_ones = 2 * bias + 1, exponent = (int)(bits >> fraction_bits) & all_ones;
    double size;
    if (exponent == all_ones)
        size = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        size = ldexp(fraction, 1 - bias - fraction_bits);
    else
        size = ldexp((1u << fraction_bits) + fraction, exponent - bias - fraction_bits);
    return bits >> 15 ? -size : size;
}

static void test_widen(void **state)
{
    (void)state;
    static const kern_dtype types[] = {KERN_BF16, KERN_F16};
    for (int t = 0; t < 2; t++) {
        for (uint32_t bits = 0; bits < 65536; bits++) {
            const uint16_t half = (uint16_t)bits;
            const double want = value_of(bits, types[t]);
            float got = 0;
            assert_int_equal(kern_convert(&half, types[t], 1, &got, KERN_F32), isfinite(want));
            if (isnan(want) ? !isnan(got) : (double)got != want || !signbit(got) != !(bits >> 15))
                fail_msg("%s %04x: %g, not %g", kern_dtype_name(types[t]), bits, (double)got, want);
        }
    }
}

// No neighbour is nearer; of two that are as near the even one is taken.
static void check_rounding(float x, kern_dtype to)
{
    uint16_t got;
    (void)kern_convert(&x, KERN_F32, 1, &got, to);
    const double v = value_of(got, to), error = fabs(v - (double)x);
    if (isinf(v)) { // beyond the largest by half a step or more
        const double largest = value_of((uint32_t)got - 1, to);
        assert_true(fabs((double)x) - fabs(largest) >=
                    (fabs(largest) - fabs(value_of((uint32_t)got - 2, to))) / 2);
        return;
    }
    for (int step = -1; step <= 1; step += 2) {
        const uint32_t other = ((uint32_t)got & 0x7fff) + (uint32_t)step;
        if (other > 0x7fff) // below zero
            continue;
        const double w = copysign(value_of(other, to), v);
        if (isinf(w))
            continue;
        const double distance = fabs(w - (double)x);
        if (distance < error || (distance == error && got % 2 == 1))
            fail_msg("%a became %a, %a is nearer or even", (double)x, v, w);
    }
}

static void test_narrow(void **state)
{
    (void)state;
    static const float ties[] = {1.00390625f, 1.01171875f, 0x1.004p0f, 0x1.00cp0f,  0x1.8p-25f,
                                 0x1p-25f,    65519.0f,    65520.0f,   0x1.ffp127f, 0x1.fep127f};
    for (size_t i = 0; i < KT_COUNT(ties); i++) {
        check_rounding(ties[i], KERN_BF16);
        check_rounding(-ties[i], KERN_F16);
    }
    for (uint32_t i = 0; i < 20000; i++) {
        const rt_philox words = rt_philox4x32(7, (const uint32_t[4]){i, 0, 0, 0});
        float any, near_one = rt_uniform_open(words.v[1]) * 4.0f - 2.0f;
        memcpy(&any, &words.v[0], sizeof any);
        const float *values[] = {&any, &near_one};
        for (int k = 0; k < 2; k++) {
            if (!isfinite(*values[k]))
                continue;
            check_rounding(*values[k], KERN_BF16);
            check_rounding(*values[k], KERN_F16);
        }
    }
    const float odd[] = {NAN, INFINITY, -INFINITY};
    for (int t = KERN_BF16; t <= KERN_F16; t++)
        for (int i = 0; i < 3; i++) {
            uint16_t got;
            assert_false(kern_convert(&odd[i], KERN_F32, 1, &got, (kern_dtype)t));
            const double v = value_of(got, (kern_dtype)t);
            assert_true(i == 0 ? isnan(v) : v == (double)odd[i]);
        }
}

// One number that is not finite is found wherever it stands; at addresses without alignment.
static void test_finite(void **state)
{
    (void)state;
    enum { N = 4096 * 2 + 3 };
    static const struct {
        kern_dtype dtype;
        uint32_t bits;
        bool finite;
    } patterns[] = {
        {KERN_F32, 0x7f800000u, false}, {KERN_F32, 0xff800001u, false},
        {KERN_F32, 0x7f7fffffu, true},  {KERN_BF16, 0x7f80u, false},
        {KERN_BF16, 0xff81u, false},    {KERN_BF16, 0x7f7fu, true},
        {KERN_F16, 0x7c00u, false},     {KERN_F16, 0xfc01u, false},
        {KERN_F16, 0x7bffu, true},
    };
    unsigned char *src = kt_alloc(N * 4 + 1, 1), *dst = kt_alloc(N * 4 + 1, 1);
    for (size_t p = 0; p < KT_COUNT(patterns); p++) {
        const size_t size = kern_dtype_size(patterns[p].dtype);
        for (size_t at = 0; at < N; at += at % 4096 < 4090 && at > 5 ? 511 : 1) {
            memset(src, 0, N * 4 + 1);
            memcpy(src + 1 + at * size, &patterns[p].bits, size); // little endian
            const bool finite =
                kern_convert(src + 1, patterns[p].dtype, N, dst + 1, patterns[p].dtype);
            assert_int_equal(finite, patterns[p].finite);
            assert_memory_equal(dst + 1, src + 1, N * size);
        }
    }
    rt_free(src);
    rt_free(dst);
}

// An upload tells of one in its own columns, and not of one beside them.
static void test_upload(void **state)
{
    (void)state;
    const float inf = INFINITY, src[2][4] = {{1, 2, 3, inf}, {4, 5, 6, 7}};
    kern_dev *dev = kt_open(2);
    kern_buf *dst = kt_out_f32(dev, 8);
    bool nonfinite = false;
    kern_upload_args args = {.dst = dst,
                             .src = src,
                             .dtype = KERN_F32,
                             .rows = 2,
                             .cols = 3,
                             .stride = 4,
                             .nonfinite = &nonfinite};
    KT_OK(kern_upload(&args));
    assert_false(nonfinite);
    args.cols = 4;
    KT_OK(kern_upload(&args));
    assert_true(nonfinite);
    args.nonfinite = NULL;
    KT_OK(kern_upload(&args));
    kern_buf_free(dst);
    kern_dev_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widen),
        cmocka_unit_test(test_narrow),
        cmocka_unit_test(test_finite),
        cmocka_unit_test(test_upload),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
