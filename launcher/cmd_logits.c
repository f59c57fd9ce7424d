// SPDX-License-Identifier: Apache-2.0
// losa logits: the logits of a block-causal prefill as a float32 .npy file [n, vocab],
// for comparing with other programs. Rank 0 reads the ids and writes the file.
#include "launcher/app.h"
#include "launcher/loading.h"
#include "launcher/progress.h"

#include "runtime/base/mem.h"
#include "runtime/engine/engine.h"
#include "runtime/io/ids.h"
#include "runtime/io/npy.h"

#include <limits.h>

typedef struct logits_args {
    app_common common;
    const char *model, *ids, *out;
    rt_engine_options engine;
} logits_args;

#define AT(member) offsetof(logits_args, member)

static const app_option options[] = {
    APP_OPTION_MODEL(logits_args),
    APP_OPTION_BLOCK_LENGTH(logits_args),
    {"context", 0, APP_INT, AT(engine.context), 0, INT_MAX, "N", NULL,
     "tokens to reserve KV pages for; 0: as many as there are ids", NULL, NULL, NULL},
    APP_OPTION_ALLOW_NONFINITE(logits_args),
    {"ids", 'i', APP_TEXT, AT(ids), 0, 0, "FILE", NULL,
     "a JSON array of token ids (- is standard input)", "Files", NULL, NULL},
    {"out", 'o', APP_TEXT, AT(out), 0, 0, "FILE.npy", NULL, "where the logits go", NULL, NULL,
     NULL},
    APP_OPTION_DEVICE(logits_args),
    APP_OPTION_PRECISION(logits_args),
    {"threads", 0, APP_INT, AT(engine.threads), 0, 1024, "N", NULL,
     "per rank; 0: cores / ranks of the host", NULL, NULL, NULL},
    {"prefill-chunk", 0, APP_INT, AT(engine.prefill_chunk), 1, 1 << 20, "N", NULL,
     "tokens in one forward", NULL, NULL, NULL},
    APP_OPTION_TIMEOUT(logits_args),
    APP_OPTION_VERBOSE(logits_args),
    APP_OPTION_QUIET(logits_args),
};

static void defaults(void *target)
{
    logits_args *args = target;
    args->engine = rt_engine_options_default();
    args->engine.max_sessions = 1;
}

static rt_status check(void *target)
{
    logits_args *args = target;
    if (!args->model)
        return RT_FAIL(RT_ERR_INVALID, "--model DIR is missing");
    if (!args->ids)
        return RT_FAIL(RT_ERR_INVALID, "--ids FILE is missing");
    if (!args->out)
        return RT_FAIL(RT_ERR_INVALID, "--out FILE.npy is missing");
    args->engine.model_dir = args->model;
    return RT_OK;
}

typedef struct sink {
    rt_npy_writer *writer;
    rt_status status; // of the file; tells its failures from the engine's
    app_progress bar;
    size_t done, total;
} sink;

static rt_status emit(void *ctx, const float *rows, size_t n, int vocab)
{
    (void)vocab;
    sink *s = ctx;
    s->status = rt_npy_append(s->writer, rows, n);
    s->done += n;
    app_progress_update(&s->bar, "logits", "tokens", (int)s->done, (int)s->total);
    return s->status;
}

static rt_status write_logits(rt_engine *e, comm *c, const logits_args *args, const int32_t *ids,
                              size_t n)
{
    sink s = {.total = n, .bar = app_progress_begin(!args->common.quiet)};
    RT_TRY(rt_npy_create(args->out, (size_t)rt_engine_model(e)->vocab, &s.writer));
    const rt_status status = rt_engine_logits(e, ids, n, emit, &s);
    app_progress_end(&s.bar);
    if (status == RT_OK)
        return rt_npy_finish(s.writer);
    rt_npy_abandon(s.writer);
    const bool orderly = s.status != RT_OK || status == RT_ERR_INVALID || status == RT_ERR_LIMIT;
    return orderly ? status : app_abandon(c, status);
}

// Rank 0, before an engine is open, whose KV pages follow from the number of ids.
static rt_status read_ids(const logits_args *args, int32_t **ids, size_t *n)
{
    const rt_config_overrides overrides = {args->engine.block_length, args->engine.mask_id};
    rt_model_config model;
    RT_TRY(rt_config_load(args->model, &overrides, &model));
    RT_TRY(rt_token_ids_load(args->ids, model.vocab, ids, n));
    if (*n == 0)
        return RT_FAIL(RT_ERR_INVALID, "%s: no token ids", args->ids);
    if (*n > (size_t)model.max_positions)
        return RT_FAIL(RT_ERR_LIMIT, "%s: %zu token ids are beyond the model's context of %d",
                       args->ids, *n, model.max_positions);
    return RT_OK;
}

static rt_status compute(comm *c, const logits_args *args, const int32_t *ids, size_t n)
{
    rt_engine_options sized = args->engine;
    if (sized.context == 0)
        sized.context = (int)n;
    RT_TRY(comm_ctl_bcast(c, 0, &sized.context, sizeof sized.context));
    rt_engine *e;
    RT_TRY(app_engine_open(&sized, c, args->common.quiet, &e));
    rt_status status;
    if (comm_rank(c) == 0) {
        status = write_logits(e, c, args, ids, n);
    } else {
        status = rt_engine_worker(e);
        if (status != RT_OK)
            status = app_abandon(c, status);
    }
    rt_engine_close(e);
    return comm_agree(c, status);
}

static rt_status run(comm *c, void *target)
{
    const logits_args *args = target;
    int32_t *ids = NULL;
    size_t n = 0;
    rt_status status = comm_agree(c, comm_rank(c) == 0 ? read_ids(args, &ids, &n) : RT_OK);
    if (status == RT_OK)
        status = compute(c, args, ids, n);
    rt_free(ids);
    return status;
}

const app_command app_cmd_logits = {
    .name = "logits",
    .summary = "logits of a block-causal prefill, as a .npy file",
    .usage = "--model DIR --ids FILE --out FILE.npy [OPTION...]",
    .notes = "Row i holds the model's output at position i, float32 [n, vocab].\n",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(logits_args),
    .defaults = defaults,
    .check = check,
    .run = run,
};
