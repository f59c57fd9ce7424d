// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 against the known answers that Random123 ships (kat_vectors), and
// the map to (0, 1).
#include "tests/unit/testing.h"

#include "runtime/base/rng.h"

static const struct {
    uint32_t counter[4], key[2], out[4];
} known[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static void test_known_answers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint64_t key = (uint64_t)known[i].key[1] << 32 | known[i].key[0];
        rt_philox got = rt_philox4x32(key, known[i].counter);
        assert_memory_equal(got.v, known[i].out, sizeof got.v);
    }
}

static void test_uniform_range(void **state)
{
    (void)state;
    assert_true(rt_uniform_open(0) > 0);
    assert_true(rt_uniform_open(UINT32_MAX) < 1);
    assert_true(isfinite(logf(rt_uniform_open(0))));
    assert_true(logf(rt_uniform_open(UINT32_MAX)) < 0);
    assert_true(rt_uniform_open(0x80000000u) > 0.5f && rt_uniform_open(0x7fffffffu) < 0.5f);
}

static void test_uniform_moments(void **state)
{
    (void)state;
    const int n = 1 << 16;
    double sum = 0, squares = 0;
    for (uint32_t i = 0; i < (uint32_t)n / 4; i++) {
        rt_philox words = rt_philox4x32(42, (uint32_t[4]){i, 7, 0, 0});
        for (int w = 0; w < 4; w++) {
            double u = (double)rt_uniform_open(words.v[w]);
            sum += u;
            squares += u * u;
        }
    }
    // Standard errors are 1.1e-3 and 1.2e-3; five of them.
    assert_true(fabs(sum / n - 1.0 / 2) < 6e-3);
    assert_true(fabs(squares / n - 1.0 / 3) < 6e-3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_uniform_range),
        cmocka_unit_test(test_uniform_moments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
