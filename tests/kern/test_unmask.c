// SPDX-License-Identifier: Apache-2.0
// Unmasking rules against worked examples and a reference that sorts, over random
// windows; positions that are not masked never change.
#include "tests/kern/kern_testing.h"

#include <stdlib.h>

enum { M = KERN_ROW_MASKED, N = KERN_ROW_NEW, MAX_COUNT = 80 };

// One window: positions 0.. of ids and state, rows 0.. of the statistics.
typedef struct unmask_case {
    int count;
    int32_t ids[MAX_COUNT], state[MAX_COUNT], token[MAX_COUNT];
    float confidence[MAX_COUNT], entropy[MAX_COUNT];
} unmask_case;

// Runs `n` windows over the arrays of the case, in place; `space` entries each.
static rt_status run_unmask(unmask_case *c, size_t space, const kern_unmask_window *windows, int n)
{
    kern_dev *dev = kt_open(1);
    kern_buf *w = kt_in(dev, KERN_I32, windows, (size_t)n * KERN_UNMASK_WORDS), *buf[5];
    buf[0] = kt_in_i32(dev, c->token, space);
    buf[1] = kt_in_f32(dev, c->confidence, space);
    buf[2] = kt_in_f32(dev, c->entropy, space);
    buf[3] = kt_in_i32(dev, c->ids, space);
    buf[4] = kt_in_i32(dev, c->state, space);
    const kern_unmask_args args = {.windows = w,
                                   .token = buf[0],
                                   .confidence = buf[1],
                                   .entropy = buf[2],
                                   .ids = buf[3],
                                   .state = buf[4],
                                   .n = n};
    const rt_status status = kern_unmask(dev, &args);
    int32_t *ids = kt_take(buf[3], space), *state = kt_take(buf[4], space);
    memcpy(c->ids, ids, space * sizeof *ids);
    memcpy(c->state, state, space * sizeof *state);
    rt_free(ids);
    rt_free(state);
    kern_buf_free(w);
    for (size_t i = 0; i < KT_COUNT(buf); i++)
        kern_buf_free(buf[i]);
    kern_dev_close(dev);
    return status;
}

// ---- worked examples ---------------------------------------------------------------

typedef struct example {
    const char *what;
    kern_unmask_rule rule;
    int quota, sub_block;
    float threshold;
    const char *before; // 'm' masked, 'n' new, '.' neither
    const char *after;
} example;

static const float example_confidence[8] = {0.9f, 0.2f, 0.95f, 0.9f, 0.5f, 0.99f, 0.9f, 0.1f};
static const float example_entropy[8] = {0.10f, 2.0f, 0.05f, 0.10f, 1.0f, 0.01f, 0.12f, 3.0f};

static const example examples[] = {
    {"from the left", KERN_UNMASK_SEQUENTIAL, 2, 0, 0, ".mnmmmmm", ".n.nmmmm"},
    {"quota beyond the masks", KERN_UNMASK_SEQUENTIAL, 9, 0, 0, "m..m", "n..n"},
    {"leftmost sub-block only", KERN_UNMASK_SEQUENTIAL, 3, 4, 0, "n..mmmmm", "...nmmmm"},
    {"most confident", KERN_UNMASK_STATIC, 2, 0, 0, "mmmmmmmm", "mmnmmnmm"},
    {"ties to the left", KERN_UNMASK_STATIC, 3, 0, 0, "mmmmmmmm", "nmnmmnmm"},
    {"confident but not masked", KERN_UNMASK_STATIC, 1, 0, 0, "mm.mmnmm", "nm.mm.mm"},
    {"static in its sub-block", KERN_UNMASK_STATIC, 1, 2, 0, "..mmmmmm", "..nmmmmm"},
    {"sub-block cut by the end", KERN_UNMASK_STATIC, 4, 3, 0, "......mm", "......nn"},
    {"all above, at least quota", KERN_UNMASK_DYNAMIC, 1, 0, 0.85f, "mmmmmmmm", "nmnnmnnm"},
    {"threshold is strict", KERN_UNMASK_DYNAMIC, 1, 0, 0.9f, "mmmmmmmm", "mmnmmnmm"},
    {"too few above", KERN_UNMASK_DYNAMIC, 3, 0, 0.9f, "mmmmmmmm", "nmnmmnmm"},
    {"as many as quota", KERN_UNMASK_DYNAMIC, 2, 0, 0.9f, "mmmmmmmm", "mmnmmnmm"},
    {"threshold 1 is static", KERN_UNMASK_DYNAMIC, 1, 0, 1.0f, "mmmmmmmm", "mmmmmnmm"},
    {"none above, one left", KERN_UNMASK_DYNAMIC, 4, 0, 0.9f, ".m......", ".n......"},
    {"entropy sum below", KERN_UNMASK_ENTROPY, 1, 0, 0.20f, "mmmmmmmm", "nmnmmnmm"},
    {"entropy of the first beyond", KERN_UNMASK_ENTROPY, 1, 0, 0.0625f, "mmnmmnmm", "nm.mm.mm"},
    {"at least one", KERN_UNMASK_ENTROPY, 1, 0, 0.0f, "mmmmmmmm", "mmmmmnmm"},
    {"at least one of high entropy", KERN_UNMASK_ENTROPY, 1, 0, 0.3f, ".m.....m", ".n.....m"},
    {"all", KERN_UNMASK_ENTROPY, 1, 0, 100.0f, "mmmmmmmm", "nnnnnnnn"},
    {"no mask left", KERN_UNMASK_STATIC, 1, 0, 0, "n..n", "...."},
    {"no mask left, entropy", KERN_UNMASK_ENTROPY, 1, 2, 0, "n..n", "...."},
};

