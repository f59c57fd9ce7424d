// SPDX-License-Identifier: Apache-2.0
// The desk. A request is in one place at a time: ahead in the input, in the window, in a
// group, or in the journal; and those that came back from a lost group wait apart, to be
// handed out before the window.
#include "launcher/batch.h"
#include "launcher/batch_input.h"
#include "launcher/batch_line.h"
#include "launcher/batch_record.h"
#include "launcher/batch_window.h"
#include "launcher/id_set.h"

#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const double SYNC_SECONDS = 1;
static const double TURN_SECONDS = 0.05; // of reading ahead, then others have their turn

enum { LOSSES_MAX = 2 }; // groups that may be lost with a request: it may be what ends them

typedef struct app_items { // zero-initialise
    app_item *at;
    size_t count, cap;
} app_items;

typedef struct desk_group {
    int leader; // rank
    app_items items;
    uint64_t wanted, sent; // lines, all told
    uint64_t last_prefix;
    uint32_t running, pages, pages_used;
    bool idle; // had all that was sent, and nothing of it is open
    bool lost;
} desk_group;

struct app_desk {
    comm *c;
    const app_batch_args *args;
    const app_batch_job *job;
    app_input *input;
    char journal_path[PATH_MAX];
    app_journal *journal;
    app_id_set *ids; // custom_ids
    app_window window;
    app_items returned;
    bool input_over;
    desk_group *groups;
    app_holding *holdings; // [group_count], for the window
    int group_count;
    app_batch_counts counts;
    app_batch_status status;
    double draining; // since when, or 0
    bool closing;
};

// ---- lists of items ------------------------------------------------------------------------

static rt_status push(app_items *l, const app_item *item)
{
    if (l->count == l->cap) {
        const size_t cap = l->cap ? 2 * l->cap : 64;
        app_item *grown = rt_mem_grow(l->at, l->cap, cap, sizeof *l->at, "requests");
        if (!grown)
            return RT_ERR_NOMEM;
        l->at = grown;
        l->cap = cap;
    }
    l->at[l->count++] = *item;
    return RT_OK;
}

static bool drop_item(app_items *l, uint64_t line)
{
    for (size_t i = 0; i < l->count; i++) {
        if (l->at[i].line != line)
            continue;
        l->at[i] = l->at[--l->count];
        return true;
    }
    return false;
}

// ---- the input -----------------------------------------------------------------------------

static rt_status refuse(app_desk *d, uint64_t line, const char *custom_id, int status,
                        const char *cause)
{
    const app_batch_key key = {d->job->hash, line, custom_id, d->job->model, false, false};
    rt_str message = {0}, text = {0};
    rt_status done = rt_str_printf(&message, "line %" PRIu64 ": %s", line + 1, cause);
    if (done == RT_OK)
        done = app_batch_record_error(&key, status, message.data, &text);
    if (done == RT_OK)
        done = app_journal_add(d->journal, line, text.data, text.len);
    rt_str_free(&message);
    rt_str_free(&text);
    return done;
}

// An id is taken by a line that is wrong, too.
static rt_status take_custom_id(app_desk *d, const char *id, bool *known)
{
    *known = false;
    return id ? app_id_set_add(d->ids, rt_hash(RT_HASH_START, id, strlen(id)), known) : RT_OK;
}

// The line goes to the window, or to the journal with what is wrong with it.
static rt_status consider(app_desk *d, const app_line *in, const app_batch_line *line,
                          rt_status status)
{
    bool known;
    if (status == RT_ERR_NOMEM)
        return status;
    RT_TRY(take_custom_id(d, line->custom_id, &known));
    if (status == RT_OK && known)
        status = RT_FAIL(RT_ERR_INVALID, "custom_id '%.100s' was there before", line->custom_id);
    if (app_journal_has(d->journal, in->number))
        return RT_OK;
    if (status != RT_OK)
        return refuse(d, in->number, line->custom_id, 400, rt_last_error());
    d->window.items[d->window.count++] = (app_item){
        .line = in->number,
        .offset = in->offset,
        .len = in->len,
        .need = app_batch_line_need(line, d->args->request.max_tokens),
        .prefix = app_batch_line_prefix(line),
    };
    return RT_OK;
}

static rt_status read_line(app_desk *d)
{
    app_line in;
    app_batch_line line;
    bool more;
    RT_TRY(app_input_next(d->input, &in, &more));
    d->input_over = !more;
    if (!more)
        return RT_OK;
    if (!in.text && app_journal_has(d->journal, in.number))
        return RT_OK;
    if (!in.text) {
        char cause[64];
        snprintf(cause, sizeof cause, "%zu bytes, at most %d are taken", in.len, PB_LINE_MAX);
        return refuse(d, in.number, NULL, 400, cause);
    }
    rt_status status = app_batch_line_open(in.text, in.len, &line);
    status = consider(d, &in, &line, status);
    app_batch_line_close(&line);
    return status;
}

