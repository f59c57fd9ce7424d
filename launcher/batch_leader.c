// SPDX-License-Identifier: Apache-2.0
// A leader asks for as many lines as its engine has slots for, and a few more to have at hand
// when one is free. It says how many it wants all told, so that it does not matter when the
// word arrives. A line that the engine refuses makes an error record; the job goes on.
#include "launcher/batch.h"
#include "launcher/batch_line.h"
#include "launcher/batch_record.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

static const double PULSE_SECONDS = 0.5;

// A request that the engine has.
typedef struct ask {
    struct ask *next;
    app_leader *leader;
    uint64_t line;
    char *custom_id;
    bool chat, token_ids;
    rt_session_id id;
    bool begun; // its prompt is being read, or more
} ask;

struct app_leader {
    comm *world;
    rt_engine *e;
    const app_batch_args *args;
    const app_batch_job *job;
    ask *asks;
    uint64_t had, wanted; // lines
    double told;          // when the last pulse went
    bool busy, closed;
    rt_status status; // first failure in a callback
};

rt_status app_batch_post(comm *c, int to, const Pb__BatchLetter *letter)
{
    rt_str frame = {0};
    rt_status status = pb_letter_pack(letter, &frame);
    if (status == RT_OK)
        status = comm_post(c, to, frame.data, frame.len);
    rt_str_free(&frame);
    return status;
}

// ---- records -----------------------------------------------------------------------------

static rt_status post_record(app_leader *l, Pb__BatchRecord *record, const rt_str *text)
{
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    record->text.data = (uint8_t *)text->data;
    record->text.len = text->len;
    letter.record = record;
    return app_batch_post(l->world, 0, &letter);
}

static app_batch_key key_of(const app_leader *l, const ask *a)
{
    return (app_batch_key){l->job->hash,  a->line, a->custom_id,
                           l->job->model, a->chat, a->token_ids};
}

static rt_status post_error(app_leader *l, const ask *a, int status, const char *message)
{
    Pb__BatchRecord record = PB__BATCH_RECORD__INIT;
    rt_str text = {0};
    const app_batch_key key = key_of(l, a);
    record.line = a->line;
    rt_status done = app_batch_record_error(&key, status, message, &text);
    if (done == RT_OK)
        done = post_record(l, &record, &text);
    rt_str_free(&text);
    return done;
}

static rt_status post_answer(app_leader *l, const ask *a, const rt_result *result)
{
    Pb__BatchRecord record = PB__BATCH_RECORD__INIT;
    rt_str text = {0};
    const app_batch_key key = key_of(l, a);
    const rt_stats *st = &result->stats;
    record.line = a->line;
    record.prompt_tokens = (uint32_t)result->prompt_tokens;
    record.completion_tokens = (uint32_t)result->completion_tokens;
    record.forwards = (uint32_t)st->forwards;
    record.shared_tokens = (uint32_t)st->shared_tokens;
    record.prefix_read = (double)st->prefix_tokens_read;
    record.prefix_total =
        st->density_total > 0 ? record.prefix_read / st->density_total : record.prefix_read;
    rt_status status = app_batch_record_answer(&key, result, &text);
    if (status == RT_OK && text.len > PB_LINE_MAX)
        status = post_error(l, a, 500, "the answer is longer than a line of output may be");
    else if (status == RT_OK)
        status = post_record(l, &record, &text);
    rt_str_free(&text);
    return status;
}

// ---- requests ----------------------------------------------------------------------------

static void ask_free(ask *a)
{
    if (a)
        rt_free(a->custom_id);
    rt_free(a);
}

static void unlink_ask(app_leader *l, const ask *a)
{
    ask **link = &l->asks;
    while (*link != a)
        link = &(*link)->next;
    *link = a->next;
}

static void on_prefill(void *ctx, rt_session_id id, int done, int total)
{
    (void)id, (void)done, (void)total;
    ((ask *)ctx)->begun = true;
}

static void on_step(void *ctx, rt_session_id id, rt_step_kind kind)
{
    (void)id, (void)kind;
    ((ask *)ctx)->begun = true;
}

// What was dropped is for the next run: it makes no record.
static void on_done(void *ctx, rt_session_id id, const rt_result *result)
{
    (void)id;
    ask *a = ctx;
    app_leader *l = a->leader;
    if (result->finish != RT_FINISH_CANCELLED && l->status == RT_OK)
        l->status = post_answer(l, a, result);
    unlink_ask(l, a);
    ask_free(a);
}

