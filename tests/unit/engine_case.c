// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/engine_case.h"

// ---- ranks -------------------------------------------------------------------------

static rt_status work(const engine_worker *w)
{
    rt_engine *e;
    RT_TRY(rt_engine_open(w->options, w->comm, &e));
    const rt_status status = rt_engine_worker(e);
    if (status == RT_OK)
        rt_engine_close(e);
    return status;
}

// A rank that fails makes the others' waits fail too.
static void *worker_main(void *arg)
{
    engine_worker *w = arg;
    w->status = work(w);
    if (w->status != RT_OK) {
        print_error("rank %d: %s\n", comm_rank(w->comm), rt_last_error());
        comm_abort(w->comm);
    }
    comm_close(w->comm);
    return NULL;
}

rt_engine_options engine_options(const char *model)
{
    static _Thread_local char dirs[4][PATH_MAX];
    static _Thread_local unsigned next;
    const char *source = getenv("LOSA_SOURCE");
    char *dir = dirs[next++ % 4];
    snprintf(dir, PATH_MAX, "%s/%s", source ? source : ".", model);
    rt_engine_options o = rt_engine_options_default();
    o.model_dir = dir;
    o.threads = 1;
    return o;
}

void engine_open(engine_case *c, const rt_engine_options *options, int ranks)
{
    static const double DEADLINE = 60.0;
    *c = (engine_case){.ranks = ranks, .options = *options};
    if (options->model_dir) {
        snprintf(c->dir, sizeof c->dir, "%s", options->model_dir);
        c->options.model_dir = c->dir;
    }
    comm *comms[ENGINE_RANKS_MAX];
    if (ranks == 1)
        assert_ok(comm_open_self(comms));
    else
        assert_ok(comm_open_threads(ranks, DEADLINE, comms));
    for (int r = 0; r < ranks; r++)
        c->worker[r] = (engine_worker){.options = &c->options, .comm = comms[r]};
    for (int r = 1; r < ranks; r++)
        assert_int_equal(pthread_create(&c->worker[r].thread, NULL, worker_main, &c->worker[r]), 0);
    assert_ok(rt_engine_open(&c->options, comms[0], &c->root));
}

static void *open_refused(void *arg)
{
    engine_refusal *r = arg;
    rt_engine *e;
    r->status = rt_engine_open(r->options, r->comm, &e);
    if (r->status != RT_OK)
        snprintf(r->message, sizeof r->message, "%s", rt_last_error());
    comm_close(r->comm);
    return NULL;
}

void engine_refuse(const rt_engine_options *first, const rt_engine_options *second,
                   engine_refusal got[2])
{
    comm *c[2];
    assert_ok(comm_open_threads(2, 60, c));
    got[0] = (engine_refusal){.options = first, .comm = c[0]};
    got[1] = (engine_refusal){.options = second, .comm = c[1]};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, open_refused, &got[1]), 0);
    open_refused(&got[0]);
    pthread_join(thread, NULL);
}

void engine_close(engine_case *c)
{
    rt_engine_close(c->root);
    for (int r = 1; r < c->ranks; r++) {
        pthread_join(c->worker[r].thread, NULL);
        assert_int_equal(c->worker[r].status, RT_OK);
    }
    comm_close(c->worker[0].comm);
}

// ---- answers -----------------------------------------------------------------------

static void on_prefill(void *ctx, rt_session_id id, int done, int total)
{
    engine_answer *a = ctx;
    assert_true(a->id == 0 || a->id == id);
    assert_true(done > 0 && done <= total);
    assert_int_equal(a->done, 0);
    assert_string_equal(a->streamed, "");
    a->prefilled++;
}

static void on_text(void *ctx, rt_session_id id, const char *text, size_t len)
{
    engine_answer *a = ctx;
    assert_int_equal(a->id, id);
    assert_int_equal(a->done, 0);
    assert_true(len > 0);
    const size_t before = strlen(a->streamed);
    a->streamed = realloc(a->streamed, before + len + 1);
    assert_non_null(a->streamed);
    memcpy(a->streamed + before, text, len);
    a->streamed[before + len] = '\0';
}

static void on_done(void *ctx, rt_session_id id, const rt_result *r)
{
    engine_answer *a = ctx;
    assert_int_equal(a->id, id);
    assert_int_equal(r->completion_tokens, r->ids_len);
    assert_int_equal(r->text_len, strlen(r->text));
    a->ids = calloc(r->ids_len + 1, sizeof *a->ids);
    a->text = strdup(r->text);
    assert_true(a->ids && a->text);
    if (r->ids_len)
        memcpy(a->ids, r->ids, r->ids_len * sizeof *a->ids);
    a->ids_len = r->ids_len;
    a->finish = r->finish;
    a->prompt_tokens = r->prompt_tokens;
    a->stats = r->stats;
    a->probed = r->probed;
    a->place = a->finishers ? (*a->finishers)++ : 0;
    a->done++;
}

void engine_submit(engine_case *c, const rt_request *request, engine_answer *answer)
{
    rt_request r = *request;
    r.on_prefill = on_prefill;
    r.on_text = on_text;
    r.on_done = on_done;
    r.ctx = answer;
    *answer = (engine_answer){.finishers = answer->finishers};
    answer->streamed = strdup("");
    assert_non_null(answer->streamed);
    assert_ok(rt_engine_submit(c->root, &r, &answer->id));
}

int engine_drain(engine_case *c)
{
    enum { FOREVER = 100000 };
    int steps = 0;
    for (bool busy = true; busy; steps++) {
        assert_true(steps < FOREVER);
        assert_ok(rt_engine_step(c->root, &busy));
    }
    return steps;
}

