// SPDX-License-Identifier: Apache-2.0
// Rank 0: the queue of requests and the next step command. Requests are admitted in
// the order of submission once a slot and all the pages they can ever need are
// free, so that a running request never waits for memory. Every forward takes all
// running requests along: sparse steps first, then blocks that open or are
// committed, then prefill chunks within the row budget.
#include "runtime/engine/engine_int.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

// A step command under construction; owns its parts.
typedef struct plan {
    Pb__Step step;
    Pb__Request *admit;    // [max_sessions]
    Pb__Segment *segments; // [2 max_sessions]
    Pb__Request **admit_ptr;
    Pb__Segment **segment_ptr;
    uint32_t *release; // [max_sessions]
    int admits, count, releases;
} plan;

static rt_status plan_open(const rt_engine *e, plan *p)
{
    const size_t n = (size_t)e->options.max_sessions;
    *p = (plan){0};
    pb__step__init(&p->step);
    RT_TRY(RT_ALLOC(p->admit, n, "step command"));
    RT_TRY(RT_ALLOC(p->segments, 2 * n, "step command"));
    RT_TRY(RT_ALLOC(p->admit_ptr, n, "step command"));
    RT_TRY(RT_ALLOC(p->segment_ptr, 2 * n, "step command"));
    return RT_ALLOC(p->release, n, "step command");
}

static void plan_close(plan *p)
{
    for (int i = 0; i < p->admits; i++)
        rt_free(p->admit[i].pages);
    rt_free(p->admit);
    rt_free(p->segments);
    rt_free(p->admit_ptr);
    rt_free(p->segment_ptr);
    rt_free(p->release);
}

static void plan_finish(rt_engine *e, plan *p)
{
    p->step.sequence = ++e->sequence;
    p->step.n_admit = (size_t)p->admits;
    p->step.admit = p->admit_ptr;
    p->step.n_segments = (size_t)p->count;
    p->step.segments = p->segment_ptr;
    p->step.n_release = (size_t)p->releases;
    p->step.release = p->release;
}

// ---- release and admission ------------------------------------------------------------

static void plan_releases(rt_engine *e, plan *p)
{
    for (rt_session *s = e->sessions; s; s = s->next) {
        if (!s->finished || s->slot < 0)
            continue;
        p->release[p->releases++] = (uint32_t)s->slot;
        s->releasing = true;
        rt_kvcache_give(&e->kv, s->pages, s->page_count);
    }
}

static int free_slot(const rt_engine *e)
{
    for (int i = 0; i < e->options.max_sessions; i++) {
        bool taken = false;
        for (const rt_session *s = e->sessions; s; s = s->next)
            taken |= s->slot == i && !s->releasing;
        if (!taken)
            return i;
    }
    return -1;
}

static rt_status plan_admissions(rt_engine *e, plan *p)
{
    for (rt_session *s = e->sessions; s; s = s->next) {
        if (s->slot >= 0 || s->finished)
            continue;
        const int slot = free_slot(e);
        if (slot < 0 || s->page_count > e->kv.free_count)
            return RT_OK;
        s->slot = slot;
        s->admitted_at = rt_clock_now();
        rt_kvcache_take(&e->kv, s->pages, s->page_count);
        RT_TRY(rt_session_message(s, &p->admit[p->admits]));
        p->admit_ptr[p->admits] = &p->admit[p->admits];
        p->admits++;
    }
    return RT_OK;
}

// ---- segments -------------------------------------------------------------------------

static void add_segment(plan *p, const rt_session *s, int kind, int first, int count)
{
    Pb__Segment *segment = &p->segments[p->count];
    pb__segment__init(segment);
    segment->slot = (uint32_t)s->slot;
    segment->kind = (uint32_t)kind;
    segment->first = (uint32_t)first;
    segment->count = (uint32_t)count;
    p->count++;
}

static bool block_is_done(const rt_slot *slot, int block)
{
    for (int i = 0; i < block; i++)
        if (slot->state[slot->block_start + i] & KERN_ROW_MASKED)
            return false;
    return true;
}

// Segments of a running request in the next forward. A finished block is committed
// with the next block's first step: as one segment where both read everything, as two
// where each follows a plan of its own. A shifted model's next block begins with a
// token that the commit decides, so there the commit needs a forward of its own.
static void plan_block(const rt_engine *e, plan *p, const rt_session *s)
{
    const rt_slot *slot = &e->slots[s->slot];
    const int block = e->config.block_length, start = slot->block_start;
    const bool merged = !e->options.separate_commit && !e->config.shifted;
    const bool sparse = losa_reading_of(&e->options.attention, KERN_SEG_FIRST).sparse;
    if (slot->block_step == 0)
        add_segment(p, s, KERN_SEG_OPEN, start, block);
    else if (!block_is_done(slot, block))
        add_segment(p, s, KERN_SEG_STEP, start, block);
    else if (slot->committed > start)
        add_segment(p, s, KERN_SEG_FIRST, slot->committed, block);
    else if (merged && !sparse)
        add_segment(p, s, KERN_SEG_FIRST, start, 2 * block);
    else
        add_segment(p, s, KERN_SEG_COMMIT, start, block);
    if (slot->committed == start && block_is_done(slot, block) && merged && sparse)
        add_segment(p, s, KERN_SEG_FIRST, start + block, block);
}

// A request that was admitted by this very command has no slot state yet: its first
// forward follows from its prompt alone.
static bool in_prefill(const rt_engine *e, const rt_session *s, int *done, int *total)
{
    const rt_slot *slot = &e->slots[s->slot];
    const bool fresh = !slot->used || slot->session != s->id;
    const int block = e->config.block_length;
    *done = fresh ? 0 : slot->committed;
    *total = (int)s->prompt.len / block * block;
    return *done < *total;
}

