// SPDX-License-Identifier: Apache-2.0
// The run of losa eval: every document through every policy.
//
// An engine has one policy, so each policy opens its own, on all ranks, and asks the
// documents that have no result yet, as many at a time as there are sessions. Rank 0 reads
// the documents, keeps the results and reports; the others work until rank 0 closes.
#include "launcher/eval.h"
#include "launcher/eval_report.h"
#include "launcher/eval_score.h"
#include "launcher/loading.h"
#include "launcher/progress.h"
#include "launcher/report.h"

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/io/model_hash.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// What rank 0 works with.
typedef struct evaluation {
    const app_eval_args *args;
    const app_policies *policies;
    app_documents documents;
    rt_str options; // text, of the setting
    app_setting setting;
    app_store *store;
    app_progress bar;
    size_t open, done; // results still missing at the start; made since
} evaluation;

// One policy's documents in an engine. What the callback works on.
typedef struct asking {
    evaluation *ev;
    const app_policy *policy;
    rt_session_id *ids; // [documents]; 0: had a result
    rt_status status;   // first failure of keeping a result
} asking;

// ---- what is to do -------------------------------------------------------------------

static bool is_open(const evaluation *ev, const app_policy *policy, size_t document)
{
    return !app_store_find(ev->store, policy->key, ev->documents.items[document].id);
}

static int count_open(const evaluation *ev, const app_policy *policy)
{
    int n = 0;
    for (size_t i = 0; i < ev->documents.count; i++)
        n += is_open(ev, policy, i);
    return n;
}

// Everything that a result depends on and that is not in the model, the documents or the
// policy.
static rt_status describe(const app_eval_args *args, int ranks, rt_str *out)
{
    const rt_request *r = &args->request;
    return rt_str_printf(out,
                         "ranks=%d device=%s precision=%s block-length=%d mask-id=%d chat=%d "
                         "max-tokens=%d strategy=%d steps=%d threshold=%.17g "
                         "sub-block=%d commit=%d temperature=%.17g top-k=%d top-p=%.17g seed=%llu "
                         "probe=%d",
                         ranks, app_device_choice(args->engine.device),
                         app_precision_choice(args->engine.precision), args->engine.block_length,
                         args->engine.mask_id, !args->plain, r->max_tokens, (int)r->strategy,
                         r->steps, r->threshold, r->sub_block, args->commit, r->temperature,
                         r->top_k, r->top_p, (unsigned long long)r->seed, args->engine.probe_every);
}

static rt_status read_documents(const app_eval_args *args, app_documents *out)
{
    char path[PATH_MAX];
    rt_tokenizer *tokenizer;
    rt_chat_template format;
    RT_TRY(rt_path_join(args->model, "tokenizer.json", path, sizeof path));
    RT_TRY(rt_tokenizer_open(path, &tokenizer));
    rt_status status;
    RT_TRY_GOTO(status, rt_chat_template_load(args->model, &format), close);
    const app_encoding encoding = {tokenizer, !args->plain, &format};
    status = app_documents_read(args->data, &encoding, &args->lengths, out);
    rt_chat_template_free(&format);
close:
    rt_tokenizer_close(tokenizer);
    return status;
}

