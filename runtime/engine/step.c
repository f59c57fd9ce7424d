// SPDX-License-Identifier: Apache-2.0
// One step command, executed the same way on every rank: release, admit, one
// forward, sampling, and the slots' new state. A failure leaves the engine unusable:
// the caller ends the job.
#include "runtime/engine/engine_int.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <string.h>

// ---- transport --------------------------------------------------------------------

rt_status rt_step_send(rt_engine *e, const Pb__Step *step)
{
    if (comm_ranks(e->group.comm) == 1)
        return RT_OK;
    rt_str frame = {0};
    rt_status status;
    RT_TRY_GOTO(status, pb_step_pack(step, &frame), free_frame);
    RT_TRY_GOTO(status, comm_ctl_bcast_bytes(e->group.comm, 0, &frame, PB_FRAME_MAX), free_frame);
free_frame:
    rt_str_free(&frame);
    return status;
}

rt_status rt_step_receive(rt_engine *e, Pb__Step **out)
{
    rt_str frame = {0};
    rt_status status;
    RT_TRY_GOTO(status, comm_ctl_bcast_bytes(e->group.comm, 0, &frame, PB_FRAME_MAX), free_frame);
    RT_TRY_GOTO(status, pb_step_unpack(frame.data, frame.len, out), free_frame);
free_frame:
    rt_str_free(&frame);
    return status;
}

// ---- release ------------------------------------------------------------------------

static void fill_result(const rt_engine *e, const rt_slot *slot, Pb__Result *r)
{
    pb__result__init(r);
    r->session = slot->session;
    r->rank = (uint32_t)comm_rank(e->group.comm);
    r->ids_hash = rt_slot_hash(slot);
    r->read_later = slot->reading.read_later;
    r->prefix_later = slot->reading.prefix_later;
    r->read_steps = slot->reading.read_steps;
    r->prefix_steps = slot->reading.prefix_steps;
    r->read_total = slot->reading.read_total;
    r->prefix_total = slot->reading.prefix_total;
    r->active_later = slot->reading.active_later;
    r->rows_later = slot->reading.rows_later;
    r->scanned = slot->reading.scanned;
    r->union_pages = slot->reading.union_pages;
    r->budget_pages = slot->reading.budget_pages;
    r->exchange_bytes = slot->reading.exchange_bytes;
}

void rt_step_drop_results(rt_engine *e)
{
    const int count = e->results_released * comm_ranks(e->group.comm);
    for (int i = 0; i < count; i++) {
        pb_result_free(e->results[i]);
        e->results[i] = NULL;
    }
    e->results_released = 0;
}

static rt_status unpack_results(rt_engine *e, const rt_slot *slot, const char *frames)
{
    const int ranks = comm_ranks(e->group.comm);
    Pb__Result **out = e->results + (ptrdiff_t)e->results_released++ * ranks;
    for (int r = 0; r < ranks; r++) {
        const char *frame = frames + (ptrdiff_t)r * PB_RESULT_FRAME_MAX;
        size_t len = 0;
        RT_TRY(pb_frame_size(frame, PB_RESULT_FRAME_MAX, &len));
        RT_TRY(pb_result_unpack(frame, len, &out[r]));
        if (out[r]->session != slot->session || out[r]->rank != (uint32_t)r)
            return RT_FAIL(RT_ERR_INTERNAL,
                           "session %u: rank %d sent rank %u's result of session %u", slot->session,
                           r, out[r]->rank, out[r]->session);
        if (out[r]->ids_hash != out[0]->ids_hash)
            return RT_FAIL(RT_ERR_INTERNAL, "session %u: rank %d holds other tokens than rank 0",
                           slot->session, r);
    }
    return RT_OK;
}

