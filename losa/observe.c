// SPDX-License-Identifier: Apache-2.0
// Who looks on. The observer sees the plan of the layer being computed on the host, with the
// page lists of all ranks: they exchange theirs, but for one list that all of them hold.
// The copies are made when somebody first looks. The marker is told which stages ran.
#include "losa/losa_int.h"

#include "runtime/base/mem.h"

#include <string.h>

static rt_status open_copy(const losa_state *s, losa_copy *copy)
{
    const kern_plan *plan = &s->plan;
    const size_t parts = (size_t)(s->all_lists / plan->lists);
    const size_t pages = kern_buf_count(plan->pages), lists = kern_buf_count(plan->page_count);
    RT_TRY(RT_ALLOC(copy->act_rows, kern_buf_count(plan->act_rows), "plan copy"));
    RT_TRY(RT_ALLOC(copy->act_count, kern_buf_count(plan->act_count), "plan copy"));
    RT_TRY(RT_ALLOC(copy->pages, pages * parts, "plan copy"));
    RT_TRY(RT_ALLOC(copy->page_count, lists * parts, "plan copy"));
    if (parts == 1)
        return RT_OK;
    const size_t ranks = (size_t)comm_ranks(s->group.comm);
    return RT_ALLOC(copy->gathered, pages * ranks, "plans of the ranks");
}

rt_status losa_observe(losa_state *s, losa_observer *observer, void *ctx)
{
    if (observer && !s->copy.act_rows)
        RT_TRY(open_copy(s, &s->copy));
    s->observer = observer;
    s->observer_ctx = ctx;
    return RT_OK;
}

// numbers: this rank's [segs, its lists, width] becomes [segs, all lists, width], in the order
// of the heads. Of ranks that hold copies of a head the first tells.
static rt_status join_lists(const losa_state *s, int32_t *numbers, size_t segs, size_t width)
{
    const size_t parts = (size_t)(s->all_lists / s->plan.lists);
    if (parts == 1)
        return RT_OK;
    const size_t part = (size_t)s->plan.lists * width, mine = segs * part;
    const size_t apart = (size_t)comm_ranks(s->group.comm) / parts; // ranks from part to part
    RT_TRY(comm_ctl_allgather(s->group.comm, numbers, mine * sizeof *numbers, s->copy.gathered));
    for (size_t seg = 0; seg < segs; seg++)
        for (size_t p = 0; p < parts; p++)
            memcpy(numbers + (seg * parts + p) * part,
                   s->copy.gathered + p * apart * mine + seg * part, part * sizeof *numbers);
    return RT_OK;
}

rt_status losa_show(losa_state *s, int layer, const kern_batch *batch)
{
    if (!s->observer)
        return RT_OK;
    const size_t segs = (size_t)batch->segs, sparse = (size_t)batch->sparse_segs;
    const size_t lists = (size_t)s->plan.lists, width = (size_t)batch->max_pages;
    RT_TRY(comm_settle(s->group.comm, s->group.dev)); // a read would wait without a deadline
    RT_TRY(kern_read(s->plan.act_rows, 0, s->copy.act_rows, (size_t)batch->rows));
    RT_TRY(kern_read(s->plan.act_count, 0, s->copy.act_count, segs));
    RT_TRY(kern_read(s->plan.page_count, 0, s->copy.page_count, segs * lists));
    RT_TRY(kern_read(s->plan.pages, 0, s->copy.pages, sparse * lists * width));
    RT_TRY(join_lists(s, s->copy.page_count, segs, 1));
    RT_TRY(join_lists(s, s->copy.pages, sparse, width));
    const losa_view view = {
        .layer = layer,
        .batch = batch,
        .lists = s->all_lists,
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
