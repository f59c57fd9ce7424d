// SPDX-License-Identifier: Apache-2.0
// Who gets what, and when.
//
// Pages. A request is admitted when a slot and all the pages it can ever need are
// free; it keeps them until it is released. A running request thus never waits for
// memory, so there is nothing to deadlock on. Admission is first come, first served:
// a large request at the head waits for pages and the ones behind it wait too, which is
// why it cannot be passed by for ever. Nobody passes it for a while either: whoever has
// requests to choose from knows the room (rt_engine_room) and submits what fits. A finished
// request is released in the very next command, whatever the others do, and its pages can
// be admitted to in that command.
//
// Sharing. Pages of prompts that begin alike are held by all of these requests, and count
// once (pagebook.h). Pages that nobody holds any more are kept, but free for whoever needs
// them. While a request computes a shared beginning, those that came after it wait for it to
// be written: they hold their slots and pages, and are left out of the forward. A request
// waits for older ones only, so the oldest unread prompt never waits and there is no circle.
// If the writer is cancelled, the oldest of those that wait goes on from the last unit that
// was written whole. Once a request has begun to compute it never waits again: what follows
// in its prompt is shared with younger ones at most, because an older holder of a later unit
// holds the earlier ones too and would be their writer.
// The block of a shifted model's last prompt token is not shared: its forward decides the
// first token of the answer (session.c).
//
// Rows. Every forward takes every running block along: sparse steps first, then blocks
// that open or are committed, then prefill. A long prompt costs the running blocks at
// most `prefill_chunk` rows of a forward, never a turn.
//
// Prefill. The prompts share the chunk: half goes to the oldest one, the rest to those with the
// fewest tokens left, and what they leave to the oldest again. The oldest always moves (of
// those that wait for a shared beginning none is the oldest), so every prompt is read in the
// end; a short prompt behind a long one starts at once; prompts of equal length are read one
// after the other, so that the first answers begin while the others are read.
#include "runtime/engine/command.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/engine/engine_int.h"

#include <stdlib.h>

static rt_status open_parts(size_t n, rt_command *c)
{
    RT_TRY(RT_ALLOC(c->admit, n, "step command"));
    RT_TRY(RT_ALLOC(c->segments, 2 * n, "step command"));
    RT_TRY(RT_ALLOC(c->admit_ptr, n, "step command"));
    RT_TRY(RT_ALLOC(c->segment_ptr, 2 * n, "step command"));
    RT_TRY(RT_ALLOC(c->readers, n, "step command"));
    return RT_ALLOC(c->release, n, "step command");
}

rt_status rt_command_open(int max_sessions, rt_command *out)
{
    *out = (rt_command){0};
    const rt_status status = open_parts((size_t)max_sessions, out);
    if (status != RT_OK)
        rt_command_close(out);
    return status;
}

static void clear(rt_command *c)
{
    for (int i = 0; i < c->admits; i++)
        rt_free(c->admit[i].pages);
    c->admits = c->count = c->releases = 0;
    pb__step__init(&c->step);
}

void rt_command_close(rt_command *c)
{
    clear(c);
    rt_free(c->admit);
    rt_free(c->segments);
    rt_free(c->admit_ptr);
    rt_free(c->segment_ptr);
    rt_free(c->readers);
    rt_free(c->release);
    *c = (rt_command){0};
}

bool rt_command_is_empty(const rt_command *c)
{
    return !c->admits && !c->count && !c->releases;
}

bool rt_command_continues(const rt_command *c, int i)
{
    return i + 1 < c->count && c->segments[i + 1].slot == c->segments[i].slot;
}

static void fill_step(rt_engine *e, rt_command *c)
{
    c->step.sequence = ++e->sequence;
    c->step.n_admit = (size_t)c->admits;
    c->step.admit = c->admit_ptr;
    c->step.n_segments = (size_t)c->count;
    c->step.segments = c->segment_ptr;
    c->step.n_release = (size_t)c->releases;
    c->step.release = c->release;
}

// ---- release and admission ------------------------------------------------------------

static void release_finished(rt_engine *e, rt_command *c)
{
    for (int slot = 0; slot < e->options.max_sessions; slot++) {
        rt_session *s = e->running[slot];
        if (!s || !s->finished)
            continue;
        c->release[c->releases++] = (uint32_t)slot;
        s->releasing = true;
        e->leaving++;
        e->running[slot] = NULL;
        rt_pagebook_give(&e->book, &s->holding);
    }
}

// The lowest free slot from `slot` on, or max_sessions.
static int free_slot(const rt_engine *e, int slot)
{
    while (slot < e->options.max_sessions && e->running[slot])
        slot++;
    return slot;
}

