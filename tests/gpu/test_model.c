// SPDX-License-Identifier: Apache-2.0
// Whole models on a GPU: logits against the CPU's, tokens of recorded steps against those
// of steps that are enqueued call by call, and in f32 against the CPU's tokens.
#include "tests/unit/engine_case.h"

#include <math.h>

static const char *const MODELS[] = {
    "models/needle-11m",
    "tests/golden/logits/gqa_b4_tied",
    "tests/golden/logits/kv2_b32_v5",
    "tests/golden/logits/head128",
    "tests/golden/logits/vocab_odd",
    "tests/golden/logits/qwen2_tied_b32",
    "tests/golden/logits/one_kv_head",
    "tests/golden/logits/bf16",
    "tests/golden/logits/f16",
};
enum { MODEL_COUNT = sizeof MODELS / sizeof MODELS[0], POSITIONS = 120 };

typedef struct logits {
    float *values; // [POSITIONS, vocab]
    size_t count;
} logits;

static rt_status keep(void *ctx, const float *rows, size_t n, int vocab)
{
    logits *l = ctx;
    const size_t count = n * (size_t)vocab;
    memcpy(l->values + l->count, rows, count * sizeof *rows);
    l->count += count;
    return RT_OK;
}

static rt_engine_options options_of(const char *model, kern_kind device, kern_precision precision)
{
    rt_engine_options o = engine_options(model);
    o.device = device;
    o.precision = precision;
    o.threads = device == KERN_CPU ? 4 : 1;
    return o;
}

static logits logits_of(const rt_engine_options *options)
{
    engine_case c;
    engine_open(&c, options, 1);
    const int vocab = rt_engine_model(c.root)->vocab;
    logits l = {.values = calloc((size_t)POSITIONS * (size_t)vocab, sizeof(float))};
    assert_non_null(l.values);
    assert_ok(rt_engine_logits(c.root, engine_prompt(3, POSITIONS, vocab), POSITIONS, keep, &l));
    engine_close(&c);
    return l;
}

// f32: sums in another order. bf16: some ten roundings of 2^-9 a layer, which add up as
// their root: 2 % of the size of the logits is four times what six layers give.
static void compare_logits(const char *model, const logits *cpu, const logits *gpu, bool f32)
{
    double worst = 0, error = 0, size = 0;
    assert_int_equal(gpu->count, cpu->count);
    for (size_t i = 0; i < cpu->count; i++) {
        const double d = (double)gpu->values[i] - (double)cpu->values[i];
        worst = fabs(d) <= worst ? worst : fabs(d); // a NaN counts
        error += d * d;
        size += (double)cpu->values[i] * (double)cpu->values[i];
    }
    const double relative = sqrt(error / size);
    print_message("           %-32s %s: largest error %.1e, relative %.1e\n", model,
                  f32 ? "f32 " : "bf16", worst, relative);
    if (f32 ? !(worst < 1e-3) : !(relative < 2e-2))
        fail_msg("%s: largest error %g, relative %g", model, worst, relative);
}

static void test_logits(void **state)
{
    (void)state;
    for (int i = 0; i < MODEL_COUNT; i++) {
        const rt_engine_options on_cpu = options_of(MODELS[i], KERN_CPU, KERN_PRECISION_AUTO);
        logits cpu = logits_of(&on_cpu);
        for (int f32 = 0; f32 < 2; f32++) {
            const kern_precision precision = f32 ? KERN_PRECISION_F32 : KERN_PRECISION_AUTO;
            const rt_engine_options on_gpu = options_of(MODELS[i], KERN_CUDA, precision);
            logits gpu = logits_of(&on_gpu);
            compare_logits(MODELS[i], &cpu, &gpu, f32);
            free(gpu.values);
        }
        free(cpu.values);
    }
}

// ---- tokens --------------------------------------------------------------------------

typedef struct policy_case {
    const char *policy, *rule;
    bool first_sparse;
    losa_scope scope;
    losa_locality locality;
    int dense_layers;
} policy_case;

static const policy_case POLICIES[] = {
    {"dense", NULL, false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 0},
    {"quest", NULL, false, LOSA_SCOPE_HEAD, LOSA_LOCALITY_QUERY, 0},
    {"losa", "unsettled", false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 1},
    {"losa", "topk:3", false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 0},
    {"losa", "new+2", true, LOSA_SCOPE_HEAD, LOSA_LOCALITY_HIDDEN, 0},
    {"losa-mass", "unsettled", false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 0},
    {"losa-mix", "unsettled", true, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 0},
    {"mage", NULL, false, LOSA_SCOPE_HEAD, LOSA_LOCALITY_QUERY, 0},
    {"losa", "mass:0.8", false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 0},
    {"sparsed", NULL, false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 0},
    {"sparse-dllm", NULL, false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 0},
    {"flashblock", NULL, false, LOSA_SCOPE_SHARED, LOSA_LOCALITY_QUERY, 1},
};
enum { POLICY_COUNT = sizeof POLICIES / sizeof POLICIES[0] };

