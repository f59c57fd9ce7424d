// SPDX-License-Identifier: Apache-2.0
// losa info: what a checkpoint is, how it is split over ranks, what memory it needs.
// Reads the headers only; no weight is loaded and no rank is started. Or: what a trace
// of page plans holds.
#include "launcher/app.h"
#include "launcher/attention_options.h"
#include "launcher/grid.h"
#include "launcher/info_memory.h"
#include "launcher/model_options.h"
#include "launcher/report.h"
#include "launcher/trace_view.h"

#include "losa/policy.h"
#include "parallel/plan.h"
#include "runtime/base/mem.h"
#include "runtime/io/config.h"
#include "runtime/io/safetensors.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { CELL = 96, RANKS_MAX = 1024 };

typedef struct info_args {
    app_common common;
    const char *model, *trace, *plot;
    int dummy;
    int ranks, context; // tokens of each session
    rt_engine_options engine;
    app_attention attention;
    bool json;
} info_args;

// What is printed.
typedef struct info {
    const info_args *args;
    rt_model_config model;
    rt_checkpoint *ckpt; // NULL: a dummy
    int context;
    par_plan *plans;   // [ranks]
    rt_memory *memory; // [ranks]
} info;

#define AT(member) offsetof(info_args, member)

static const app_option options[] = {
    APP_OPTION_MODEL(info_args),
    APP_OPTION_DUMMY(info_args),
    APP_OPTION_BLOCK_LENGTH(info_args),
    APP_OPTION_MASK_ID(info_args),
    {"ranks", 'r', APP_INT, AT(ranks), 1, RANKS_MAX, "N", NULL, "split over so many ranks",
     "What to work out", NULL, NULL},
    {"context", 0, APP_INT, AT(context), 0, INT_MAX, "N", NULL,
     "tokens of a session, prompt and answer; 0: the model's length", NULL, NULL, NULL},
    {"batch", 0, APP_INT, AT(engine.max_sessions), 1, 4096, "R", NULL,
     "sessions that run at the same time", NULL, NULL, NULL},
    APP_OPTION_KV_MEMORY(info_args, "count the sessions that fit; no more KV pages than that"),
    {"prefill-chunk", 0, APP_INT, AT(engine.prefill_chunk), 1, 1 << 20, "N", NULL,
     "prompt tokens in one forward", NULL, NULL, NULL},
    {"device", 0, APP_CHOICE, AT(engine.device), 0, 0, "KIND", NULL,
     "to plan for; need not be here", NULL, app_any_device_choice, NULL},
    APP_OPTION_PRECISION(info_args),
    APP_OPTIONS_ATTENTION(info_args, attention),
    {"json", 0, APP_FLAG, AT(json), 0, 0, NULL, NULL, "print one JSON object", "Output", NULL,
     NULL},
    {"trace", 0, APP_TEXT, AT(trace), 0, 0, "FILE", NULL,
     "print what 'losa generate --trace-plans' wrote, a plan a line, instead", NULL, NULL, NULL},
    {"plot", 0, APP_TEXT, AT(plot), 0, 0, "FILE.svg", NULL,
     "with --trace: draw the density by layer and step of a block instead of printing", NULL, NULL,
     NULL},
};

static void defaults(void *target)
{
    info_args *args = target;
    args->dummy = APP_NO_DUMMY;
    args->ranks = 1;
    args->engine = rt_engine_options_default();
    app_attention_defaults(&args->attention);
}

static rt_status check(void *target)
{
    info_args *args = target;
    const bool model = args->model || args->dummy != APP_NO_DUMMY;
    if (model == !!args->trace)
        return RT_FAIL(RT_ERR_INVALID, "give either --model DIR, --dummy NAME or --trace FILE");
    if (model)
        RT_TRY(app_model_check(args->model, args->dummy));
    if (args->plot && !args->trace)
        return RT_FAIL(RT_ERR_INVALID, "--plot needs --trace");
    if (args->trace && args->json)
        return RT_FAIL(RT_ERR_INVALID, "--trace prints lines of text, not --json");
    RT_TRY(app_attention_check(&args->attention));
    args->engine.attention = args->attention.config;
    args->engine.model_dir = args->model;
    return RT_OK;
}

// ---- figures ---------------------------------------------------------------------

static int64_t count_parameters(const rt_checkpoint *ckpt)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < rt_checkpoint_count(ckpt); i++) {
        rt_tensor tensor;
        const char *dtype;
        rt_checkpoint_at(ckpt, i, &tensor, &dtype);
        sum += tensor.elements;
    }
    return (int64_t)sum;
}

static const char *rope_name(rt_rope_kind kind)
{
    static const char *const names[] = {"plain", "linear", "yarn"};
    return names[kind];
}

// ---- JSON ------------------------------------------------------------------------

static json_t *range_json(par_range r)
{
    return json_pack("[i, i]", r.first, r.first + r.count);
}