static void plan_denoising(const rt_engine *e, plan *p)
{
    int done, total;
    for (const rt_session *s = e->sessions; s; s = s->next) {
        if (s->finished || s->slot < 0 || in_prefill(e, s, &done, &total))
            continue;
        const rt_slot *slot = &e->slots[s->slot];
        if (slot->used && slot->session == s->id)
            plan_block(e, p, s);
        else
            add_segment(p, s, KERN_SEG_OPEN, 0, e->config.block_length);
    }
}

static void plan_prefill(const rt_engine *e, plan *p)
{
    int budget = e->prefill_chunk;
    for (const rt_session *s = e->sessions; s && budget > 0; s = s->next) {
        int done, total;
        if (s->finished || s->slot < 0 || !in_prefill(e, s, &done, &total))
            continue;
        const int left = total - done;
        const int count = left < budget ? left : budget;
        add_segment(p, s, KERN_SEG_PREFILL, done, count);
        budget -= count;
    }
}

// Sorts the segments into losa_kind_order; those of equal order stay as they are.
static void order_segments(const rt_engine *e, plan *p)
{
    int placed = 0;
    for (int order = 0; order <= 2; order++)
        for (int i = 0; i < p->count; i++)
            if (losa_kind_order(&e->options.attention, (int)p->segments[i].kind) == order)
                p->segment_ptr[placed++] = &p->segments[i];
}

// ---- after the forward ------------------------------------------------------------------

static rt_session *session_of(const rt_engine *e, uint32_t slot)
{
    for (rt_session *s = e->sessions; s; s = s->next)
        if (s->slot == (int)slot && !s->releasing)
            return s;
    return NULL;
}

static rt_status after_prefill(const rt_engine *e, rt_session *s, const rt_slot *slot)
{
    const int total = rt_slot_prefill_len(slot, e->config.block_length);
    s->prefill_forwards++;
    if (s->request.on_prefill)
        s->request.on_prefill(s->request.ctx, s->id, slot->committed, total);
    if (slot->committed >= total)
        s->prefilled_at = rt_clock_now();
    return RT_OK;
}

// `alone`: the request has no other segment in this forward.
static rt_status after_segment(const rt_engine *e, const Pb__Segment *segment, bool alone)
{
    rt_session *s = session_of(e, segment->slot);
    const rt_slot *slot = &e->slots[segment->slot];
    if (segment->kind == KERN_SEG_PREFILL)
        return after_prefill(e, s, slot);
    if (s->prefilled_at == 0)
        s->prefilled_at = s->admitted_at; // a prompt shorter than a block
    if (segment->kind == KERN_SEG_COMMIT) {
        s->forwards += alone ? 1 : 0;
        return RT_OK;
    }
    s->forwards++;
    s->steps++;
    if (rt_segment_opens(segment))
        s->blocks++;
    return rt_session_progress(e, s, slot);
}

// Delivers and drops the sessions whose slots this step released, or which ended
// before they got one.
static void deliver_finished(rt_engine *e)
{
    const int ranks = comm_ranks(e->group.comm);
    for (rt_session **link = &e->sessions; *link;) {
        rt_session *s = *link;
        if (!s->releasing && !(s->finished && s->slot < 0)) {
            link = &s->next;
            continue;
        }
        Pb__Result *const *results = NULL;
        for (int i = 0; i < e->results_released; i++)
            if (e->results[i * ranks]->session == s->id)
                results = &e->results[i * ranks];
        *link = s->next;
        rt_session_deliver(e, s, results);
        rt_session_free(s);
    }
}

// ---- the public calls ---------------------------------------------------------------------

rt_status rt_engine_submit(rt_engine *e, const rt_request *request, rt_session_id *id)
{
    RT_CHECK_ARG(rt_engine_is_root(e));
    rt_session *s;
    RT_TRY(rt_session_new(e, request, &s));
    s->id = ++e->next_session;
    rt_session **tail = &e->sessions;
    while (*tail)
        tail = &(*tail)->next;
    *tail = s;
    *id = s->id;
    return RT_OK;
}

void rt_engine_cancel(rt_engine *e, rt_session_id id)
{
    for (rt_session *s = e->sessions; s; s = s->next) {
        if (s->id != id || s->finished)
            continue;
        s->finished = true;
        s->finish = RT_FINISH_CANCELLED;
        s->finished_at = rt_clock_now();
    }
}

static rt_status plan_step(rt_engine *e, plan *p)
{
    RT_TRY(plan_open(e, p));
    plan_releases(e, p);
    RT_TRY(plan_admissions(e, p));
    plan_denoising(e, p);
    plan_prefill(e, p);
    order_segments(e, p);
    plan_finish(e, p);
    return RT_OK;
}

// Segments of one request are planned next to each other, the commit first.
static bool shares_forward(const plan *p, int i)
{
    return i + 1 < p->count && p->segments[i + 1].slot == p->segments[i].slot;
}

static rt_status run_step(rt_engine *e, const plan *p)
{
    RT_TRY(rt_step_send(e, &p->step));
    RT_TRY(rt_step_execute(e, &p->step));
    for (int i = 0; i < p->count; i++)
        RT_TRY(after_segment(e, &p->segments[i], !shares_forward(p, i)));
    return RT_OK;
}

rt_status rt_engine_step(rt_engine *e, bool *busy)
{
    RT_CHECK_ARG(rt_engine_is_root(e));
    plan p;
    rt_status status;
    RT_TRY_GOTO(status, plan_step(e, &p), close_plan);
    if (p.admits || p.count || p.releases)
        RT_TRY_GOTO(status, run_step(e, &p), close_plan);
    deliver_finished(e);
    *busy = e->sessions != NULL;
close_plan:
    plan_close(&p);
    return status;
}
