// SPDX-License-Identifier: Apache-2.0
// losa generate: one prompt -> text that streams as blocks finish.
//
// Rank 0 reads the prompt, submits it and drives the steps; the others work until
// rank 0 closes the engine. Whatever goes wrong on rank 0 before or after the steps
// (a prompt that does not fit, a full disk) ends with every rank closing in order.
#include "launcher/app.h"
#include "launcher/progress.h"
#include "launcher/report.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/engine/engine.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

enum { PROMPT_MAX = 256 << 20 }; // bytes; far beyond any context

typedef struct generate_args {
    app_common common;
    const char *model;
    const char *prompt, *prompt_file;
    rt_engine_options engine;
    rt_request request;
    app_list stops;
    int policy; // index in the policy table
    int commit; // index in commit_choices
    int first;  // index in first_choices
    bool no_commit_scan;
    bool json;
    const char *stats_file;
} generate_args;

// ---- options ---------------------------------------------------------------------

static const char *commit_choice(size_t i)
{
    static const char *const names[] = {"merged", "separate"};
    return i < 2 ? names[i] : NULL;
}

static const char *first_choice(size_t i)
{
    static const char *const names[] = {"dense", "sparse"};
    return i < 2 ? names[i] : NULL;
}

static const char *strategy_choice(size_t i) // in the order of rt_strategy
{
    static const char *const names[] = {"sequential", "low_confidence_static",
                                        "low_confidence_dynamic", "entropy_bounded"};
    return i < 4 ? names[i] : NULL;
}

static const char *policy_choice(size_t i)
{
    return i < losa_policy_count() ? losa_policy_at(i)->name : NULL;
}

static const char *scope_choice(size_t i) // in the order of losa_scope
{
    static const char *const names[] = {"shared", "head"};
    return i < 2 ? names[i] : NULL;
}

static const char *locality_choice(size_t i) // in the order of losa_locality
{
    static const char *const names[] = {"query", "hidden"};
    return i < 2 ? names[i] : NULL;
}

static const char *device_choice(size_t i) // in the order of kern_kind
{
    return i == 0 ? "cpu" : NULL;
}

static rt_status parse_rule(const char *text, void *target)
{
    return losa_config_parse_rule(text, target);
}

#define AT(member) offsetof(generate_args, member)
#define CHECKPOINT "from the checkpoint"

