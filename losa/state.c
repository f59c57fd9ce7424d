// SPDX-License-Identifier: Apache-2.0
#include "losa/losa_int.h"

#include "runtime/base/mem.h"

bool losa_uses_cache(const losa_config *config)
{
    return config->policy->readers == LOSA_READ_ACTIVE ||
           config->policy->schedule == LOSA_STEPS_REFRESH;
}

int losa_kind_order(const losa_config *config, int seg_kind)
{
    const losa_reading r = losa_reading_of(config, seg_kind);
    return !r.sparse ? 2 : r.choice.top > 0 ? 0 : 1;
}

kern_active_rule losa_effective_rule(const losa_config *config)
{
    return config->policy->readers == LOSA_READ_ACTIVE ? config->rule : KERN_ACTIVE_ALL;
}

static rt_status new_f32(const losa_state *s, size_t count, const char *what, kern_buf **out)
{
    return kern_buf_new(s->group.dev, KERN_F32, count, what, out);
}

static rt_status new_i32(const losa_state *s, size_t count, const char *what, kern_buf **out)
{
    return kern_buf_new(s->group.dev, KERN_I32, count, what, out);
}

static rt_status open_kept(losa_state *s, kern_kept_lists *kept)
{
    const int top = losa_pages_of(&s->config, s->config.budget), most = s->limits.max_pages;
    const int cap = s->config.keep > 0 || top > most ? most : top;
    kept->lists = s->plan.lists;
    kept->cap = cap < 2 ? 2 : cap; // the first and the last page
    const size_t lists = (size_t)s->limits.sessions * (size_t)kept->lists;
    RT_TRY(new_i32(s, lists * (size_t)kept->cap, "kept page lists", &kept->pages));
    return new_i32(s, lists, "kept page lists", &kept->count);
}

static rt_status open_layers(losa_state *s)
{
    const size_t block_rows = (size_t)s->limits.sessions * (size_t)s->limits.block;
    const size_t slots = losa_uses_cache(&s->config) ? block_rows : 1;
    const size_t heads = (size_t)s->heads;
    kern_use_for(s->group.dev, KERN_USE_CACHE);
    RT_TRY(RT_ALLOC(s->layers, (size_t)s->limits.layers, "LoSA layer caches"));
    for (int l = 0; l < s->limits.layers; l++) {
        layer_cache *c = &s->layers[l];
        RT_TRY(new_f32(s, slots * heads * (size_t)s->limits.head_dim, "prefix cache", &c->o));
        RT_TRY(new_f32(s, slots * heads, "prefix cache", &c->lse));
        if (s->needs_delta)
            RT_TRY(new_f32(s, slots * (size_t)s->prev_cols, "remembered tokens", &c->prev));
        if (s->measures)
            RT_TRY(open_kept(s, &c->kept));
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
    if (s->scans)
        RT_TRY(new_f32(s, segs * (size_t)s->score_lists * (size_t)s->plan.act_cap * pages,
                       "page scores", &s->score));
    if (!s->measures)
        return RT_OK;
    const size_t sessions = (size_t)s->limits.sessions;
    const size_t all = sessions * (size_t)s->score_lists * pages;
    if (s->by_keys)
        RT_TRY(new_f32(s, all * (size_t)s->config.page, "key scores", &s->keys));
    else
        RT_TRY(new_f32(s, sessions * (size_t)s->limits.block * (size_t)s->heads * pages,
                       "page sums", &s->page_lse));
    return new_f32(s, all, "page mass", &s->mass);
}

static rt_status reserve_plans(losa_state *s)
{
    const kern_plan_limits limits = {.act_cap = s->scans ? s->plan.act_cap : 0,
                                     .heads = s->heads,
                                     .lists = s->plan.lists,
                                     .head_dim = s->limits.head_dim,
                                     .max_pages = s->limits.max_pages};
    return kern_reserve_plans(s->group.dev, &limits);
}

static rt_status open_buffers(losa_state *s)
{
    const size_t rows = (size_t)s->limits.rows, heads = (size_t)s->heads;
    RT_TRY(open_layers(s));
    RT_TRY(reserve_plans(s));
    kern_use_for(s->group.dev, KERN_USE_BATCH);
    RT_TRY(open_plan(s));
    kern_use_for(s->group.dev, KERN_USE_ACTIVATIONS);
    RT_TRY(new_f32(s, rows * heads * (size_t)s->limits.head_dim, "prefix attention", &s->o));
    RT_TRY(new_f32(s, rows * heads, "prefix attention", &s->lse));
    kern_use_for(s->group.dev, KERN_USE_BATCH);
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
    s->all_lists = shared ? 1 : s->kv_heads * (plan->ranks / plan->kv_replicas);
    s->score_lists = s->plan.lists;
    if (!shared && replicated) {
        s->score_lists = s->all_lists;
        s->list0 = plan->kv_heads.first;
    }
    s->exchange_scores = plan->ranks > 1 && (shared || replicated);
}

// How every kind of segment reads, and how many of a sparse segment's rows do at most.
static void choose_readings(losa_state *s)
{
    const kern_active_rule rule = losa_effective_rule(&s->config);
    s->needs_delta = rule != KERN_ACTIVE_ALL && rule != KERN_ACTIVE_UNSETTLED;
    s->by_keys = s->config.policy->pages == LOSA_PAGES_KEYS;
    bool all_rows = rule != KERN_ACTIVE_TOPK;
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++) {
        const losa_reading r = losa_reading_of(&s->config, kind);
        s->reading[kind] = r;
        s->scans |= r.choice.top > 0;
        s->measures |= r.measures;
        all_rows |= r.sparse && kind != KERN_SEG_STEP && kind != KERN_SEG_REST;
    }
    s->plan.act_cap = s->limits.block;
    if (!all_rows && s->config.active_k < s->limits.block)
        s->plan.act_cap = s->config.active_k;
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
    s->prev_cols =
        config->locality == LOSA_LOCALITY_QUERY ? s->heads * limits->head_dim : limits->hidden;
    choose_lists(s, plan);
    choose_readings(s);
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
        kern_buf_free(s->layers[l].kept.pages);
        kern_buf_free(s->layers[l].kept.count);
    }
    rt_free(s->layers);
    kern_buf *const owned[] = {
        s->plan.act_rows, s->plan.act_count, s->plan.pages, s->plan.page_count,
        s->delta,         s->score,          s->o,          s->lse,
        s->counts,        s->checksum,       s->page_lse,   s->mass,
        s->keys};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        kern_buf_free(owned[i]);
    rt_free(s->copy.act_rows);
    rt_free(s->copy.act_count);
    rt_free(s->copy.pages);
    rt_free(s->copy.page_count);
    rt_free(s->copy.gathered);
    rt_free(s);
}
