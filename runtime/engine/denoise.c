// SPDX-License-Identifier: Apache-2.0
// Head rows are laid out segment by segment: the block's positions in order, one
// row each; for a shifted model a committed segment adds one row, which predicts
// the first token of the next block. Every such block has one before it: what a request
// shares of its prompt leaves out the last token's block.
#include "runtime/engine/denoise.h"

#include "runtime/base/mem.h"
#include "runtime/engine/engine.h"

#include <string.h>

struct rt_denoise {
    par_group group;
    rt_denoise_shape shape;
    int ranks;
    int32_t *orders_host;             // host copy of `orders`; the next three are its parts
    kern_sample_row *sample_host;     // [max_rows]
    kern_unmask_window *windows_host; // [max_segs]
    int32_t *index_host;              // [max_rows]
    rt_denoise_work work;             // of this step
    kern_buf *orders;                 // what to sample; the next three are views of it
    kern_buf *sample, *windows, *index;
    kern_buf *norm, *norms, *pick, *picks;
    kern_buf *filter, *hist;
    kern_buf *token, *confidence, *entropy;
    kern_buf *outcome; // shared copy of `token`, of a shifted model
};

_Static_assert(sizeof(kern_sample_row) == KERN_SAMPLE_WORDS * sizeof(int32_t), "sample row");
_Static_assert(sizeof(kern_unmask_window) == KERN_UNMASK_WORDS * sizeof(int32_t), "window");

// One buffer, filled by one copy a step.
static rt_status open_orders(rt_denoise *d)
{
    const size_t sample = (size_t)d->shape.max_rows * KERN_SAMPLE_WORDS;
    const size_t windows = (size_t)d->shape.max_segs * KERN_UNMASK_WORDS;
    const size_t rows = (size_t)d->shape.max_rows, all = sample + windows + rows;
    RT_TRY(RT_ALLOC(d->orders_host, all, "sampling"));
    d->sample_host = (kern_sample_row *)d->orders_host;
    d->windows_host = (kern_unmask_window *)(d->orders_host + sample);
    d->index_host = d->orders_host + sample + windows;
    RT_TRY(kern_buf_new(d->group.dev, KERN_I32, all, "sampling", &d->orders));
    RT_TRY(kern_buf_view(d->orders, 0, sample, &d->sample));
    RT_TRY(kern_buf_view(d->orders, sample, windows, &d->windows));
    return kern_buf_view(d->orders, sample + windows, rows, &d->index);
}

