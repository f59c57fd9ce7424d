// SPDX-License-Identifier: Apache-2.0
// Requests whose prompts begin alike, in an engine that shares their pages: their tokens
// and statistics are those of each request alone, and what is shared is computed once.
// K,V of a prompt's blocks have the same bits whoever computes them and in whatever
// chunks, so nothing may differ on one rank. The page book is looked over after every step.
#include "tests/unit/engine_case.h"
#include "tests/unit/pagebook_check.h"

#include "runtime/base/log.h"
#include "runtime/base/rng.h"
#include "runtime/engine/engine_int.h"

#define BLOCK_4 "tests/golden/logits/gqa_b4_tied"
#define BLOCK_16 "tests/golden/logits/gqa_b16_untied"
#define BLOCK_32 "tests/golden/logits/kv2_b32_v5"
#define SHIFTED "tests/golden/logits/qwen2_tied_b32"
enum { VOCAB = 96, CONTEXT = 128, MIX = 12 };

static rt_engine_options tiny_options(const char *model, int page)
{
    rt_engine_options o = engine_options(model);
    o.max_sessions = MIX;
    o.context = MIX * CONTEXT;
    o.attention.page = page;
    o.attention.budget = 3 * page;
    o.attention.scan_budget = page;
    return o;
}

// The first `same` tokens are those of every prompt of this document.
static rt_request ask(int document, int same, int len, int question, int tokens)
{
    int32_t *ids = calloc((size_t)len + 1, sizeof *ids);
    assert_non_null(ids);
    memcpy(ids, engine_prompt((uint32_t)(500 + document), len, VOCAB), (size_t)len * sizeof *ids);
    if (same < len)
        memcpy(ids + same, engine_prompt((uint32_t)(900 + question), len, VOCAB),
               (size_t)(len - same) * sizeof *ids);
    rt_request r = rt_request_default();
    r.prompt_ids = ids;
    r.prompt_ids_len = (size_t)len;
    r.max_tokens = tokens;
    r.strategy = (rt_strategy)(question % 3);
    r.threshold = 0.03;
    r.temperature = question % 4 == 3 ? 0.7 : 0;
    r.seed = (uint64_t)question;
    r.ignore_stop_ids = true;
    return r;
}

static void free_prompts(const rt_request *requests, int n)
{
    for (int i = 0; i < n; i++)
        free((void *)(uintptr_t)requests[i].prompt_ids);
}

// Two documents; the same prompt twice, a prompt that is the beginning of others, prompts
// that part in the first block, within a block, at a page, and one that is shorter than any.
static void mix(rt_request requests[MIX])
{
    static const int document[MIX] = {0, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0};
    static const int same[MIX] = {80, 64, 64, 90, 40, 67, 90, 80, 3, 1, 99, 31};
    static const int len[MIX] = {80, 80, 97, 90, 60, 99, 90, 80, 70, 3, 99, 64};
    for (int i = 0; i < MIX; i++)
        requests[i] = ask(document[i], same[i], len[i], i, 6 + 2 * i % 9);
    for (int i = 0; i < MIX; i++)
        if (i == 6 || i == 7) // and nothing else differs
            requests[i].seed = requests[i - (i == 6 ? 3 : 7)].seed;
}

static void check_pages(const rt_engine *e)
{
    pagebook_holder holders[MIX] = {{0}};
    int n = 0, used = 0;
    for (int slot = 0; slot < e->options.max_sessions; slot++) {
        const rt_session *s = e->running[slot];
        if (s)
            holders[n++] = (pagebook_holder){s->prompt.data, &s->holding};
    }
    pagebook_check(&e->book, holders, n);
    char *seen = calloc((size_t)e->kv.pages, 1);
    assert_non_null(seen);
    for (int i = 0; i < n; i++)
        for (int p = 0; p < holders[i].holding->page_count; p++)
            used += !seen[holders[i].holding->pages[p]]++;
    assert_int_equal(rt_engine_room(e).pages_used, used);
    free(seen);
}

// Forwards of the requests that have begun to answer, by slot; 0: none there.
typedef struct answering {
    rt_session_id id[MIX];
    int forwards[MIX];
} answering;

