// SPDX-License-Identifier: Apache-2.0
// losa bench decode: denoising forwards of requests in step with each other, after
// prompts of N tokens.
#include "launcher/bench_model.h"
#include "launcher/model_options.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

// The forwards of the blocks that count, as the first request saw them.
typedef struct probe {
    rt_stats stats;
    bool seen; // the last step was one of those below
    rt_step_kind kind;
    int blocks;            // that began after the first one
    double *first, *later; // milliseconds; `first` with the commit of the block before
    double *host;          // of a later step: all but its forward
    size_t firsts, laters, most;
    double commit; // of a forward of its own
} probe;

static void on_step(void *ctx, rt_session_id id, rt_step_kind kind)
{
    (void)id;
    probe *p = ctx;
    p->seen = true;
    p->kind = kind;
}

static void on_done(void *ctx, rt_session_id id, const rt_result *result)
{
    (void)id;
    probe *p = ctx;
    p->stats = result->stats;
}

// The first blocks warm up, until every forward is a replay of one like it: the first of
// a shape runs as it is, the second is recorded.
enum { WARM_UP = 3 };

static void book(probe *p, double ms, double host)
{
    p->blocks += p->kind == RT_STEP_FIRST;
    if (p->kind == RT_STEP_COMMIT)
        p->commit = ms;
    else if (p->kind == RT_STEP_FIRST && p->blocks >= WARM_UP)
        p->first[p->firsts++] = ms + p->commit;
    else if (p->kind == RT_STEP_LATER && p->blocks >= WARM_UP && p->laters < p->most) {
        p->host[p->laters] = host;
        p->later[p->laters++] = ms;
    }
}

static rt_status submit(const bench_model *m, int max_tokens, probe *p)
{
    rt_request r = rt_request_default();
    r.prompt_ids = m->ids;
    r.prompt_ids_len = (size_t)m->tokens;
    r.max_tokens = max_tokens;
    r.strategy = RT_STRATEGY_STATIC;
    r.steps = m->args->steps;
    r.temperature = 0;
    r.ignore_stop_ids = true;
    for (int i = 0; i < m->args->batch; i++) {
        r.on_step = i == 0 ? on_step : NULL;
        r.on_done = i == 0 ? on_done : NULL;
        r.ctx = p;
        rt_session_id id;
        RT_TRY(rt_engine_submit(m->engine, &r, &id));
    }
    return RT_OK;
}

static rt_status drive(const bench_model *m, probe *p)
{
    for (bool busy = true; busy;) {
        p->seen = false;
        const double start = rt_clock_now(), before = rt_engine_forward_seconds(m->engine);
        RT_TRY(rt_engine_step(m->engine, &busy));
        const double seconds = rt_clock_now() - start;
        const double forward = rt_engine_forward_seconds(m->engine) - before;
        if (p->seen)
            book(p, 1e3 * seconds, 1e3 * (seconds - forward));
    }
    return RT_OK;
}

static rt_status add_row(const bench_model *m, probe *p)
{
    const int block = rt_engine_model(m->engine)->block_length;
    const double rest = (double)p->laters / (double)p->firsts; // later steps of a block
    const double first = bench_median(p->first, p->firsts);
    const double later = p->laters ? bench_median(p->later, p->laters) : 0;
    const double host = p->laters ? bench_median(p->host, p->laters) : 0;
    const double block_ms = first + rest * later;
    return bench_add(
        m->rows, json_pack("{s:i, s:i, s:i, s:s, s:f, s:f, s:o, s:o, s:f, s:f, s:f, s:f, s:I}",
                           "tokens", m->tokens, "batch", m->args->batch, "block", block, "policy",
                           m->args->policy->text, "forwards_per_block", 1 + rest, "first_ms", first,
                           "later_ms", p->laters ? json_real(later) : json_null(), "host_ms",
                           p->laters ? json_real(host) : json_null(), "block_ms", block_ms,
                           "tokens_per_s", 1e3 * m->args->batch * block / block_ms, "density_later",
                           p->stats.density_later, "union_inflation", p->stats.union_inflation,
                           "exchange_bytes", (json_int_t)p->stats.exchange_bytes));
}

static rt_status measure(const bench_model *m)
{
    const int block = rt_engine_model(m->engine)->block_length;
    probe p = {.most = (size_t)m->args->blocks * (size_t)(block + 1)};
    double *ms;
    RT_TRY(RT_ALLOC(ms, 3 * p.most, "times"));
    p.first = ms;
    p.later = ms + p.most;
    p.host = ms + 2 * p.most;
    rt_status status = submit(m, (WARM_UP + m->args->blocks) * block, &p);
    if (status == RT_OK)
        status = drive(m, &p);
    if (status == RT_OK && p.firsts == 0)
        status = RT_FAIL(RT_ERR_INTERNAL, "bench decode: no block was measured");
    if (status == RT_OK)
        status = add_row(m, &p);
    rt_free(ms);
    return status;
}

static rt_status run(comm *c, const bench_args *args, int64_t tokens, json_t *rows)
{
    if (args->batch > 1 && args->dummy == APP_NO_DUMMY)
        return RT_FAIL(RT_ERR_INVALID, "bench decode: --batch needs --dummy, whose requests start "
                                       "together");
    return bench_with_engine(c, args, (int)tokens, WARM_UP + args->blocks, true, measure, rows);
}

const bench bench_decode = {
    .name = "decode",
    .summary = "denoising forwards after N random tokens",
    .needs_model = true,
    .compares = true,
    .unit = "tokens",
    .least = 1,
    .most = 1 << 28,
    .run = run,
};
