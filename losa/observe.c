// SPDX-License-Identifier: Apache-2.0
// Who looks on. The observer sees the plan of the layer being computed, copied to the
// host: the copies are as large as the plan's buffers and are made when somebody first
// looks. The marker is told which stages ran.
#include "losa/losa_int.h"

#include "runtime/base/mem.h"

static rt_status open_copy(const losa_state *s, losa_copy *copy)
{
    const kern_plan *plan = &s->plan;
    RT_TRY(RT_ALLOC(copy->act_rows, kern_buf_count(plan->act_rows), "plan copy"));
    RT_TRY(RT_ALLOC(copy->act_count, kern_buf_count(plan->act_count), "plan copy"));
    RT_TRY(RT_ALLOC(copy->pages, kern_buf_count(plan->pages), "plan copy"));
    return RT_ALLOC(copy->page_count, kern_buf_count(plan->page_count), "plan copy");
}

rt_status losa_observe(losa_state *s, losa_observer *observer, void *ctx)
{
    if (observer && !s->copy.act_rows)
        RT_TRY(open_copy(s, &s->copy));
    s->observer = observer;
    s->observer_ctx = ctx;
    return RT_OK;
}

rt_status losa_show(losa_state *s, int layer, const kern_batch *batch)
{
    if (!s->observer)
        return RT_OK;
    const size_t segs = (size_t)batch->segs, lists = segs * (size_t)s->plan.lists;
    const size_t pages = (size_t)batch->sparse_segs * (size_t)s->plan.lists;
    RT_TRY(kern_read(s->plan.act_rows, 0, s->copy.act_rows, (size_t)batch->rows));
    RT_TRY(kern_read(s->plan.act_count, 0, s->copy.act_count, segs));
    RT_TRY(kern_read(s->plan.page_count, 0, s->copy.page_count, lists));
    RT_TRY(kern_read(s->plan.pages, 0, s->copy.pages, pages * (size_t)batch->max_pages));
    const losa_view view = {
        .layer = layer,
        .batch = batch,
        .lists = s->plan.lists,
        .act_rows = s->copy.act_rows,
        .act_count = s->copy.act_count,
        .pages = s->copy.pages,
        .page_count = s->copy.page_count,
    };
    return s->observer(s->observer_ctx, &view);
}

const char *losa_stage_name(losa_stage stage)
{
    static const char *const names[LOSA_STAGES] = {
        "write", "locality", "exchange", "active", "score", "select", "count", "attend", "mass"};
    return names[stage];
}

void losa_mark_stages(losa_state *s, losa_marker *marker, void *ctx)
{
    s->marker = marker;
    s->marker_ctx = ctx;
}

rt_status losa_mark(const losa_state *s, losa_stage stage)
{
    return s->marker ? s->marker(s->marker_ctx, stage) : RT_OK;
}