static int32_t state_of(char c)
{
    return c == 'm' ? M : c == 'n' ? N : 0;
}

static void test_examples(void **state)
{
    (void)state;
    for (size_t e = 0; e < KT_COUNT(examples); e++) {
        const example *x = &examples[e];
        const int count = (int)strlen(x->before);
        unmask_case c = {.count = count};
        for (int i = 0; i < count; i++) {
            c.ids[i] = 100 + i;
            c.token[i] = 200 + i;
            c.state[i] = state_of(x->before[i]);
            c.confidence[i] = example_confidence[i];
            c.entropy[i] = example_entropy[i];
        }
        const kern_unmask_window window = {.count = count,
                                           .rule = (int32_t)x->rule,
                                           .quota = x->quota,
                                           .sub_block = x->sub_block,
                                           .threshold = x->threshold};
        KT_OK(run_unmask(&c, (size_t)count, &window, 1));
        for (int i = 0; i < count; i++) {
            const bool chosen = x->before[i] == 'm' && x->after[i] == 'n';
            if (c.state[i] != state_of(x->after[i]) || c.ids[i] != (chosen ? 200 : 100) + i)
                fail_msg("%s: position %d: state %d, id %d", x->what, i, c.state[i], c.ids[i]);
        }
    }
}

// ---- random windows against sorting --------------------------------------------------

typedef struct ranked {
    float value;
    int index;
} ranked;

static int ascending(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? -1 : 1;
    return x->index - y->index;
}

static int take_dynamic(const unmask_case *c, const kern_unmask_window *w, int n,
                        const ranked *order)
{
    int sure = 0;
    while (sure < n && c->confidence[order[sure].index] > w->threshold)
        sure++; // the order is by falling confidence
    return sure >= w->quota ? sure : w->quota;
}

static int take_entropy(const kern_unmask_window *w, int n, const ranked *order)
{
    float sum = 0.0f;
    int taken = 0;
    while (taken < n && (sum += order[taken].value) < w->threshold)
        taken++;
    return taken ? taken : 1;
}

static void expect_unmask(unmask_case *c, const kern_unmask_window *w)
{
    ranked order[MAX_COUNT];
    int n = 0, sub = -1;
    for (int i = 0; i < w->count; i++) {
        c->state[i] &= ~N;
        const int mine = w->sub_block > 0 ? i / w->sub_block : 0;
        if (!(c->state[i] & M) || (sub >= 0 && mine != sub))
            continue;
        sub = mine;
        const float value = w->rule == KERN_UNMASK_SEQUENTIAL ? 0.0f
                            : w->rule == KERN_UNMASK_ENTROPY  ? c->entropy[i]
                                                              : -c->confidence[i];
        order[n++] = (ranked){.value = value, .index = i};
    }
    qsort(order, (size_t)n, sizeof *order, ascending);
    int take = w->quota;
    if (w->rule == KERN_UNMASK_DYNAMIC)
        take = take_dynamic(c, w, n, order);
    if (w->rule == KERN_UNMASK_ENTROPY)
        take = take_entropy(w, n, order);
    for (int i = 0; i < take && i < n; i++) {
        c->ids[order[i].index] = c->token[order[i].index];
        c->state[order[i].index] = (c->state[order[i].index] & ~M) | N;
    }
}