// Whether the admission message of one more request may not fit into the frame.
static bool is_full(const rt_command *c, const rt_session *s)
{
    enum { ENTRIES_MAX = PB_FRAME_MAX / 6 }; // a token id or page number takes 5 bytes at most
    size_t entries = s->prompt.len + (size_t)s->holding.page_count;
    for (int i = 0; i < c->admits; i++)
        entries += c->admit[i].n_prompt + c->admit[i].n_pages;
    return c->admits > 0 && entries > ENTRIES_MAX;
}

// Whether a request gets its pages. One that did not is asked again when some came back.
static bool reserve(rt_engine *e, rt_session *s)
{
    const uint64_t now = e->book.given + 1;
    if (s->refused == now)
        return false;
    s->refused = now;
    s->holding.holder = s->id;
    return rt_pagebook_take(&e->book, s->prompt.data, &s->holding);
}

static rt_status admit(rt_engine *e, rt_command *c, rt_session *s, int slot)
{
    s->slot = slot;
    s->admitted_at = rt_clock_now();
    e->running[slot] = s;
    RT_TRY(rt_session_message(e, s, &c->admit[c->admits]));
    c->admit_ptr[c->admits] = &c->admit[c->admits];
    c->admits++;
    return RT_OK;
}

static rt_status admit_queued(rt_engine *e, rt_command *c)
{
    int slot = free_slot(e, 0);
    for (rt_session *s = e->sessions; s && slot < e->options.max_sessions; s = s->next) {
        if (s->slot >= 0 || s->finished)
            continue;
        if (is_full(c, s) || !reserve(e, s))
            return RT_OK;
        RT_TRY(admit(e, c, s, slot));
        slot = free_slot(e, slot);
    }
    return RT_OK;
}

// ---- running blocks ---------------------------------------------------------------------

static void add_segment(rt_command *c, const rt_session *s, int kind, int first, int count)
{
    Pb__Segment *segment = &c->segments[c->count];
    pb__segment__init(segment);
    segment->slot = (uint32_t)s->slot;
    segment->kind = (uint32_t)kind;
    segment->first = (uint32_t)first;
    segment->count = (uint32_t)count;
    c->count++;
}

static int step_kind(const rt_engine *e, const rt_slot *slot)
{
    const losa_block block = {slot->block_step, slot->steps, slot->unread};
    return losa_step_kind(&e->options.attention, &block);
}

static bool block_is_done(const rt_slot *slot, int block)
{
    for (int i = 0; i < block; i++)
        if (slot->state[slot->block_start + i] & KERN_ROW_MASKED)
            return false;
    return true;
}

// A finished block is committed with the next block's first step: as one segment where both
// read everything, as two where each follows a plan of its own. A shifted model's next block
// begins with a token that the commit decides, so there the commit needs a forward of its own.
static void add_commit(const rt_engine *e, rt_command *c, const rt_session *s, int start)
{
    const int block = e->config.block_length;
    const bool merged = !e->options.separate_commit && !e->config.shifted;
    if (merged && !losa_reading_of(&e->options.attention, KERN_SEG_FIRST).sparse) {
        add_segment(c, s, KERN_SEG_FIRST, start, 2 * block);
        return;
    }
    add_segment(c, s, KERN_SEG_COMMIT, start, block);
    if (merged)
        add_segment(c, s, KERN_SEG_FIRST, start + block, block);
}

// Segments of a running request in the next forward.
static void add_block(const rt_engine *e, rt_command *c, const rt_session *s)
{
    const rt_slot *slot = &e->slots[s->slot];
    const int block = e->config.block_length, start = slot->block_start;
    if (slot->block_step == 0)
        add_segment(c, s, KERN_SEG_OPEN, start, block);
    else if (!block_is_done(slot, block))
        add_segment(c, s, step_kind(e, slot), start, block);
    else if (slot->committed > start)
        add_segment(c, s, KERN_SEG_FIRST, slot->committed, block);
    else
        add_commit(e, c, s, start);
}

// A request that was admitted by this very command has no slot state yet: its first
// forward follows from its prompt alone.
static bool is_fresh(const rt_engine *e, const rt_session *s)
{
    const rt_slot *slot = &e->slots[s->slot];
    return !slot->used || slot->session != s->id;
}

static int prefill_all(const rt_engine *e, const rt_session *s)
{
    const int block = e->config.block_length;
    return (int)s->prompt.len / block * block;
}

