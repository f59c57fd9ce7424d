// SPDX-License-Identifier: Apache-2.0
// Requests that come, wait and go while others run: admission by pages and slots,
// cancelling, callbacks, the order of answers, and what is refused at submit.
#include "tests/unit/engine_case.h"

#include "runtime/base/log.h"
#include "runtime/engine/engine_int.h"

#define TINY "tests/golden/logits/gqa_b4_tied"
enum { VOCAB = 96, CONTEXT = 128, BLOCK = 4, PAGE = 4 };

// A request of the tiny model that runs to its length, one token a step.
static rt_request slow_request(int prompt, int tokens)
{
    rt_request r = rt_request_default();
    r.prompt_ids = engine_prompt((uint32_t)prompt, prompt, VOCAB);
    r.prompt_ids_len = (size_t)prompt;
    r.max_tokens = tokens;
    r.strategy = RT_STRATEGY_SEQUENTIAL;
    r.temperature = 0;
    r.ignore_stop_ids = true;
    return r;
}

static rt_engine_options tiny_options(int sessions, int context)
{
    rt_engine_options o = engine_options(TINY);
    o.max_sessions = sessions;
    o.context = context;
    o.attention.page = PAGE;
    return o;
}

static bool step(engine_case *c)
{
    bool busy;
    assert_ok(rt_engine_step(c->root, &busy));
    return busy;
}

static void same_as_alone(const rt_request *request, const engine_answer *got)
{
    const rt_engine_options o = tiny_options(1, 0);
    engine_answer want;
    engine_run(&o, 1, request, 1, &want);
    engine_same("alone", got, &want, 1);
    engine_free(&want, 1);
}

// ---- coming and going ------------------------------------------------------------------

static void test_submit_while_running(void **state)
{
    (void)state;
    enum { N = 12 };
    const rt_engine_options o = tiny_options(4, 4 * CONTEXT);
    rt_request requests[N];
    engine_answer answers[N] = {0};
    engine_case c;
    engine_open(&c, &o, 2);
    for (int i = 0; i < N; i++) {
        requests[i] = slow_request(1 + 7 * i % 50, 3 + 5 * i % 17);
        engine_submit(&c, &requests[i], &answers[i]);
        for (int k = 0; k <= i % 5; k++)
            step(&c);
    }
    engine_drain(&c);
    engine_close(&c);
    for (int i = 0; i < N; i++) {
        assert_int_equal(answers[i].done, 1);
        same_as_alone(&requests[i], &answers[i]);
    }
    engine_free(answers, N);
}

// An engine that was idle goes on; slots and pages are used again.
static void test_idle_and_again(void **state)
{
    (void)state;
    const rt_engine_options o = tiny_options(2, CONTEXT);
    const rt_request r = slow_request(50, 20);
    engine_case c;
    engine_open(&c, &o, 1);
    assert_false(step(&c));
    for (int i = 0; i < 5; i++) {
        engine_answer a = {0};
        engine_submit(&c, &r, &a);
        engine_drain(&c);
        same_as_alone(&r, &a);
        engine_free(&a, 1);
        assert_false(step(&c));
    }
    engine_close(&c);
}

// ---- cancelling ------------------------------------------------------------------------

static void test_cancel(void **state)
{
    (void)state;
    rt_engine_options o = tiny_options(2, 2 * CONTEXT);
    o.prefill_chunk = 8;
    enum { DECODING, PREFILLING, QUEUED, STAYS, N };
    const rt_request requests[N] = {slow_request(3, 40), slow_request(100, 20), slow_request(9, 9),
                                    slow_request(30, 11)};
    engine_answer a[N] = {0};
    engine_case c;
    engine_open(&c, &o, 2);
    for (int i = 0; i < N; i++)
        engine_submit(&c, &requests[i], &a[i]);
    for (int i = 0; i < 6; i++)
        step(&c);
    assert_true(a[PREFILLING].prefilled > 0);
    for (int i = DECODING; i <= QUEUED; i++) {
        rt_engine_cancel(c.root, a[i].id);
        rt_engine_cancel(c.root, a[i].id);
    }
    assert_int_equal(a[DECODING].done + a[PREFILLING].done + a[QUEUED].done, 0);
    assert_true(step(&c));
    for (int i = DECODING; i <= QUEUED; i++) {
        assert_int_equal(a[i].done, 1);
        assert_int_equal(a[i].finish, RT_FINISH_CANCELLED);
    }
    assert_int_equal(a[DECODING].ids_len, 6); // one a step, until it was cancelled
    assert_int_equal(a[PREFILLING].ids_len + a[QUEUED].ids_len, 0);
    assert_int_equal(a[QUEUED].stats.forwards + a[PREFILLING].stats.forwards, 0);
    assert_int_equal(a[DECODING].stats.forwards, 6);
    rt_engine_cancel(c.root, a[QUEUED].id); // unknown by now
    rt_engine_cancel(c.root, 0);
    engine_drain(&c);
    assert_int_equal(rt_engine_room(c.root).pages_used, 0);
    engine_close(&c);
    same_as_alone(&requests[STAYS], &a[STAYS]);
    engine_free(a, N);
}