// Every rank's result of one slot, unpacked into e->results.
static rt_status gather_results(rt_engine *e, const rt_slot *slot)
{
    const size_t ranks = (size_t)comm_ranks(e->group.comm);
    Pb__Result mine;
    fill_result(e, slot, &mine);
    rt_str frame = {0};
    char *all = NULL, padded[PB_RESULT_FRAME_MAX] = {0};
    rt_status status;
    RT_TRY_GOTO(status, pb_result_pack(&mine, &frame), free_frames);
    memcpy(padded, frame.data, frame.len);
    RT_TRY_GOTO(status, RT_ALLOC(all, ranks * sizeof padded, "results"), free_frames);
    RT_TRY_GOTO(status, comm_ctl_allgather(e->group.comm, padded, sizeof padded, all), free_frames);
    RT_TRY_GOTO(status, unpack_results(e, slot, all), free_frames);
free_frames:
    rt_free(all);
    rt_str_free(&frame);
    return status;
}

static rt_status release_slots(rt_engine *e, const Pb__Step *step)
{
    rt_step_drop_results(e);
    for (size_t i = 0; i < step->n_release; i++) {
        const uint32_t index = step->release[i];
        if (index >= (uint32_t)e->options.max_sessions || !e->slots[index].used)
            return RT_FAIL(RT_ERR_INTERNAL, "step %llu releases slot %u, which is not in use",
                           (unsigned long long)step->sequence, index);
        RT_TRY(gather_results(e, &e->slots[index]));
        rt_slot_release(&e->slots[index]);
    }
    return RT_OK;
}

static rt_status admit_slots(rt_engine *e, const Pb__Step *step)
{
    const rt_slot_shape shape = {e->config.block_length, e->options.attention.page,
                                 e->config.mask_id};
    for (size_t i = 0; i < step->n_admit; i++) {
        const Pb__Request *r = step->admit[i];
        if (r->slot >= (uint32_t)e->options.max_sessions)
            return RT_FAIL(RT_ERR_INTERNAL, "step %llu admits to slot %u of %d",
                           (unsigned long long)step->sequence, r->slot, e->options.max_sessions);
        for (size_t j = 0; j < r->n_pages; j++)
            if (r->pages[j] >= (uint32_t)e->kv.pages)
                return RT_FAIL(RT_ERR_INTERNAL, "session %u: page %u of %d", r->session,
                               r->pages[j], e->kv.pages);
        rt_slot *slot = &e->slots[r->slot];
        RT_TRY(rt_slot_admit(slot, r, &shape));
        if (e->options.skip_prefill)
            slot->committed = slot->block_start;
    }
    return RT_OK;
}

// ---- forward --------------------------------------------------------------------------

// A FIRST segment may hold the finished block before its own, and the last chunk of a prompt
// whose logits are wanted may end anywhere.
static bool is_sized(const Pb__Segment *s, uint32_t block)
{
    if (s->kind == KERN_SEG_PREFILL)
        return s->count > 0;
    return s->count == block || (s->kind == KERN_SEG_FIRST && s->count == 2 * block);
}

// A segment starts where the committed tokens end, or after the block that this step commits.
// The first of all may start where the tokens end that others wrote.
static bool follows(const rt_engine *e, const rt_slot *slot, const Pb__Segment *s)
{
    const uint32_t block = (uint32_t)e->config.block_length, committed = (uint32_t)slot->committed;
    const uint32_t shared = committed == 0 ? (uint32_t)slot->shared : 0;
    return s->first == committed || (s->kind == KERN_SEG_FIRST && s->first == committed + block) ||
           (s->first <= shared && s->first % (uint32_t)e->kv.page == 0);
}

// A slot has one segment in a step, or commits a block beside the first step of the next.
static bool is_alone(const rt_slot *slot, const Pb__Segment *s)
{
    const unsigned beside = s->kind == KERN_SEG_COMMIT  ? 1u << KERN_SEG_FIRST
                            : s->kind == KERN_SEG_FIRST ? 1u << KERN_SEG_COMMIT
                                                        : 0;
    return (slot->kinds & ~beside) == 0;
}