static answering look(const rt_engine *e)
{
    answering a = {0};
    for (int slot = 0; slot < e->options.max_sessions; slot++) {
        const rt_session *s = e->running[slot];
        a.id[slot] = s && !s->finished && s->forwards > 0 ? s->id : 0;
        a.forwards[slot] = a.id[slot] ? s->forwards : 0;
    }
    return a;
}

// Whatever is being read, every request that answers takes part in every forward.
static bool step(engine_case *c)
{
    bool busy;
    const answering before = look(c->root);
    assert_ok(rt_engine_step(c->root, &busy));
    check_pages(c->root);
    for (int slot = 0; slot < c->options.max_sessions; slot++) {
        const rt_session *s = c->root->running[slot];
        if (s && s->id == before.id[slot])
            assert_int_equal(s->forwards, before.forwards[slot] + 1);
    }
    return busy;
}

static void drain(engine_case *c)
{
    enum { FOREVER = 10000 };
    int steps = 0;
    while (step(c))
        assert_true(++steps < FOREVER);
}

static void run_alone(rt_engine_options o, const rt_request *requests, int n, engine_answer *want)
{
    o.max_sessions = 1;
    o.context = 0;
    o.no_sharing = true;
    for (int i = 0; i < n; i++)
        engine_run(&o, 1, &requests[i], 1, &want[i]);
}

// ---- the same answers -------------------------------------------------------------------

typedef struct machine {
    const char *model;
    int page;
    const char *policy;
} machine;

static const machine machines[] = {
    {BLOCK_4, 4, "losa"},   {BLOCK_4, 16, "dense"}, {BLOCK_16, 4, "losa-mix"},
    {BLOCK_16, 16, "losa"}, {BLOCK_16, 32, "losa"}, {BLOCK_32, 8, "quest"},
    {BLOCK_32, 64, "mage"}, {SHIFTED, 16, "losa"},  {BLOCK_4, 4, "losa-mass"},
};
enum { MACHINES = sizeof machines / sizeof machines[0] };

static rt_engine_options options_of(const machine *m)
{
    rt_engine_options o = tiny_options(m->model, m->page);
    o.attention.policy = losa_policy_find(m->policy);
    return o;
}

typedef struct way {
    const char *name;
    int ranks, sessions, chunk, context;
    int gap; // steps between two submissions
} way;

static const way ways[] = {
    {"together", 1, MIX, 512, MIX *CONTEXT, 0},
    {"chunk 32", 1, MIX, 32, MIX *CONTEXT, 0},
    {"one by one", 1, MIX, 64, MIX *CONTEXT, 3},
    {"one slot", 1, 1, 512, CONTEXT, 0},
    {"few pages", 1, 4, 32, 150, 0},
    {"2 ranks", 2, 5, 32, 300, 1},
};
enum { WAYS = sizeof ways / sizeof ways[0] };

static void check_way(rt_engine_options o, const way *w, const rt_request *requests,
                      const engine_answer *want)
{
    o.max_sessions = w->sessions;
    o.prefill_chunk = w->chunk;
    o.context = w->context;
    engine_answer got[MIX] = {0};
    engine_case c;
    engine_open(&c, &o, w->ranks);
    for (int i = 0; i < MIX; i++) {
        engine_submit(&c, &requests[i], &got[i]);
        for (int k = 0; k < w->gap; k++)
            step(&c);
    }
    drain(&c);
    engine_close(&c);
    char what[128];
    snprintf(what, sizeof what, "page %d, %s, %s", o.attention.page, o.attention.policy->name,
             w->name);
    engine_same(what, got, want, MIX);
    if (w->ranks == 1)
        engine_same_stats(what, got, want, MIX);
    int shared = 0;
    for (int i = 0; i < MIX; i++) {
        assert_int_equal(got[i].done, 1);
        shared += got[i].stats.shared_tokens;
    }
    assert_true(shared >= 2 * 64); // the two prompts that come twice
    engine_free(got, MIX);
}