typedef struct canceller {
    rt_engine *e;
    int texts;
    size_t ids_len;
    rt_finish finish;
    rt_stats stats;
} canceller;

static void cancel_in_step(void *ctx, rt_session_id id, rt_step_kind kind)
{
    const canceller *c = ctx;
    (void)kind;
    rt_engine_cancel(c->e, id);
}

static void count_text(void *ctx, rt_session_id id, const char *text, size_t len)
{
    canceller *c = ctx;
    (void)id, (void)text, (void)len;
    c->texts++;
}

static void keep_end(void *ctx, rt_session_id id, const rt_result *r)
{
    canceller *c = ctx;
    (void)id;
    c->ids_len = r->ids_len;
    c->finish = r->finish;
    c->stats = r->stats;
}

// What the step unmasked is not taken any more: here it would be the whole answer.
static void test_cancel_in_step(void **state)
{
    (void)state;
    const rt_engine_options o = tiny_options(1, CONTEXT);
    engine_case c;
    engine_open(&c, &o, 1);
    canceller at = {.e = c.root};
    rt_request r = slow_request(8, BLOCK);
    r.strategy = RT_STRATEGY_DYNAMIC;
    r.threshold = 0;
    r.on_step = cancel_in_step;
    r.on_text = count_text;
    r.on_done = keep_end;
    r.ctx = &at;
    rt_session_id id;
    assert_ok(rt_engine_submit(c.root, &r, &id));
    engine_drain(&c);
    engine_close(&c);
    assert_int_equal(at.finish, RT_FINISH_CANCELLED);
    assert_int_equal(at.ids_len + (size_t)at.texts, 0);
    assert_true(at.stats.forwards == 1 && at.stats.steps == 1 && at.stats.blocks == 1);
}

// Closing with requests left: nobody is told, nothing leaks, every rank ends.
static void test_close_early(void **state)
{
    (void)state;
    const rt_engine_options o = tiny_options(2, 2 * CONTEXT);
    const rt_request r = slow_request(20, 20);
    engine_answer a[4] = {0};
    engine_case c;
    engine_open(&c, &o, 2);
    for (int i = 0; i < 4; i++)
        engine_submit(&c, &r, &a[i]);
    for (int i = 0; i < 9; i++)
        step(&c);
    engine_close(&c);
    for (int i = 0; i < 4; i++)
        assert_int_equal(a[i].done, 0);
    engine_free(a, 4);
}

// ---- pages -----------------------------------------------------------------------------

static int pages_of(int prompt, int tokens)
{
    return (prompt + tokens + BLOCK - 1) / BLOCK * BLOCK / PAGE;
}

static void test_pages_of_a_span(void **state)
{
    (void)state;
    const rt_engine e = {.options.attention.page = 16};
    assert_int_equal(rt_engine_pages(&e, 0), 0);
    assert_int_equal(rt_engine_pages(&e, 16), 1);
    assert_int_equal(rt_engine_pages(&e, 17), 2);
    assert_int_equal(rt_engine_pages(&e, INT_MAX), 1 << 27);
}