static const app_option options[] = {
    APP_OPTION_MODEL(generate_args),
    {"block-length", 0, APP_INT, AT(engine.block_length), 1, 4096, "N", CHECKPOINT,
     "tokens in a block", NULL, NULL, NULL},
    {"mask-id", 0, APP_INT, AT(engine.mask_id), 0, INT_MAX, "ID", CHECKPOINT,
     "id of the mask token", NULL, NULL, NULL},
    {"context", 0, APP_INT, AT(engine.context), 0, INT_MAX, "N", NULL,
     "tokens to reserve KV pages for; 0: the model's length", NULL, NULL, NULL},
    {"allow-nonfinite", 0, APP_FLAG, AT(engine.allow_nonfinite), 0, 0, NULL, NULL,
     "load weights that hold NaN or infinity", NULL, NULL, NULL},

    {"prompt", 'p', APP_TEXT, AT(prompt), 0, 0, "TEXT", NULL, "the prompt", "Prompt", NULL, NULL},
    {"prompt-file", 'f', APP_TEXT, AT(prompt_file), 0, 0, "FILE", NULL,
     "read the prompt from a UTF-8 file (- is standard input); one newline at its end is dropped",
     NULL, NULL, NULL},
    {"chat", 'c', APP_FLAG, AT(request.chat), 0, 0, NULL, NULL,
     "send the prompt as the user's turn of a chat (ChatML)", NULL, NULL, NULL},
    {"system", 0, APP_TEXT, AT(request.system), 0, 0, "TEXT", NULL,
     "system turn before it; needs --chat", NULL, NULL, NULL},
    {"parse-special", 0, APP_FLAG, AT(request.parse_special), 0, 0, NULL, NULL,
     "special tokens written in the prompt count as such; otherwise they are plain text", NULL,
     NULL, NULL},

    {"max-tokens", 'n', APP_INT, AT(request.max_tokens), 1, INT_MAX, "N", NULL,
     "end after so many tokens", "Denoising", NULL, NULL},
    {"strategy", 's', APP_CHOICE, AT(request.strategy), 0, 0, "NAME", NULL,
     "which positions a step keeps", NULL, strategy_choice, NULL},
    {"steps", 0, APP_INT, AT(request.steps), 0, 4096, "N", NULL,
     "denoising steps per block; 0: the block length", NULL, NULL, NULL},
    {"threshold", 0, APP_REAL, AT(request.threshold), 0, 1000, "X", NULL,
     "keep tokens above this confidence (dynamic), or up to this sum of entropies in nats "
     "(entropy_bounded)",
     NULL, NULL, NULL},
    {"sub-block", 0, APP_INT, AT(request.sub_block), 0, 4096, "N", CHECKPOINT,
     "denoise a block in groups of N positions from the left; 0: the whole block", NULL, NULL,
     NULL},
    {"commit", 0, APP_CHOICE, AT(commit), 0, 0, "WHEN", NULL,
     "write a finished block with the next block's first step, or in a forward of its own", NULL,
     commit_choice, NULL},

    {"temperature", 't', APP_REAL, AT(request.temperature), 0, 100, "X", CHECKPOINT,
     "0: the most likely token", "Sampling", NULL, NULL},
    {"top-k", 0, APP_INT, AT(request.top_k), 0, INT_MAX, "N", CHECKPOINT, "0: off", NULL, NULL,
     NULL},
    {"top-p", 0, APP_REAL, AT(request.top_p), 0, 1, "X", CHECKPOINT, "1: off", NULL, NULL, NULL},
    {"seed", 0, APP_U64, AT(request.seed), 0, 0, "N", NULL, "of the random numbers", NULL, NULL,
     NULL},
    {"stop", 0, APP_LIST, AT(stops), 0, 0, "TEXT", NULL, "end before this text; may be given again",
     NULL, NULL, NULL},
    {"ignore-stop", 0, APP_FLAG, AT(request.ignore_stop_ids), 0, 0, NULL, NULL,
     "go on past the model's stop tokens", NULL, NULL, NULL},

    {"attention", 'a', APP_CHOICE, AT(policy), 0, 0, "POLICY", NULL, "who reads which pages",
     "Attention", policy_choice, NULL},
    {"budget", 0, APP_INT, AT(engine.attention.budget), 1, INT_MAX, "N", NULL,
     "prefix tokens that a row may read in a sparse step", NULL, NULL, NULL},
    {"scan-budget", 0, APP_INT, AT(engine.attention.scan_budget), 1, INT_MAX, "N", NULL,
     "losa-mix: prefix tokens that a row may add to the block's list", NULL, NULL, NULL},
    {"first", 0, APP_CHOICE, AT(first), 0, 0, "HOW", NULL,
     "first steps of blocks after a request's first: read everything, or scan", NULL, first_choice,
     NULL},
    {"no-commit-scan", 0, APP_FLAG, AT(no_commit_scan), 0, 0, NULL, NULL,
     "with --first sparse: finished blocks of losa-mass, losa-mix and mage read their list only",
     NULL, NULL, NULL},
    {"active", 0, APP_PARSE, AT(engine.attention), 0, 0, "RULE", "unsettled",
     "rows that read the prefix: all, topk:K, new+K, unsettled", NULL, NULL, parse_rule},
    {"page-size", 0, APP_INT, AT(engine.attention.page), 4, 256, "N", NULL,
     "tokens in a KV page, a power of two", NULL, NULL, NULL},
    {"plan-scope", 0, APP_CHOICE, AT(engine.attention.scope), 0, 0, "SCOPE", NULL,
     "one page list for all heads, or one per KV head", NULL, scope_choice, NULL},
    {"locality", 0, APP_CHOICE, AT(engine.attention.locality), 0, 0, "KIND", NULL,
     "what topk and new+K measure the change of a row by", NULL, locality_choice, NULL},
    {"dense-layers", 0, APP_INT, AT(engine.attention.dense_layers), 0, 1024, "N", NULL,
     "first layers that always read everything", NULL, NULL, NULL},
    {"check-plans", 0, APP_FLAG, AT(engine.attention.check_plans), 0, 0, NULL, NULL,
     "compare the page plans of all ranks in every layer and step", NULL, NULL, NULL},

    {"device", 0, APP_CHOICE, AT(engine.device), 0, 0, "KIND", NULL, "where to compute", "Machine",
     device_choice, NULL},
    {"threads", 0, APP_INT, AT(engine.threads), 0, 1024, "N", NULL,
     "per rank; 0: cores / ranks of the host", NULL, NULL, NULL},
    {"prefill-chunk", 0, APP_INT, AT(engine.prefill_chunk), 1, 1 << 20, "N", NULL,
     "prompt tokens in one forward", NULL, NULL, NULL},
    APP_OPTION_TIMEOUT(generate_args),

    {"json", 0, APP_FLAG, AT(json), 0, 0, NULL, NULL,
     "print one JSON object with text, token ids and statistics, at the end", "Output", NULL, NULL},
    {"stats-file", 0, APP_TEXT, AT(stats_file), 0, 0, "FILE", NULL,
     "also write that object to a file, for 'losa report'", NULL, NULL, NULL},
    APP_OPTION_VERBOSE(generate_args),
    APP_OPTION_QUIET(generate_args),
};

