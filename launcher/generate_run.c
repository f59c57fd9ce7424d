// SPDX-License-Identifier: Apache-2.0
// The run of losa generate: prompts -> text. One prompt's text streams as its blocks finish;
// several run together and are answered in their order.
//
// Rank 0 reads the prompts, submits them and drives the steps; the others work until
// rank 0 closes the engine. Whatever goes wrong on rank 0 before or after the steps
// (a prompt that does not fit, a full disk) ends with every rank closing in order.
#include "launcher/generate.h"
#include "launcher/loading.h"
#include "launcher/progress.h"

#include "runtime/base/mem.h"

#include <string.h>

enum { SESSIONS_DEFAULT = 16 };

// ---- rank 0 ----------------------------------------------------------------------

// What the engine's callbacks work on.
typedef struct generation {
    const app_generate_args *args;
    const app_prompts *prompts;
    rt_session_id *ids; // [prompts], in their order
    app_progress bar;
    app_answers answers;
    size_t done;
    bool cancelled;   // some request was
    rt_status output; // first failure of writing; the message is in rt_last_error
} generation;

static bool streams(const generation *g)
{
    return g->prompts->count == 1;
}

static void on_prefill(void *ctx, rt_session_id id, int done, int total)
{
    (void)id;
    generation *g = ctx;
    app_progress_update(&g->bar, "prefill", "tokens", done, total);
    if (done == total)
        app_progress_end(&g->bar);
}

static void on_text(void *ctx, rt_session_id id, const char *text, size_t len)
{
    (void)id;
    generation *g = ctx;
    app_progress_end(&g->bar);
    if (g->output == RT_OK)
        g->output = app_write_text(text, len);
}

static void on_done(void *ctx, rt_session_id id, const rt_result *result)
{
    generation *g = ctx;
    app_progress_end(&g->bar);
    size_t index = 0;
    while (g->ids[index] != id)
        index++;
    g->done++;
    g->cancelled |= result->finish == RT_FINISH_CANCELLED;
    const rt_status status = app_answers_take(&g->answers, index, result);
    if (g->output == RT_OK)
        g->output = status;
    if (!streams(g))
        app_progress_update(&g->bar, "answered", "prompts", (int)g->done, (int)g->prompts->count);
}

static rt_status submit(generation *g, rt_engine *e, size_t i)
{
    rt_request r = app_prompt_request(g->args, &g->prompts->items[i]);
    r.on_prefill = streams(g) ? on_prefill : NULL;
    r.on_text = streams(g) && !g->args->json ? on_text : NULL;
    r.on_done = on_done;
    r.ctx = g;
    const rt_status status = rt_engine_submit(e, &r, &g->ids[i]);
    return status == RT_OK ? RT_OK : app_prompt_refused(g->prompts, i, status);
}

static rt_status submit_all(generation *g, rt_engine *e)
{
    for (size_t i = 0; i < g->prompts->count; i++)
        RT_TRY(submit(g, e, i));
    return RT_OK;
}

static rt_status run_steps(rt_engine *e, comm *c, generation *g)
{
    bool cancelled = false;
    for (bool busy = true; busy;) {
        if (!cancelled && (app_signal() || g->output != RT_OK)) {
            for (size_t i = 0; i < g->prompts->count; i++)
                rt_engine_cancel(e, g->ids[i]);
            cancelled = true;
        }
        const rt_status status = rt_engine_step(e, &busy);
        if (status != RT_OK) {
            app_progress_end(&g->bar);
            return app_abandon(c, status);
        }
    }
    app_progress_end(&g->bar);
    return RT_OK;
}

static rt_status lead(rt_engine *e, comm *c, const app_generate_args *args,
                      const app_prompts *prompts)
{
    generation g = {
        .args = args, .prompts = prompts, .bar = app_progress_begin(!args->common.quiet)};
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(g.ids, prompts->count, "requests"), close);
    RT_TRY_GOTO(status, app_answers_open(args, prompts, &g.answers), close);
    RT_TRY_GOTO(status, submit_all(&g, e), close);
    RT_TRY_GOTO(status, run_steps(e, c, &g), close);
    RT_TRY_GOTO(status, g.output, close);
    RT_TRY_GOTO(status, app_answers_report(&g.answers), close);
    RT_TRY_GOTO(status, rt_engine_end_trace(e), close);
    if (g.cancelled)
        status = RT_FAIL(RT_ERR_CANCELLED, "ended by signal %d", app_signal());
close:
    app_answers_close(&g.answers);
    rt_free(g.ids);
    return status;
}

// ---- every rank --------------------------------------------------------------------

static rt_status work(rt_engine *e, comm *c)
{
    const rt_status status = rt_engine_worker(e);
    return status == RT_OK ? RT_OK : app_abandon(c, status);
}

// What depends on the prompts, which rank 0 alone has read, is the same on all ranks.
static rt_status size_engine(comm *c, const app_generate_args *args, const app_prompts *prompts,
                             rt_engine_options *out)
{
    const size_t count = app_prompts_count(args);
    *out = args->engine;
    if (out->max_sessions == 0)
        out->max_sessions = count < SESSIONS_DEFAULT ? (int)count : SESSIONS_DEFAULT;
    if (out->context)
        return RT_OK;
    if (out->kv_memory == 0 && out->device == KERN_CUDA)
        out->kv_memory = RT_KV_LEFT;
    rt_status status = RT_OK;
    if (comm_rank(c) == 0)
        status = app_prompts_context(args, prompts, out, &out->context);
    RT_TRY(comm_agree(c, status));
    return comm_ctl_bcast(c, 0, &out->context, sizeof out->context);
}

static rt_status generate(comm *c, const app_generate_args *args, const app_prompts *prompts)
{
    rt_engine_options options;
    RT_TRY(size_engine(c, args, prompts, &options));
    app_catch_signals();
    rt_engine *e;
    RT_TRY(app_engine_open(&options, c, args->common.quiet, &e));
    const rt_status status = comm_rank(c) == 0 ? lead(e, c, args, prompts) : work(e, c);
    rt_engine_close(e);
    return comm_agree(c, status);
}

rt_status app_generate_run(comm *c, void *target)
{
    const app_generate_args *args = target;
    app_prompts prompts = {0};
    rt_status status = comm_rank(c) == 0 ? app_prompts_read(args, &prompts) : RT_OK;
    status = comm_agree(c, status);
    if (status == RT_OK)
        status = generate(c, args, &prompts);
    app_prompts_free(&prompts);
    return status;
}
