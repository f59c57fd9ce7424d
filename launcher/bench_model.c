// SPDX-License-Identifier: Apache-2.0
#include "launcher/bench_model.h"
#include "launcher/loading.h"
#include "launcher/model_options.h"

#include "runtime/base/mem.h"
#include "runtime/base/rng.h"

static rt_status random_ids(const rt_model_config *m, int tokens, int32_t **out)
{
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

// Blocks begin at multiples of the block length, wherever the prompt ends: pages are for one more.
static rt_status size_engine(const bench_args *args, int tokens, int blocks, bool skip_prefill,
                             rt_model_config *config, rt_engine_options *out)
{
    const rt_config_overrides overrides = {.block_length = args->block, .mask_id = -1};
    RT_TRY(app_model_config(args->model, args->dummy, &overrides, config));
    const long long answer = blocks ? (long long)blocks * config->block_length : 1;
    const long long each = tokens + (blocks + 1LL) * config->block_length;
    const int context = args->dummy == APP_NO_DUMMY ? config->max_positions : RT_CONFIG_MAX_CONTEXT;
    if (tokens + answer > context)
        return RT_FAIL(RT_ERR_LIMIT,
                       "bench: %d tokens and %lld to answer are beyond the context of %d", tokens,
                       answer, context);
    if (each * args->batch > 1 << 30)
        return RT_FAIL(RT_ERR_LIMIT, "%d requests of %lld tokens: too many", args->batch, each);
    *out = args->engine;
    out->model_dir = args->model;
    out->block_length = args->block;
    out->attention = args->policy->config;
    out->context = (int)each * args->batch;
    out->max_sessions = args->batch;
    out->no_sharing = true; // the same prompt over and over
    if (args->dummy == APP_NO_DUMMY)
        return RT_OK;
    config->max_positions = (int)each;
    out->dummy = config;
    out->skip_prefill = skip_prefill;
    return RT_OK;
}

// Requests that wait for others' pages are not what is to be measured.
static rt_status check_pages(const bench_model *m, int tokens)
{
    const rt_room room = rt_engine_room(m->engine);
    if ((long long)room.pages * room.page >= tokens)
        return RT_OK;
    return RT_FAIL(RT_ERR_LIMIT,
                   "bench: %d tokens of KV pages needed, --kv-memory gives %d pages of %d", tokens,
                   room.pages, room.page);
}

static rt_status lead(bench_model *m, int context, bench_model_fn *measure)
{
    RT_TRY(check_pages(m, context));
    int32_t *ids;
    RT_TRY(random_ids(rt_engine_model(m->engine), m->tokens, &ids));
    m->ids = ids;
    const rt_status status = measure(m);
    rt_free(ids);
    return status;
}

rt_status bench_in_engine(comm *c, const bench_args *args, const rt_engine_options *options,
                          int tokens, bench_model_fn *measure, json_t *rows)
{
    bench_model m = {.args = args, .tokens = tokens, .rows = rows};
    RT_TRY(app_engine_open(options, c, args->common.quiet, &m.engine));
    rt_status status =
        comm_rank(c) == 0 ? lead(&m, options->context, measure) : rt_engine_worker(m.engine);
    if (status != RT_OK)
        status = app_abandon(c, status);
    rt_engine_close(m.engine);
    return comm_agree(c, status);
}

rt_status bench_with_engine(comm *c, const bench_args *args, int tokens, int blocks,
                            bool skip_prefill, bench_model_fn *measure, json_t *rows)
{
    rt_model_config config;
    rt_engine_options options;
    RT_TRY(size_engine(args, tokens, blocks, skip_prefill, &config, &options));
    return bench_in_engine(c, args, &options, tokens, measure, rows);
}