static void defaults(void *target)
{
    generate_args *args = target;
    args->engine = rt_engine_options_default();
    args->engine.max_sessions = 1;
    args->request = rt_request_default();
    args->commit = args->engine.separate_commit;
    args->first = args->engine.attention.first_sparse;
    args->no_commit_scan = !args->engine.attention.commit_scan;
    for (size_t i = 0; i < losa_policy_count(); i++)
        if (losa_policy_at(i) == args->engine.attention.policy)
            args->policy = (int)i;
}

static rt_status check(void *target)
{
    generate_args *args = target;
    if (!args->model)
        return RT_FAIL(RT_ERR_INVALID, "--model DIR is missing");
    if (!args->prompt == !args->prompt_file)
        return RT_FAIL(RT_ERR_INVALID, "give either --prompt or --prompt-file");
    if (args->request.system && !args->request.chat)
        return RT_FAIL(RT_ERR_INVALID, "--system needs --chat");
    if (args->common.verbose && args->common.quiet)
        return RT_FAIL(RT_ERR_INVALID, "--verbose and --quiet exclude each other");
    for (size_t i = 0; i < args->stops.len; i++)
        if (!*args->stops.items[i])
            return RT_FAIL(RT_ERR_INVALID, "--stop: the text is empty");
    args->engine.model_dir = args->model;
    args->engine.separate_commit = args->commit == 1;
    args->engine.attention.first_sparse = args->first == 1;
    args->engine.attention.commit_scan = !args->no_commit_scan;
    args->engine.attention.policy = losa_policy_at((size_t)args->policy);
    args->request.stops = args->stops.items;
    args->request.stops_len = args->stops.len;
    return losa_config_check(&args->engine.attention);
}

// ---- rank 0 ----------------------------------------------------------------------

// What the engine's callbacks work on.
typedef struct generation {
    const generate_args *args;
    app_progress bar;
    rt_status output; // first failure of writing; the message is in rt_last_error
    rt_finish finish;
    json_t *result;
} generation;

static void on_prefill(void *ctx, rt_session_id id, int done, int total)
{
    (void)id;
    generation *g = ctx;
    app_progress_update(&g->bar, "prefill", "tokens", done, total);
    if (done == total)
        app_progress_end(&g->bar);
}

static rt_status write_text(const char *text, size_t len)
{
    if (fwrite(text, 1, len, stdout) == len && fflush(stdout) == 0)
        return RT_OK;
    return RT_FAIL(RT_ERR_IO, "standard output: cannot write: %s", strerror(errno));
}

static void on_text(void *ctx, rt_session_id id, const char *text, size_t len)
{
    (void)id;
    generation *g = ctx;
    app_progress_end(&g->bar);
    if (g->output == RT_OK)
        g->output = write_text(text, len);
}

static void on_done(void *ctx, rt_session_id id, const rt_result *result)
{
    (void)id;
    generation *g = ctx;
    app_progress_end(&g->bar);
    g->finish = result->finish;
    const rt_status status = app_report_result(result, rt_finish_name(result->finish), &g->result);
    if (g->output == RT_OK)
        g->output = status;
}

