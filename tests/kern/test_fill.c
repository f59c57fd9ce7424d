// SPDX-License-Identifier: Apache-2.0
// kern_fill_normal: the words of Philox, the moments of a normal, any number of threads.
// kern_xor_words: every word counts. Timers.
#include "tests/kern/kern_testing.h"

#include "runtime/base/clock.h"
#include "runtime/base/rng.h"

static float *fill(int threads, size_t count, uint64_t seed, float scale)
{
    kern_dev *dev = kt_open(threads);
    kern_buf *buf = kt_out_f32(dev, count);
    KT_OK(kern_fill_normal(dev, &(kern_fill_normal_args){buf, count, seed, scale}));
    float *out = kt_take(buf, count);
    kern_buf_free(buf);
    kern_dev_close(dev);
    return out;
}

static void test_words(void **state)
{
    (void)state;
    enum { COUNT = 1003 };
    const uint64_t seed = 0xfedcba9876543210u;
    float *got = fill(1, COUNT, seed, 2.0f);
    for (size_t i = 0; i < COUNT; i++) {
        const uint32_t counter[4] = {(uint32_t)(i / 4)};
        const rt_philox r = rt_philox4x32(seed, counter);
        const size_t pair = i % 4 / 2 * 2;
        const double u = (double)rt_uniform_open(r.v[pair]);
        const double angle = 2 * 3.14159265358979323846 * (double)rt_uniform_open(r.v[pair + 1]);
        const double want = 2 * sqrt(-2 * log(u)) * (i % 2 ? sin(angle) : cos(angle));
        if (!(fabs((double)got[i] - want) <= 1e-5)) // 10 times an ulp of the largest
            fail_msg("element %zu: %.9g, want %.9g", i, (double)got[i], want);
    }
    rt_free(got);
}

// Mean and deviation lie within five of their own deviations; no two seeds agree.
static void test_moments(void **state)
{
    (void)state;
    enum { COUNT = 400000 };
    float *a = fill(2, COUNT, 1, 0.02f), *b = fill(2, COUNT, 2, 0.02f);
    double sum = 0, squares = 0;
    size_t same = 0;
    for (size_t i = 0; i < COUNT; i++) {
        const double x = (double)a[i] / 0.02;
        sum += x;
        squares += x * x;
        same += a[i] == b[i];
    }
    assert_true(fabs(sum / COUNT) < 5 / sqrt(COUNT));
    assert_true(fabs(squares / COUNT - 1) < 5 * sqrt(2.0 / COUNT));
    assert_true(same < 10);
    rt_free(a);
    rt_free(b);
}

static void test_threads(void **state)
{
    (void)state;
    enum { COUNT = 100001 };
    float *one = fill(1, COUNT, 9, 1.0f), *four = fill(4, COUNT, 9, 1.0f);
    KT_SAME(one, four, COUNT, "threads");
    float *part = fill(3, 5001, 9, 1.0f); // the beginning does not depend on the length
    KT_SAME(one, part, 5001, "length");
    rt_free(one);
    rt_free(four);
    rt_free(part);
}

static void test_xor(void **state)
{
    (void)state;
    const size_t counts[] = {0, 1, 5, 70001};
    kt_rng rng = {7};
    kern_dev *dev = kt_open(3);
    for (size_t c = 0; c < KT_COUNT(counts); c++) {
        const size_t count = counts[c];
        int32_t *words = kt_ints(count + 1), want = 0;
        for (size_t i = 0; i <= count; i++) // one more, which must not count
            words[i] = (int32_t)kt_next(&rng);
        for (size_t i = 0; i < count; i++)
            want ^= words[i];
        kern_buf *src = kt_in_i32(dev, words, count + 1), *out = kt_out_i32(dev, 1);
        KT_OK(kern_xor_words(dev, &(kern_xor_words_args){src, count, out}));
        int32_t *got = kt_take(out, 1);
        assert_int_equal(got[0], want);
        kern_buf *empty;
        KT_OK(kern_buf_new(dev, KERN_I64, 0, "no words", &empty));
        KT_REFUSED(kern_xor_words(dev, &(kern_xor_words_args){empty, 1, out}), RT_ERR_INVALID,
                   "kern_xor_words", "src");
        kern_buf_free(empty);
        KT_REFUSED(kern_xor_words(dev, &(kern_xor_words_args){src, count + KT_GUARD + 2, out}),
                   RT_ERR_INVALID, "kern_xor_words", "src");
        KT_REFUSED(kern_xor_words(dev, &(kern_xor_words_args){src, count, NULL}), RT_ERR_INVALID,
                   "kern_xor_words", "out");
        kern_buf_free(src);
        kern_buf_free(out);
        rt_free(got);
        rt_free(words);
    }
    kern_dev_close(dev);
}

static void test_timer(void **state)
{
    (void)state;
    kern_dev *dev = kt_open(1);
    kern_timer *timer;
    double ms = -1;
    KT_OK(kern_timer_new(dev, 3, &timer));
    KT_OK(kern_timer_mark(timer, 0));
    rt_clock_sleep(0.02);
    KT_OK(kern_timer_mark(timer, 2));
    KT_OK(kern_timer_read(timer, 0, 2, &ms));
    assert_true(ms >= 19 && ms < 10000);
    KT_REFUSED(kern_timer_mark(timer, 3), RT_ERR_INVALID, "kern_timer_mark", "mark");
    KT_REFUSED(kern_timer_read(timer, 0, 3, &ms), RT_ERR_INVALID, "kern_timer_read", "to");
    KT_REFUSED(kern_timer_new(dev, 0, &timer), RT_ERR_INVALID, "kern_timer_new", "marks");
    kern_timer_free(timer);
    kern_timer_free(NULL);
    kern_dev_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),   cmocka_unit_test(test_moments),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_xor),
        cmocka_unit_test(test_timer),
    };
    return cmocka_run_group_tests_name("fill", tests, NULL, NULL);
}
