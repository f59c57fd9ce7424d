// SPDX-License-Identifier: Apache-2.0
// Shards of every rank: the ranges tile each axis, KV heads are copied where they
// must be, and what does not divide is refused with the numbers.
#include "parallel/plan.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static const par_shape SDAR_8B = {.heads = 32, .kv_heads = 8, .ffn = 12288, .vocab = 151936};
static const par_shape QWEN25_7B = {.heads = 28, .kv_heads = 4, .ffn = 18944, .vocab = 152064};
static const par_shape QWEN25_1B = {.heads = 12, .kv_heads = 2, .ffn = 8960, .vocab = 151936};
static const par_shape SMALL = {.heads = 8, .kv_heads = 2, .ffn = 48, .vocab = 1003};
static const par_shape ODD = {.heads = 6, .kv_heads = 3, .ffn = 30, .vocab = 17};

static const struct {
    const par_shape *shape;
    int ranks, heads, kv_heads, replicas; // of one rank
} GOOD[] = {
    {&SDAR_8B, 1, 32, 8, 1},   {&SDAR_8B, 2, 16, 4, 1},   {&SDAR_8B, 4, 8, 2, 1},
    {&SDAR_8B, 8, 4, 1, 1},    {&SDAR_8B, 16, 2, 1, 2},   {&SDAR_8B, 32, 1, 1, 4},
    {&QWEN25_7B, 1, 28, 4, 1}, {&QWEN25_7B, 2, 14, 2, 1}, {&QWEN25_7B, 4, 7, 1, 1},
    {&QWEN25_1B, 1, 12, 2, 1}, {&QWEN25_1B, 2, 6, 1, 1},  {&QWEN25_1B, 4, 3, 1, 2},
    {&SMALL, 4, 2, 1, 2},      {&SMALL, 8, 1, 1, 4},      {&ODD, 3, 2, 1, 1},
    {&ODD, 6, 1, 1, 2},
};

static const struct {
    par_shape shape;
    int ranks;
    const char *message;
} BAD[] = {
    {{8, 2, 48, 100}, 3, "8 query heads do not divide over 3 ranks"},
    {{8, 2, 48, 100}, 16, "8 query heads do not divide over 16 ranks"},
    {{8, 3, 48, 100}, 1, "8 query heads do not divide over 3 KV heads"},
    {{12, 6, 48, 100}, 4, "6 KV heads do not divide over 4 ranks"},
    {{12, 4, 48, 100}, 6, "6 ranks do not divide over 4 KV heads"},
    {{8, 4, 50, 100}, 4, "50 MLP columns do not divide over 4 ranks"},
    {{8, 4, 48, 9}, 4, "9 vocabulary rows leave none for the last of 4 ranks (3 each)"},
    {{8, 4, 48, 3}, 4, "3 vocabulary rows leave none for the last of 4 ranks (1 each)"},
    {{2, 2, INT_MAX - 1, 1}, 2, "1 vocabulary rows leave none for the last of 2 ranks (1 each)"},
};

// The ranges of consecutive owners follow each other from 0 to `total`; `copies`
// consecutive ranks own the same range.
static void assert_tiles(const par_range *range, int ranks, int copies, int total)
{
    int next = 0;
    for (int r = 0; r < ranks; r++) {
        assert_true(range[r].count >= 1);
        if (r % copies == 0) {
            assert_int_equal(range[r].first, next);
            next += range[r].count;
        } else {
            assert_int_equal(range[r].first, range[r - 1].first);
            assert_int_equal(range[r].count, range[r - 1].count);
        }
    }
    assert_int_equal(next, total);
}

static void check_good(const par_shape *shape, int ranks, int heads, int kv_heads, int replicas)
{
    enum { MOST = 32 };
    par_range q[MOST], kv[MOST], ffn[MOST], vocab[MOST];
    for (int r = 0; r < ranks; r++) {
        par_plan plan;
        assert_int_equal(par_plan_make(shape, r, ranks, &plan), RT_OK);
        assert_int_equal(plan.rank, r);
        assert_int_equal(plan.ranks, ranks);
        assert_int_equal(plan.heads.count, heads);
        assert_int_equal(plan.kv_heads.count, kv_heads);
        assert_int_equal(plan.kv_replicas, replicas);
        // Every query head finds the KV head of its group on its own rank.
        int group = shape->heads / shape->kv_heads;
        for (int h = plan.heads.first; h < plan.heads.first + heads; h++) {
            int local = h / group - plan.kv_heads.first;
            assert_true(local >= 0 && local < kv_heads);
        }
        q[r] = plan.heads;
        kv[r] = plan.kv_heads;
        ffn[r] = plan.ffn;
        vocab[r] = plan.vocab;
        assert_int_equal(plan.vocab.first, r * vocab[0].count); // the owner is a division
    }
    assert_tiles(q, ranks, 1, shape->heads);
    assert_tiles(kv, ranks, replicas, shape->kv_heads);
    assert_tiles(ffn, ranks, 1, shape->ffn);
    assert_tiles(vocab, ranks, 1, shape->vocab);
}

static void test_tiles(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof GOOD / sizeof GOOD[0]; i++)
        check_good(GOOD[i].shape, GOOD[i].ranks, GOOD[i].heads, GOOD[i].kv_heads, GOOD[i].replicas);
}

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++)
        for (int r = 0; r < BAD[i].ranks; r++) {
            par_plan plan = {.rank = -7};
            assert_int_equal(par_plan_make(&BAD[i].shape, r, BAD[i].ranks, &plan),
                             RT_ERR_UNSUPPORTED);
            assert_string_equal(rt_last_error(), BAD[i].message);
            assert_int_equal(plan.rank, -7);
        }
}

// Whatever the small shape and number of ranks: refused on every rank, or tiled.
static void test_all_small(void **state)
{
    (void)state;
    for (int kv = 1; kv <= 6; kv++)
        for (int heads = kv; heads <= 24; heads++)
            for (int ranks = 1; ranks <= 12; ranks++) {
                par_shape shape = {heads, kv, 12 * ranks, 50};
                bool fits = heads % kv == 0 && heads % ranks == 0 &&
                            (ranks <= kv ? kv % ranks == 0 : ranks % kv == 0);
                par_plan plan;
                if (fits && (50 + ranks - 1) / ranks * (ranks - 1) < 50)
                    check_good(&shape, ranks, heads / ranks, ranks > kv ? 1 : kv / ranks,
                               ranks > kv ? ranks / kv : 1);
                else
                    assert_int_equal(par_plan_make(&shape, ranks - 1, ranks, &plan),
                                     RT_ERR_UNSUPPORTED);
            }
}

static void test_arguments(void **state)
{
    (void)state;
    par_plan plan;
    par_shape none = SMALL;
    none.vocab = 0;
    assert_int_equal(par_plan_make(&SMALL, 2, 2, &plan), RT_ERR_INVALID);
    assert_int_equal(par_plan_make(&SMALL, -1, 2, &plan), RT_ERR_INVALID);
    assert_int_equal(par_plan_make(&SMALL, 0, 0, &plan), RT_ERR_INVALID);
    assert_int_equal(par_plan_make(&none, 0, 1, &plan), RT_ERR_INVALID);
    assert_int_equal(par_plan_make(&SMALL, 0, 1, NULL), RT_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_all_small),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
