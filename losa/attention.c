// SPDX-License-Identifier: Apache-2.0
// One layer of LoSA attention, as a fixed sequence of kernels and collectives.
//
// The state owns three kinds of device memory: per layer, what outlives a step
// (remembered vectors, cached (o_p, L_p)); per layer being computed, the plan and
// the partial results; per forward, the counters. Policies without reuse keep
// one cache row, so that the kernels need no second form.
#include "losa/attention.h"

#include "runtime/base/mem.h"

#include <math.h>

typedef struct layer_cache {
    kern_buf *prev;    // f32 [slots, prev_cols]
    kern_buf *o, *lse; // f32 [slots, heads, head_dim], [slots, heads]
} layer_cache;

struct losa_state {
    par_group group;
    losa_config config;
    losa_limits limits;
    int heads, kv_heads;
    int score_lists, list0; // of the exchanged page scores
    bool exchange_scores;
    bool needs_delta; // the active rule looks at the change of the tokens
    int prev_cols;
    long long forward; // number of losa_begin, for messages
    layer_cache *layers;
    kern_plan plan;
    kern_buf *delta;    // f32 [rows]
    kern_buf *score;    // f32 [segs, score_lists, act_cap, max_pages]
    kern_buf *o, *lse;  // f32 [rows, heads, head_dim], [rows, heads]
    kern_buf *counts;   // i64 [segs, KERN_COUNT_N]
    kern_buf *checksum; // i32 [2]
};

static bool reuses(const losa_config *config)
{
    return config->policy->readers == LOSA_READ_ACTIVE;
}

bool losa_uses_cache(const losa_config *config)
{
    return reuses(config);
}

bool losa_kind_is_sparse(const losa_config *config, int seg_kind)
{
    return config->policy->pages != LOSA_PAGES_ALL && seg_kind == KERN_SEG_STEP;
}

static kern_active_rule effective_rule(const losa_config *config)
{
    return reuses(config) ? config->rule : KERN_ACTIVE_ALL;
}

static rt_status new_f32(const losa_state *s, size_t count, const char *what, kern_buf **out)
{
    return kern_buf_new(s->group.dev, KERN_F32, count, what, out);
}

static rt_status new_i32(const losa_state *s, size_t count, const char *what, kern_buf **out)
{
    return kern_buf_new(s->group.dev, KERN_I32, count, what, out);
}

static rt_status open_layers(losa_state *s)
{
    const size_t slots = reuses(&s->config) ? (size_t)s->limits.slots : 1;
    const size_t heads = (size_t)s->heads;
    RT_TRY(RT_ALLOC(s->layers, (size_t)s->limits.layers, "LoSA layer caches"));
    for (int l = 0; l < s->limits.layers; l++) {
        layer_cache *c = &s->layers[l];
        RT_TRY(new_f32(s, slots * heads * (size_t)s->limits.head_dim, "prefix cache", &c->o));
        RT_TRY(new_f32(s, slots * heads, "prefix cache", &c->lse));
        if (s->needs_delta)
            RT_TRY(new_f32(s, slots * (size_t)s->prev_cols, "remembered tokens", &c->prev));
    }
    return RT_OK;
}

static rt_status open_plan(losa_state *s)
{
    const size_t rows = (size_t)s->limits.rows, segs = (size_t)s->limits.segs;
    const size_t lists = (size_t)s->plan.lists, pages = (size_t)s->limits.max_pages;
    RT_TRY(new_i32(s, rows, "active rows", &s->plan.act_rows));
    RT_TRY(new_i32(s, segs, "active counts", &s->plan.act_count));
    RT_TRY(new_i32(s, segs * lists * pages, "page lists", &s->plan.pages));
    RT_TRY(new_i32(s, segs * lists, "page counts", &s->plan.page_count));
    RT_TRY(new_f32(s, rows, "locality", &s->delta));
    if (s->config.policy->pages == LOSA_PAGES_SCAN)
        RT_TRY(new_f32(s, segs * (size_t)s->score_lists * (size_t)s->plan.act_cap * pages,
                       "page scores", &s->score));
    return RT_OK;
}

