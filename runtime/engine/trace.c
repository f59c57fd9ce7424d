// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine/trace.h"

#include "proto/trace.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { ERROR_MAX = 512 };

struct rt_trace {
    char *path;
    FILE *file;
    rt_str frame; // being written
    uint64_t plans, forward;
    const rt_batch_args *args; // of the forward
    uint32_t *active;          // rows and lists of the plan being written
    size_t active_cap;
    Pb__TraceList *lists;
    Pb__TraceList **list_ptr;
    size_t lists_cap;
    rt_status status; // first failure, and its message
    char error[ERROR_MAX];
};

// ---- writing -----------------------------------------------------------------------

static rt_status write_bytes(rt_trace *t, const char *bytes, size_t len)
{
    if (fwrite(bytes, 1, len, t->file) == len)
        return RT_OK;
    return RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", t->path, strerror(errno));
}

static rt_status write_entry(rt_trace *t, const Pb__TraceEntry *entry)
{
    t->frame.len = 0;
    RT_TRY(pb_trace_pack(entry, &t->frame));
    return write_bytes(t, t->frame.data, t->frame.len);
}

static void note(rt_trace *t, rt_status status)
{
    if (status == RT_OK || t->status != RT_OK)
        return;
    t->status = status;
    snprintf(t->error, sizeof t->error, "%s", rt_last_error());
}

// ---- a plan ------------------------------------------------------------------------

static rt_status reserve(rt_trace *t, size_t rows, size_t lists)
{
    if (rows > t->active_cap) {
        rt_free(t->active);
        t->active_cap = 0;
        RT_TRY(RT_ALLOC(t->active, rows, "trace"));
        t->active_cap = rows;
    }
    if (lists <= t->lists_cap)
        return RT_OK;
    rt_free(t->lists);
    rt_free(t->list_ptr);
    t->lists_cap = 0;
    t->list_ptr = NULL;
    RT_TRY(RT_ALLOC(t->lists, lists, "trace"));
    RT_TRY(RT_ALLOC(t->list_ptr, lists, "trace"));
    t->lists_cap = lists;
    return RT_OK;
}

static void fill_lists(rt_trace *t, const losa_view *view, int seg)
{
    for (int l = 0; l < view->lists; l++) {
        const size_t entry = (size_t)(seg * view->lists + l);
        const int count = view->page_count[entry];
        Pb__TraceList *list = t->list_ptr[l] = &t->lists[l];
        pb__trace_list__init(list);
        list->has_all = list->all = count < 0;
        list->n_pages = count < 0 ? 0 : (size_t)count;
        // Page numbers are not negative.
        list->pages = (uint32_t *)(uintptr_t)(view->pages + entry * (size_t)view->batch->max_pages);
    }
}

static void fill_place(const rt_trace *t, const Pb__Segment *s, Pb__TracePlan *plan)
{
    const rt_slot *slot = &t->args->slots[s->slot];
    const int block = t->args->block, last = (int)(s->first + s->count - 1);
    plan->session = slot->session;
    plan->forward = t->forward;
    plan->block = (uint32_t)(last / block - slot->prompt_len / block);
    plan->step = rt_segment_later(s) ? (uint32_t)slot->block_step : 0;
    plan->kind = s->kind;
    plan->first = s->first;
    plan->rows = s->count;
}

static rt_status write_plan(rt_trace *t, const losa_view *view, int seg, int row0)
{
    const Pb__Segment *s = t->args->segments[seg];
    Pb__TracePlan plan = PB__TRACE_PLAN__INIT;
    Pb__TraceEntry entry = PB__TRACE_ENTRY__INIT;
    RT_TRY(reserve(t, s->count, (size_t)view->lists));
    fill_place(t, s, &plan);
    fill_lists(t, view, seg);
    plan.layer = (uint32_t)view->layer;
    plan.n_active = (size_t)view->act_count[seg];
    plan.active = t->active;
    for (size_t i = 0; i < plan.n_active; i++)
        t->active[i] = (uint32_t)(view->act_rows[row0 + (int)i] - row0);
    plan.n_lists = (size_t)view->lists;
    plan.lists = t->list_ptr;
    entry.plan = &plan;
    RT_TRY(write_entry(t, &entry));
    t->plans++;
    return RT_OK;
}

void rt_trace_layer(rt_trace *t, const losa_view *view)
{
    if (!t->args || !t->file)
        return;
    for (int seg = 0, row0 = 0; seg < t->args->count && t->status == RT_OK; seg++) {
        if (t->args->segments[seg]->kind != KERN_SEG_PREFILL)
            note(t, write_plan(t, view, seg, row0));
        row0 += (int)t->args->segments[seg]->count;
    }
}

void rt_trace_forward(rt_trace *t, uint64_t number, const rt_batch_args *args)
{
    t->forward = number;
    t->args = args;
}

// ---- the file ------------------------------------------------------------------------

static rt_status start(rt_trace *t, const char *path, const Pb__TraceHead *head)
{
    Pb__TraceEntry entry = PB__TRACE_ENTRY__INIT;
    entry.head = (Pb__TraceHead *)(uintptr_t)head;
    t->path = rt_mem_strdup(path, "trace");
    if (!t->path)
        return RT_ERR_NOMEM;
    t->file = fopen(path, "wbe");
    if (!t->file)
        return RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
    RT_TRY(write_bytes(t, PB_TRACE_MAGIC, strlen(PB_TRACE_MAGIC)));
    return write_entry(t, &entry);
}

rt_status rt_trace_open(const char *path, const Pb__TraceHead *head, rt_trace **out)
{
    rt_trace *t;
    RT_TRY(RT_ALLOC(t, 1, "trace"));
    const rt_status status = start(t, path, head);
    if (status != RT_OK) {
        rt_trace_close(t);
        return status;
    }
    *out = t;
    return RT_OK;
}

static rt_status finish(rt_trace *t)
{
    Pb__TraceEnd end = PB__TRACE_END__INIT;
    Pb__TraceEntry entry = PB__TRACE_ENTRY__INIT;
    end.plans = t->plans;
    entry.end = &end;
    RT_TRY(write_entry(t, &entry));
    FILE *file = t->file;
    t->file = NULL;
    if (fclose(file) == 0)
        return RT_OK;
    return RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", t->path, strerror(errno));
}

rt_status rt_trace_end(rt_trace *t)
{
    if (t->status == RT_OK && t->file)
        note(t, finish(t));
    return t->status == RT_OK ? RT_OK : RT_FAIL(t->status, "%s", t->error);
}

void rt_trace_close(rt_trace *t)
{
    if (!t)
        return;
    if (t->file)
        fclose(t->file);
    rt_str_free(&t->frame);
    rt_free(t->path);
    rt_free(t->active);
    rt_free(t->lists);
    rt_free(t->list_ptr);
    rt_free(t);
}