static void test_same_answers(void **state)
{
    (void)state;
    rt_request requests[MIX];
    mix(requests);
    for (int m = 0; m < MACHINES; m++) {
        const rt_engine_options o = options_of(&machines[m]);
        engine_answer want[MIX] = {0};
        run_alone(o, requests, MIX, want);
        for (int w = 0; w < WAYS; w++)
            check_way(o, &ways[w], requests, want);
        engine_free(want, MIX);
    }
    free_prompts(requests, MIX);
}

// ---- what is computed -------------------------------------------------------------------

// A document and its questions, at once: it is read once, the questions wait for it, and
// each shares what is whole blocks and pages of it.
static void test_read_once(void **state)
{
    (void)state;
    enum { N = 5, DOCUMENT = 70, QUESTION = 20, CHUNK = 16 };
    rt_engine_options o = tiny_options(BLOCK_4, 16);
    o.prefill_chunk = CHUNK;
    rt_request requests[N];
    engine_answer a[N] = {0};
    engine_case c;
    engine_open(&c, &o, 2);
    for (int i = 0; i < N; i++) {
        requests[i] = ask(0, DOCUMENT, DOCUMENT + QUESTION, i, 4);
        engine_submit(&c, &requests[i], &a[i]);
    }
    const int whole = DOCUMENT / 16, each = (DOCUMENT + QUESTION + 4 + 15) / 16;
    step(&c);
    assert_int_equal(rt_engine_room(c.root).pages_used, each + (N - 1) * (each - whole));
    for (int i = 0; i < N; i++)
        assert_int_equal(a[i].prefilled, i == 0);
    drain(&c);
    engine_close(&c);
    for (int i = 0; i < N; i++) {
        assert_int_equal(a[i].stats.shared_tokens, i == 0 ? 0 : whole * 16);
        assert_true(a[i].stats.prefill_forwards <= (i == 0 ? 90 / 8 : 26 / 4));
    }
    engine_free(a, N);
    free_prompts(requests, N);
}

// The same prompt again, later: all of it is there, and the answer begins at once.
static void test_kept(void **state)
{
    (void)state;
    const rt_engine_options o = tiny_options(BLOCK_4, 4);
    const rt_request request = ask(0, 96, 96, 0, 5);
    engine_answer first = {0}, again = {0};
    engine_case c;
    engine_open(&c, &o, 1);
    engine_submit(&c, &request, &first);
    engine_drain(&c);
    assert_int_equal(rt_engine_room(c.root).pages_used, 0);
    rt_needs needs;
    assert_ok(rt_engine_needs(c.root, &request, &needs));
    assert_int_equal(needs.shared, 0); // nobody holds them now
    engine_submit(&c, &request, &again);
    step(&c);
    assert_ok(rt_engine_needs(c.root, &request, &needs));
    assert_int_equal(needs.shared, 24);
    drain(&c);
    engine_close(&c);
    engine_same("again", &again, &first, 1);
    engine_same_stats("again", &again, &first, 1);
    assert_int_equal(first.stats.shared_tokens, 0);
    assert_int_equal(again.stats.shared_tokens, 96);
    assert_int_equal(again.stats.prefill_forwards + again.prefilled, 0);
    engine_free(&first, 1), engine_free(&again, 1);
    free_prompts(&request, 1);
}

// A prompt of whole blocks, of a model whose rows predict the next token: the answer's first
// token comes from the prompt's last row, so the last block is computed by everybody.
static void test_shifted(void **state)
{
    (void)state;
    enum { N = 3, PROMPT = 96, BLOCK = 32 };
    const rt_engine_options o = tiny_options(SHIFTED, 16);
    const rt_request requests[N] = {ask(0, PROMPT, PROMPT, 0, 8), ask(0, PROMPT, PROMPT, 0, 8),
                                    ask(0, PROMPT, PROMPT, 0, 8)};
    engine_answer got[N] = {0}, want[N] = {0};
    run_alone(o, requests, N, want);
    engine_case c;
    engine_open(&c, &o, 1);
    for (int i = 0; i < N; i++) {
        engine_submit(&c, &requests[i], &got[i]);
        if (i > 0) // two together, and one that finds all of it
            drain(&c);
    }
    engine_close(&c);
    engine_same("a shifted model", got, want, N);
    for (int i = 1; i < N; i++)
        assert_int_equal(got[i].stats.shared_tokens, PROMPT - BLOCK);
    engine_free(got, N), engine_free(want, N);
    free_prompts(requests, N);
}