static json_t *shard_json(const par_plan *p, const rt_memory *m, uint64_t kv_memory)
{
    json_t *shard =
        json_pack("{s:i, s:o, s:o, s:i, s:o, s:o}", "rank", p->rank, "heads", range_json(p->heads),
                  "kv_heads", range_json(p->kv_heads), "kv_replicas", p->kv_replicas, "ffn",
                  range_json(p->ffn), "vocab", range_json(p->vocab));
    json_t *memory = app_memory_json(m, kv_memory);
    if (json_object_update(shard, memory) != 0) { // also when one of them is NULL
        json_decref(shard);
        shard = NULL;
    }
    json_decref(memory);
    return shard;
}

static json_t *model_json(const rt_model_config *m)
{
    json_t *stops = json_array();
    for (int i = 0; i < m->stop_count; i++)
        json_array_append_new(stops, json_integer(m->stop_ids[i]));
    return json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:b, s:b, s:b,"
        " s:b, s:i, s:s, s:i, s:s, s:o}",
        "architecture", m->architecture, "layers", m->layers, "hidden", m->hidden, "ffn", m->ffn,
        "heads", m->heads, "kv_heads", m->kv_heads, "head_dim", m->head_dim, "vocab", m->vocab,
        "context", m->max_positions, "rope", rope_name(m->rope.kind), "rope_theta", m->rope.theta,
        "rope_factor", m->rope.factor, "qkv_bias", m->qkv_bias, "qk_norm", m->qk_norm, "tied_head",
        m->tied_head, "shifted", m->shifted, "block_length", m->block_length, "block_source",
        m->block_source, "mask_id", m->mask_id, "mask_source", m->mask_source, "stop_ids", stops);
}

static json_t *files_json(const rt_checkpoint *ckpt)
{
    return json_pack("{s:I, s:I, s:I}", "tensors", (json_int_t)rt_checkpoint_count(ckpt),
                     "tensor_bytes", (json_int_t)rt_checkpoint_bytes(ckpt), "parameters",
                     (json_int_t)count_parameters(ckpt));
}

static rt_status print_json(const info *in)
{
    const rt_engine_options *o = &in->args->engine;
    json_t *shards = json_array();
    for (int r = 0; r < in->args->ranks; r++)
        json_array_append_new(shards, shard_json(&in->plans[r], &in->memory[r], o->kv_memory));
    json_t *all = json_pack("{s:o, s:o*, s:s, s:s, s:i, s:i, s:o}", "model", model_json(&in->model),
                            "files", in->ckpt ? files_json(in->ckpt) : NULL, "device",
                            app_any_device_choice(o->device), "default_device",
                            app_device_choice(rt_engine_options_default().device), "context",
                            in->context, "sessions", o->max_sessions, "shards", shards);
    if (!all)
        return RT_FAIL(RT_ERR_INTERNAL, "info: no memory, or text that is not UTF-8");
    const rt_status status = app_report_write(all, "-");
    json_decref(all);
    return status;
}

// ---- tables ----------------------------------------------------------------------

__attribute__((format(printf, 2, 3))) static void print_row(const char *label, const char *fmt, ...)
{
    va_list list;
    va_start(list, fmt);
    printf("%-22s", label);
    vprintf(fmt, list);
    putchar('\n');
    va_end(list);
}

static void print_stops(const rt_model_config *m)
{
    enum { ID = sizeof ", 2147483647" };
    char ids[RT_CONFIG_MAX_STOPS * ID] = "none";
    size_t used = 0;
    for (int i = 0; i < m->stop_count; i++)
        used += (size_t)snprintf(ids + used, sizeof ids - used, i ? ", %d" : "%d", m->stop_ids[i]);
    print_row("stop ids", "%s", ids);
}

static void print_model(const rt_model_config *m)
{
    print_row("architecture", "%s", m->architecture);
    print_row("layers", "%d", m->layers);
    print_row("hidden", "%d", m->hidden);
    print_row("ffn", "%d", m->ffn);
    print_row("heads", "%d query, %d KV, of %d channels", m->heads, m->kv_heads, m->head_dim);
    print_row("q/k/v bias, q/k norm", "%s, %s", m->qkv_bias ? "yes" : "no",
              m->qk_norm ? "yes" : "no");
    print_row("vocabulary", "%d%s", m->vocab, m->tied_head ? ", tied head" : "");
    print_row("rope", "%s, theta %g, factor %g", rope_name(m->rope.kind), m->rope.theta,
              m->rope.factor);
    print_row("prediction", "%s", m->shifted ? "of the next position (shifted)" : "in place");
    print_row("context", "%d tokens", m->max_positions);
    print_row("block length", "%d (%s)", m->block_length, m->block_source);
    if (m->mask_id >= 0)
        print_row("mask id", "%d (%s)", m->mask_id, m->mask_source);
    else
        print_row("mask id", "unknown: give --mask-id to generate");
    print_stops(m);
}