static void random_case(kt_rng *rng, int count, unmask_case *c)
{
    *c = (unmask_case){.count = count};
    for (int i = 0; i < count; i++) {
        c->ids[i] = i;
        c->token[i] = 1000 + i;
        c->state[i] = kt_int(rng, 0, 2);                      // neither, masked, new
        c->confidence[i] = (float)kt_int(rng, 0, 20) / 20.0f; // with ties
        c->entropy[i] = (float)kt_int(rng, 0, 64) / 64.0f;    // exact sums
    }
}

static void test_random_windows(void **state)
{
    (void)state;
    kt_rng rng = {5};
    for (int round = 0; round < 2000; round++) {
        const int count = kt_int(&rng, 1, round % 10 ? 16 : MAX_COUNT);
        unmask_case got, want;
        random_case(&rng, count, &got);
        const kern_unmask_window window = {.count = count,
                                           .rule = round % 4,
                                           .quota = kt_int(&rng, 1, 5),
                                           .sub_block = kt_int(&rng, 0, 2) * 4,
                                           .threshold = (float)kt_int(&rng, 0, 64) / 32.0f};
        want = got;
        expect_unmask(&want, &window);
        KT_OK(run_unmask(&got, (size_t)count, &window, 1));
        KT_SAME(got.ids, want.ids, (size_t)count, "ids");
        KT_SAME(got.state, want.state, (size_t)count, "state");
    }
}

static void test_windows_keep_to_themselves(void **state)
{
    (void)state;
    unmask_case c = {.count = 12};
    for (int i = 0; i < 12; i++) {
        c.ids[i] = i;
        c.token[i] = 100 + i;
        c.state[i] = i % 2 ? M : N;
        c.confidence[i] = (float)i;
    }
    // Windows [2, 5) with rows from 6, and [8, 11) with rows from 0; the rest stays.
    const kern_unmask_window windows[2] = {
        {.first = 2, .row0 = 6, .count = 3, .rule = KERN_UNMASK_STATIC, .quota = 5},
        {.first = 8, .row0 = 0, .count = 3, .rule = KERN_UNMASK_SEQUENTIAL, .quota = 1},
    };
    KT_OK(run_unmask(&c, 12, windows, 2));
    const int32_t ids[12] = {0, 1, 2, 107, 4, 5, 6, 7, 8, 101, 10, 11};
    const int32_t states[12] = {N, M, 0, N, 0, M, N, M, 0, N, 0, M};
    KT_SAME(c.ids, ids, 12, "ids");
    KT_SAME(c.state, states, 12, "state");
}

static void test_nan_counts_as_worst(void **state)
{
    (void)state;
    for (int rule = KERN_UNMASK_STATIC; rule <= KERN_UNMASK_ENTROPY; rule++) {
        unmask_case c = {.count = 3,
                         .token = {7, 8, 9},
                         .state = {M, M, M},
                         .confidence = {NAN, 0.1f, NAN},
                         .entropy = {NAN, 5.0f, NAN}};
        const kern_unmask_window window = {.count = 3, .rule = rule, .quota = 1, .threshold = 0.5f};
        KT_OK(run_unmask(&c, 3, &window, 1));
        const int32_t states[3] = {M, N, M};
        KT_SAME(c.state, states, 3, "state");
        KT_OK(run_unmask(&c, 3, &window, 1)); // only NaN is left: still one is taken
        assert_int_equal(c.state[0], N);
        assert_int_equal(c.ids[0], 7);
    }
}

static void test_bad_windows_are_refused(void **state)
{
    (void)state;
    const struct {
        kern_unmask_window window;
        const char *field;
    } cases[] = {
        {{.count = 4, .quota = 1, .rule = 4}, "windows[1].rule"},
        {{.count = 4, .quota = 0}, "windows[1].quota"},
        {{.count = 4, .quota = 1, .first = KT_GUARD + 1}, "first 68"},
        {{.count = 4, .quota = 1, .first = -1}, "first -1"},
        {{.count = -1, .quota = 1}, "count -1"},
        {{.count = 4, .quota = 1, .row0 = INT32_MAX}, "row0"},
    };
    for (size_t i = 0; i < KT_COUNT(cases); i++) {
        unmask_case c = {.count = 4, .state = {M, M, M, M}};
        // The first window is good; nothing of it may be done.
        const kern_unmask_window windows[2] = {{.count = 4, .quota = 4}, cases[i].window};
        KT_REFUSED(run_unmask(&c, 4, windows, 2), RT_ERR_INVALID, "kern_unmask", cases[i].field);
        for (int j = 0; j < 4; j++)
            assert_int_equal(c.state[j], M);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_random_windows),
        cmocka_unit_test(test_windows_keep_to_themselves),
        cmocka_unit_test(test_nan_counts_as_worst),
        cmocka_unit_test(test_bad_windows_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
