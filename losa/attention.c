// SPDX-License-Identifier: Apache-2.0
// One layer of LoSA attention, as a fixed sequence of kernels and collectives.
#include "losa/losa_int.h"

#include <math.h>

rt_status losa_begin(losa_state *s, int segs)
{
    RT_CHECK_ARG(segs >= 0 && segs <= s->limits.segs);
    s->forward++;
    s->planned_segs = -1;
    return kern_fill_zero(s->counts, (size_t)segs * KERN_COUNT_N);
}

const kern_buf *losa_counts(const losa_state *s)
{
    return s->counts;
}

// How much the tokens changed since the last step, over all heads of all ranks.
static rt_status measure_locality(losa_state *s, const losa_layer_args *args,
                                  const kern_batch *batch)
{
    const bool query = s->config.locality == LOSA_LOCALITY_QUERY;
    const int qkv_cols = (s->heads + 2 * s->kv_heads) * s->limits.head_dim;
    const int ranks = query ? comm_ranks(s->group.comm) : 1;
    const kern_locality_args locality = {
        .x = query ? args->qkv : args->x,
        .prev = s->layers[args->layer].prev,
        .delta = s->delta,
        .batch = batch,
        .cols = s->prev_cols,
        .stride = query ? qkv_cols : s->limits.hidden,
        .scale = 1.0f / (float)ranks,
    };
    RT_TRY(kern_locality(s->group.dev, &locality));
    RT_TRY(losa_mark(s, LOSA_STAGE_LOCALITY));
    if (ranks == 1 || batch->sparse_rows == 0)
        return RT_OK;
    RT_TRY(
        comm_allreduce(s->group.comm, COMM_MASK, s->delta, (size_t)batch->sparse_rows, COMM_SUM));
    return losa_mark(s, LOSA_STAGE_EXCHANGE);
}

// Scores of the pages by the metadata, summed over the ranks.
static rt_status scan_pages(losa_state *s, const kern_page_score_args *score)
{
    RT_TRY(kern_page_score(s->group.dev, score));
    RT_TRY(losa_mark(s, LOSA_STAGE_SCORE));
    const kern_batch *batch = score->batch;
    const size_t count = (size_t)batch->scan_segs * (size_t)s->score_lists *
                         (size_t)s->plan.act_cap * (size_t)batch->max_pages;
    RT_TRY(comm_allreduce(s->group.comm, COMM_SCORES, s->score, count, COMM_SUM));
    return losa_mark(s, LOSA_STAGE_EXCHANGE);
}

// The pages that the active rows read, the same on all ranks in scope `shared`.
static rt_status choose_pages(losa_state *s, const losa_layer_args *args, const kern_batch *batch)
{
    kern_page_plan_args plan = {
        .score = {.q = args->qkv,
                  .stride = (s->heads + 2 * s->kv_heads) * s->limits.head_dim,
                  .kv = args->kv,
                  .batch = batch,
                  .plan = &s->plan,
                  .heads = s->heads,
                  .scale = 1.0f / sqrtf((float)s->limits.head_dim),
                  .score_lists = s->score_lists,
                  .list0 = s->list0,
                  .score = s->score},
        .select = {.score = s->score,
                   .batch = batch,
                   .score_lists = s->score_lists,
                   .list0 = s->list0,
                   .kept = s->measures ? &s->layers[args->layer].kept : NULL,
                   .plan = &s->plan,
                   .counts = s->counts},
    };
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        plan.select.choice[kind] = s->reading[kind].choice;
    if (!s->exchange_scores || batch->scan_segs == 0) {
        RT_TRY(kern_page_plan(s->group.dev, &plan));
        return losa_mark(s, LOSA_STAGE_SELECT);
    }
    RT_TRY(scan_pages(s, &plan.score));
    RT_TRY(kern_page_select(s->group.dev, &plan.select));
    return losa_mark(s, LOSA_STAGE_SELECT);
}