// Lines that are wrong, or have their results, never fill the window: letters, signals and the
// leader on this rank are not to wait until there is another one.
static rt_status look_ahead(app_desk *d)
{
    const double end = rt_clock_now() + TURN_SECONDS;
    while (!d->input_over && d->window.count < APP_WINDOW && rt_clock_now() < end)
        RT_TRY(read_line(d));
    return RT_OK;
}

// ---- handing out ---------------------------------------------------------------------------

static rt_status send_line(app_desk *d, desk_group *g, const app_item *item)
{
    Pb__BatchWork work = PB__BATCH_WORK__INIT;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    rt_str text = {0};
    rt_status status = app_input_read(d->input, item->offset, item->len, &text);
    if (status == RT_OK) {
        work.line = item->line;
        work.text.data = (uint8_t *)text.data;
        work.text.len = text.len;
        letter.work = &work;
        status = app_batch_post(d->c, g->leader, &letter);
    }
    rt_str_free(&text);
    RT_TRY(status);
    g->sent++;
    g->idle = false;
    g->last_prefix = item->prefix;
    return push(&g->items, item);
}

static app_item next_item(app_desk *d, int mine)
{
    if (d->returned.count > 0)
        return d->returned.at[--d->returned.count];
    for (int i = 0; i < d->group_count; i++) {
        const desk_group *g = &d->groups[i];
        d->holdings[i] = (app_holding){g->items.at, g->items.count, g->last_prefix};
    }
    return app_window_take(&d->window, d->holdings, (size_t)d->group_count, (size_t)mine);
}

// One line for each group that has room, and again, so that all get the long ones.
static rt_status hand_out(app_desk *d)
{
    for (bool some = true; some;) {
        some = false;
        for (int i = 0; i < d->group_count; i++) {
            desk_group *g = &d->groups[i];
            if (g->lost || g->sent >= g->wanted || d->window.count + d->returned.count == 0)
                continue;
            const app_item item = next_item(d, i);
            RT_TRY(send_line(d, g, &item));
            some = true;
        }
    }
    return RT_OK;
}

static rt_status order(app_desk *d, Pb__BatchOrder what)
{
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    letter.has_order = true;
    letter.order = what;
    for (int i = 0; i < d->group_count; i++)
        if (!d->groups[i].lost)
            RT_TRY(app_batch_post(d->c, d->groups[i].leader, &letter));
    return RT_OK;
}

// ---- what came back ------------------------------------------------------------------------

static rt_status take_record(app_desk *d, desk_group *g, const Pb__BatchRecord *r)
{
    if (!drop_item(&g->items, r->line))
        return RT_FAIL(RT_ERR_INTERNAL, "rank %d answers line %" PRIu64 ", which it was not given",
                       g->leader, r->line + 1);
    d->counts.prompt_tokens += r->prompt_tokens;
    d->counts.completion_tokens += r->completion_tokens;
    d->counts.shared_tokens += r->shared_tokens;
    d->counts.forwards += r->forwards;
    d->counts.prefix_read += r->prefix_read;
    d->counts.prefix_total += r->prefix_total;
    return app_journal_add(d->journal, r->line, (const char *)r->text.data, r->text.len);
}

rt_status app_desk_take(app_desk *d, int from, const Pb__BatchLetter *letter)
{
    int i = 0;
    while (i < d->group_count && d->groups[i].leader != from)
        i++;
    if (i == d->group_count)
        return RT_FAIL(RT_ERR_INTERNAL, "rank %d leads no group, and wrote a letter", from);
    desk_group *g = &d->groups[i];
    if (g->lost) // what it had is handed out again
        return RT_OK;
    if (letter->record)
        return take_record(d, g, letter->record);
    g->wanted = letter->pulse->wanted;
    g->running = letter->pulse->running;
    g->pages = letter->pulse->pages;
    g->pages_used = letter->pulse->pages_used;
    g->idle = letter->pulse->had == g->sent && letter->pulse->open == 0;
    return RT_OK;
}

// ---- losses --------------------------------------------------------------------------------

// Its custom_id is in the input.
static rt_status refuse_lost(app_desk *d, const app_item *item)
{
    rt_str text = {0};
    app_batch_line line = {0};
    rt_status status = app_input_read(d->input, item->offset, item->len, &text);
    if (status == RT_OK)
        status = app_batch_line_open(text.data, text.len, &line);
    if (status == RT_OK)
        status = refuse(d, item->line, line.custom_id, 500,
                        "the ranks that answered it were lost, twice");
    app_batch_line_close(&line);
    rt_str_free(&text);
    return status;
}