static void test_never_fits(void **state)
{
    (void)state;
    const rt_engine_options o = tiny_options(1, 32);
    engine_case c;
    engine_open(&c, &o, 1);
    const int pages = c.root->kv.pages;
    assert_int_equal(pages, (32 + BLOCK + PAGE) / PAGE);
    rt_session_id id = 77;
    rt_request r = slow_request(pages * PAGE - 3, 4);
    char need[64];
    snprintf(need, sizeof need, "%d KV pages of %d needed, there are %d", pages + 1, PAGE, pages);
    assert_fails(rt_engine_submit(c.root, &r, &id), RT_ERR_LIMIT, "prompt of 37 tokens", need);
    assert_int_equal(id, 77);
    // One page less, and it fills the engine exactly.
    r = slow_request(pages * PAGE - 3, 3);
    engine_answer a = {0};
    engine_submit(&c, &r, &a);
    assert_true(step(&c));
    assert_int_equal(rt_engine_room(c.root).pages_used, pages);
    engine_drain(&c);
    assert_int_equal(rt_engine_room(c.root).pages_used, 0);
    engine_close(&c);
    same_as_alone(&r, &a);
    engine_free(&a, 1);
}

// Far more requests than pages: all are answered, admitted in order, and nobody
// passes a large one that waits.
static void test_waiting_for_pages(void **state)
{
    (void)state;
    enum { N = 24, SESSIONS = 8 };
    rt_engine_options o = tiny_options(SESSIONS, 64);
    o.no_sharing = true;
    rt_request requests[N];
    engine_answer a[N] = {0};
    engine_case c;
    engine_open(&c, &o, 2);
    const int pages = c.root->kv.pages; // 32: a large request leaves little to the others
    for (int i = 0; i < N; i++) {
        requests[i] = i % 6 == 2 ? slow_request(100, 28) : slow_request(2 + i, 2 + i % 9);
        assert_true(pages_of((int)requests[i].prompt_ids_len, requests[i].max_tokens) <= pages);
        engine_submit(&c, &requests[i], &a[i]);
    }
    double admitted[N] = {0};
    for (bool busy = true; busy;) {
        busy = step(&c);
        int used = 0;
        for (const rt_session *s = c.root->sessions; s; s = s->next) {
            used += s->slot >= 0 && !s->releasing ? s->holding.page_count : 0;
            admitted[s->id - 1] = s->admitted_at;
        }
        assert_int_equal(used, rt_engine_room(c.root).pages_used);
    }
    engine_close(&c);
    for (int i = 0; i < N; i++) {
        assert_int_equal(a[i].done, 1);
        assert_true(i == 0 || admitted[i] >= admitted[i - 1]);
        same_as_alone(&requests[i], &a[i]);
    }
    engine_free(a, N);
}

// What the engine says of its room is what it does with it.
static void test_room_and_needs(void **state)
{
    (void)state;
    rt_engine_options o = tiny_options(2, 64);
    o.no_sharing = true;
    engine_case c;
    engine_open(&c, &o, 1);
    const int pages = c.root->kv.pages;
    rt_request r = slow_request(30, 9);
    rt_needs needs;
    assert_ok(rt_engine_needs(c.root, &r, &needs));
    assert_int_equal(needs.prompt_tokens, 30);
    assert_int_equal(needs.max_tokens, 9);
    assert_int_equal(needs.pages, pages_of(30, 9));
    r.max_tokens = CONTEXT;
    assert_fails(rt_engine_needs(c.root, &r, &needs), RT_ERR_LIMIT, "and 98 new ones", "needed");
    r.max_tokens = 9;
    engine_answer a[3] = {0};
    for (int i = 0; i < 3; i++)
        engine_submit(&c, &r, &a[i]);
    rt_room room = rt_engine_room(c.root);
    assert_true(room.page == PAGE && room.slots == 2 && room.pages == pages);
    assert_true(room.slots_used == 0 && room.pages_used == 0);
    assert_true(room.slots_queued == 3 && room.pages_queued == 3 * pages_of(30, 9));
    step(&c);
    room = rt_engine_room(c.root);
    assert_true(room.slots_used == 2 && room.pages_used == 2 * pages_of(30, 9));
    assert_true(room.slots_queued == 1 && room.pages_queued == pages_of(30, 9));
    rt_engine_cancel(c.root, a[2].id);
    assert_int_equal(rt_engine_room(c.root).slots_queued, 0);
    engine_drain(&c);
    room = rt_engine_room(c.root);
    assert_int_equal(room.slots_used + room.pages_used + room.pages_queued, 0);
    engine_close(&c);
    engine_free(a, 3);
}

