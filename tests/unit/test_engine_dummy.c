// SPDX-License-Identifier: Apache-2.0
// An engine without a checkpoint: random weights answer, always the same.
#include "tests/unit/engine_case.h"

#include <math.h>

static const rt_model_config small = {
    .architecture = "SDARForCausalLM",
    .hidden = 32,
    .ffn = 48,
    .layers = 2,
    .heads = 4,
    .kv_heads = 2,
    .head_dim = 16,
    .vocab = 100,
    .max_positions = 64,
    .rms_eps = 1e-6,
    .rope = {.kind = RT_ROPE_PLAIN, .theta = 1e4, .factor = 1},
    .qk_norm = true,
    .block_length = 4,
    .block_source = "the test",
    .mask_id = 99,
    .mask_source = "the test",
    .top_p = 1,
};

static rt_engine_options options_of(const rt_model_config *config)
{
    rt_engine_options o = rt_engine_options_default();
    o.device = KERN_CPU;
    o.threads = 1;
    o.dummy = config;
    return o;
}

static rt_request ask(void)
{
    rt_request r = rt_request_default();
    r.prompt_ids = engine_prompt(3, 21, small.vocab - 1);
    r.prompt_ids_len = 21;
    r.max_tokens = 11;
    r.strategy = RT_STRATEGY_STATIC;
    return r;
}

static void test_answers(void **state)
{
    (void)state;
    rt_model_config biased = small;
    biased.qk_norm = false;
    biased.qkv_bias = biased.shifted = biased.tied_head = true;
    const rt_model_config *const configs[] = {&small, &biased};
    const rt_request request = ask();
    for (int i = 0; i < 2; i++) {
        const rt_engine_options o = options_of(configs[i]);
        for (int ranks = 1; ranks <= 2; ranks++) {
            engine_answer first, again;
            engine_run(&o, ranks, &request, 1, &first);
            engine_run(&o, ranks, &request, 1, &again);
            assert_int_equal(first.ids_len, 11);
            engine_same("again", &again, &first, 1);
            engine_free(&first, 1);
            engine_free(&again, 1);
        }
    }
}

// What leaves nothing to chance is the same, however it is written; the last two are sampled
// from the most likely token alone.
static void test_greedy(void **state)
{
    (void)state;
    enum { N = 6 };
    const rt_engine_options o = options_of(&small);
    engine_answer answers[N];
    rt_request requests[N];
    for (int i = 0; i < N; i++) {
        static const double temperatures[N] = {0, 1e-7, 1e-40, 1e-300, 0.7, 0.7};
        requests[i] = ask();
        requests[i].temperature = temperatures[i];
    }
    requests[4].top_k = 1;
    requests[5].top_p = 0;
    engine_run(&o, 1, requests, N, answers);
    for (int i = 1; i < 4; i++)
        engine_same("cold", &answers[i], &answers[0], 1);
    engine_same("top-p 0", &answers[5], &answers[4], 1);
    engine_free(answers, N);
}

typedef struct spread {
    double sum, squares;
    size_t count;
} spread;

static rt_status take_logits(void *ctx, const float *rows, size_t n, int vocab)
{
    spread *s = ctx;
    for (size_t i = 0; i < n * (size_t)vocab; i++) {
        s->sum += (double)rows[i];
        s->squares += (double)rows[i] * (double)rows[i];
    }
    s->count += n * (size_t)vocab;
    return RT_OK;
}

// The head multiplies 32 numbers of mean square 1 by weights of deviation 0.02.
static void test_logits(void **state)
{
    (void)state;
    const rt_engine_options o = options_of(&small);
    engine_case c;
    spread s = {0};
    engine_open(&c, &o, 1);
    assert_ok(rt_engine_logits(c.root, engine_prompt(4, 40, 99), 40, take_logits, &s));
    engine_close(&c);
    const double deviation = sqrt(s.squares / (double)s.count), want = 0.02 * sqrt(32);
    assert_int_equal(s.count, 4000);
    assert_true(deviation > 0.7 * want && deviation < 1.4 * want);
}