static void set_range(app_grid *t, size_t row, size_t column, par_range r)
{
    if (r.count == 1)
        app_grid_set(t, row, column, "%d", r.first);
    else
        app_grid_set(t, row, column, "%d-%d", r.first, r.first + r.count - 1);
}

static rt_status print_shards(const info *in)
{
    static const char *const headings[] = {"rank", "heads", "KV heads", "ffn", "vocabulary"};
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    const size_t ranks = (size_t)in->args->ranks;
    app_grid t;
    rt_status status = app_grid_open(ranks + 1, COLUMNS, &t);
    for (size_t i = 0; i < COLUMNS && status == RT_OK; i++)
        app_grid_set(&t, 0, i, "%s", headings[i]);
    for (size_t r = 0; r < ranks && status == RT_OK; r++) {
        const par_plan *p = &in->plans[r];
        const par_range ranges[] = {p->heads, p->kv_heads, p->ffn, p->vocab};
        app_grid_set(&t, r + 1, 0, "%d", p->rank);
        for (size_t i = 0; i < COLUMNS - 1; i++)
            set_range(&t, r + 1, i + 1, ranges[i]);
    }
    if (status == RT_OK)
        status = app_grid_print(&t, stdout);
    app_grid_close(&t);
    return status;
}

static void print_device(const info *in)
{
    const int gpus = kern_device_count(KERN_CUDA);
    print_row("device", "%s (default here: %s, %d GPU%s)",
              app_any_device_choice(in->args->engine.device),
              app_device_choice(rt_engine_options_default().device), gpus, gpus == 1 ? "" : "s");
}

static rt_status print_text(const info *in)
{
    const info_args *args = in->args;
    const int sessions = args->engine.max_sessions;
    print_model(&in->model);
    if (in->ckpt) {
        print_row("tensors", "%zu, %.1f MB", rt_checkpoint_count(in->ckpt),
                  (double)rt_checkpoint_bytes(in->ckpt) / 1e6);
        print_row("parameters", "%.2f million", (double)count_parameters(in->ckpt) / 1e6);
    }
    print_device(in);
    printf("\n%d rank%s\n", args->ranks, args->ranks == 1 ? "" : "s");
    RT_TRY(print_shards(in));
    printf("\n%d session%s of %d tokens\n", sessions, sessions == 1 ? "" : "s", in->context);
    if (in->context > in->model.max_positions)
        printf("More than the model takes: its context is %d tokens.\n", in->model.max_positions);
    return app_memory_print(in->memory, args->ranks, args->engine.device, in->context,
                            args->engine.kv_memory);
}

// ----------------------------------------------------------------------------------

static rt_status plan_ranks(const info *in)
{
    const rt_model_config *m = &in->model;
    const par_shape shape = {m->heads, m->kv_heads, m->ffn, m->vocab};
    const int sessions = in->args->engine.max_sessions;
    rt_engine_options o = in->args->engine;
    if (in->context > INT_MAX / 2 / sessions)
        return RT_FAIL(RT_ERR_LIMIT, "%d sessions of %d tokens: too many", sessions, in->context);
    o.context = in->context * sessions;
    o.dummy = in->ckpt ? NULL : m;
    for (int r = 0; r < in->args->ranks; r++)
        RT_TRY(par_plan_make(&shape, r, in->args->ranks, &in->plans[r]));
    return app_memory_plan(&o, in->args->ranks, in->memory);
}

static rt_status describe(info *in)
{
    const info_args *args = in->args;
    const rt_config_overrides overrides = {args->engine.block_length, args->engine.mask_id};
    RT_TRY(app_model_config(args->model, args->dummy, &overrides, &in->model));
    if (args->model) {
        rt_config_warn(&in->model, args->model);
        RT_TRY(rt_checkpoint_open(args->model, &in->ckpt));
    }
    in->context = args->context ? args->context : in->model.max_positions;
    RT_TRY(RT_ALLOC(in->plans, (size_t)args->ranks, "plans"));
    RT_TRY(RT_ALLOC(in->memory, (size_t)args->ranks, "plans"));
    RT_TRY(plan_ranks(in));
    return args->json ? print_json(in) : print_text(in);
}

static rt_status run(comm *c, void *target)
{
    (void)c;
    const info_args *args = target;
    if (args->plot)
        return app_trace_plot(args->trace, args->plot);
    if (args->trace)
        return app_trace_print(args->trace);
    info in = {.args = args};
    const rt_status status = describe(&in);
    rt_free(in.memory);
    rt_free(in.plans);
    rt_checkpoint_close(in.ckpt);
    return status;
}

const app_command app_cmd_info = {
    .name = "info",
    .summary = "what a checkpoint is, its shards and memory; what a trace holds",
    .usage = "--model DIR | --dummy NAME [--ranks N] [--context N] [--batch R] [--json] | --trace "
             "FILE [--plot FILE.svg]",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(info_args),
    .local = true,
    .defaults = defaults,
    .check = check,
    .run = run,
};