// Kept pages never keep anybody waiting: documents come in turns, in an engine that holds
// little more than one.
static void test_evicted(void **state)
{
    (void)state;
    enum { N = 9 };
    rt_engine_options o = tiny_options(BLOCK_4, 4);
    o.max_sessions = 2;
    o.context = 128;
    rt_request requests[N];
    engine_answer got[N] = {0}, want[N] = {0};
    engine_case c;
    engine_open(&c, &o, 1);
    for (int i = 0; i < N; i++) {
        requests[i] = ask(i % 3, 80, 90, i, 6);
        engine_submit(&c, &requests[i], &got[i]);
        drain(&c);
    }
    engine_close(&c);
    run_alone(o, requests, N, want);
    engine_same("evicted", got, want, N);
    for (int i = 0; i < N; i++)
        assert_int_equal(got[i].stats.shared_tokens, 0); // least recently used: gone in its turn
    engine_free(got, N), engine_free(want, N);
    free_prompts(requests, N);
}

static rt_status count_rows(void *ctx, const float *rows, size_t n, int vocab)
{
    (void)rows, (void)vocab;
    *(size_t *)ctx += n;
    return RT_OK;
}

// All logits of a prompt share nothing and need pages that are kept: what is found after
// them is what they left.
static void test_logits_between(void **state)
{
    (void)state;
    rt_engine_options o = tiny_options(BLOCK_4, 4);
    o.max_sessions = 1;
    o.context = 128;
    const rt_request request = ask(0, 96, 96, 0, 5);
    engine_answer first = {0}, again = {0};
    size_t rows = 0;
    engine_case c;
    engine_open(&c, &o, 2);
    engine_submit(&c, &request, &first);
    drain(&c);
    assert_ok(rt_engine_logits(c.root, engine_prompt(700, 44, VOCAB), 44, count_rows, &rows));
    check_pages(c.root);
    assert_int_equal(rows, 44);
    engine_submit(&c, &request, &again);
    drain(&c);
    const int left = c.root->kv.pages - 11; // pages of 44 tokens
    engine_close(&c);
    engine_same("after logits", &again, &first, 1);
    assert_int_equal(again.stats.shared_tokens, left * 4 < 96 ? left * 4 : 96);
    assert_true(again.stats.shared_tokens < 96); // some had to go
    engine_free(&first, 1), engine_free(&again, 1);
    free_prompts(&request, 1);
}

static void test_switched_off(void **state)
{
    (void)state;
    rt_engine_options o = tiny_options(BLOCK_4, 4);
    o.no_sharing = true;
    const rt_request requests[2] = {ask(0, 80, 80, 0, 5), ask(0, 80, 80, 0, 5)};
    engine_answer a[2] = {0};
    engine_run(&o, 1, requests, 2, a);
    assert_int_equal(a[0].stats.shared_tokens + a[1].stats.shared_tokens, 0);
    engine_free(a, 2);
    free_prompts(requests, 2);
}

// ---- time -----------------------------------------------------------------------------

// Whoever waits for a prompt that another one reads is not decoding meanwhile.
static void test_seconds(void **state)
{
    (void)state;
    rt_engine_options o = tiny_options(BLOCK_4, 16);
    o.prefill_chunk = 12;
    const rt_request requests[2] = {ask(0, 96, 96, 0, 5), ask(0, 96, 96, 0, 5)};
    engine_answer a[2] = {0};
    engine_case c;
    engine_open(&c, &o, 1);
    for (int i = 0; i < 2; i++)
        engine_submit(&c, &requests[i], &a[i]);
    while (a[0].prefilled < 8)
        step(&c);
    const rt_session *reader = c.root->sessions, *waiter = reader->next;
    const double read = reader->prefilled_at;
    assert_true(read > reader->admitted_at);
    step(&c);
    assert_true(waiter->prefilled_at >= read && waiter->prefilled_at == c.root->step_began);
    drain(&c);
    engine_close(&c);
    assert_int_equal(a[1].stats.shared_tokens, 96);
    for (int i = 0; i < 2; i++)
        assert_true(a[i].stats.prefill_seconds > 0 && a[i].stats.decode_seconds > 0);
    engine_free(a, 2);
    free_prompts(requests, 2);
}