// What a lost group had is handed out again, before the window.
static rt_status give_back(app_desk *d, desk_group *g)
{
    g->lost = true;
    g->running = g->pages = g->pages_used = 0;
    for (size_t i = 0; i < g->items.count; i++) {
        app_item *item = &g->items.at[i];
        if (++item->losses < LOSSES_MAX)
            RT_TRY(push(&d->returned, item));
        else
            RT_TRY(refuse_lost(d, item));
    }
    if (!d->args->common.quiet)
        fprintf(stderr, "losa: group of rank %d: %zu requests are handed out again\n", g->leader,
                g->items.count);
    g->items.count = 0;
    return RT_OK;
}

static rt_status look_for_losses(app_desk *d)
{
    int left = 0;
    for (int i = 0; i < d->group_count; i++) {
        desk_group *g = &d->groups[i];
        if (!g->lost && comm_is_lost(d->c, g->leader))
            RT_TRY(give_back(d, g));
        left += !g->lost;
    }
    return left ? RT_OK : RT_FAIL(RT_ERR_COMM, "all groups of ranks are lost");
}

// ---- turns ---------------------------------------------------------------------------------

static uint64_t in_groups(const app_desk *d)
{
    uint64_t n = 0;
    for (int i = 0; i < d->group_count; i++)
        n += d->groups[i].items.count;
    return n;
}

static bool is_done(const app_desk *d)
{
    return d->input_over && d->window.count + d->returned.count + in_groups(d) == 0;
}

static rt_status tell(app_desk *d, bool last)
{
    app_batch_counts *n = &d->counts;
    n->done = app_journal_count(d->journal);
    n->failed = app_journal_errors(d->journal);
    n->running = n->pages = n->pages_used = 0;
    n->groups_lost = 0;
    for (int i = 0; i < d->group_count; i++) {
        const desk_group *g = &d->groups[i];
        n->running += g->running;
        n->pages += g->pages;
        n->pages_used += g->pages_used;
        n->groups_lost += g->lost;
    }
    return app_batch_status_tell(&d->status, n, last);
}

// Nothing new is begun; what runs has until the end of the grace. When a group was lost the
// signal may be mpirun's, which kills within a second.
static rt_status drain(app_desk *d)
{
    if (d->draining == 0) {
        d->draining = rt_clock_now();
        app_progress_end(&d->status.bar);
        if (!d->args->common.quiet)
            fprintf(stderr, "losa: signal %d: nothing new begins\n", app_signal());
        RT_TRY(order(d, PB__BATCH_ORDER__DRAIN));
    }
    bool idle = true;
    for (int i = 0; i < d->group_count; i++)
        idle &= d->groups[i].idle || d->groups[i].lost;
    const double grace = comm_has_lost(d->c) ? 0 : d->args->grace;
    d->closing = idle || rt_clock_now() - d->draining >= grace;
    return RT_OK;
}

rt_status app_desk_order_close(app_desk *d)
{
    return order(d, PB__BATCH_ORDER__CLOSE);
}

rt_status app_desk_turn(app_desk *d, bool *over)
{
    RT_TRY(look_for_losses(d));
    if (app_signal()) {
        RT_TRY(drain(d));
    } else {
        RT_TRY(look_ahead(d));
        RT_TRY(hand_out(d));
    }
    d->closing |= is_done(d);
    RT_TRY(app_journal_sync(d->journal, d->closing ? 0 : SYNC_SECONDS));
    RT_TRY(tell(d, false));
    *over = d->closing;
    return d->closing ? app_desk_order_close(d) : RT_OK;
}

// ---- the end -------------------------------------------------------------------------------

rt_status app_desk_finish(app_desk *d)
{
    RT_TRY(app_journal_sync(d->journal, 0));
    RT_TRY(tell(d, true));
    if (!is_done(d))
        return RT_FAIL(RT_ERR_CANCELLED, "ended by signal %d", app_signal());
    if (app_journal_count(d->journal) != d->counts.lines)
        return RT_FAIL(RT_ERR_INTERNAL, "%s: holds %" PRIu64 " results for %" PRIu64 " requests",
                       d->journal_path, app_journal_count(d->journal), d->counts.lines);
    RT_TRY(app_journal_deliver(d->journal, d->args->output, d->args->keep_order));
    return app_journal_remove(d->journal);
}