// How much attention fell on every page.
static rt_status measure_mass(losa_state *s, const kern_batch *batch)
{
    const kern_page_mass_args mass = {
        .page_lse = s->page_lse,
        .lse = s->lse,
        .batch = batch,
        .plan = &s->plan,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .score_lists = s->score_lists,
        .list0 = s->list0,
        .mass = s->mass,
    };
    return kern_page_mass(s->group.dev, &mass);
}

static rt_status sum_scores(losa_state *s, kern_buf *scores, const kern_batch *batch, int width)
{
    if (!s->exchange_scores)
        return RT_OK;
    const size_t lists = (size_t)batch->mass_segs * (size_t)s->score_lists;
    RT_TRY(comm_allreduce(s->group.comm, COMM_SCORES, scores,
                          lists * (size_t)batch->max_pages * (size_t)width, COMM_SUM));
    return losa_mark(s, LOSA_STAGE_EXCHANGE);
}

// How near the keys of every page come to the block's mean query. Scores of keys are summed
// over the ranks before their peaks are taken.
static rt_status measure_keys(losa_state *s, const losa_layer_args *args, const kern_batch *batch)
{
    const kern_key_score_args score = {
        .q = args->qkv,
        .stride = (s->heads + 2 * s->kv_heads) * s->limits.head_dim,
        .kv = args->kv,
        .batch = batch,
        .heads = s->heads,
        .score_lists = s->score_lists,
        .list0 = s->list0,
        .score = s->keys,
    };
    RT_TRY(kern_key_score(s->group.dev, &score));
    RT_TRY(sum_scores(s, s->keys, batch, batch->page));
    const kern_key_peaks_args peaks = {
        .score = s->keys, .batch = batch, .lists = s->score_lists, .mass = s->mass};
    return kern_key_peaks(s->group.dev, &peaks);
}

// Keeps the pages that matter most to this step of a block for its later steps.
static rt_status keep_pages(losa_state *s, const losa_layer_args *args, const kern_batch *batch)
{
    RT_TRY(s->by_keys ? measure_keys(s, args, batch) : measure_mass(s, batch));
    RT_TRY(losa_mark(s, LOSA_STAGE_MASS));
    if (!s->by_keys)
        RT_TRY(sum_scores(s, s->mass, batch, 1));
    const kern_mass_select_args select = {
        .mass = s->mass,
        .batch = batch,
        .score_lists = s->score_lists,
        .list0 = s->list0,
        .top = losa_pages_of(&s->config, s->config.budget),
        .share = (float)s->config.keep,
        .kept = &s->layers[args->layer].kept,
    };
    RT_TRY(kern_mass_select(s->group.dev, &select));
    return losa_mark(s, LOSA_STAGE_MASS);
}

// Collectives are enqueued: only comm waits for them with a deadline.
static rt_status read_checksum(const losa_state *s, int32_t out[2])
{
    RT_TRY(comm_settle(s->group.comm, s->group.dev));
    return kern_read(s->checksum, 0, out, 2);
}

// All ranks must hold the same plan. In scope `head` the lists are the rank's own,
// and only the active sets are compared.
static rt_status check_plan(losa_state *s, int layer, const kern_batch *batch)
{
    const kern_plan_checksum_args args = {
        .batch = batch,
        .plan = &s->plan,
        .pages = s->config.scope == LOSA_SCOPE_SHARED,
        .out = s->checksum,
    };
    RT_TRY(kern_plan_checksum(s->group.dev, &args));
    int32_t mine[2], most[2];
    RT_TRY(read_checksum(s, mine));
    RT_TRY(comm_allreduce(s->group.comm, COMM_CHECK, s->checksum, 2, COMM_MAX));
    RT_TRY(read_checksum(s, most));
    if (most[0] == -most[1])
        return RT_OK;
    int32_t first[2] = {mine[0], mine[1]};
    RT_TRY(comm_ctl_bcast(s->group.comm, 0, first, sizeof first));
    const rt_status agrees =
        first[0] == mine[0] ? RT_OK
                            : RT_FAIL(RT_ERR_INTERNAL,
                                      "plan check: layer %d, forward %lld: rank %d holds another "
                                      "plan than rank 0",
                                      layer, s->forward, comm_rank(s->group.comm));
    return comm_agree(s->group.comm, agrees);
}