static void set_policy(const policy_case *p, rt_engine_options *o)
{
    losa_config *a = &o->attention;
    a->policy = losa_policy_find(p->policy);
    a->budget = 24;
    a->scan_budget = 8;
    a->page = 8;
    a->first = p->first_sparse ? LOSA_FIRST_SPARSE : LOSA_FIRST_DENSE;
    a->scope = p->scope;
    a->locality = p->locality;
    a->dense_layers = p->dense_layers;
    if (p->rule)
        assert_ok(losa_config_parse_rule(p->rule, a));
    o->max_sessions = 5; // of sixteen requests: batches of many shapes
    o->prefill_chunk = 32;
}

// Tokens that two answers have in common before they part.
static size_t common_ids(const engine_answer *a, const engine_answer *b)
{
    size_t same = 0;
    while (same < a->ids_len && same < b->ids_len && a->ids[same] == b->ids[same])
        same++;
    return same;
}

// f32 on a GPU adds in another order than the CPU, and so does the CPU on two ranks: where
// its two answers part, a rank of a row or a confidence was a tie but for rounding, and from
// there on the GPU may take either side. Such answers are few.
static void compare_with_cpu(const char *what, const rt_engine_options *options,
                             const rt_request *requests, const engine_answer *gpu)
{
    enum { TIES_MOST = 2 };
    engine_answer one[ENGINE_MIX], two[ENGINE_MIX];
    rt_engine_options on_cpu = *options;
    int ties = 0;
    on_cpu.device = KERN_CPU;
    engine_run(&on_cpu, 1, requests, ENGINE_MIX, one);
    engine_run(&on_cpu, 2, requests, ENGINE_MIX, two);
    for (int i = 0; i < ENGINE_MIX; i++) {
        char which[160];
        snprintf(which, sizeof which, "%s, the CPU's answer to %d", what, i);
        const size_t settled = common_ids(&one[i], &two[i]);
        if (settled == one[i].ids_len && settled == two[i].ids_len) {
            engine_same(which, &gpu[i], &one[i], 1);
            continue;
        }
        print_message("           %s: a tie at token %zu\n", which, settled);
        ties++;
        if (common_ids(&gpu[i], &one[i]) < settled)
            fail_msg("%s: parts before the tie at token %zu", which, settled);
    }
    assert_in_range(ties, 0, TIES_MOST);
    engine_free(one, ENGINE_MIX);
    engine_free(two, ENGINE_MIX);
}

static void compare_tokens(const char *model, const policy_case *p, kern_precision precision)
{
    char what[128];
    engine_answer want[ENGINE_MIX], got[ENGINE_MIX];
    rt_request requests[ENGINE_MIX];
    rt_engine_options options = options_of(model, KERN_CUDA, precision);
    set_policy(p, &options);
    engine_mix(requests, 96, true);
    options.no_graph = true;
    engine_run(&options, 1, requests, ENGINE_MIX, want);
    options.no_graph = false;
    engine_run(&options, 1, requests, ENGINE_MIX, got);
    snprintf(what, sizeof what, "%s, %s %s, recorded", model, p->policy, p->rule ? p->rule : "");
    engine_same(what, got, want, ENGINE_MIX);
    engine_same_stats(what, got, want, ENGINE_MIX);
    engine_free(got, ENGINE_MIX);
    if (precision == KERN_PRECISION_F32) {
        snprintf(what, sizeof what, "%s, %s %s", model, p->policy, p->rule ? p->rule : "");
        compare_with_cpu(what, &options, requests, want);
    }
    engine_free(want, ENGINE_MIX);
}

static void test_tokens(void **state)
{
    (void)state;
    static const char *const models[] = {"tests/golden/logits/kv2_b16",
                                         "tests/golden/logits/qwen2_tied_b32"};
    for (int m = 0; m < 2; m++)
        for (int i = 0; i < POLICY_COUNT; i++) {
            compare_tokens(models[m], &POLICIES[i], KERN_PRECISION_F32);
            compare_tokens(models[m], &POLICIES[i], KERN_PRECISION_AUTO);
        }
}

int main(void)
{
    if (kern_device_count(KERN_CUDA) == 0) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