static rt_status open_buffers(losa_state *s)
{
    const size_t rows = (size_t)s->limits.rows, heads = (size_t)s->heads;
    RT_TRY(open_layers(s));
    RT_TRY(open_plan(s));
    RT_TRY(new_f32(s, rows * heads * (size_t)s->limits.head_dim, "prefix attention", &s->o));
    RT_TRY(new_f32(s, rows * heads, "prefix attention", &s->lse));
    RT_TRY(kern_buf_new(s->group.dev, KERN_I64, (size_t)s->limits.segs * KERN_COUNT_N,
                        "plan counters", &s->counts));
    return new_i32(s, 2, "plan checksum", &s->checksum);
}

// Which lists exist, and which of them the ranks must sum. In scope `head` a KV
// head that is replicated has its query heads on several ranks: its scores are
// summed in the row of that head, so that the lists do not depend on the sharding.
static void choose_lists(losa_state *s, const par_plan *plan)
{
    const bool shared = s->config.scope == LOSA_SCOPE_SHARED;
    const bool replicated = plan->kv_replicas > 1;
    s->plan.lists = shared ? 1 : s->kv_heads;
    s->score_lists = s->plan.lists;
    if (!shared && replicated) {
        s->score_lists = plan->ranks / plan->kv_replicas;
        s->list0 = plan->kv_heads.first;
    }
    s->exchange_scores = plan->ranks > 1 && (shared || replicated);
}

rt_status losa_open(const par_group *group, const par_plan *plan, const losa_config *config,
                    const losa_limits *limits, losa_state **out)
{
    RT_TRY(losa_config_check(config));
    losa_state *s;
    RT_TRY(RT_ALLOC(s, 1, "LoSA state"));
    s->group = *group;
    s->config = *config;
    s->limits = *limits;
    s->heads = plan->heads.count;
    s->kv_heads = plan->kv_heads.count;
    const kern_active_rule rule = effective_rule(config);
    s->needs_delta = rule == KERN_ACTIVE_TOPK || rule == KERN_ACTIVE_NEW_TOPK;
    s->prev_cols =
        config->locality == LOSA_LOCALITY_QUERY ? s->heads * limits->head_dim : limits->hidden;
    s->plan.act_cap = limits->block;
    if (rule == KERN_ACTIVE_TOPK && config->active_k < limits->block)
        s->plan.act_cap = config->active_k;
    choose_lists(s, plan);
    const rt_status status = open_buffers(s);
    if (status != RT_OK) {
        losa_close(s);
        return status;
    }
    *out = s;
    return RT_OK;
}

void losa_close(losa_state *s)
{
    if (!s)
        return;
    for (int l = 0; s->layers && l < s->limits.layers; l++) {
        kern_buf_free(s->layers[l].prev);
        kern_buf_free(s->layers[l].o);
        kern_buf_free(s->layers[l].lse);
    }
    rt_free(s->layers);
    kern_buf *const owned[] = {
        s->plan.act_rows, s->plan.act_count, s->plan.pages, s->plan.page_count,
        s->delta,         s->score,          s->o,          s->lse,
        s->counts,        s->checksum};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        kern_buf_free(owned[i]);
    rt_free(s);
}

rt_status losa_begin(losa_state *s, int segs)
{
    RT_CHECK_ARG(segs >= 0 && segs <= s->limits.segs);
    s->forward++;
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
    if (ranks == 1 || batch->sparse_rows == 0)
        return RT_OK;
    return comm_allreduce(s->group.comm, COMM_MASK, s->delta, (size_t)batch->sparse_rows, COMM_SUM);
}