// Checks a segment against its slot, and notes it there.
static rt_status check_segment(rt_engine *e, const Pb__Segment *s)
{
    const int block = e->config.block_length;
    if (s->slot >= (uint32_t)e->options.max_sessions || !e->slots[s->slot].used)
        return RT_FAIL(RT_ERR_INTERNAL, "segment of slot %u, which is not in use", s->slot);
    rt_slot *slot = &e->slots[s->slot];
    if (!is_sized(s, (uint32_t)block))
        return RT_FAIL(RT_ERR_INTERNAL,
                       "segment of slot %u: kind %u with %u tokens, in blocks of %d", s->slot,
                       s->kind, s->count, block);
    if (s->first % (uint32_t)block != 0 || !follows(e, slot, s))
        return RT_FAIL(RT_ERR_INTERNAL, "segment of slot %u: starts at %u, where %d are committed",
                       s->slot, s->first, slot->committed);
    if (s->first + s->count > (uint32_t)slot->capacity)
        return RT_FAIL(RT_ERR_INTERNAL, "segment of slot %u: %u tokens at %u, there are %d",
                       s->slot, s->count, s->first, slot->capacity);
    if (!is_alone(slot, s))
        return RT_FAIL(RT_ERR_INTERNAL,
                       "segment of slot %u: kind %u, which it cannot have with others", s->slot,
                       s->kind);
    if (s->probe && rt_segment_denoised(s, block) == 0)
        return RT_FAIL(RT_ERR_INTERNAL,
                       "segment of slot %u: a probe of kind %u, which has no block", s->slot,
                       s->kind);
    slot->kinds |= 1u << s->kind;
    return RT_OK;
}

// Numbers of segments that scan, and that follow a page plan; they lead.
static rt_status count_sparse(rt_engine *e, const Pb__Step *step, rt_batch_args *args)
{
    int last = 0;
    for (size_t i = 0; i < step->n_segments; i++) {
        const Pb__Segment *s = step->segments[i];
        RT_TRY(check_segment(e, s));
        const int order = losa_kind_order(&e->options.attention, (int)s->kind);
        if (order < last)
            return RT_FAIL(RT_ERR_INTERNAL, "step %llu: segment %zu is out of order",
                           (unsigned long long)step->sequence, i);
        last = order;
        args->scan += order == 0;
        args->sparse += order < 2;
    }
    return RT_OK;
}

static uint64_t exchanged(const rt_engine *e)
{
    return comm_count(e->group.comm, COMM_MASK).bytes +
           comm_count(e->group.comm, COMM_SCORES).bytes;
}

static void add_reading(rt_reading *r, const int64_t *count, const Pb__Segment *s, int rows)
{
    r->read_total += (uint64_t)count[KERN_COUNT_READ];
    r->prefix_total += (uint64_t)count[KERN_COUNT_PREFIX];
    r->scanned += (uint64_t)count[KERN_COUNT_SCANNED];
    r->union_pages += (uint64_t)count[KERN_COUNT_UNION];
    r->budget_pages += (uint64_t)count[KERN_COUNT_BUDGET];
    if (s->kind != KERN_SEG_COMMIT) {
        r->read_steps += (uint64_t)count[KERN_COUNT_READ];
        r->prefix_steps += (uint64_t)count[KERN_COUNT_PREFIX];
    }
    if (!rt_segment_later(s))
        return;
    r->read_later += (uint64_t)count[KERN_COUNT_READ];
    r->prefix_later += (uint64_t)count[KERN_COUNT_PREFIX];
    r->active_later += (uint64_t)count[KERN_COUNT_ACTIVE];
    r->rows_later += (uint64_t)rows;
}

// Whether a segment takes part in choosing pages, now or for later steps.
static bool exchanges(const rt_batch_args *args, int i)
{
    return i < args->sparse ||
           losa_reading_of(args->attention, (int)args->segments[i]->kind).measures;
}

// Books what the forward read; prefill is not part of a request's reading.
static void account(rt_engine *e, const rt_batch_args *args, uint64_t bytes)
{
    const int64_t *counts = kern_buf_ptr(e->counts);
    int sharers = 0;
    for (int i = 0; i < args->count; i++)
        sharers += exchanges(args, i);
    for (int i = 0; i < args->count; i++) {
        const Pb__Segment *s = args->segments[i];
        rt_reading *r = &e->slots[s->slot].reading;
        if (s->kind != KERN_SEG_PREFILL)
            add_reading(r, counts + (ptrdiff_t)i * KERN_COUNT_N, s,
                        (int)s->count * e->config.layers);
        if (exchanges(args, i))
            r->exchange_bytes += bytes / (uint64_t)sharers;
    }
}

