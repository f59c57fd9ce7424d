// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/engine_int.h"

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <limits.h>

rt_engine_options rt_engine_options_default(void)
{
    return (rt_engine_options){
        .device = kern_device_count(KERN_CUDA) > 0 ? KERN_CUDA : KERN_CPU,
        .mask_id = -1,
        .max_sessions = 1,
        .prefill_chunk = 512,
        .attention = losa_config_default(),
    };
}

rt_request rt_request_default(void)
{
    return (rt_request){
        .max_tokens = 256,
        .strategy = RT_STRATEGY_DYNAMIC,
        .threshold = 0.9,
        .sub_block = -1,
        .temperature = -1,
        .top_k = -1,
        .top_p = -1,
    };
}

const rt_model_config *rt_engine_model(const rt_engine *e)
{
    return &e->config;
}

bool rt_engine_is_root(const rt_engine *e)
{
    return comm_rank(e->group.comm) == 0;
}

int rt_engine_pages(const rt_engine *e, int span)
{
    const int page = e->options.attention.page;
    return span / page + (span % page != 0); // a context may be near INT_MAX
}

// ---- opening ---------------------------------------------------------------------------

static int round_up(int n, int unit)
{
    return (n + unit - 1) / unit * unit;
}

static rt_status check_options(const rt_engine_options *o)
{
    enum { SESSIONS_MAX = 4096, CHUNK_MAX = 1 << 20 };
    RT_CHECK_ARG(!o->model_dir != !o->dummy);
    RT_CHECK_ARG(!o->skip_prefill || o->dummy);
    if (o->max_sessions < 1 || o->max_sessions > SESSIONS_MAX)
        return RT_FAIL(RT_ERR_INVALID, "max sessions %d: must be 1 to %d", o->max_sessions,
                       SESSIONS_MAX);
    if (o->prefill_chunk < 1 || o->prefill_chunk > CHUNK_MAX)
        return RT_FAIL(RT_ERR_INVALID, "prefill chunk %d: must be 1 to %d tokens", o->prefill_chunk,
                       CHUNK_MAX);
    if (o->context < 0)
        return RT_FAIL(RT_ERR_INVALID, "context %d: must not be negative", o->context);
    return losa_config_check(&o->attention);
}

rt_status rt_engine_read_config(const rt_engine_options *options, rt_model_config *out)
{
    if (options->dummy) {
        *out = *options->dummy;
        return RT_OK;
    }
    const rt_config_overrides overrides = {options->block_length, options->mask_id};
    return rt_config_load(options->model_dir, &overrides, out);
}

// Tokens of KV pages, where the options say none.
static int default_context(const rt_engine *e)
{
    enum { CONTEXT_MAX = 1 << 30 };
    const long long one = e->config.max_positions, all = one * e->options.max_sessions;
    if (!e->options.kv_memory)
        return (int)one;
    return all < CONTEXT_MAX ? (int)all : CONTEXT_MAX;
}

// Reads configuration and headers; fills in what the options leave open.
rt_status rt_engine_configure(rt_engine *e, const rt_engine_options *options)
{
    RT_TRY(check_options(options));
    e->options = *options;
    RT_TRY(rt_engine_read_config(options, &e->config));
    const par_shape shape = {e->config.heads, e->config.kv_heads, e->config.ffn, e->config.vocab};
    comm *c = e->group.comm;
    RT_TRY(par_plan_make(&shape, comm_rank(c), comm_ranks(c), &e->plan));
    if (options->device == KERN_CUDA && options->context == 0 && options->kv_memory == 0)
        e->options.kv_memory = RT_KV_LEFT;
    if (options->context == 0)
        e->options.context = default_context(e);
    e->prefill_chunk = round_up(options->prefill_chunk, e->config.block_length);
    return options->dummy ? RT_OK : rt_checkpoint_open(options->model_dir, &e->ckpt);
}

static rt_status open_kvcache(rt_engine *e)
{
    const rt_kvcache_shape shape = {
        .layers = e->config.layers,
        .kv_heads = e->plan.kv_heads.count,
        .head_dim = e->config.head_dim,
        .pages = e->pages,
        .page = e->options.attention.page,
    };
    RT_TRY(rt_kvcache_open(e->dev, &shape, &e->kv));
    const bool random = e->options.skip_prefill && !kern_dev_is_dry(e->dev);
    return random ? rt_kvcache_randomize(e->dev, &e->kv) : RT_OK;
}

// Every session can have a finished block and an open one in a forward.
static int max_rows(const rt_engine *e)
{
    return e->options.max_sessions * 2 * e->config.block_length + e->prefill_chunk;
}

static int max_segs(const rt_engine *e)
{
    return e->options.max_sessions * 2;
}

static int max_head_rows(const rt_engine *e)
{
    const int denoised = e->options.max_sessions * e->config.block_length;
    return denoised > RT_LOGITS_ROWS ? denoised : RT_LOGITS_ROWS;
}

