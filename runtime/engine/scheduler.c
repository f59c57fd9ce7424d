// SPDX-License-Identifier: Apache-2.0
// Rank 0: the queue of requests, one step after the other, and what becomes of the
// requests after it. What a step does is decided in command.c.
//
// Callbacks may submit and cancel. Sessions are kept in order of submission and leave
// the list only in deliver_finished.
#include "runtime/engine/engine_int.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"

static void after_prefill(rt_engine *e, rt_session *s, const rt_slot *slot)
{
    const int total = rt_slot_prefill_len(slot, e->config.block_length);
    s->prefill_forwards++;
    rt_pagebook_wrote(&e->book, &s->holding, slot->committed);
    if (slot->committed >= total)
        s->prefilled_at = rt_clock_now();
    if (s->request.on_prefill)
        s->request.on_prefill(s->request.ctx, s->id, slot->committed, total);
}

static void tell_step(const rt_session *s, uint32_t kind)
{
    const rt_step_kind step = kind == KERN_SEG_OPEN     ? RT_STEP_OPEN
                              : kind == KERN_SEG_COMMIT ? RT_STEP_COMMIT
                              : kind == KERN_SEG_FIRST  ? RT_STEP_FIRST
                                                        : RT_STEP_LATER;
    if (s->request.on_step)
        s->request.on_step(s->request.ctx, s->id, step);
}

// `alone`: the request has no other segment in this forward.
static rt_status after_segment(rt_engine *e, const Pb__Segment *segment, bool alone)
{
    rt_session *s = e->running[segment->slot];
    const rt_slot *slot = &e->slots[segment->slot];
    if (s->prefill_forwards + s->forwards == 0)
        s->shared_tokens = rt_pagebook_written(&e->book, &s->holding);
    if (s->finished) // cancelled by a callback of this very step
        return RT_OK;
    if (segment->kind == KERN_SEG_PREFILL) {
        after_prefill(e, s, slot);
        return RT_OK;
    }
    if (s->prefilled_at == 0)
        s->prefilled_at = e->step_began; // too short to be read, or others had read it
    const bool commit = segment->kind == KERN_SEG_COMMIT;
    if (commit && !alone)
        return RT_OK; // the step beside it counts for both
    s->forwards++;
    if (!commit)
        s->steps++;
    if (rt_segment_opens(segment))
        s->blocks++;
    tell_step(s, segment->kind);
    if (commit || s->finished) // cancelled by this very call
        return RT_OK;
    return rt_session_progress(e, s, slot);
}

// What the ranks counted for a session that this step released.
static Pb__Result *const *results_of(const rt_engine *e, const rt_session *s)
{
    const int ranks = comm_ranks(e->group.comm);
    for (int i = 0; i < e->results_released; i++)
        if (e->results[i * ranks]->session == s->id)
            return &e->results[i * ranks];
    return NULL;
}

// Delivers and drops the sessions whose slots this step released, or which ended
// before they got one. Callbacks may cancel more: those that were passed by are left to the
// next step.
static void deliver_finished(rt_engine *e)
{
    for (rt_session **link = &e->sessions; *link && e->leaving > 0;) {
        rt_session *s = *link;
        if (!s->releasing && !(s->finished && s->slot < 0)) {
            link = &s->next;
            continue;
        }
        e->leaving--;
        *link = s->next;
        if (e->sessions_end == &s->next)
            e->sessions_end = link;
        rt_session_deliver(e, s, s->releasing ? results_of(e, s) : NULL);
        rt_session_free(s);
    }
}

static rt_status run_command(rt_engine *e, const rt_command *c)
{
    e->step_began = rt_clock_now();
    RT_TRY(rt_step_send(e, &c->step));
    RT_TRY(rt_step_execute(e, &c->step));
    for (int i = 0; i < c->count; i++)
        RT_TRY(after_segment(e, &c->segments[i], !rt_command_continues(c, i)));
    return RT_OK;
}

// ---- the public calls ---------------------------------------------------------------------

// What only a request for an answer needs.
static rt_status new_session(const rt_engine *e, const rt_request *request, rt_session **out)
{
    if (e->config.mask_id < 0)
        return RT_FAIL(RT_ERR_INVALID,
                       "%s: no mask token in config or tokenizer; give its id (--mask-id)",
                       e->options.model_dir ? e->options.model_dir : "random weights");
    if (request->max_tokens < 1)
        return RT_FAIL(RT_ERR_INVALID, "max tokens %d: must be at least 1", request->max_tokens);
    return rt_session_new(e, request, out);
}

static void warn_of_cut(const rt_engine *e, const rt_request *asked, const rt_session *s)
{
    if (asked->max_tokens > s->request.max_tokens)
        rt_log(RT_LOG_WARN, "max tokens %d cut to %d: the prompt has %zu tokens, the context %d",
               asked->max_tokens, s->request.max_tokens, s->prompt.len, e->config.max_positions);
}

rt_status rt_engine_submit(rt_engine *e, const rt_request *request, rt_session_id *id)
{
    RT_CHECK_ARG(rt_engine_is_root(e));
    rt_session *s;
    RT_TRY(new_session(e, request, &s));
    warn_of_cut(e, request, s);
    s->id = ++e->next_session;
    *e->sessions_end = s;
    e->sessions_end = &s->next;
    *id = s->id;
    return RT_OK;
}

rt_status rt_engine_needs(const rt_engine *e, const rt_request *request, rt_needs *out)
{
    RT_CHECK_ARG(rt_engine_is_root(e));
    rt_session *s;
    RT_TRY(new_session(e, request, &s));
    *out = (rt_needs){
        .prompt_tokens = (int)s->prompt.len,
        .max_tokens = s->request.max_tokens,
        .pages = s->holding.page_count,
        .shared = rt_pagebook_shared(&e->book, s->prompt.data, &s->holding),
    };
    rt_session_free(s);
    return RT_OK;
}

rt_room rt_engine_room(const rt_engine *e)
{
    rt_room room = {
        .page = e->kv.page,
        .slots = e->options.max_sessions,
        .pages = e->kv.pages,
        .pages_used = e->kv.pages - rt_pagebook_unused(&e->book),
    };
    for (int i = 0; i < room.slots; i++)
        room.slots_used += e->running[i] != NULL;
    for (const rt_session *s = e->sessions; s; s = s->next) {
        if (s->slot >= 0 || s->finished)
            continue;
        room.slots_queued++;
        room.pages_queued += s->holding.page_count;
    }
    return room;
}

void rt_engine_cancel(rt_engine *e, rt_session_id id)
{
    for (rt_session *s = e->sessions; s; s = s->next) {
        if (s->id != id || s->finished)
            continue;
        s->finished = true;
        e->leaving += s->slot < 0;
        s->finish = RT_FINISH_CANCELLED;
        s->finished_at = rt_clock_now();
    }
}

rt_status rt_engine_step(rt_engine *e, bool *busy)
{
    RT_CHECK_ARG(rt_engine_is_root(e));
    RT_TRY(rt_command_make(e, &e->command));
    if (!rt_command_is_empty(&e->command))
        RT_TRY(run_command(e, &e->command));
    deliver_finished(e);
    *busy = e->sessions != NULL;
    return RT_OK;
}

double rt_engine_forward_seconds(const rt_engine *e)
{
    return e->forward_seconds;
}
