// SPDX-License-Identifier: Apache-2.0
// How far the job is: for people, and for node_exporter's textfile collector.
#include "launcher/batch.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/str.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const double DRAW_SECONDS = 0.5, LOG_SECONDS = 60, FILE_SECONDS = 5;

static double ratio(double part, double whole, double otherwise)
{
    return whole > 0 ? part / whole : otherwise;
}

// ---- a line ------------------------------------------------------------------------------

static rt_status describe(const app_batch_counts *n, double elapsed, bool last, rt_str *out)
{
    const double made = (double)(n->done - n->kept);
    RT_TRY(rt_str_printf(out, "%" PRIu64 " of %" PRIu64 " done", n->done, n->lines));
    if (n->failed)
        RT_TRY(rt_str_printf(out, " (%" PRIu64 " with an error)", n->failed));
    RT_TRY(rt_str_printf(out, ", %.1f tokens/s, %.2f tokens per forward, density %.2f",
                         ratio((double)n->completion_tokens, elapsed, 0),
                         ratio((double)n->completion_tokens, (double)n->forwards, 0),
                         ratio(n->prefix_read, n->prefix_total, 1)));
    if (n->shared_tokens)
        RT_TRY(rt_str_printf(out, ", %.0f%% of the prompts shared",
                             100 * ratio((double)n->shared_tokens, (double)n->prompt_tokens, 0)));
    if (n->groups_lost)
        RT_TRY(rt_str_printf(out, ", %d of %d groups lost", n->groups_lost, n->groups));
    if (last)
        return rt_str_printf(out, ", %.1f s", elapsed);
    RT_TRY(rt_str_printf(out, ", %" PRIu64 " running, %.0f%% of the pages", n->running,
                         100 * ratio((double)n->pages_used, (double)n->pages, 0)));
    return made > 0
               ? rt_str_printf(out, ", %.0f s left", (double)(n->lines - n->done) * elapsed / made)
               : RT_OK;
}

static rt_status tell_people(app_batch_status *s, const app_batch_counts *n, bool last, double now)
{
    const double every = s->bar.shown ? DRAW_SECONDS : LOG_SECONDS;
    if (s->quiet || (!last && now - s->told < every))
        return RT_OK;
    rt_str line = {0};
    s->told = now;
    const rt_status status = describe(n, now - s->begun, last, &line);
    if (status == RT_OK) {
        app_progress_end(&s->bar);
        if (s->bar.shown && !last)
            app_progress_show(&s->bar, line.data);
        else
            fprintf(stderr, "losa: %s\n", line.data);
    }
    rt_str_free(&line);
    return status;
}

// ---- the file ----------------------------------------------------------------------------

static rt_status put(rt_str *out, const char *name, const char *type, const char *help,
                     double value)
{
    return rt_str_printf(out,
                         "# HELP losa_batch_%s %s\n# TYPE losa_batch_%s %s\nlosa_batch_%s %.17g\n",
                         name, help, name, type, name, value);
}

static rt_status list(const app_batch_counts *n, rt_str *out)
{
    const struct {
        const char *name, *type, *help;
        double value;
    } rows[] = {
        {"requests", "gauge", "Requests of the input.", (double)n->lines},
        {"requests_done", "gauge", "Requests with a result on disk.", (double)n->done},
        {"requests_failed", "gauge", "Of them, those with an error.", (double)n->failed},
        {"requests_running", "gauge", "Requests that run now.", (double)n->running},
        {"prompt_tokens_total", "counter", "Tokens of the prompts answered since the start.",
         (double)n->prompt_tokens},
        {"shared_tokens_total", "counter", "Of them, those whose pages were there already.",
         (double)n->shared_tokens},
        {"completion_tokens_total", "counter", "Tokens generated since the start.",
         (double)n->completion_tokens},
        {"forwards_total", "counter", "Forwards after prefill, summed over the requests.",
         (double)n->forwards},
        {"prefix_tokens_read_total", "counter", "Prefix tokens that attention read.",
         n->prefix_read},
        {"prefix_tokens_total", "counter", "Prefix tokens that dense attention reads.",
         n->prefix_total},
        {"kv_pages", "gauge", "KV pages of all groups.", (double)n->pages},
        {"kv_pages_used", "gauge", "KV pages in use.", (double)n->pages_used},
        {"groups", "gauge", "Groups of ranks, each with an engine.", n->groups},
        {"groups_lost", "gauge", "Groups that lost a rank.", n->groups_lost},
        {"timestamp_seconds", "gauge", "When this was written.", (double)time(NULL)},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        RT_TRY(put(out, rows[i].name, rows[i].type, rows[i].help, rows[i].value));
    return RT_OK;
}

static rt_status replace_file(const char *name, const rt_str *text)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.tmp", name);
    FILE *file = fopen(path, "we");
    const bool written = file && fwrite(text->data, 1, text->len, file) == text->len;
    if ((file && fclose(file) != 0) || !written || rename(path, name) != 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", name, strerror(errno));
    return RT_OK;
}

static rt_status measure(app_batch_status *s, const app_batch_counts *n, bool last, double now)
{
    if (!s->metrics_file || (!last && now - s->measured < FILE_SECONDS))
        return RT_OK;
    rt_str text = {0};
    s->measured = now;
    rt_status status = list(n, &text);
    if (status == RT_OK && replace_file(s->metrics_file, &text) != RT_OK) {
        rt_log(RT_LOG_WARN, "%s; no more metrics are written", rt_last_error());
        s->metrics_file = NULL; // no reason to end the job
    }
    rt_str_free(&text);
    return status;
}

// ---- the calls ---------------------------------------------------------------------------

void app_batch_status_begin(const app_batch_args *args, app_batch_status *out)
{
    const double now = rt_clock_now();
    *out = (app_batch_status){
        .metrics_file = args->metrics_file,
        .quiet = args->common.quiet,
        .bar = app_progress_begin(!args->common.quiet),
        .begun = now,
        .told = now,
    };
}

rt_status app_batch_status_tell(app_batch_status *s, const app_batch_counts *counts, bool last)
{
    const double now = rt_clock_now();
    RT_TRY(tell_people(s, counts, last, now));
    return measure(s, counts, last, now);
}
