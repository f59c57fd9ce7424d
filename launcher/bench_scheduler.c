// SPDX-License-Identifier: Apache-2.0
// losa bench scheduler: what the host does between two forwards while N requests run, some
// come and some go: submitting, admission, the step command and its message, the batch, and
// what follows from a step. The model is as small as one can be, and prompts count as read.
#include "launcher/bench_model.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/rng.h"

enum {
    PROMPT = 2048,
    ANSWER_LEAST = 32, // tokens; answers are of all lengths up to twice the mean
    ANSWER_MOST = 256,
    BLOCK = 16,
    WARM_UP = 50, // steps
    STEPS = 500,
};

static const rt_model_config tiny = {
    .architecture = "SDARForCausalLM",
    .hidden = 16,
    .ffn = 16,
    .layers = 1,
    .heads = 8, // for as many ranks
    .kv_heads = 1,
    .head_dim = 2,
    .vocab = 64,
    .max_positions = PROMPT + ANSWER_MOST,
    .rms_eps = 1e-6,
    .rope = {.kind = RT_ROPE_PLAIN, .theta = 1e6, .factor = 1},
    .block_source = "the benchmark",
    .mask_source = "the benchmark",
    .top_p = 1,
};

typedef struct traffic {
    const bench_model *model;
    int requests, running;
    uint32_t submitted;
} traffic;

static void on_done(void *ctx, rt_session_id id, const rt_result *result)
{
    (void)id, (void)result;
    traffic *t = ctx;
    t->running--;
}

static rt_status keep_busy(traffic *t)
{
    const bench_model *m = t->model;
    rt_request r = rt_request_default();
    r.prompt_ids = m->ids;
    r.prompt_ids_len = (size_t)m->tokens;
    r.strategy = RT_STRATEGY_STATIC;
    r.steps = m->args->steps;
    r.ignore_stop_ids = true;
    r.on_done = on_done;
    r.ctx = t;
    for (; t->running < t->requests; t->running++) {
        const uint32_t counter[4] = {t->submitted++};
        const uint32_t word = rt_philox4x32(1, counter).v[0];
        r.max_tokens = ANSWER_LEAST + (int)(word % (ANSWER_MOST - ANSWER_LEAST));
        rt_session_id id;
        RT_TRY(rt_engine_submit(m->engine, &r, &id));
    }
    return RT_OK;
}

// Microseconds of one step that the forward did not take, and that it took.
static rt_status run_step(traffic *t, double *host, double *forward)
{
    const double start = rt_clock_now(), before = rt_engine_forward_seconds(t->model->engine);
    bool busy;
    RT_TRY(keep_busy(t));
    RT_TRY(rt_engine_step(t->model->engine, &busy));
    *forward = 1e6 * (rt_engine_forward_seconds(t->model->engine) - before);
    *host = 1e6 * (rt_clock_now() - start) - *forward;
    return RT_OK;
}

static rt_status run_steps(traffic *t, double *host, double *forward)
{
    double unused;
    for (int i = 0; i < WARM_UP; i++)
        RT_TRY(run_step(t, &unused, &unused));
    const uint32_t before = t->submitted;
    for (int i = 0; i < STEPS; i++)
        RT_TRY(run_step(t, &host[i], &forward[i]));
    const double median = bench_median(host, STEPS);
    return bench_add(t->model->rows,
                     json_pack("{s:i, s:i, s:i, s:f, s:f, s:f, s:f}", "requests", t->requests,
                               "prompt", t->model->tokens, "block",
                               rt_engine_model(t->model->engine)->block_length, "admitted_per_step",
                               (double)(t->submitted - before) / STEPS, "host_us", median,
                               "host_us_99", host[STEPS * 99 / 100], "forward_us",
                               bench_median(forward, STEPS)));
}

static rt_status measure(const bench_model *m)
{
    traffic t = {.model = m, .requests = m->args->batch};
    double *times;
    RT_TRY(RT_ALLOC(times, 2 * STEPS, "times"));
    const rt_status status = run_steps(&t, times, times + STEPS);
    rt_free(times);
    return status;
}

static rt_status run(comm *c, const bench_args *args, int64_t requests, json_t *rows)
{
    bench_args one = *args;
    one.batch = (int)requests;
    rt_model_config config = tiny;
    config.block_length = args->block ? args->block : BLOCK;
    config.mask_id = config.vocab - 1;
    rt_engine_options options = args->engine;
    options.dummy = &config;
    options.skip_prefill = true;
    options.max_sessions = one.batch;
    options.context = one.batch * (PROMPT + ANSWER_MOST);
    return bench_in_engine(c, &one, &options, PROMPT, measure, rows);
}

static const int64_t sizes[] = {1, 16, 64, 256, 0};

const bench bench_scheduler = {
    .name = "scheduler",
    .summary = "host time between forwards of N running requests",
    .unit = "requests",
    .least = 1,
    .most = 4096,
    .sizes = sizes,
    .run = run,
};