void engine_run(const rt_engine_options *options, int ranks, const rt_request *requests, int n,
                engine_answer *answers)
{
    engine_case c;
    engine_open(&c, options, ranks);
    int finishers = 0;
    for (int i = 0; i < n; i++) {
        answers[i].finishers = &finishers;
        engine_submit(&c, &requests[i], &answers[i]);
    }
    engine_drain(&c);
    engine_close(&c);
    for (int i = 0; i < n; i++) {
        assert_int_equal(answers[i].done, 1);
        assert_string_equal(answers[i].streamed, answers[i].text);
        answers[i].finishers = NULL;
    }
}

void engine_free(engine_answer *answers, int n)
{
    for (int i = 0; i < n; i++) {
        free(answers[i].ids);
        free(answers[i].text);
        free(answers[i].streamed);
        answers[i] = (engine_answer){0};
    }
}

// ---- comparing -----------------------------------------------------------------------

void engine_same(const char *what, const engine_answer *got, const engine_answer *want, int n)
{
    for (int i = 0; i < n; i++) {
        const size_t len = want[i].ids_len;
        size_t same = 0;
        while (same < len && same < got[i].ids_len && got[i].ids[same] == want[i].ids[same])
            same++;
        if (same != len || got[i].ids_len != len)
            fail_msg("%s, request %d: token %zu differs (%zu tokens, expected %zu)", what, i, same,
                     got[i].ids_len, len);
        if (got[i].finish != want[i].finish || strcmp(got[i].text, want[i].text) != 0)
            fail_msg("%s, request %d: %s '%s', expected %s '%s'", what, i,
                     rt_finish_name(got[i].finish), got[i].text, rt_finish_name(want[i].finish),
                     want[i].text);
        assert_int_equal(got[i].prompt_tokens, want[i].prompt_tokens);
    }
}

static rt_stats without_shared(rt_stats s)
{
    s.prefill_forwards = 0;
    s.exchange_bytes = 0;
    s.prefill_seconds = s.decode_seconds = 0;
    return s;
}

void engine_same_stats(const char *what, const engine_answer *got, const engine_answer *want, int n)
{
    for (int i = 0; i < n; i++) {
        const rt_stats a = without_shared(got[i].stats), b = without_shared(want[i].stats);
        const bool same =
            a.ranks == b.ranks && a.blocks == b.blocks && a.forwards == b.forwards &&
            a.steps == b.steps && a.density_later == b.density_later &&
            a.density_total == b.density_total && a.union_inflation == b.union_inflation &&
            a.active_share == b.active_share && a.prefix_tokens_read == b.prefix_tokens_read &&
            a.prefix_bytes_read == b.prefix_bytes_read;
        if (!same)
            fail_msg("%s, request %d: %d blocks, %d forwards, %d steps, density %g %g, read %llu; "
                     "expected %d, %d, %d, %g %g, %llu",
                     what, i, a.blocks, a.forwards, a.steps, a.density_later, a.density_total,
                     (unsigned long long)a.prefix_bytes_read, b.blocks, b.forwards, b.steps,
                     b.density_later, b.density_total, (unsigned long long)b.prefix_bytes_read);
    }
}

// ---- requests ------------------------------------------------------------------------

const int32_t *engine_prompt(uint32_t seed, int n, int vocab)
{
    enum { RESERVED = 4 }; // stop and mask ids of the tiny models
    static int32_t *kept[4096];
    static unsigned used;
    assert_true(used < sizeof kept / sizeof kept[0]);
    int32_t *ids = calloc((size_t)n, sizeof *ids);
    assert_non_null(ids);
    uint32_t x = seed * 2654435761U + 12345;
    for (int i = 0; i < n; i++) {
        x = x * 1664525U + 1013904223U;
        ids[i] = RESERVED + (int32_t)(x >> 8) % (vocab - RESERVED);
    }
    kept[used++] = ids;
    return ids;
}

void engine_mix(rt_request requests[ENGINE_MIX], int vocab, bool sampled)
{
    static const int prompts[] = {90, 1, 17, 4, 64, 2, 31, 8, 40, 3, 77, 16, 5, 32, 63, 12};
    static const int tokens[] = {60, 5, 24, 1, 8, 30, 12, 33, 7, 2, 20, 16, 38, 4, 9, 11};
    static const int steps[] = {0, 2, 3, 0, 1, 0, 7, 0};
    static const double thresholds[] = {0, 0, 0.03, 9};
    for (int i = 0; i < ENGINE_MIX; i++) {
        rt_request *r = &requests[i];
        *r = rt_request_default();
        r->prompt_ids = engine_prompt((uint32_t)i + 1, prompts[i], vocab);
        r->prompt_ids_len = (size_t)prompts[i];
        r->max_tokens = tokens[i];
        r->strategy = (rt_strategy)(i % 4);
        r->threshold = thresholds[i % 4] * (i >= 8 ? 1.5 : 1);
        r->steps = steps[i % 8];
        r->sub_block = i % 5 == 4 ? 2 : 0;
        r->ignore_stop_ids = i % 3 == 0;
        r->seed = (uint64_t)i * 7919;
        r->temperature = sampled && i % 2 ? 0.4 + 0.1 * i : 0;
        r->top_k = sampled && i % 4 == 1 ? 5 + i : 0;
        r->top_p = sampled && i % 8 == 3 ? 0.8 : 1;
    }
}