// First done, first out: a short request behind a long one is answered first, and its
// slot goes to the next one at once.
static void test_first_done_first_out(void **state)
{
    (void)state;
    enum { N = 4 };
    const rt_engine_options o = tiny_options(2, 2 * CONTEXT);
    const rt_request requests[N] = {slow_request(2, 100), slow_request(5, 3), slow_request(9, 3),
                                    slow_request(13, 3)};
    static const int place[N] = {3, 0, 1, 2};
    engine_answer a[N];
    engine_run(&o, 1, requests, N, a);
    for (int i = 0; i < N; i++)
        assert_int_equal(a[i].place, place[i]);
    engine_free(a, N);
}

// ---- who reads first ---------------------------------------------------------------------

// A long prompt neither keeps a running block from its step nor a short prompt from
// being read.
static void test_long_prompt_beside_short(void **state)
{
    (void)state;
    enum { RUNNING, LONG, SHORT, N };
    rt_engine_options o = tiny_options(N, N * CONTEXT);
    o.prefill_chunk = 8;
    const rt_request requests[N] = {slow_request(2, 60), slow_request(120, 4), slow_request(8, 4)};
    engine_answer a[N] = {0};
    engine_case c;
    engine_open(&c, &o, 1);
    engine_submit(&c, &requests[RUNNING], &a[RUNNING]);
    step(&c);
    engine_submit(&c, &requests[LONG], &a[LONG]);
    engine_submit(&c, &requests[SHORT], &a[SHORT]);
    int steps = 0;
    while (!a[LONG].done)
        steps += step(&c);
    assert_int_equal(a[SHORT].prefilled, 2);
    assert_int_equal(a[LONG].prefilled, 16); // 2 halves of a chunk, 14 chunks
    engine_drain(&c);
    assert_true(a[SHORT].place == 0 && a[SHORT].stats.prefill_forwards == 2);
    assert_int_equal(a[RUNNING].stats.forwards, 60); // one in every step
    assert_true(steps <= 16 + 4 + 2);
    engine_close(&c);
    engine_free(a, N);
}

// ---- 256 at once -------------------------------------------------------------------------

static void test_many(void **state)
{
    (void)state;
    enum { N = 512, SESSIONS = 256 };
    const rt_engine_options o = tiny_options(SESSIONS, SESSIONS * 24);
    static rt_request requests[N];
    static engine_answer a[N];
    for (int i = 0; i < N; i++)
        requests[i] = slow_request(1 + i % 13, 1 + i % 11);
    engine_run(&o, 1, requests, N, a);
    for (int i = 0; i < N; i++)
        assert_int_equal(a[i].ids_len, requests[i].max_tokens);
    for (int i = 0; i < 8; i++)
        same_as_alone(&requests[61 * i], &a[61 * i]);
    engine_free(a, N);
}

// ---- callbacks ---------------------------------------------------------------------------

typedef struct chain {
    engine_case *c;
    rt_session_id victim, last;
    int prefills, dones, left;
} chain;

static void chain_prefill(void *ctx, rt_session_id id, int done, int total)
{
    (void)done;
    (void)total;
    chain *ch = ctx;
    ch->prefills++;
    if (id != ch->victim)
        rt_engine_cancel(ch->c->root, ch->victim);
}

static rt_request chain_request(chain *ch);

static void chain_done(void *ctx, rt_session_id id, const rt_result *r)
{
    chain *ch = ctx;
    ch->dones++;
    assert_int_equal(r->finish, id == ch->victim ? RT_FINISH_CANCELLED : RT_FINISH_LENGTH);
    if (ch->left-- <= 0)
        return;
    const rt_request next = chain_request(ch);
    assert_ok(rt_engine_submit(ch->c->root, &next, &ch->last));
}

static rt_request chain_request(chain *ch)
{
    rt_request r = slow_request(8, 6);
    r.on_prefill = chain_prefill;
    r.on_done = chain_done;
    r.ctx = ch;
    return r;
}

