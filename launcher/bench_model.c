// SPDX-License-Identifier: Apache-2.0
// losa bench prefill and decode: a checkpoint, or random weights, on random token ids.
#include "launcher/bench.h"
#include "launcher/model_options.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/rng.h"
#include "runtime/engine/engine.h"

#include <string.h>

// One request under measurement, on rank 0.
typedef struct probe {
    rt_stats stats;
    bool prefilled;
    double *later, *first; // milliseconds of forwards: a block's later steps, its first
    size_t later_count, first_count;
} probe;

static void on_prefill(void *ctx, rt_session_id id, int done, int total)
{
    (void)id;
    probe *p = ctx;
    p->prefilled = done == total;
}

static void on_done(void *ctx, rt_session_id id, const rt_result *result)
{
    (void)id;
    probe *p = ctx;
    p->stats = result->stats;
}

// Static decoding, one token per step: every block has as many steps as tokens.
static rt_request make_request(const int32_t *ids, int tokens, int max_tokens, probe *p)
{
    rt_request r = rt_request_default();
    r.prompt_ids = ids;
    r.prompt_ids_len = (size_t)tokens;
    r.max_tokens = max_tokens;
    r.strategy = RT_STRATEGY_STATIC;
    r.temperature = 0;
    r.ignore_stop_ids = true;
    r.on_prefill = on_prefill;
    r.on_done = on_done;
    r.ctx = p;
    return r;
}

// Runs a request to its end and books the time of every forward after prefill.
static rt_status run_request(rt_engine *e, const rt_request *request, probe *p)
{
    const int block = rt_engine_model(e)->block_length;
    rt_session_id id;
    p->prefilled = (int)request->prompt_ids_len < block;
    RT_TRY(rt_engine_submit(e, request, &id));
    int forward = 0;
    for (bool busy = true; busy;) {
        const bool decoding = p->prefilled;
        const double start = rt_clock_now();
        RT_TRY(rt_engine_step(e, &busy));
        const double ms = 1e3 * (rt_clock_now() - start);
        if (!decoding || !busy || forward >= request->max_tokens)
            continue; // the last step only releases
        if (forward++ % block == 0)
            p->first[p->first_count++] = ms;
        else
            p->later[p->later_count++] = ms;
    }
    return RT_OK;
}

static rt_status random_ids(const rt_engine *e, int tokens, int32_t **out)
{
    const rt_model_config *m = rt_engine_model(e);
    int32_t *ids;
    RT_TRY(RT_ALLOC(ids, (size_t)tokens, "prompt"));
    for (int i = 0; i < tokens; i++) {
        const uint32_t counter[4] = {(uint32_t)i};
        const uint32_t word = rt_philox4x32(1, counter).v[0];
        ids[i] = (int32_t)(word % (uint32_t)m->vocab);
        if (ids[i] == m->mask_id)
            ids[i] = (ids[i] + 1) % m->vocab;
    }
    *out = ids;
    return RT_OK;
}

// The model's length does not bind random weights. `tokens` of one request, with what it
// denoises.
static rt_status engine_options(const bench_args *args, int tokens, rt_model_config *dummy,
                                rt_engine_options *out)
{
    *out = args->engine;
    out->model_dir = args->model;
    out->block_length = args->block;
    out->attention = args->attention.config;
    if (args->dummy == APP_NO_DUMMY)
        return RT_OK;
    const rt_config_overrides overrides = {.block_length = args->block, .mask_id = -1};
    RT_TRY(rt_config_published((size_t)args->dummy, &overrides, dummy));
    dummy->max_positions = tokens + args->blocks * dummy->block_length;
    out->dummy = dummy;
    return RT_OK;
}

typedef rt_status measure_fn(rt_engine *e, const bench_args *args, const int32_t *ids, int tokens,
                             json_t **out);

// Opens the engine on all ranks and lets rank 0 measure.
static rt_status with_engine(comm *c, const bench_args *args, int tokens, measure_fn *measure,
                             json_t **out)
{
    rt_engine_options options;
    rt_model_config dummy;
    RT_TRY(engine_options(args, tokens, &dummy, &options));
    rt_engine *e;
    RT_TRY(rt_engine_open(&options, c, &e));
    rt_status status;
    int32_t *ids = NULL;
    if (comm_rank(c) == 0) {
        status = random_ids(e, tokens, &ids);
        if (status == RT_OK)
            status = measure(e, args, ids, tokens, out);
    } else {
        status = rt_engine_worker(e);
    }
    rt_free(ids);
    if (status != RT_OK)
        status = app_abandon(c, status);
    rt_engine_close(e);
    return comm_agree(c, status);
}

// ---- prefill ---------------------------------------------------------------------------

static rt_status measure_prefill(rt_engine *e, const bench_args *args, const int32_t *ids,
                                 int tokens, json_t **out)
{
    double *ms, scratch[2];
    RT_TRY(RT_ALLOC(ms, (size_t)args->repeats, "times"));
    rt_status status = RT_OK;
    for (int i = -1; i < args->repeats && status == RT_OK; i++) { // the first warms up
        probe p = {.later = scratch, .first = scratch + 1};
        const rt_request request = make_request(ids, tokens, 1, &p);
        status = run_request(e, &request, &p);
        if (i >= 0)
            ms[i] = 1e3 * p.stats.prefill_seconds;
    }
    if (status == RT_OK) {
        const double median = bench_median(ms, (size_t)args->repeats);
        *out = json_pack("{s:i, s:f, s:f}", "tokens", tokens, "prefill_ms", median,
                         "tokens_per_second", 1e3 * tokens / median);
    }
    rt_free(ms);
    return status;
}

static rt_status run_prefill(comm *c, const bench_args *args, int tokens, json_t **out)
{
    return with_engine(c, args, tokens, measure_prefill, out);
}

const bench bench_prefill = {"prefill", "block-causal prefill of N random tokens", true,
                             run_prefill};

// ---- decode ----------------------------------------------------------------------------

static rt_status measure_decode(rt_engine *e, const bench_args *args, const int32_t *ids,
                                int tokens, json_t **out)
{
    const int block = rt_engine_model(e)->block_length;
    const int max_tokens = args->blocks * block;
    tokens -= tokens % block; // so that blocks begin where forwards are counted
    double *ms;
    RT_TRY(RT_ALLOC(ms, 2 * (size_t)args->blocks * (size_t)block, "times"));
    probe p = {.later = ms, .first = ms + (ptrdiff_t)args->blocks * block};
    const rt_request request = make_request(ids, tokens, max_tokens, &p);
    const rt_status status = run_request(e, &request, &p);
    if (status == RT_OK && p.later_count > 0 && p.first_count > 0)
        *out =
            json_pack("{s:i, s:s, s:i, s:f, s:f, s:f, s:f, s:I}", "tokens", tokens, "attention",
                      args->attention.config.policy->name, "budget", args->attention.config.budget,
                      "first_ms", bench_median(p.first, p.first_count), "later_ms",
                      bench_median(p.later, p.later_count), "density_later", p.stats.density_later,
                      "union_inflation", p.stats.union_inflation, "exchange_bytes",
                      (json_int_t)p.stats.exchange_bytes);
    rt_free(ms);
    return status;
}

static rt_status run_decode(comm *c, const bench_args *args, int tokens, json_t **out)
{
    return with_engine(c, args, tokens, measure_decode, out);
}

const bench bench_decode = {
    "decode", "denoising forwards after N random tokens, one token per step", true, run_decode};