// Of type losa_observer: all ranks show their plans, rank 0 writes the trace. A failure of
// writing waits for its end.
static rt_status show_plan(void *ctx, const losa_view *view)
{
    const rt_engine *e = ctx;
    if (e->trace)
        rt_trace_layer(e->trace, view);
    return RT_OK;
}

static rt_status open_attention(rt_engine *e, int max_pages)
{
    const losa_limits limits = {
        .layers = e->config.layers,
        .head_dim = e->config.head_dim,
        .hidden = e->config.hidden,
        .block = e->config.block_length,
        .rows = max_rows(e),
        .segs = max_segs(e),
        .max_pages = max_pages,
        .sessions = e->options.max_sessions,
    };
    RT_TRY(losa_open(&e->group, &e->plan, &e->options.attention, &limits, &e->attention));
    return e->options.trace_plans ? losa_observe(e->attention, show_plan, e) : RT_OK;
}

// The most that one request can hold.
static int request_pages(const rt_engine *e)
{
    const int span = round_up(e->config.max_positions, e->config.block_length);
    const int pages = rt_engine_pages(e, span);
    return pages < e->pages ? pages : e->pages;
}

static rt_status open_model(rt_engine *e)
{
    const rt_model_limits limits = {
        .positions = request_pages(e) * e->options.attention.page,
        .rows = max_rows(e),
        .head_rows = max_head_rows(e),
    };
    const rt_weights_source source = {e->ckpt, e->options.allow_nonfinite, &e->loading};
    return rt_model_open(&e->group, &e->plan, &e->config, &limits, &source, &e->model);
}

static rt_status open_denoise(rt_engine *e)
{
    const rt_denoise_shape shape = {
        .max_rows = max_head_rows(e),
        .max_segs = max_segs(e),
        .block = e->config.block_length,
        .mask_id = e->config.mask_id,
        .shifted = e->config.shifted,
        .vocab = e->plan.vocab,
    };
    return rt_denoise_open(&e->group, &shape, &e->denoise);
}

// Rank 0 reads and writes text. A checkpoint without a tokenizer still takes ids.
rt_status rt_engine_open_tokenizer(rt_engine *e)
{
    char path[PATH_MAX];
    if (e->options.dummy)
        return RT_OK;
    RT_TRY(rt_path_join(e->options.model_dir, "tokenizer.json", path, sizeof path));
    if (!rt_file_exists(path))
        return RT_OK;
    RT_TRY(rt_chat_template_load(e->options.model_dir, &e->chat));
    return rt_tokenizer_open(path, &e->tokenizer);
}

// Rank 0.
static rt_status open_trace(rt_engine *e)
{
    const losa_config *attention = &e->options.attention;
    if (!e->options.trace_plans)
        return RT_OK;
    Pb__TraceHead head = PB__TRACE_HEAD__INIT;
    head.architecture = e->config.architecture;
    head.layers = (uint32_t)e->config.layers;
    head.heads = (uint32_t)e->config.heads;
    head.kv_heads = (uint32_t)e->config.kv_heads;
    head.head_dim = (uint32_t)e->config.head_dim;
    head.block = (uint32_t)e->config.block_length;
    head.page = (uint32_t)attention->page;
    head.policy = (char *)(uintptr_t)attention->policy->name;
    head.scope = (char *)(uintptr_t)(attention->scope == LOSA_SCOPE_SHARED ? "shared" : "head");
    return rt_trace_open(e->options.trace_plans, &head, &e->trace);
}

static rt_status open_root(rt_engine *e)
{
    const rt_pagebook_shape book = {
        .pages = e->kv.pages,
        .page = e->kv.page,
        .block = e->config.block_length,
        .sharing = !e->options.no_sharing && !e->options.skip_prefill,
    };
    RT_TRY(rt_pagebook_open(&book, &e->book));
    RT_TRY(rt_command_open(e->options.max_sessions, &e->command));
    RT_TRY(rt_engine_open_tokenizer(e));
    return open_trace(e);
}

// Looking at plans layer by layer takes the host along, whose part is not recorded.
static bool records(const rt_engine *e)
{
    const rt_engine_options *o = &e->options;
    return kern_can_record(e->dev) && !o->no_graph && !o->trace_plans && !o->attention.check_plans;
}

static rt_status open_state(rt_engine *e)
{
    const size_t sessions = (size_t)e->options.max_sessions;
    const int pages = request_pages(e);
    RT_TRY(RT_ALLOC(e->slots, sessions, "slots"));
    RT_TRY(RT_ALLOC(e->running, sessions, "slots"));
    RT_TRY(kern_buf_new_shared(e->dev, KERN_I64, (size_t)max_segs(e) * KERN_COUNT_N, "counters",
                               &e->counts));
    RT_TRY(RT_ALLOC(e->results, sessions * (size_t)comm_ranks(e->group.comm), "results"));
    RT_TRY(open_kvcache(e));
    RT_TRY(rt_batch_open(e->dev, max_rows(e), max_segs(e), pages, &e->batch));
    RT_TRY(open_attention(e, pages));
    RT_TRY(open_denoise(e));
    if (e->options.probe_every > 0)
        RT_TRY(rt_probe_open(e, pages, &e->probe));
    return records(e) ? rt_graphs_open(e->dev, e->group.comm, &e->graphs) : RT_OK;
}