// Submitting from on_done, cancelling another request from on_prefill.
static void test_callbacks_submit_and_cancel(void **state)
{
    (void)state;
    const rt_engine_options o = tiny_options(2, 2 * CONTEXT);
    engine_case c;
    engine_open(&c, &o, 2);
    chain ch = {.c = &c, .left = 5};
    const rt_request r = chain_request(&ch);
    rt_session_id first;
    assert_ok(rt_engine_submit(c.root, &r, &first));
    assert_ok(rt_engine_submit(c.root, &r, &ch.victim));
    engine_drain(&c);
    assert_int_equal(ch.dones, 2 + 5);
    assert_true(ch.last > ch.victim && ch.victim > first);
    engine_close(&c);
}

// ---- what is refused ---------------------------------------------------------------------

typedef struct refusal {
    rt_request request;
    const char *subject, *cause;
} refusal;

static void test_refused(void **state)
{
    (void)state;
    const rt_engine_options o = tiny_options(2, 2 * CONTEXT);
    static const int32_t unknown[] = {5, VOCAB}, negative[] = {-1};
    static const char *const empty[] = {"a", ""};
    const rt_request good = slow_request(5, 5);
    refusal list[] = {
        {slow_request(CONTEXT, 1), "128 tokens", "no room"},
        {good, "max tokens 0", "at least 1"},
        {good, "steps -1", "must be 1"},
        {good, "steps 2000000", "to 1048576"},
        {good, "sub-block 2000000", "to 1048576"},
        {good, "strategy 4", "none"},
        {good, "threshold", "negative"},
        {good, "threshold 1.5", "at most 1"},
        {good, "temperature", "finite"},
        {good, "top-p 2", "0 to 1"},
        {good, "token 1 is 96", "vocabulary has 96"},
        {good, "token 0 is -1", "vocabulary"},
        {good, "stop string", "empty"},
        {good, "prompt", "empty"},
        {good, "tokenizer.json", "not found"},
    };
    int i = 1;
    list[i++].request.max_tokens = 0;
    list[i++].request.steps = -1;
    list[i++].request.steps = 2000000;
    list[i++].request.sub_block = 2000000;
    list[i++].request.strategy = (rt_strategy)4;
    list[i++].request.threshold = -0.1;
    list[i].request.strategy = RT_STRATEGY_DYNAMIC;
    list[i++].request.threshold = 1.5;
    list[i++].request.temperature = INFINITY;
    list[i++].request.top_p = 2;
    list[i].request.prompt_ids = unknown;
    list[i++].request.prompt_ids_len = 2;
    list[i].request.prompt_ids = negative;
    list[i++].request.prompt_ids_len = 1;
    list[i].request.stops = empty;
    list[i++].request.stops_len = 2;
    list[i++].request.prompt_ids_len = 0;
    list[i].request.prompt_ids = NULL;
    list[i++].request.prompt = "text";
    assert_int_equal(i, sizeof list / sizeof list[0]);
    engine_case c;
    engine_open(&c, &o, 2);
    rt_session_id id;
    for (size_t k = 0; k < sizeof list / sizeof list[0]; k++) {
        const rt_status status = rt_engine_submit(c.root, &list[k].request, &id);
        assert_int_not_equal(status, RT_OK);
        assert_fails(status, status, list[k].subject, list[k].cause);
    }
    // Nothing of it is left, and the engine works.
    assert_false(step(&c));
    engine_answer a = {0};
    engine_submit(&c, &good, &a);
    engine_drain(&c);
    engine_close(&c);
    same_as_alone(&good, &a);
    engine_free(&a, 1);
}

int main(void)
{
    rt_log_setup(RT_LOG_ERROR, 0, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_submit_while_running),
        cmocka_unit_test(test_idle_and_again),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_in_step),
        cmocka_unit_test(test_pages_of_a_span),
        cmocka_unit_test(test_close_early),
        cmocka_unit_test(test_never_fits),
        cmocka_unit_test(test_waiting_for_pages),
        cmocka_unit_test(test_room_and_needs),
        cmocka_unit_test(test_first_done_first_out),
        cmocka_unit_test(test_long_prompt_beside_short),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_callbacks_submit_and_cancel),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("engine queue", tests, NULL, NULL);
}
