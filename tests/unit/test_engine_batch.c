// SPDX-License-Identifier: Apache-2.0
// A request's tokens depend on nothing but the request: not on what else is in the
// batch, on the chunks of the prefill, on when the commit happens, or on the number
// of ranks. The reference is each request alone in an engine of its own.
//
// The kernels give a row the same bits whatever the batch, so on one rank sampled
// tokens must match as well. Other numbers of ranks sum in another order: there
// greedy tokens could differ where two logits tie to the last bits, which these do not.
#include "tests/unit/engine_case.h"

#include "runtime/base/log.h"

#include <jansson.h>

#define TINY "tests/golden/logits/gqa_b4_tied"
#define NEEDLE "models/needle-11m"
enum { TINY_VOCAB = 96, TINY_CONTEXT = 128 };

// Every policy, with budgets that a prefix of 128 tokens exceeds.
typedef struct variant {
    const char *policy;
    const char *rule;
    bool first_sparse;
    bool commit_scan;
    losa_scope scope;
    losa_locality locality;
} variant;

static const variant variants[] = {
    {"dense", "unsettled", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"quest", "unsettled", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"quest-init", "unsettled", false, true, LOSA_SCOPE_HEAD, LOSA_LOCALITY_QUERY},
    {"losa", "unsettled", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"losa", "topk:2", false, true, LOSA_SCOPE_HEAD, LOSA_LOCALITY_QUERY},
    {"losa", "new+1", true, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_HIDDEN},
    {"losa-mass", "unsettled", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"losa-mass", "topk:3", true, false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"losa-mix", "unsettled", false, true, LOSA_SCOPE_HEAD, LOSA_LOCALITY_QUERY},
    {"losa-mix", "unsettled", true, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"mage", "unsettled", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"mage", "unsettled", true, false, LOSA_SCOPE_HEAD, LOSA_LOCALITY_QUERY},
    {"losa", "mass:0.7", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"losa", "mass:0.7", true, true, LOSA_SCOPE_HEAD, LOSA_LOCALITY_HIDDEN},
    {"sparsed", "unsettled", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"sparse-dllm", "unsettled", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
    {"sparse-dllm", "unsettled", true, true, LOSA_SCOPE_HEAD, LOSA_LOCALITY_QUERY},
    {"flashblock", "unsettled", false, true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY},
};
enum { VARIANTS = sizeof variants / sizeof variants[0] };

static rt_engine_options tiny_options(const variant *v)
{
    rt_engine_options o = engine_options(TINY);
    o.attention.policy = losa_policy_find(v->policy);
    assert_ok(losa_config_parse_rule(v->rule, &o.attention));
    o.attention.budget = 12;
    o.attention.scan_budget = 4;
    o.attention.page = 4;
    o.attention.first = v->first_sparse ? LOSA_FIRST_SPARSE : LOSA_FIRST_DENSE;
    o.attention.commit_scan = v->commit_scan;
    o.attention.scope = v->scope;
    o.attention.locality = v->locality;
    return o;
}

static void run_alone(const rt_engine_options *options, const rt_request *requests, int n,
                      engine_answer *answers)
{
    for (int i = 0; i < n; i++)
        engine_run(options, 1, &requests[i], 1, &answers[i]);
}

// ---- the batch -------------------------------------------------------------------------

typedef struct way {
    const char *name;
    int sessions, ranks, chunk, context;
    bool separate;
} way;

// Runs the requests together in this way and compares with `want`.
static void check_way(rt_engine_options o, const way *w, const rt_request *requests,
                      const engine_answer *want)
{
    o.max_sessions = w->sessions;
    o.context = w->context;
    o.prefill_chunk = w->chunk;
    o.separate_commit = w->separate;
    o.attention.check_plans = w->ranks > 1;
    engine_answer got[ENGINE_MIX];
    engine_run(&o, w->ranks, requests, ENGINE_MIX, got);
    char what[128];
    snprintf(what, sizeof what, "%s, %s", o.attention.policy->name, w->name);
    engine_same(what, got, want, ENGINE_MIX);
    if (w->ranks == 1 && !w->separate)
        engine_same_stats(what, got, want, ENGINE_MIX);
    engine_free(got, ENGINE_MIX);
}

static void check_variant(const variant *v, const way *ways, size_t n, bool sampled)
{
    rt_request requests[ENGINE_MIX];
    engine_mix(requests, TINY_VOCAB, sampled);
    const rt_engine_options o = tiny_options(v);
    engine_answer want[ENGINE_MIX];
    run_alone(&o, requests, ENGINE_MIX, want);
    for (size_t i = 0; i < n; i++)
        check_way(o, &ways[i], requests, want);
    engine_free(want, ENGINE_MIX);
}

static const way one_rank[] = {
    {"4 together", 4, 1, 512, 4 * TINY_CONTEXT, false},
    {"16 together", 16, 1, 512, 16 * TINY_CONTEXT, false},
    {"16 in few pages", 16, 1, 512, 0, false},
    {"chunk 16", 4, 1, 16, 4 * TINY_CONTEXT, false},
    {"chunk 48", 16, 1, 48, 16 * TINY_CONTEXT, false},
    {"chunk 4096", 16, 1, 4096, 16 * TINY_CONTEXT, false},
};
enum { ONE_RANK = sizeof one_rank / sizeof one_rank[0] };

static void test_greedy(void **state)
{
    (void)state;
    for (int v = 0; v < VARIANTS; v++)
        check_variant(&variants[v], one_rank, ONE_RANK, false);
}

static void test_sampled(void **state)
{
    (void)state;
    for (int v = 0; v < VARIANTS; v++)
        check_variant(&variants[v], one_rank, ONE_RANK, true);
}

static void test_ranks(void **state)
{
    (void)state;
    static const way ways[] = {
        {"2 ranks", 16, 2, 512, 16 * TINY_CONTEXT, false},
        {"2 ranks, chunk 16", 4, 2, 16, 4 * TINY_CONTEXT, false},
        {"4 ranks", 16, 4, 48, 16 * TINY_CONTEXT, false},
    };
    for (int v = 0; v < VARIANTS; v++)
        check_variant(&variants[v], ways, sizeof ways / sizeof ways[0], false);
}

// A sparse commit reads by a plan of its own, the same in both forms.
static void test_separate_commit(void **state)
{
    (void)state;
    static const way ways[] = {
        {"separate commit", 4, 1, 512, 4 * TINY_CONTEXT, true},
        {"separate commit, 2 ranks", 16, 2, 48, 16 * TINY_CONTEXT, true},
    };
    for (int v = 0; v < VARIANTS; v++)
        check_variant(&variants[v], ways, sizeof ways / sizeof ways[0], false);
}

// The requests do differ: most answers, and how many steps they take.
static void test_mix_is_mixed(void **state)
{
    (void)state;
    rt_request requests[ENGINE_MIX];
    engine_mix(requests, TINY_VOCAB, false);
    const rt_engine_options o = tiny_options(&variants[0]);
    engine_answer a[ENGINE_MIX];
    run_alone(&o, requests, ENGINE_MIX, a);
    int stopped = 0, cut = 0, sparse = 0;
    for (int i = 0; i < ENGINE_MIX; i++) {
        stopped += a[i].finish == RT_FINISH_STOP;
        cut += (int)a[i].ids_len < requests[i].max_tokens && a[i].finish == RT_FINISH_LENGTH;
        sparse += a[i].stats.steps_per_block < 4;
    }
    assert_true(stopped > 0 && stopped < ENGINE_MIX);
    assert_int_equal(cut, 1); // the first: its prompt leaves 38 tokens
    assert_int_equal(a[0].ids_len, TINY_CONTEXT - 90);
    assert_true(sparse > 0);
    engine_free(a, ENGINE_MIX);
}

// ---- the shipped model --------------------------------------------------------------------

enum { QUESTIONS = 4 };

static void ask_documents(rt_request *requests)
{
    static json_t *documents[QUESTIONS];
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/documents.jsonl", engine_options(NEEDLE).model_dir);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    for (int i = 0; i < QUESTIONS; i++) {
        if (!documents[i])
            documents[i] = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL);
        const json_t *user = json_object_get(documents[i], "user");
        assert_true(json_is_string(user));
        requests[i] = rt_request_default();
        requests[i].prompt = json_string_value(user);
        requests[i].prompt_len = json_string_length(user);
        requests[i].chat = true;
        requests[i].max_tokens = 40 + 8 * i;
    }
    fclose(file);
    requests[1].temperature = 1.5;
    requests[1].seed = 11;
    requests[2].strategy = RT_STRATEGY_STATIC;
    requests[2].steps = 5;
    requests[3].strategy = RT_STRATEGY_ENTROPY;
    requests[3].threshold = 0.4;
    requests[3].prompt_len = 1500; // the question is gone: any text will do
}

// Long documents, text in and out, and the default budgets.
static void test_documents(void **state)
{
    (void)state;
    static const char *const policies[] = {"dense", "losa-mix"};
    rt_request requests[QUESTIONS];
    ask_documents(requests);
    for (int p = 0; p < 2; p++) {
        rt_engine_options o = engine_options(NEEDLE);
        o.context = 700;
        o.attention.policy = losa_policy_find(policies[p]);
        engine_answer want[QUESTIONS], got[QUESTIONS];
        run_alone(&o, requests, QUESTIONS, want);
        o.context = QUESTIONS * 700;
        o.max_sessions = QUESTIONS;
        o.prefill_chunk = 200;
        engine_run(&o, 1, requests, QUESTIONS, got);
        engine_same(policies[p], got, want, QUESTIONS);
        engine_same_stats(policies[p], got, want, QUESTIONS);
        engine_free(got, QUESTIONS);
        engine_free(want, QUESTIONS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mix_is_mixed),    cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_sampled),         cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_separate_commit), cmocka_unit_test(test_documents),
    };
    rt_log_setup(RT_LOG_ERROR, 0, 1); // an answer cut to the context is not news
    return cmocka_run_group_tests_name("engine batch", tests, NULL, NULL);
}