// ---- cancelled --------------------------------------------------------------------------

// The reader of a document is cancelled after any number of steps, and the next one too:
// the others go on from what is written.
static void test_writer_cancelled(void **state)
{
    (void)state;
    enum { N = 4, STEPS = 16 };
    rt_engine_options o = tiny_options(BLOCK_4, 16);
    o.prefill_chunk = 12; // ends within pages
    const rt_request requests[N] = {ask(0, 99, 99, 0, 6), ask(0, 60, 70, 1, 6),
                                    ask(0, 99, 99, 2, 6), ask(0, 90, 99, 3, 6)};
    engine_answer want[N] = {0};
    run_alone(o, requests, N, want);
    for (int steps = 1; steps <= STEPS; steps++) {
        engine_answer got[N] = {0};
        engine_case c;
        engine_open(&c, &o, 2);
        for (int i = 0; i < N; i++)
            engine_submit(&c, &requests[i], &got[i]);
        for (int victim = 0; victim < 2; victim++) {
            for (int k = 0; k < steps; k++)
                step(&c);
            rt_engine_cancel(c.root, got[victim].id);
        }
        drain(&c);
        engine_close(&c);
        engine_same("after a cancelled one", got + 2, want + 2, N - 2);
        assert_int_equal(got[0].done + got[1].done, 2);
        engine_free(got, N);
    }
    engine_free(want, N);
    free_prompts(requests, N);
}

// ---- random traffic ---------------------------------------------------------------------

static int roll(uint32_t *at, int sides)
{
    const uint32_t counter[4] = {(*at)++};
    return (int)(rt_philox4x32(7, counter).v[0] % (uint32_t)sides);
}

// Requests come, and some are cancelled, at random; few pages, so that they wait for each
// other's ends, and kept ones go.
static void test_traffic(void **state)
{
    (void)state;
    enum { N = 150 };
    uint32_t dice = 0;
    rt_engine_options o = tiny_options(BLOCK_4, 8);
    o.max_sessions = 6;
    o.context = 260;
    o.prefill_chunk = 24;
    static rt_request requests[N];
    static engine_answer got[N];
    engine_case c;
    engine_open(&c, &o, 2);
    for (int i = 0; i < N; i++) {
        const int len = 1 + roll(&dice, 100);
        requests[i] = ask(roll(&dice, 3), roll(&dice, 120), len, i, 1 + roll(&dice, 12));
        engine_submit(&c, &requests[i], &got[i]);
        for (int k = roll(&dice, 8); k > 0; k--)
            step(&c);
        if (roll(&dice, 3) == 0)
            rt_engine_cancel(c.root, got[i - roll(&dice, i < 6 ? i + 1 : 6)].id);
    }
    drain(&c);
    assert_int_equal(rt_engine_room(c.root).pages_used, 0);
    engine_close(&c);
    int cancelled = 0, shared = 0;
    for (int i = 0; i < N; i++) {
        assert_int_equal(got[i].done, 1);
        cancelled += got[i].finish == RT_FINISH_CANCELLED;
        shared += got[i].stats.shared_tokens > 0;
        if (got[i].finish == RT_FINISH_CANCELLED || i % 5)
            continue;
        engine_answer want = {0};
        run_alone(o, &requests[i], 1, &want);
        engine_same("traffic", &got[i], &want, 1);
        engine_free(&want, 1);
    }
    assert_true(cancelled > 10 && shared > 30);
    engine_free(got, N);
    free_prompts(requests, N);
}

int main(void)
{
    rt_log_setup(RT_LOG_ERROR, 0, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_answers), cmocka_unit_test(test_read_once),
        cmocka_unit_test(test_kept),         cmocka_unit_test(test_shifted),
        cmocka_unit_test(test_evicted),      cmocka_unit_test(test_logits_between),
        cmocka_unit_test(test_switched_off), cmocka_unit_test(test_writer_cancelled),
        cmocka_unit_test(test_seconds),      cmocka_unit_test(test_traffic),
    };
    return cmocka_run_group_tests_name("engine sharing", tests, NULL, NULL);
}
