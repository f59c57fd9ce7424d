// SPDX-License-Identifier: Apache-2.0
// losa info: what a checkpoint is, how it is split over ranks, what memory it needs.
// Reads the headers only; no weight is loaded and no rank is started. Or: what a trace
// of page plans holds.
#include "launcher/app.h"
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

enum { CELL = 96, RANKS_MAX = 4096 };
enum { WEIGHT_BYTES = 4, KV_BYTES = 4 }; // the CPU keeps f32

typedef struct info_args {
    app_common common;
    const char *model, *trace, *plot;
    int dummy;
    int ranks, context, page;
    rt_config_overrides overrides;
    bool json;
} info_args;

#define AT(member) offsetof(info_args, member)

static const app_option options[] = {
    APP_OPTION_MODEL(info_args),
    APP_OPTION_DUMMY(info_args),
    {"block-length", 0, APP_INT, AT(overrides.block_length), 1, 4096, "N", "from the checkpoint",
     "tokens in a block", NULL, NULL, NULL},
    {"mask-id", 0, APP_INT, AT(overrides.mask_id), 0, INT_MAX, "ID", "from the checkpoint",
     "id of the mask token", NULL, NULL, NULL},
    {"ranks", 'r', APP_INT, AT(ranks), 1, RANKS_MAX, "N", NULL, "split over so many ranks",
     "What to work out", NULL, NULL},
    {"context", 0, APP_INT, AT(context), 0, INT_MAX, "N", NULL,
     "tokens of KV pages; 0: the model's length", NULL, NULL, NULL},
    {"page-size", 0, APP_INT, AT(page), 4, 256, "N", NULL, "tokens in a KV page", NULL, NULL, NULL},
    APP_OPTION_JSON(info_args, "print one JSON object"),
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
    args->page = losa_config_default().page;
    args->overrides.mask_id = -1;
}

static rt_status check(void *target)
{
    const info_args *args = target;
    const bool model = args->model || args->dummy != APP_NO_DUMMY;
    if (model == !!args->trace)
        return RT_FAIL(RT_ERR_INVALID, "give either --model DIR, --dummy NAME or --trace FILE");
    if (model)
        RT_TRY(app_model_check(args->model, args->dummy));
    if (args->plot && !args->trace)
        return RT_FAIL(RT_ERR_INVALID, "--plot needs --trace");
    if (args->trace && args->json)
        return RT_FAIL(RT_ERR_INVALID, "--trace prints lines of text, not --json");
    losa_config config = losa_config_default();
    config.page = args->page;
    return losa_config_check(&config);
}

// ---- figures ---------------------------------------------------------------------

static int64_t count_parameters(const rt_checkpoint *ckpt)
{
    int64_t sum = 0;
    for (size_t i = 0; i < rt_checkpoint_count(ckpt); i++) {
        rt_tensor tensor;
        const char *dtype;
        rt_checkpoint_at(ckpt, i, &tensor, &dtype);
        int64_t elements = 1;
        for (int d = 0; d < tensor.dims; d++)
            elements *= tensor.shape[d];
        sum += elements;
    }
    return sum;
}

// Elements of the weights that a rank holds.
static int64_t shard_parameters(const rt_model_config *m, const par_plan *p)
{
    const int64_t hidden = m->hidden;
    const int64_t qkv = (int64_t)(p->heads.count + 2 * p->kv_heads.count) * m->head_dim;
    const int64_t layer =
        qkv * (hidden + m->qkv_bias) + (int64_t)p->heads.count * m->head_dim * hidden +
        3 * hidden * p->ffn.count + 2 * hidden + (m->qk_norm ? 2 * m->head_dim : 0);
    return m->layers * layer + hidden + (m->tied_head ? 1 : 2) * hidden * p->vocab.count;
}

// K, V and page metadata of all layers on one rank, for `tokens` in whole pages.
static int64_t kv_bytes(const rt_model_config *m, const par_plan *p, int64_t tokens, int page)
{
    const int64_t pages = (tokens + page - 1) / page;
    const int64_t row = (int64_t)p->kv_heads.count * m->head_dim * KV_BYTES;
    return 2 * row * m->layers * pages * (page + 1);
}