rt_status rt_engine_fill(rt_engine *e)
{
    RT_TRY(open_model(e));
    return open_state(e);
}

static void on_load(void *ctx, uint64_t done)
{
    const rt_engine *e = ctx;
    e->options.on_load(e->options.load_ctx, done, e->stored);
}

static rt_status open_memory(rt_engine *e)
{
    const double start = rt_clock_now();
    if (e->options.on_load && rt_engine_is_root(e))
        e->loading = (rt_load_progress){.fn = on_load, .ctx = e};
    RT_TRY(rt_engine_fill(e));
    RT_TRY(kern_sync(e->dev));
    const double seconds = rt_clock_now() - start, giga = (double)e->loading.done / 1e9;
    rt_log(RT_LOG_INFO, "loaded %.2f GB in %.2f s, %.2f GB/s", giga, seconds, giga / seconds);
    rt_checkpoint_close(e->ckpt);
    e->ckpt = NULL;
    return rt_engine_is_root(e) ? open_root(e) : RT_OK;
}

// One rank's failure must not leave the others waiting in a collective: between
// collectives the ranks agree.
static rt_status open_all(rt_engine *e, const rt_engine_options *options)
{
    comm *c = e->group.comm;
    RT_TRY(comm_agree(c, rt_engine_configure(e, options)));
    if (rt_engine_is_root(e) && !options->dummy)
        rt_config_warn(&e->config, options->model_dir);
    RT_TRY(rt_engine_device(&e->options, c, &e->dev));
    e->group.dev = e->dev;
    RT_TRY(rt_engine_compare(e));
    RT_TRY(comm_attach(c, e->dev));
    RT_TRY(rt_engine_size(e));
    return comm_agree(c, open_memory(e));
}

void rt_engine_empty(rt_engine *e)
{
    while (e->sessions) {
        rt_session *s = e->sessions;
        e->sessions = s->next;
        rt_session_free(s);
    }
    if (e->results)
        rt_step_drop_results(e);
    for (int i = 0; e->slots && i < e->options.max_sessions; i++)
        rt_slot_release(&e->slots[i]);
    rt_free(e->slots);
    rt_free(e->running);
    rt_graphs_close(e->graphs);
    rt_probe_close(e->probe);
    kern_buf_free(e->counts);
    rt_free(e->results);
    rt_tokenizer_close(e->tokenizer);
    rt_chat_template_free(&e->chat);
    rt_trace_close(e->trace);
    kern_buf_free(e->gathered);
    kern_buf_free(e->logits_index);
    rt_denoise_close(e->denoise);
    losa_close(e->attention);
    rt_batch_close(&e->batch);
    rt_pagebook_close(&e->book);
    rt_command_close(&e->command);
    rt_kvcache_close(&e->kv);
    rt_model_close(e->model);
    rt_checkpoint_close(e->ckpt);
}

static void close_all(rt_engine *e)
{
    rt_engine_empty(e);
    comm_detach(e->group.comm);
    kern_dev_close(e->dev);
    rt_free(e);
}

rt_status rt_engine_open(const rt_engine_options *options, comm *c, rt_engine **out)
{
    rt_engine *e;
    rt_status status = comm_agree(c, RT_ALLOC(e, 1, "engine"));
    if (status != RT_OK) {
        rt_free(e);
        return status;
    }
    e->group.comm = c;
    e->sessions_end = &e->sessions;
    status = open_all(e, options);
    if (status != RT_OK) {
        close_all(e);
        return status;
    }
    *out = e;
    return RT_OK;
}

void rt_engine_close(rt_engine *e)
{
    if (!e)
        return;
    if (rt_engine_is_root(e)) {
        Pb__Step step = PB__STEP__INIT;
        step.sequence = ++e->sequence;
        step.has_close = step.close = true;
        if (rt_step_send(e, &step) != RT_OK)
            rt_log(RT_LOG_ERROR, "closing the engine: %s", rt_last_error());
    }
    close_all(e);
}

rt_status rt_engine_end_trace(rt_engine *e)
{
    RT_CHECK_ARG(rt_engine_is_root(e));
    return e->trace ? rt_trace_end(e->trace) : RT_OK;
}

rt_status rt_engine_worker(rt_engine *e)
{
    RT_CHECK_ARG(!rt_engine_is_root(e));
    for (bool open = true; open;) {
        Pb__Step *step;
        RT_TRY(rt_step_receive(e, &step));
        open = !step->close;
        const rt_status status = open ? rt_step_execute(e, step) : RT_OK;
        pb_step_free(step);
        RT_TRY(status);
    }
    return RT_OK;
}