// Tokens of the prompt that are in the pages: others may have written them, until the
// request's first forward.
static int prefill_done(const rt_engine *e, rt_session *s)
{
    if (e->options.skip_prefill)
        return prefill_all(e, s);
    const int shared = rt_pagebook_written(&e->book, &s->holding);
    const int own = is_fresh(e, s) ? 0 : e->slots[s->slot].committed;
    return own > shared ? own : shared;
}

static int prefill_left(const rt_engine *e, rt_session *s)
{
    return prefill_all(e, s) - prefill_done(e, s);
}

static void add_blocks(const rt_engine *e, rt_command *c)
{
    for (int slot = 0; slot < e->options.max_sessions; slot++) {
        rt_session *s = e->running[slot];
        if (!s || prefill_left(e, s) > 0)
            continue;
        if (is_fresh(e, s))
            add_segment(c, s, KERN_SEG_OPEN, prefill_all(e, s), e->config.block_length);
        else
            add_block(e, c, s);
    }
}

// ---- prefill ----------------------------------------------------------------------------

static int by_age(const void *a, const void *b)
{
    const rt_reader *ra = a, *rb = b;
    const rt_session_id x = ra->session->id, y = rb->session->id;
    return (x > y) - (x < y);
}

static int by_left(const void *a, const void *b)
{
    const int x = ((const rt_reader *)a)->left, y = ((const rt_reader *)b)->left;
    return x != y ? (x > y) - (x < y) : by_age(a, b);
}

// Gives a reader up to `most` tokens of the budget.
static void give(rt_reader *r, int most, int *budget)
{
    const int left = r->left - r->count;
    int count = most < *budget ? most : *budget;
    count = count < left ? count : left;
    r->count += count;
    *budget -= count;
}

// All counts are whole blocks, because prompts and the budget are. The first is the oldest.
static void share_chunk(const rt_engine *e, rt_reader *readers, size_t n)
{
    const int block = e->config.block_length;
    int budget = e->prefill_chunk;
    give(&readers[0], (budget / block + 1) / 2 * block, &budget);
    qsort(readers + 1, n - 1, sizeof *readers, by_left);
    for (size_t i = 1; i < n; i++)
        give(&readers[i], budget, &budget);
    give(&readers[0], budget, &budget);
}

// Leaves those that compute what they read next themselves, in order of age.
static size_t drop_followers(rt_engine *e, rt_reader *readers, size_t n)
{
    size_t kept = 0;
    qsort(readers, n, sizeof *readers, by_age);
    for (size_t i = 0; i < n; i++)
        if (rt_pagebook_claim(&e->book, &readers[i].session->holding))
            readers[kept++] = readers[i];
    return kept;
}

static void add_prefill(rt_engine *e, rt_command *c)
{
    rt_reader *readers = c->readers;
    size_t n = 0;
    for (int slot = 0; slot < e->options.max_sessions; slot++) {
        rt_session *s = e->running[slot];
        if (s && prefill_left(e, s) > 0)
            readers[n++] = (rt_reader){.session = s, .left = prefill_left(e, s)};
    }
    n = drop_followers(e, readers, n);
    if (n > 0)
        share_chunk(e, readers, n);
    for (size_t i = 0; i < n; i++)
        if (readers[i].count > 0)
            add_segment(c, readers[i].session, KERN_SEG_PREFILL,
                        prefill_done(e, readers[i].session), readers[i].count);
}

// ---- the command --------------------------------------------------------------------------

static void mark_probes(const rt_engine *e, rt_command *c)
{
    for (int i = 0; i < c->count; i++) {
        Pb__Segment *s = &c->segments[i];
        const rt_session *of = e->running[s->slot];
        s->has_probe = true;
        s->probe = rt_segment_denoised(s, e->config.block_length) > 0 &&
                   rt_probe_samples(e, (int)of->prompt.len, of->steps, (int)s->kind);
    }
}

// Sorts the segments into losa_kind_order; those of equal order stay as they are.
static void order_segments(const rt_engine *e, rt_command *c)
{
    int placed = 0;
    for (int order = 0; order <= 2; order++)
        for (int i = 0; i < c->count; i++)
            if (losa_kind_order(&e->options.attention, (int)c->segments[i].kind) == order)
                c->segment_ptr[placed++] = &c->segments[i];
}

rt_status rt_command_make(rt_engine *e, rt_command *c)
{
    clear(c);
    release_finished(e, c);
    RT_TRY(admit_queued(e, c));
    add_blocks(e, c);
    add_prefill(e, c);
    mark_probes(e, c);
    order_segments(e, c);
    fill_step(e, c);
    return RT_OK;
}