void app_desk_leave(const app_desk *d, bool failed)
{
    if (failed && app_journal_is_empty(d->journal)) {
        (void)app_journal_remove(d->journal);
        return;
    }
    fprintf(stderr, "losa: %" PRIu64 " of %" PRIu64 " results are kept in %s",
            app_journal_count(d->journal), d->counts.lines, d->journal_path);
    app_batch_say_how_to_resume(stderr, comm_ranks(d->c) == 1);
}

// ---- opening -------------------------------------------------------------------------------

// By whatever names; files that are not there differ by theirs.
static bool is_same_file(const char *a, const char *b)
{
    struct stat one, other;
    if (strcmp(a, b) == 0)
        return true;
    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
}

// Nothing that is written may be the input, nor results and metrics be one file.
static rt_status check_files_are_apart(const app_batch_args *args)
{
    static const char *const results[] = {"", ".tmp", ".journal"}, *const metrics[] = {"", ".tmp"};
    char result[PATH_MAX], metric[PATH_MAX];
    for (size_t i = 0; i < 3; i++) {
        snprintf(result, sizeof result, "%s%s", args->output, results[i]);
        if (is_same_file(result, args->input))
            return RT_FAIL(RT_ERR_INVALID, "%s: is the input, and would be overwritten", result);
    }
    for (size_t i = 0; args->metrics_file && i < 2; i++) {
        snprintf(metric, sizeof metric, "%s%s", args->metrics_file, metrics[i]);
        if (is_same_file(metric, args->input))
            return RT_FAIL(RT_ERR_INVALID, "%s: is the input, and would be overwritten", metric);
        for (size_t j = 0; j < 3; j++) {
            snprintf(result, sizeof result, "%s%s", args->output, results[j]);
            if (is_same_file(metric, result))
                return RT_FAIL(RT_ERR_INVALID, "%s: --metrics-file would overwrite results",
                               metric);
        }
    }
    return RT_OK;
}

static rt_status open_journal(app_desk *d)
{
    const app_batch_args *args = d->args;
    struct stat info;
    rt_str options = {0};
    if (stat(args->output, &info) == 0 && !S_ISREG(info.st_mode))
        return RT_FAIL(RT_ERR_INVALID, "--output %s: not a regular file", args->output);
    if (snprintf(d->journal_path, sizeof d->journal_path, "%s.journal", args->output) >=
        (int)sizeof d->journal_path)
        return RT_FAIL(RT_ERR_LIMIT, "%s: the name is too long", args->output);
    RT_TRY(check_files_are_apart(args));
    rt_status status = app_batch_describe(args, d->job->model, &options);
    const app_job job = {.model = d->job->model_hash,
                         .input = app_input_hash(d->input),
                         .options = options.data,
                         .lines = app_input_lines(d->input)};
    if (status == RT_OK)
        status = app_journal_open(d->journal_path, &job, args->resume, &d->journal);
    rt_str_free(&options);
    return status;
}

static rt_status open_all(app_desk *d, app_batch_job *job)
{
    RT_TRY(app_input_open(d->args->input, PB_LINE_MAX, &d->input));
    RT_TRY(app_batch_job_make(d->args, app_input_hash(d->input), job));
    RT_TRY(open_journal(d));
    d->counts.kept = app_journal_count(d->journal);
    d->counts.lines = app_input_requests(d->input);
    return app_id_set_open(d->counts.lines, &d->ids);
}

rt_status app_desk_open(comm *c, const app_batch_args *args, app_batch_job *job, app_desk **out)
{
    app_desk *d;
    RT_TRY(RT_ALLOC(d, 1, "desk"));
    d->c = c;
    d->args = args;
    d->job = job;
    const rt_status status = open_all(d, job);
    if (status != RT_OK) {
        app_desk_close(d);
        return status;
    }
    *out = d;
    return RT_OK;
}

void app_desk_begin(app_desk *d)
{
    app_batch_status_begin(d->args, &d->status);
}

rt_status app_desk_set_groups(app_desk *d, int groups, int size)
{
    RT_TRY(RT_ALLOC(d->groups, (size_t)groups, "groups"));
    RT_TRY(RT_ALLOC(d->holdings, (size_t)groups, "groups"));
    for (int i = 0; i < groups; i++)
        d->groups[i].leader = i * size;
    d->group_count = d->counts.groups = groups;
    return RT_OK;
}

void app_desk_close(app_desk *d)
{
    if (!d)
        return;
    app_progress_end(&d->status.bar);
    for (int i = 0; i < d->group_count; i++)
        rt_free(d->groups[i].items.at);
    rt_free(d->groups);
    rt_free(d->holdings);
    rt_free(d->returned.at);
    app_id_set_close(d->ids);
    app_journal_close(d->journal);
    app_input_close(d->input);
    rt_free(d);
}