// Logits need no mask token and no room for an answer.
static void test_logits_of_full_context(void **state)
{
    (void)state;
    enum { CONTEXT = 64 };
    rt_model_config plain = small;
    plain.mask_id = -1;
    const rt_engine_options o = options_of(&plain);
    const int32_t *ids = engine_prompt(4, CONTEXT + 1, 99);
    const rt_request request = ask();
    engine_case c;
    spread s = {0};
    rt_session_id id;
    rt_needs needs;
    engine_open(&c, &o, 2);
    assert_ok(rt_engine_logits(c.root, ids, CONTEXT, take_logits, &s));
    assert_int_equal(s.count, CONTEXT * plain.vocab);
    assert_fails(rt_engine_logits(c.root, ids, CONTEXT + 1, take_logits, &s), RT_ERR_LIMIT,
                 "65 tokens are beyond the model's context of 64", "");
    assert_fails(rt_engine_submit(c.root, &request, &id), RT_ERR_INVALID, "no mask token", "");
    assert_fails(rt_engine_needs(c.root, &request, &needs), RT_ERR_INVALID, "no mask token", "");
    engine_close(&c);
}

static rt_status full_disk(void *ctx, const float *rows, size_t n, int vocab)
{
    (void)rows, (void)n, (void)vocab;
    ++*(int *)ctx;
    return RT_FAIL(RT_ERR_IO, "the disk is full");
}

// Rank 0 cannot keep the first rows of a forward whose logits are gathered in two pieces: the
// other rank is not left waiting for the second, and both close in order.
static void test_logits_not_kept(void **state)
{
    (void)state;
    rt_model_config longer = small;
    longer.max_positions = 128;
    const rt_engine_options o = options_of(&longer);
    engine_case c;
    int calls = 0;
    engine_open(&c, &o, 2);
    assert_fails(rt_engine_logits(c.root, engine_prompt(4, 100, 99), 100, full_disk, &calls),
                 RT_ERR_IO, "the disk is full", "");
    assert_int_equal(calls, 1);
    engine_close(&c);
}

typedef struct kinds {
    int of[4];
    int prefills;
} kinds;

static void count_step(void *ctx, rt_session_id id, rt_step_kind kind)
{
    (void)id;
    ((kinds *)ctx)->of[kind]++;
}

static void count_prefill(void *ctx, rt_session_id id, int done, int total)
{
    (void)id, (void)done, (void)total;
    ((kinds *)ctx)->prefills++;
}

// Two requests of three blocks, 4 steps each; the first block has one token of the prompt.
static void run_kinds(const rt_engine_options *o, kinds out[2])
{
    engine_case c;
    rt_request r = ask();
    rt_session_id id;
    memset(out, 0, 2 * sizeof *out);
    r.on_step = count_step;
    r.on_prefill = count_prefill;
    engine_open(&c, o, 1);
    for (int i = 0; i < 2; i++) {
        r.ctx = &out[i];
        assert_ok(rt_engine_submit(c.root, &r, &id));
    }
    engine_drain(&c);
    engine_close(&c);
}

static void test_steps(void **state)
{
    (void)state;
    for (int separate = 0; separate < 2; separate++)
        for (int skip = 0; skip < 2; skip++) {
            rt_engine_options o = options_of(&small);
            kinds got[2];
            o.max_sessions = 2;
            o.prefill_chunk = 8;
            o.no_sharing = true; // both read the whole prompt
            o.separate_commit = separate;
            o.skip_prefill = skip;
            run_kinds(&o, got);
            for (int i = 0; i < 2; i++) {
                assert_int_equal(got[i].of[RT_STEP_OPEN], 1);
                assert_int_equal(got[i].of[RT_STEP_COMMIT], separate ? 2 : 0);
                assert_int_equal(got[i].of[RT_STEP_FIRST], 2);
                assert_int_equal(got[i].of[RT_STEP_LATER], 2 + 3 + 3);
                assert_true(skip ? got[i].prefills == 0 : got[i].prefills >= 2);
            }
        }
}

static void test_refused(void **state)
{
    (void)state;
    engine_case c;
    rt_engine_options o = options_of(&small);
    rt_session_id id;
    rt_request text = rt_request_default();
    text.prompt = "Hello";
    text.prompt_len = 5;
    engine_open(&c, &o, 1);
    assert_fails(rt_engine_submit(c.root, &text, &id), RT_ERR_INVALID, "prompt", "no tokenizer");
    engine_close(&c);

    comm *self;
    rt_engine *e;
    assert_ok(comm_open_self(&self));
    o.model_dir = "/somewhere";
    assert_fails(rt_engine_open(&o, self, &e), RT_ERR_INVALID, "dummy", "");
    comm_close(self);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),         cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_logits),          cmocka_unit_test(test_logits_of_full_context),
        cmocka_unit_test(test_logits_not_kept), cmocka_unit_test(test_steps),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("engine dummy", tests, NULL, NULL);
}