// The tokens before the denoised rows of a segment are now in the pages.
static void advance(rt_engine *e, const rt_batch_args *args)
{
    for (int i = 0; i < args->count; i++) {
        const Pb__Segment *s = args->segments[i];
        rt_slot *slot = &e->slots[s->slot];
        const int end = (int)(s->first + s->count);
        slot->committed = end - rt_segment_denoised(s, args->block);
        slot->kinds = 0;
    }
}

// A FIRST segment opens the block at its end.
static void open_blocks(rt_engine *e, const rt_batch_args *args)
{
    for (int i = 0; i < args->count; i++) {
        const Pb__Segment *s = args->segments[i];
        if (!rt_segment_opens(s))
            continue;
        rt_slot *slot = &e->slots[s->slot];
        slot->block_start = (int)(s->first + s->count) - args->block;
        slot->block_step = 0;
    }
}

// The calls of a forward and its sampling, up to what the host will read. Nothing here
// waits for the device, and nothing but the shape of the batch decides what is called.
static rt_status enqueue(void *ctx)
{
    rt_engine *e = ctx;
    const size_t segs = (size_t)e->batch.kern.segs;
    RT_TRY(losa_begin(e->attention, (int)segs));
    RT_TRY(rt_model_forward(e->model, &e->batch.kern, e->attention, e->kv.kv));
    RT_TRY(rt_denoise_enqueue(e->denoise, e->model, &e->batch));
    return kern_copy(e->counts, 0, losa_counts(e->attention), 0, segs * KERN_COUNT_N);
}

// Prompts come in all lengths, and their forwards are long: they are not recorded.
static bool is_recorded(const rt_engine *e, const rt_batch_args *args)
{
    if (!e->graphs)
        return false;
    for (int i = 0; i < args->count; i++)
        if (args->segments[i]->kind == KERN_SEG_PREFILL)
            return false;
    return true;
}

static rt_status run_batch(rt_engine *e, const rt_batch_args *args)
{
    const kern_batch *batch = &e->batch.kern;
    const rt_forward_shape shape = {
        .rows = batch->rows,
        .segs = batch->segs,
        .scan_segs = batch->scan_segs,
        .sparse_segs = batch->sparse_segs,
        .mass_segs = batch->mass_segs,
        .write_rows = batch->write_rows,
        .max_pages = batch->max_pages,
        .head = rt_denoise_prepared(e->denoise),
    };
    if (is_recorded(e, args))
        return rt_graphs_run(e->graphs, &shape, enqueue, e);
    return enqueue(e);
}

static rt_status run_forward(rt_engine *e, const Pb__Step *step)
{
    rt_batch_args args = {
        .segments = (const Pb__Segment *const *)step->segments,
        .count = (int)step->n_segments,
        .slots = e->slots,
        .block = e->config.block_length,
        .page = e->options.attention.page,
        .use_cache = losa_uses_cache(&e->options.attention),
        .recorded = kern_can_record(e->dev),
        .attention = &e->options.attention,
    };
    RT_TRY(count_sparse(e, step, &args));
    const uint64_t before = exchanged(e);
    open_blocks(e, &args);
    RT_TRY(rt_batch_build(&e->batch, &args));
    RT_TRY(rt_denoise_prepare(e->denoise, &e->batch, &args));
    if (e->trace)
        rt_trace_forward(e->trace, step->sequence, &args);
    const double begun = rt_clock_now();
    RT_TRY(run_batch(e, &args));
    RT_TRY(comm_settle(e->group.comm, e->dev));
    e->forward_seconds += rt_clock_now() - begun;
    const uint64_t bytes = exchanged(e) - before;
    if (e->probe)
        RT_TRY(rt_probe_run(e, &args));
    rt_denoise_take(e->denoise, &e->batch, &args, e->slots);
    account(e, &args, bytes);
    advance(e, &args);
    return step->logits ? rt_logits_gather(e, e->batch.kern.rows) : RT_OK;
}

rt_status rt_step_execute(rt_engine *e, const Pb__Step *step)
{
    RT_TRY(release_slots(e, step));
    RT_TRY(admit_slots(e, step));
    return step->n_segments ? run_forward(e, step) : RT_OK;
}
