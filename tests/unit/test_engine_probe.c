// SPDX-License-Identifier: Apache-2.0
// Steps that are probed: a second forward tells how far logits are from dense attention's,
// and changes nothing.
#include "tests/unit/engine_case.h"

#include <math.h>

#define TINY "tests/golden/logits/gqa_b4_tied"
enum { TINY_VOCAB = 96, PAGE = 4, FULL = 1 << 20 };

static rt_engine_options options(const char *policy, int budget, int every)
{
    rt_engine_options o = engine_options(TINY);
    o.attention.policy = losa_policy_find(policy);
    o.attention.budget = o.attention.scan_budget = budget;
    o.attention.page = PAGE;
    o.probe_every = every;
    return o;
}

static rt_probed sum(const engine_answer *answers)
{
    rt_probed all = {0};
    for (int i = 0; i < ENGINE_MIX; i++) {
        all.positions += answers[i].probed.positions;
        all.divergence += answers[i].probed.divergence;
        all.same += answers[i].probed.same;
    }
    return all;
}

static rt_probed run(const rt_engine_options *o, int ranks, engine_answer *answers)
{
    rt_request requests[ENGINE_MIX];
    engine_mix(requests, TINY_VOCAB, false);
    engine_run(o, ranks, requests, ENGINE_MIX, answers);
    return sum(answers);
}

static void probing_changes_nothing(void **state)
{
    (void)state;
    for (size_t p = 0; p < losa_policy_count(); p++) {
        const char *policy = losa_policy_at(p)->name;
        rt_engine_options plain = options(policy, 2 * PAGE, 0),
                          probed = options(policy, 2 * PAGE, 1);
        plain.attention.first = probed.attention.first = (losa_first)(p % 3);
        engine_answer want[ENGINE_MIX], got[ENGINE_MIX];
        assert_int_equal(run(&plain, 1, want).positions, 0);
        const bool dense = strcmp(policy, "dense") == 0;
        assert_true((run(&probed, 1, got).positions > 0) == !dense);
        engine_same(policy, got, want, ENGINE_MIX);
        engine_same_stats(policy, got, want, ENGINE_MIX);
        engine_free(want, ENGINE_MIX);
        engine_free(got, ENGINE_MIX);
    }
}

static char *read_all(const char *path, size_t *len)
{
    FILE *file = fopen(path, "rb");
    char *bytes = malloc(1 << 20);
    assert_true(file && bytes);
    *len = fread(bytes, 1, 1 << 20, file);
    assert_in_range(*len, 1, (1 << 20) - 1);
    fclose(file);
    return bytes;
}

// The second forward is not one of the run's: a trace holds the plans of the first.
static void the_trace_is_the_same(void **state)
{
    (void)state;
    const test_dir dir = test_dir_new();
    for (int ranks = 1; ranks <= 2; ranks++) {
        char *bytes[2];
        size_t len[2];
        for (int probed = 0; probed < 2; probed++) {
            engine_answer answers[ENGINE_MIX];
            rt_engine_options o = options("losa", 2 * PAGE, probed);
            o.trace_plans = test_path(&dir, probed ? "probed" : "plain");
            assert_true((run(&o, ranks, answers).positions > 0) == probed);
            engine_free(answers, ENGINE_MIX);
            bytes[probed] = read_all(o.trace_plans, &len[probed]);
        }
        assert_int_equal(len[1], len[0]);
        assert_memory_equal(bytes[1], bytes[0], len[0]);
        free(bytes[0]);
        free(bytes[1]);
    }
    test_dir_remove(&dir);
}

// What comes after its end is not traced, and it ends once.
static void a_trace_ends_once(void **state)
{
    (void)state;
    const test_dir dir = test_dir_new();
    rt_engine_options o = options("losa", 2 * PAGE, 0);
    o.trace_plans = test_path(&dir, "trace");
    rt_request requests[ENGINE_MIX];
    engine_answer answers[2] = {0};
    size_t len[2];
    engine_case c;
    engine_mix(requests, TINY_VOCAB, false);
    engine_open(&c, &o, 1);
    for (int i = 0; i < 2; i++) {
        engine_submit(&c, &requests[0], &answers[i]);
        engine_drain(&c);
        assert_ok(rt_engine_end_trace(c.root));
        free(read_all(o.trace_plans, &len[i]));
    }
    assert_int_equal(len[1], len[0]);
    engine_close(&c);
    engine_free(answers, 2);
    test_dir_remove(&dir);
}

static rt_probed measure(const rt_engine_options *o, int ranks)
{
    engine_answer answers[ENGINE_MIX];
    const rt_probed out = run(o, ranks, answers);
    engine_free(answers, ENGINE_MIX);
    return out;
}

// quest-init reads the same as dense attention where its budget holds the prefix.
static void a_larger_budget_is_nearer_to_dense(void **state)
{
    (void)state;
    const int budgets[] = {PAGE, 6 * PAGE, FULL};
    double before = INFINITY;
    for (int i = 0; i < 3; i++) {
        const rt_engine_options o = options("quest-init", budgets[i], 1);
        const rt_probed p = measure(&o, 1);
        const double mean = p.divergence / p.positions;
        assert_true(mean < before);
        assert_true((fabs(mean) < 1e-9) == (budgets[i] == FULL));
        assert_true((p.same == p.positions) == (budgets[i] == FULL));
        before = mean;
    }
}

// Which steps are probed follows from the request alone, and so does what they show: to
// the bit in other company, and up to the order of f32 sums on other numbers of ranks.
static void company_and_ranks_change_nothing(void **state)
{
    (void)state;
    rt_engine_options o = options("losa", 2 * PAGE, 3);
    const rt_probed want = measure(&o, 1);
    assert_true(want.positions > 0 && want.divergence > 0);
    for (int ranks = 2; ranks <= 4; ranks *= 2) {
        const rt_probed got = measure(&o, ranks);
        assert_int_equal(got.positions, want.positions);
        assert_true(fabs(got.divergence - want.divergence) < 1e-3 * want.divergence);
    }
    engine_answer alone[ENGINE_MIX], together[ENGINE_MIX];
    o.max_sessions = 1;
    run(&o, 1, alone);
    o.max_sessions = 5;
    run(&o, 1, together);
    for (int i = 0; i < ENGINE_MIX; i++)
        assert_memory_equal(&alone[i].probed, &together[i].probed, sizeof alone[i].probed);
    engine_free(alone, ENGINE_MIX);
    engine_free(together, ENGINE_MIX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probing_changes_nothing),
        cmocka_unit_test(the_trace_is_the_same),
        cmocka_unit_test(a_trace_ends_once),
        cmocka_unit_test(a_larger_budget_is_nearer_to_dense),
        cmocka_unit_test(company_and_ranks_change_nothing),
    };
    if (!getenv("LOSA_SOURCE"))
        print_message("LOSA_SOURCE is not set: looking in .\n");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