static rt_status submit(app_leader *l, const app_batch_line *line, ask *a)
{
    app_batch_request made;
    rt_status status = app_batch_request_make(line, &l->args->request, l->job->model, &made);
    made.request.on_prefill = on_prefill;
    made.request.on_step = on_step;
    made.request.on_done = on_done;
    made.request.ctx = a;
    a->token_ids = made.token_ids;
    if (status == RT_OK)
        status = rt_engine_submit(l->e, &made.request, &a->id);
    app_batch_request_free(&made);
    return status;
}

// The line's envelope was in order on rank 0.
static rt_status begin(app_leader *l, const Pb__BatchWork *work, ask *a)
{
    app_batch_line line;
    a->leader = l;
    a->line = work->line;
    rt_status status = app_batch_line_open((const char *)work->text.data, work->text.len, &line);
    a->chat = line.chat;
    a->custom_id = rt_mem_strdup(line.custom_id ? line.custom_id : "", "request");
    if (status == RT_OK)
        status = a->custom_id ? submit(l, &line, a) : RT_ERR_NOMEM;
    app_batch_line_close(&line);
    return status;
}

static rt_status take_work(app_leader *l, const Pb__BatchWork *work)
{
    ask *a;
    RT_TRY(RT_ALLOC(a, 1, "request"));
    l->had++;
    rt_status status = begin(l, work, a);
    if (status == RT_OK) {
        a->next = l->asks;
        l->asks = a;
        l->busy = true;
        return RT_OK;
    }
    // Copied: the message lies where the next failure writes.
    rt_str message = {0};
    if (status != RT_ERR_NOMEM) {
        status = rt_str_puts(&message, rt_last_error());
        if (status == RT_OK)
            status = post_error(l, a, 400, message.data);
    }
    rt_str_free(&message);
    ask_free(a);
    return status;
}

static void drop(app_leader *l, bool begun_too)
{
    for (ask *a = l->asks; a; a = a->next)
        if (begun_too || !a->begun)
            rt_engine_cancel(l->e, a->id);
}

rt_status app_leader_take(app_leader *l, const Pb__BatchLetter *letter)
{
    if (letter->work)
        return take_work(l, letter->work);
    l->closed |= letter->order == PB__BATCH_ORDER__CLOSE;
    drop(l, l->closed);
    return RT_OK;
}

// ---- the loop ----------------------------------------------------------------------------

// More lines than are here only as long as few of them wait.
static uint64_t room(const rt_room *r)
{
    const int ahead = 1 + r->slots / 8;
    const int most = r->slots_queued > 0 ? ahead : r->slots - r->slots_used + ahead;
    return most > r->slots_queued ? (uint64_t)(most - r->slots_queued) : 0;
}

static rt_status tell(app_leader *l)
{
    const rt_room r = rt_engine_room(l->e);
    const uint64_t wanted = l->had + room(&r);
    const double now = rt_clock_now();
    if (wanted <= l->wanted && now - l->told < PULSE_SECONDS)
        return RT_OK;
    l->wanted = wanted > l->wanted ? wanted : l->wanted;
    l->told = now;
    Pb__BatchPulse pulse = PB__BATCH_PULSE__INIT;
    Pb__BatchLetter letter = PB__BATCH_LETTER__INIT;
    pulse.wanted = l->wanted;
    pulse.running = (uint32_t)r.slots_used;
    pulse.pages = (uint32_t)r.pages;
    pulse.pages_used = (uint32_t)r.pages_used;
    pulse.had = l->had;
    for (const ask *a = l->asks; a; a = a->next)
        pulse.open++;
    letter.pulse = &pulse;
    return app_batch_post(l->world, 0, &letter);
}

rt_status app_leader_turn(app_leader *l, bool *idle)
{
    *idle = !l->busy;
    if (l->busy)
        RT_TRY(rt_engine_step(l->e, &l->busy));
    RT_TRY(l->status);
    return tell(l);
}

bool app_leader_is_closed(const app_leader *l)
{
    return l->closed;
}

rt_status app_leader_open(comm *world, rt_engine *e, const app_batch_args *args,
                          const app_batch_job *job, app_leader **out)
{
    app_leader *l;
    RT_TRY(RT_ALLOC(l, 1, "leader"));
    l->world = world;
    l->e = e;
    l->args = args;
    l->job = job;
    *out = l;
    return RT_OK;
}

void app_leader_close(app_leader *l)
{
    if (!l)
        return;
    while (l->asks) {
        ask *a = l->asks;
        l->asks = a->next;
        ask_free(a);
    }
    rt_free(l);
}