// Whether a file, or a folder, can be written there.
static rt_status check_place(const char *path, bool folder)
{
    char parent[PATH_MAX];
    struct stat info;
    if (!path || strcmp(path, "-") == 0)
        return RT_OK;
    snprintf(parent, sizeof parent, "%s", path);
    const bool there = stat(path, &info) == 0;
    if (there && S_ISDIR(info.st_mode) != folder)
        return RT_FAIL(RT_ERR_INVALID, "%s: is %s", path, folder ? "not a folder" : "a folder");
    if (access(there ? path : dirname(parent), W_OK) != 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
    return RT_OK;
}

// What can be refused before hours of answers is.
static rt_status prepare(evaluation *ev, int ranks)
{
    RT_TRY(check_place(ev->args->json, false));
    RT_TRY(check_place(ev->args->csv, false));
    RT_TRY(check_place(ev->args->plots, true));
    RT_TRY(read_documents(ev->args, &ev->documents));
    RT_TRY(describe(ev->args, ranks, &ev->options));
    ev->setting.options = ev->options.data;
    ev->setting.data = ev->documents.hash;
    RT_TRY(rt_model_hash(ev->args->model, &ev->setting.model));
    RT_TRY(app_store_open(ev->args->resume, &ev->setting, &ev->store));
    for (size_t p = 0; p < ev->policies->count; p++)
        ev->open += (size_t)count_open(ev, &ev->policies->items[p]);
    rt_log(RT_LOG_INFO, "%zu documents (%zu left out by their length), %zu policies, %zu answers",
           ev->documents.count, ev->documents.left_out, ev->policies->count, ev->open);
    return RT_OK;
}

static rt_request request_of(const evaluation *ev, size_t i)
{
    const app_document *d = &ev->documents.items[i];
    rt_request request = ev->args->request;
    request.prompt_ids = d->prompt.data;
    request.prompt_ids_len = d->prompt.len;
    request.chat = !ev->args->plain;
    return request;
}

static rt_status name_refused(const evaluation *ev, size_t i, rt_status status)
{
    return RT_FAIL(status, "%s: %s: %s", ev->args->data, ev->documents.items[i].id,
                   rt_last_error());
}

// KV pages for the longest documents that can run at once.
static rt_status size_context(const evaluation *ev, const rt_engine_options *options, int *out)
{
    const size_t count = ev->documents.count;
    rt_request *requests;
    RT_TRY(RT_ALLOC(requests, count, "documents"));
    for (size_t i = 0; i < count; i++)
        requests[i] = request_of(ev, i);
    size_t refused;
    const rt_status status = rt_engine_context_for(options, requests, count, out, &refused);
    rt_free(requests);
    return refused < count ? name_refused(ev, refused, status) : status;
}

// ---- one policy, rank 0 -----------------------------------------------------------------

// The object of `losa generate --json`, and what the answer is worth.
static rt_status score(const app_document *d, const rt_result *result, json_t **out)
{
    json_t *object;
    app_score score;
    RT_TRY(app_score_answer(d->accept, result->text, &score));
    RT_TRY(app_report_result(result, rt_finish_name(result->finish), &object));
    const rt_probed *p = &result->probed;
    json_t *probe = json_pack("{s:i, s:f, s:i}", "positions", p->positions, "divergence",
                              p->divergence, "same", p->same);
    if (json_object_set_new(object, "right", json_boolean(score.right)) != 0 ||
        json_object_set_new(object, "probe", probe) != 0 ||
        (isfinite(score.f1) && json_object_set_new(object, "f1", json_real(score.f1)) != 0)) {
        json_decref(object);
        return RT_FAIL(RT_ERR_NOMEM, "%s: no memory", d->id);
    }
    *out = object;
    return RT_OK;
}

static rt_status take(asking *a, const app_document *d, const rt_result *result)
{
    json_t *object = NULL;
    RT_TRY(score(d, result, &object));
    const rt_status status = app_store_add(a->ev->store, a->policy->key, d->id, object);
    json_decref(object);
    return status;
}

static void on_done(void *ctx, rt_session_id id, const rt_result *result)
{
    asking *a = ctx;
    evaluation *ev = a->ev;
    if (result->finish == RT_FINISH_CANCELLED || a->status != RT_OK)
        return;
    size_t i = 0;
    while (a->ids[i] != id)
        i++;
    a->status = take(a, &ev->documents.items[i], result);
    ev->done++;
    app_progress_update(&ev->bar, a->policy->text, "answers", (int)ev->done, (int)ev->open);
}

static rt_status submit_all(asking *a, rt_engine *e)
{
    const app_documents *documents = &a->ev->documents;
    for (size_t i = 0; i < documents->count; i++) {
        if (!is_open(a->ev, a->policy, i))
            continue;
        rt_request request = request_of(a->ev, i);
        request.on_done = on_done;
        request.ctx = a;
        const rt_status status = rt_engine_submit(e, &request, &a->ids[i]);
        if (status != RT_OK)
            return name_refused(a->ev, i, status);
    }
    return RT_OK;
}

static rt_status run_steps(asking *a, rt_engine *e, comm *c)
{
    bool cancelled = false;
    for (bool busy = true; busy;) {
        if (!cancelled && (app_signal() || a->status != RT_OK)) {
            for (size_t i = 0; i < a->ev->documents.count; i++)
                if (a->ids[i])
                    rt_engine_cancel(e, a->ids[i]);
            cancelled = true;
        }
        const rt_status status = rt_engine_step(e, &busy);
        if (status != RT_OK) {
            app_progress_end(&a->ev->bar);
            return app_abandon(c, status);
        }
    }
    if (!app_signal())
        return a->status;
    if (a->ev->args->resume)
        fprintf(stderr, "losa: what was finished is kept in %s; the same command goes on\n",
                a->ev->args->resume);
    return RT_FAIL(RT_ERR_CANCELLED, "ended by signal %d", app_signal());
}

static rt_status lead(rt_engine *e, comm *c, evaluation *ev, const app_policy *policy)
{
    asking a = {.ev = ev, .policy = policy};
    const double start = rt_clock_now();
    RT_TRY(RT_ALLOC(a.ids, ev->documents.count, "requests"));
    rt_status status = submit_all(&a, e);
    if (status == RT_OK)
        status = run_steps(&a, e, c);
    rt_free(a.ids);
    rt_log(RT_LOG_INFO, "%s: %.1f s, %zu of %zu answers", policy->text, rt_clock_now() - start,
           ev->done, ev->open);
    return status;
}

// ---- every rank ---------------------------------------------------------------------------

static rt_status work(rt_engine *e, comm *c)
{
    const rt_status status = rt_engine_worker(e);
    return status == RT_OK ? RT_OK : app_abandon(c, status);
}

// `ev` is rank 0's.
static rt_status run_policy(comm *c, evaluation *ev, const rt_engine_options *options,
                            const app_policy *policy)
{
    const bool first = comm_rank(c) == 0;
    int open = first ? count_open(ev, policy) : 0;
    RT_TRY(comm_ctl_bcast(c, 0, &open, sizeof open));
    if (open == 0)
        return RT_OK;
    rt_engine_options mine = *options;
    mine.attention = policy->config;
    rt_engine *e;
    RT_TRY(app_engine_open(&mine, c, ev->args->common.quiet, &e));
    const rt_status status = first ? lead(e, c, ev, policy) : work(e, c);
    rt_engine_close(e);
    return comm_agree(c, status);
}

static rt_status run_policies(comm *c, evaluation *ev, const app_policies *policies)
{
    rt_engine_options options = ev->args->engine;
    if (options.kv_memory == 0 && options.device == KERN_CUDA)
        options.kv_memory = RT_KV_LEFT;
    rt_status status = RT_OK;
    if (comm_rank(c) == 0) {
        if (ev->documents.count < (size_t)options.max_sessions)
            options.max_sessions = (int)ev->documents.count;
        status = size_context(ev, &options, &options.context);
    }
    RT_TRY(comm_agree(c, status));
    RT_TRY(comm_ctl_bcast(c, 0, &options.max_sessions, sizeof options.max_sessions));
    RT_TRY(comm_ctl_bcast(c, 0, &options.context, sizeof options.context));
    app_catch_signals();
    for (size_t p = 0; p < policies->count; p++)
        RT_TRY(run_policy(c, ev, &options, &policies->items[p]));
    return RT_OK;
}

// ---- the end, rank 0 ------------------------------------------------------------------------

static rt_status write_files(const evaluation *ev, const app_summary *summary)
{
    const app_eval_args *args = ev->args;
    if (args->json)
        RT_TRY(app_eval_write_json(args->json, summary, ev->policies, &ev->setting));
    if (args->csv)
        RT_TRY(app_eval_write_csv(args->csv, summary, ev->policies));
    if (args->plots)
        RT_TRY(app_eval_write_plots(args->plots, summary, ev->policies));
    return RT_OK;
}

static rt_status report(const evaluation *ev)
{
    app_summary summary;
    RT_TRY(app_summary_make(&ev->documents, ev->policies, ev->store, &summary));
    rt_status status = app_eval_print(stdout, &summary, ev->policies);
    if (status == RT_OK)
        status = write_files(ev, &summary);
    app_summary_free(&summary);
    return status;
}

static rt_status evaluate(comm *c, evaluation *ev, const app_policies *policies)
{
    const bool first = comm_rank(c) == 0;
    RT_TRY(comm_agree(c, first ? prepare(ev, comm_ranks(c)) : RT_OK));
    const rt_status status = run_policies(c, ev, policies);
    app_progress_end(&ev->bar);
    RT_TRY(status);
    return comm_agree(c, first ? report(ev) : RT_OK);
}

rt_status app_eval_run(comm *c, void *target)
{
    const app_eval_args *args = target;
    app_policies policies = {0};
    evaluation ev = {.args = args,
                     .policies = &policies,
                     .bar = app_progress_begin(comm_rank(c) == 0 && !args->common.quiet)};
    rt_status status = comm_agree(c, app_policies_parse(args->policies, &policies));
    if (status == RT_OK)
        status = evaluate(c, &ev, &policies);
    app_store_close(ev.store);
    app_documents_free(&ev.documents);
    rt_str_free(&ev.options);
    app_policies_free(&policies);
    return status;
}