static rt_status open_buffers(rt_denoise *d)
{
    enum { FILTER_WORDS = 4, BINS = 256 };
    const size_t rows = (size_t)d->shape.max_rows;
    const size_t gathered = rows * (size_t)d->ranks;
    kern_use_for(d->group.dev, KERN_USE_BATCH);
    const struct {
        kern_buf **buf;
        kern_dtype dtype;
        size_t count;
    } table[] = {
        {&d->norm, KERN_F32, rows * KERN_NORM_WORDS},
        {&d->norms, KERN_F32, gathered * KERN_NORM_WORDS},
        {&d->pick, KERN_F32, rows * KERN_PICK_WORDS},
        {&d->picks, KERN_F32, gathered * KERN_PICK_WORDS},
        {&d->filter, KERN_I32, rows * FILTER_WORDS},
        {&d->hist, KERN_F32, rows * BINS},
        {&d->token, KERN_I32, rows},
        {&d->confidence, KERN_F32, rows},
        {&d->entropy, KERN_F32, rows},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        RT_TRY(
            kern_buf_new(d->group.dev, table[i].dtype, table[i].count, "sampling", table[i].buf));
    if (d->shape.shifted)
        RT_TRY(kern_buf_new_shared(d->group.dev, KERN_I32, rows, "tokens of a step", &d->outcome));
    return open_orders(d);
}

rt_status rt_denoise_open(const par_group *group, const rt_denoise_shape *shape, rt_denoise **out)
{
    rt_denoise *d;
    RT_TRY(RT_ALLOC(d, 1, "sampling"));
    d->group = *group;
    d->shape = *shape;
    d->ranks = comm_ranks(group->comm);
    const rt_status status = open_buffers(d);
    if (status != RT_OK) {
        rt_denoise_close(d);
        return status;
    }
    *out = d;
    return RT_OK;
}

void rt_denoise_close(rt_denoise *d)
{
    if (!d)
        return;
    kern_buf *const owned[] = {d->index, d->sample,     d->windows, d->orders, d->norm,
                               d->norms, d->pick,       d->picks,   d->filter, d->hist,
                               d->token, d->confidence, d->entropy, d->outcome};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        kern_buf_free(owned[i]);
    rt_free(d->orders_host);
    rt_free(d);
}

// ---- what is to be sampled -----------------------------------------------------

static void add_head_row(rt_denoise *d, const rt_slot *slot, int row, int position)
{
    const bool greedy = slot->temperature == 0.0 || slot->top_k == 1;
    d->index_host[d->work.rows] = row;
    d->sample_host[d->work.rows] = (kern_sample_row){
        .inv_temperature = slot->temperature == 0.0 ? 1.0f : (float)(1.0 / slot->temperature),
        .greedy = greedy,
        .top_k = greedy ? 0 : slot->top_k,
        .top_p = greedy ? 1.0f : (float)slot->top_p,
        .seed_lo = (uint32_t)slot->seed,
        .seed_hi = (uint32_t)(slot->seed >> 32),
        .position = (uint32_t)position,
        .step = (uint32_t)slot->steps_done,
    };
    d->work.filtered |= !greedy && (slot->top_k > 0 || slot->top_p < 1.0);
    d->work.rows++;
}

// Tokens a step must take at least: block / steps, the first block % steps steps
// one more; past the last step as many as the smallest.
static int step_quota(const rt_slot *slot, int block)
{
    const int more = slot->block_step < block % slot->steps ? 1 : 0;
    const int quota = block / slot->steps + more;
    return quota > 0 ? quota : 1;
}

static int unmask_rule(int strategy)
{
    switch ((rt_strategy)strategy) {
    case RT_STRATEGY_SEQUENTIAL:
        return KERN_UNMASK_SEQUENTIAL;
    case RT_STRATEGY_STATIC:
        return KERN_UNMASK_STATIC;
    case RT_STRATEGY_DYNAMIC:
        return KERN_UNMASK_DYNAMIC;
    case RT_STRATEGY_ENTROPY:
        return KERN_UNMASK_ENTROPY;
    }
    return KERN_UNMASK_SEQUENTIAL;
}

static void add_block(rt_denoise *d, const rt_slot *slot, int row0, int first)
{
    const int block = d->shape.block;
    d->windows_host[d->work.windows++] = (kern_unmask_window){
        .first = row0,
        .row0 = d->work.rows,
        .count = block,
        .rule = unmask_rule(slot->strategy),
        .quota = step_quota(slot, block),
        .sub_block = slot->sub_block,
        .threshold = (float)slot->threshold,
    };
    for (int j = 0; j < block; j++) {
        const int source = d->shape.shifted && j > 0 ? j - 1 : j;
        add_head_row(d, slot, row0 + source, first + j);
    }
}

// Whether a shifted model's committed segment decides the token after it.
static bool predicts_next(const rt_denoise *d, const Pb__Segment *s, const rt_slot *slot)
{
    const int next = (int)(s->first + s->count);
    return d->shape.shifted && rt_segment_denoised(s, d->shape.block) == 0 &&
           next < slot->capacity && (slot->state[next] & KERN_ROW_MASKED);
}

static rt_status collect_rows(rt_denoise *d, const rt_batch *batch, const rt_batch_args *args)
{
    d->work = (rt_denoise_work){0};
    for (int i = 0; i < args->count; i++) {
        const Pb__Segment *s = args->segments[i];
        const rt_slot *slot = &args->slots[s->slot];
        const int end_row = batch->host[RT_BATCH_SEG_ROW0][i + 1];
        const int end = (int)(s->first + s->count);
        const int denoised = rt_segment_denoised(s, d->shape.block);
        const bool predicts = predicts_next(d, s, slot);
        if (d->work.rows + (predicts ? 1 : denoised) > d->shape.max_rows)
            return RT_FAIL(RT_ERR_INTERNAL, "step: more than %d rows of the head",
                           d->shape.max_rows);
        if (denoised)
            add_block(d, slot, end_row - denoised, end - denoised);
        else if (predicts)
            add_head_row(d, slot, end_row - 1, end);
    }
    return RT_OK;
}

rt_status rt_denoise_prepare(rt_denoise *d, const rt_batch *batch, const rt_batch_args *args)
{
    RT_TRY(collect_rows(d, batch, args));
    return d->work.rows ? kern_write(d->orders, 0, d->orders_host, kern_buf_count(d->orders))
                        : RT_OK;
}

rt_denoise_work rt_denoise_prepared(const rt_denoise *d)
{
    return d->work;
}

// ---- sampling over the ranks -----------------------------------------------------

static rt_status exchange_norms(rt_denoise *d, const kern_buf *logits)
{
    kern_dev *dev = d->group.dev;
    const kern_vocab_norm_args norm = {.logits = logits,
                                       .sample = d->sample,
                                       .norm = d->norm,
                                       .rows = d->work.rows,
                                       .shard = d->shape.vocab.count};
    RT_TRY(kern_vocab_norm(dev, &norm));
    if (d->ranks == 1)
        return RT_OK;
    RT_TRY(comm_allgather(d->group.comm, COMM_VOCAB, d->norm,
                          (size_t)d->work.rows * KERN_NORM_WORDS, d->norms));
    const kern_vocab_norm_merge_args merge = {
        .norms = d->norms, .norm = d->norm, .ranks = d->ranks, .rows = d->work.rows};
    return kern_vocab_norm_merge(dev, &merge);
}

static rt_status find_thresholds(rt_denoise *d, const kern_buf *logits)
{
    enum { ROUNDS = 4, BINS = 256 };
    kern_vocab_filter_args args = {
        .logits = logits,
        .sample = d->sample,
        .norm = d->norm,
        .state = d->filter,
        .hist = d->hist,
        .rows = d->work.rows,
        .shard = d->shape.vocab.count,
        .first_id = d->shape.vocab.first,
        .mask_id = d->shape.mask_id,
    };
    const kern_filter filters[] = {KERN_FILTER_TOP_K, KERN_FILTER_TOP_P};
    for (int f = 0; f < 2; f++) {
        args.filter = filters[f];
        for (args.round = 0; args.round < ROUNDS; args.round++) {
            RT_TRY(kern_vocab_hist(d->group.dev, &args));
            RT_TRY(comm_allreduce(d->group.comm, COMM_VOCAB, d->hist, (size_t)d->work.rows * BINS,
                                  COMM_SUM));
            RT_TRY(kern_vocab_narrow(d->group.dev, &args));
        }
    }
    return RT_OK;
}

static rt_status exchange_picks(rt_denoise *d, const kern_buf *logits)
{
    kern_dev *dev = d->group.dev;
    const kern_vocab_pick_args pick = {
        .logits = logits,
        .sample = d->sample,
        .state = d->work.filtered ? d->filter : NULL,
        .pick = d->pick,
        .rows = d->work.rows,
        .shard = d->shape.vocab.count,
        .first_id = d->shape.vocab.first,
        .mask_id = d->shape.mask_id,
    };
    RT_TRY(kern_vocab_pick(dev, &pick));
    RT_TRY(comm_allgather(d->group.comm, COMM_VOCAB, d->pick,
                          (size_t)d->work.rows * KERN_PICK_WORDS, d->picks));
    const kern_vocab_choose_args choose = {
        .picks = d->picks,
        .norm = d->norm,
        .token = d->token,
        .confidence = d->confidence,
        .entropy = d->entropy,
        .ranks = d->ranks,
        .rows = d->work.rows,
    };
    return kern_vocab_choose(dev, &choose);
}

static rt_status unmask(rt_denoise *d, rt_batch *batch)
{
    const kern_unmask_args args = {
        .windows = d->windows,
        .token = d->token,
        .confidence = d->confidence,
        .entropy = d->entropy,
        .ids = batch->device[RT_BATCH_IDS],
        .state = batch->device[RT_BATCH_ROW_STATE],
        .n = d->work.windows,
    };
    return kern_unmask(d->group.dev, &args);
}

rt_status rt_denoise_enqueue(rt_denoise *d, rt_model *model, rt_batch *batch)
{
    if (d->work.rows == 0)
        return RT_OK;
    const kern_buf *logits;
    RT_TRY(rt_model_head(model, d->index, d->work.rows, &logits));
    RT_TRY(exchange_norms(d, logits));
    if (d->work.filtered)
        RT_TRY(find_thresholds(d, logits));
    RT_TRY(exchange_picks(d, logits));
    RT_TRY(unmask(d, batch));
    if (d->outcome)
        RT_TRY(kern_copy(d->outcome, 0, d->token, 0, (size_t)d->work.rows));
    return rt_batch_return(batch);
}

// ---- back into the slots ---------------------------------------------------------

static void take_block(const rt_batch *batch, int row0, int first, int block, rt_slot *slot)
{
    const size_t bytes = (size_t)block * sizeof(int32_t);
    memcpy(slot->ids + first, rt_batch_outcome(batch, RT_BATCH_IDS) + row0, bytes);
    memcpy(slot->state + first, rt_batch_outcome(batch, RT_BATCH_ROW_STATE) + row0, bytes);
    for (int i = first; i < first + block; i++)
        slot->unread += (slot->state[i] & KERN_ROW_NEW) != 0;
    slot->block_step++;
    slot->steps_done++;
}

void rt_denoise_take(const rt_denoise *d, const rt_batch *batch, const rt_batch_args *args,
                     rt_slot *slots)
{
    int head_row = 0;
    for (int i = 0; i < args->count; i++) {
        const Pb__Segment *s = args->segments[i];
        rt_slot *slot = &slots[s->slot];
        const int end = (int)(s->first + s->count);
        const int denoised = rt_segment_denoised(s, d->shape.block);
        if (denoised) {
            const int row0 = batch->host[RT_BATCH_SEG_ROW0][i + 1] - denoised;
            slot->unread = s->kind == KERN_SEG_REST ? slot->unread : 0;
            take_block(batch, row0, end - denoised, denoised, slot);
            head_row += denoised;
        } else if (predicts_next(d, s, slot)) {
            slot->ids[end] = ((const int32_t *)kern_buf_ptr(d->outcome))[head_row++];
            slot->state[end] = KERN_ROW_NEW;
        }
    }
}