// The pages that the active rows read, the same on all ranks in scope `shared`.
static rt_status choose_pages(losa_state *s, const losa_layer_args *args, const kern_batch *batch)
{
    const kern_page_score_args score = {
        .q = args->qkv,
        .stride = (s->heads + 2 * s->kv_heads) * s->limits.head_dim,
        .kv = args->kv,
        .batch = batch,
        .plan = &s->plan,
        .heads = s->heads,
        .scale = 1.0f / sqrtf((float)s->limits.head_dim),
        .score_lists = s->score_lists,
        .list0 = s->list0,
        .score = s->score,
    };
    RT_TRY(kern_page_score(s->group.dev, &score));
    if (s->exchange_scores) {
        const size_t count = (size_t)batch->sparse_segs * (size_t)s->score_lists *
                             (size_t)s->plan.act_cap * (size_t)batch->max_pages;
        RT_TRY(comm_allreduce(s->group.comm, COMM_SCORES, s->score, count, COMM_SUM));
    }
    const kern_page_select_args select = {
        .score = s->score,
        .batch = batch,
        .score_lists = s->score_lists,
        .list0 = s->list0,
        .top = losa_config_top(&s->config),
        .plan = &s->plan,
    };
    return kern_page_select(s->group.dev, &select);
}

// All ranks must hold the same plan. In scope `head` the lists are the rank's own,
// and only the active sets are compared.
static rt_status check_plan(losa_state *s, int layer, const kern_batch *batch)
{
    kern_plan compared = s->plan;
    if (s->config.scope == LOSA_SCOPE_HEAD)
        compared.lists = 0;
    const kern_plan_checksum_args args = {.batch = batch, .plan = &compared, .out = s->checksum};
    RT_TRY(kern_plan_checksum(s->group.dev, &args));
    int32_t mine[2], most[2];
    RT_TRY(kern_read(s->checksum, 0, mine, 2));
    RT_TRY(comm_allreduce(s->group.comm, COMM_CHECK, s->checksum, 2, COMM_MAX));
    RT_TRY(kern_read(s->checksum, 0, most, 2));
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

static rt_status make_plan(losa_state *s, const losa_layer_args *args, const kern_batch *batch)
{
    if (s->needs_delta)
        RT_TRY(measure_locality(s, args, batch));
    const kern_active_args active = {
        .batch = batch,
        .delta = s->delta,
        .rule = effective_rule(&s->config),
        .k = s->config.active_k,
        .plan = &s->plan,
    };
    RT_TRY(kern_active(s->group.dev, &active));
    const bool sparse = batch->sparse_segs > 0;
    if (sparse)
        RT_TRY(choose_pages(s, args, batch));
    if (sparse && s->config.check_plans)
        RT_TRY(check_plan(s, args->layer, batch));
    const kern_plan_count_args count = {
        .batch = batch,
        .plan = &s->plan,
        .top = losa_config_top(&s->config),
        .scanned = sparse,
        .counts = s->counts,
    };
    return kern_plan_count(s->group.dev, &count);
}

rt_status losa_layer(losa_state *s, const losa_layer_args *args)
{
    RT_CHECK_ARG(args->layer >= 0 && args->layer < s->limits.layers);
    kern_batch batch = *args->batch;
    if (args->layer < s->config.dense_layers)
        batch.sparse_rows = batch.sparse_segs = 0;

    const kern_kv_write_args write = {
        .qkv = args->qkv, .kv = args->kv, .batch = &batch, .heads = s->heads};
    RT_TRY(kern_kv_write(s->group.dev, &write));
    RT_TRY(make_plan(s, args, &batch));

    const float scale = 1.0f / sqrtf((float)s->limits.head_dim);
    const kern_attn_prefix_args prefix = {
        .q = args->qkv,
        .stride = (s->heads + 2 * s->kv_heads) * s->limits.head_dim,
        .kv = args->kv,
        .batch = &batch,
        .plan = &s->plan,
        .heads = s->heads,
        .scale = scale,
        .o = s->o,
        .lse = s->lse,
    };
    RT_TRY(kern_attn_prefix(s->group.dev, &prefix));
    const kern_attn_merge_args merge = {
        .qkv = args->qkv,
        .batch = &batch,
        .plan = &s->plan,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->limits.head_dim,
        .scale = scale,
        .o = s->o,
        .lse = s->lse,
        .cache_o = s->layers[args->layer].o,
        .cache_lse = s->layers[args->layer].lse,
        .out = args->out,
    };
    return kern_attn_merge(s->group.dev, &merge);
}