// Who reads the prefix. By a rule that looks at no change of the tokens it is the same in
// all layers that follow a plan, or in all dense ones: then the first of them asks for all,
// as it does for the counters of the segments without a plan.
static rt_status choose_readers(losa_state *s, const losa_layer_args *args, const kern_batch *batch)
{
    const bool known = s->planned_segs == batch->sparse_segs;
    s->planned_segs = batch->sparse_segs;
    if (!known) {
        const int layers = s->limits.layers;
        const int dense = s->config.dense_layers < layers ? s->config.dense_layers : layers;
        const bool differ = args->batch->sparse_segs > 0;
        const kern_plan_count_args count = {
            .batch = batch,
            .lists = s->plan.lists,
            .layers = !differ               ? layers
                      : args->layer < dense ? dense
                                            : layers - dense,
            .counts = s->counts,
        };
        RT_TRY(kern_plan_count(s->group.dev, &count));
        RT_TRY(losa_mark(s, LOSA_STAGE_COUNT));
    }
    if (s->needs_delta)
        RT_TRY(measure_locality(s, args, batch));
    if (known && !s->needs_delta)
        return RT_OK;
    const kern_active_args active = {
        .batch = batch,
        .delta = s->delta,
        .rule = losa_effective_rule(&s->config),
        .k = s->config.active_k,
        .share = (float)s->config.active_share,
        .plan = &s->plan,
    };
    RT_TRY(kern_active(s->group.dev, &active));
    return losa_mark(s, LOSA_STAGE_ACTIVE);
}

static rt_status make_plan(losa_state *s, const losa_layer_args *args, const kern_batch *batch)
{
    RT_TRY(choose_readers(s, args, batch));
    const bool sparse = batch->sparse_segs > 0;
    if (sparse)
        RT_TRY(choose_pages(s, args, batch));
    if (sparse && s->config.check_plans)
        RT_TRY(check_plan(s, args->layer, batch));
    return losa_show(s, args->layer, batch);
}

rt_status losa_layer(losa_state *s, const losa_layer_args *args)
{
    RT_CHECK_ARG(args->layer >= 0 && args->layer < s->limits.layers);
    kern_batch batch = *args->batch;
    if (args->layer < s->config.dense_layers)
        batch.sparse_rows = batch.sparse_segs = batch.scan_segs = batch.mass_segs = 0;

    const kern_kv_write_args write = {
        .qkv = args->qkv, .kv = args->kv, .batch = &batch, .heads = s->heads};
    if (batch.write_rows > 0) {
        RT_TRY(kern_kv_write(s->group.dev, &write));
        RT_TRY(losa_mark(s, LOSA_STAGE_WRITE));
    }
    RT_TRY(make_plan(s, args, &batch));

    const kern_attn_args attn = {
        .qkv = args->qkv,
        .kv = args->kv,
        .batch = &batch,
        .plan = &s->plan,
        .heads = s->heads,
        .scale = 1.0f / sqrtf((float)s->limits.head_dim),
        .o = s->o,
        .lse = s->lse,
        .page_lse = batch.mass_segs > 0 ? s->page_lse : NULL, // NULL by keys too
        .cache_o = s->layers[args->layer].o,
        .cache_lse = s->layers[args->layer].lse,
        .out = args->out,
    };
    RT_TRY(kern_attn(s->group.dev, &attn));
    RT_TRY(losa_mark(s, LOSA_STAGE_ATTEND));
    return batch.mass_segs > 0 ? keep_pages(s, args, &batch) : RT_OK;
}
