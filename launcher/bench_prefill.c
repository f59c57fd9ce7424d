// SPDX-License-Identifier: Apache-2.0
// losa bench prefill: how long prompts are read.
#include "launcher/bench_model.h"

#include "runtime/base/mem.h"

static void keep_seconds(void *ctx, rt_session_id id, const rt_result *result)
{
    (void)id;
    *(double *)ctx = result->stats.prefill_seconds;
}

static rt_status read_prompt(const bench_model *m, double *seconds)
{
    rt_request r = rt_request_default();
    r.prompt_ids = m->ids;
    r.prompt_ids_len = (size_t)m->tokens;
    r.max_tokens = 1;
    r.temperature = 0;
    r.on_done = keep_seconds;
    r.ctx = seconds;
    rt_session_id id;
    RT_TRY(rt_engine_submit(m->engine, &r, &id));
    for (bool busy = true; busy;)
        RT_TRY(rt_engine_step(m->engine, &busy));
    return RT_OK;
}

// Multiplications and additions of a prompt: weights of the layers, and attention of
// every token to half the prompt.
static double operations(const rt_model_config *c, double tokens)
{
    const double qo = 2.0 * c->heads * c->head_dim, kv = 2.0 * c->kv_heads * c->head_dim;
    const double weights = c->hidden * (qo + kv + 3.0 * c->ffn);
    return 2 * c->layers * tokens * (weights + c->heads * c->head_dim * tokens);
}

static rt_status measure(const bench_model *m)
{
    const int repeats = m->args->repeats;
    const int block = rt_engine_model(m->engine)->block_length;
    double *seconds, warm_up;
    if (m->tokens < block)
        return RT_FAIL(RT_ERR_INVALID,
                       "bench prefill: %d tokens are less than a block of %d, and read with the "
                       "answer",
                       m->tokens, block);
    RT_TRY(RT_ALLOC(seconds, (size_t)repeats, "times"));
    rt_status status = read_prompt(m, &warm_up);
    for (int i = 0; i < repeats && status == RT_OK; i++)
        status = read_prompt(m, &seconds[i]);
    if (status == RT_OK) {
        const double median = bench_median(seconds, (size_t)repeats);
        const double all = operations(rt_engine_model(m->engine), m->tokens);
        status = bench_add(m->rows, json_pack("{s:i, s:i, s:f, s:f, s:f}", "tokens", m->tokens,
                                              "chunk", m->args->engine.prefill_chunk, "prefill_ms",
                                              1e3 * median, "tokens_per_s", m->tokens / median,
                                              "TFLOPs", all / median / 1e12));
    }
    rt_free(seconds);
    return status;
}

static rt_status run(comm *c, const bench_args *args, int64_t tokens, json_t *rows)
{
    return bench_with_engine(c, args, (int)tokens, 0, false, measure, rows);
}

const bench bench_prefill = {
    .name = "prefill",
    .summary = "block-causal prefill of N random tokens",
    .needs_model = true,
    .unit = "tokens",
    .least = 1,
    .most = 1 << 28,
    .run = run,
};