static int64_t kv_bytes_per_token(const rt_model_config *m, const par_plan *p)
{
    return (int64_t)2 * KV_BYTES * m->layers * p->kv_heads.count * m->head_dim;
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

static json_t *shard_json(const rt_model_config *m, const par_plan *p, int64_t context, int page)
{
    return json_pack("{s:i, s:o, s:o, s:i, s:o, s:o, s:I, s:I, s:I}", "rank", p->rank, "heads",
                     range_json(p->heads), "kv_heads", range_json(p->kv_heads), "kv_replicas",
                     p->kv_replicas, "ffn", range_json(p->ffn), "vocab", range_json(p->vocab),
                     "weight_bytes", (json_int_t)(shard_parameters(m, p) * WEIGHT_BYTES),
                     "kv_bytes_per_token", (json_int_t)kv_bytes_per_token(m, p), "kv_bytes",
                     (json_int_t)kv_bytes(m, p, context, page));
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

static rt_status print_json(const info_args *args, const rt_model_config *m,
                            const rt_checkpoint *ckpt, const par_plan *plans, int64_t context)
{
    json_t *shards = json_array();
    for (int r = 0; r < args->ranks; r++)
        json_array_append_new(shards, shard_json(m, &plans[r], context, args->page));
    json_t *all =
        json_pack("{s:o, s:o*, s:I, s:o}", "model", model_json(m), "files",
                  ckpt ? files_json(ckpt) : NULL, "context", (json_int_t)context, "shards", shards);
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
    char ids[CELL] = "none";
    size_t used = 0;
    for (int i = 0; i < m->stop_count && used < sizeof ids; i++)
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

static void format_range(par_range r, char *out)
{
    if (r.count == 1)
        snprintf(out, CELL, "%d", r.first);
    else
        snprintf(out, CELL, "%d-%d", r.first, r.first + r.count - 1);
}

static rt_status print_shards(const info_args *args, const rt_model_config *m,
                              const par_plan *plans, int64_t context)
{
    static const char *const headings[] = {"rank",       "heads",       "KV heads",    "ffn",
                                           "vocabulary", "weights, MB", "KV pages, MB"};
    enum { COLUMNS = sizeof headings / sizeof headings[0] };
    const size_t rows = (size_t)args->ranks + 1;
    char(*text)[CELL] = NULL;
    const char **cells = NULL;
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(text, rows * COLUMNS, "table"), done);
    RT_TRY_GOTO(status, RT_ALLOC(cells, rows * COLUMNS, "table"), done);
    memcpy(cells, headings, sizeof headings);
    for (size_t r = 1; r < rows; r++) {
        const par_plan *p = &plans[r - 1];
        const par_range ranges[] = {p->heads, p->kv_heads, p->ffn, p->vocab};
        char(*row)[CELL] = &text[r * COLUMNS];
        snprintf(row[0], CELL, "%d", p->rank);
        for (size_t i = 0; i < 4; i++)
            format_range(ranges[i], row[1 + i]);
        snprintf(row[5], CELL, "%.1f", (double)shard_parameters(m, p) * WEIGHT_BYTES / 1e6);
        snprintf(row[6], CELL, "%.1f", (double)kv_bytes(m, p, context, args->page) / 1e6);
        for (size_t i = 0; i < COLUMNS; i++)
            cells[r * COLUMNS + i] = row[i];
    }
    status = app_report_table(stdout, cells, rows, COLUMNS);
done:
    rt_free(cells);
    rt_free(text);
    return status;
}

static rt_status print_text(const info_args *args, const rt_model_config *m,
                            const rt_checkpoint *ckpt, const par_plan *plans, int64_t context)
{
    print_model(m);
    if (ckpt) {
        print_row("tensors", "%zu, %.1f MB", rt_checkpoint_count(ckpt),
                  (double)rt_checkpoint_bytes(ckpt) / 1e6);
        print_row("parameters", "%.2f million", (double)count_parameters(ckpt) / 1e6);
    }
    print_row("KV per token", "%lld bytes on each rank",
              (long long)kv_bytes_per_token(m, &plans[0]));
    printf("\n%d rank%s on CPUs (f32), KV pages for %lld tokens:\n", args->ranks,
           args->ranks == 1 ? "" : "s", (long long)context);
    return print_shards(args, m, plans, context);
}

// ----------------------------------------------------------------------------------

static rt_status make_plans(const rt_model_config *m, int ranks, par_plan *out)
{
    const par_shape shape = {m->heads, m->kv_heads, m->ffn, m->vocab};
    for (int r = 0; r < ranks; r++)
        RT_TRY(par_plan_make(&shape, r, ranks, &out[r]));
    return RT_OK;
}

static rt_status run(comm *c, void *target)
{
    (void)c;
    const info_args *args = target;
    if (args->plot)
        return app_trace_plot(args->trace, args->plot);
    if (args->trace)
        return app_trace_print(args->trace);
    rt_model_config m;
    rt_checkpoint *ckpt = NULL; // none of a dummy
    par_plan *plans;
    RT_TRY(app_model_config(args->model, args->dummy, &args->overrides, &m));
    if (args->model)
        RT_TRY(rt_checkpoint_open(args->model, &ckpt));
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(plans, (size_t)args->ranks, "plans"), close);
    RT_TRY_GOTO(status, make_plans(&m, args->ranks, plans), free_plans);
    const int64_t context = args->context ? args->context : m.max_positions;
    status = (args->json ? print_json : print_text)(args, &m, ckpt, plans, context);
free_plans:
    rt_free(plans);
close:
    rt_checkpoint_close(ckpt);
    return status;
}

const app_command app_cmd_info = {
    .name = "info",
    .summary = "what a checkpoint is, its shards and memory; what a trace holds",
    .usage = "--model DIR | --dummy NAME [--ranks N] [--context N] [--json] | --trace FILE [--plot "
             "FILE.svg]",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(info_args),
    .local = true,
    .defaults = defaults,
    .check = check,
    .run = run,
};