static rt_status read_prompt(const generate_args *args, rt_str *out)
{
    if (args->prompt) {
        RT_TRY(rt_str_puts(out, args->prompt));
    } else {
        char *text;
        size_t len;
        RT_TRY(rt_file_read(args->prompt_file, PROMPT_MAX, &text, &len));
        if (len > 0 && text[len - 1] == '\n')
            len--;
        if (len > 0 && text[len - 1] == '\r')
            len--;
        const rt_status status = rt_str_append(out, text, len);
        rt_free(text);
        RT_TRY(status);
    }
    if (out->len == 0 && !args->request.chat)
        return RT_FAIL(RT_ERR_INVALID, "%s: the prompt is empty",
                       args->prompt ? "--prompt" : args->prompt_file);
    return RT_OK;
}

static rt_status run_steps(rt_engine *e, comm *c, generation *g, rt_session_id id)
{
    bool cancelled = false;
    for (bool busy = true; busy;) {
        if (!cancelled && (app_signal() || g->output != RT_OK)) {
            rt_engine_cancel(e, id);
            cancelled = true;
        }
        const rt_status status = rt_engine_step(e, &busy);
        if (status != RT_OK) {
            app_progress_end(&g->bar);
            return app_abandon(c, status);
        }
    }
    return RT_OK;
}

static rt_status write_reports(const generate_args *args, json_t *result)
{
    if (args->json)
        RT_TRY(app_report_write(result, "-"));
    else
        RT_TRY(write_text("\n", 1));
    if (args->stats_file)
        RT_TRY(app_report_write(result, args->stats_file));
    if (args->common.verbose) {
        const char *const title = args->engine.attention.policy->name;
        RT_TRY(app_report_compare(stderr, &result, &title, 1));
    }
    return RT_OK;
}

static rt_status lead(rt_engine *e, comm *c, const generate_args *args, const rt_str *prompt)
{
    generation g = {.args = args,
                    .bar = app_progress_begin(!args->common.quiet),
                    .finish = RT_FINISH_CANCELLED};
    rt_request request = args->request;
    request.prompt = prompt->data ? prompt->data : "";
    request.prompt_len = prompt->len;
    request.on_prefill = on_prefill;
    request.on_text = args->json ? NULL : on_text;
    request.on_done = on_done;
    request.ctx = &g;
    rt_session_id id;
    RT_TRY(rt_engine_submit(e, &request, &id));
    rt_status status = run_steps(e, c, &g, id);
    if (status == RT_OK)
        status = g.output;
    if (status == RT_OK && !g.result)
        status = RT_FAIL(RT_ERR_INTERNAL, "the engine is idle and gave no result");
    if (status == RT_OK)
        status = write_reports(args, g.result);
    json_decref(g.result);
    if (status == RT_OK && g.finish == RT_FINISH_CANCELLED)
        status = RT_FAIL(RT_ERR_CANCELLED, "ended by signal %d", app_signal());
    return status;
}

static rt_status work(rt_engine *e, comm *c)
{
    const rt_status status = rt_engine_worker(e);
    return status == RT_OK ? RT_OK : app_abandon(c, status);
}

static rt_status run(comm *c, void *target)
{
    const generate_args *args = target;
    const bool first = comm_rank(c) == 0;
    rt_str prompt = {0};
    rt_status status = first ? read_prompt(args, &prompt) : RT_OK;
    RT_TRY_GOTO(status, comm_agree(c, status), free_prompt);
    app_catch_signals();
    rt_engine *e;
    RT_TRY_GOTO(status, rt_engine_open(&args->engine, c, &e), free_prompt);
    status = first ? lead(e, c, args, &prompt) : work(e, c);
    rt_engine_close(e);
    status = comm_agree(c, status);
free_prompt:
    rt_str_free(&prompt);
    return status;
}

const app_command app_cmd_generate = {
    .name = "generate",
    .summary = "one prompt -> text, streamed as blocks finish",
    .usage = "--model DIR (--prompt TEXT | --prompt-file FILE) [OPTION...]",
    .notes =
        "Exit status: 0 done, 1 failed, 2 wrong usage, 130 or 143 ended by Ctrl-C or SIGTERM.\n"
        "A second Ctrl-C ends the program at once.\n",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(generate_args),
    .defaults = defaults,
    .check = check,
    .run = run,
};
