// SPDX-License-Identifier: Apache-2.0
#include "proto/trace.h"

#include "proto/frame_int.h"

#include <string.h>

enum { MAGIC_LEN = sizeof PB_TRACE_MAGIC - 1 };

// ---- fields --------------------------------------------------------------------------

static rt_status check_name(const char *field, const char *name)
{
    const size_t len = strlen(name);
    RT_TRY(pb_check_int(field, len, 1, PB_TRACE_NAME_MAX));
    for (size_t i = 0; i < len; i++)
        if (name[i] < ' ' || name[i] > '~')
            return RT_FAIL(RT_ERR_FORMAT, "%s: byte %zu is no printable character", field, i);
    return RT_OK;
}

static rt_status check_head(const Pb__TraceHead *h)
{
    RT_TRY(pb_check_known("head", &h->base));
    RT_TRY(check_name("head.architecture", h->architecture));
    RT_TRY(check_name("head.policy", h->policy));
    RT_TRY(check_name("head.scope", h->scope));
    RT_TRY(pb_check_int("head.layers", h->layers, 1, PB_TRACE_SHAPE_MAX));
    RT_TRY(pb_check_int("head.heads", h->heads, 1, PB_TRACE_SHAPE_MAX));
    RT_TRY(pb_check_int("head.kv_heads", h->kv_heads, 1, h->heads));
    RT_TRY(pb_check_int("head.head_dim", h->head_dim, 1, PB_TRACE_SHAPE_MAX));
    RT_TRY(pb_check_int("head.block", h->block, 1, PB_TRACE_SHAPE_MAX));
    return pb_check_int("head.page", h->page, 1, PB_TRACE_SHAPE_MAX);
}

// Ascending numbers below `end`.
static rt_status check_numbers(const char *field, const uint32_t *list, size_t count, uint64_t end)
{
    uint64_t least = 0;
    for (size_t i = 0; i < count; i++) {
        if (list[i] < least || list[i] >= end)
            return RT_FAIL(RT_ERR_FORMAT, "%s: number %zu is %u, out of order or not below %llu",
                           field, i, list[i], (unsigned long long)end);
        least = (uint64_t)list[i] + 1;
    }
    return RT_OK;
}

static rt_status check_list(const Pb__TraceList *list)
{
    RT_TRY(pb_check_known("list", &list->base));
    if (list->has_all && list->all && list->n_pages > 0)
        return RT_FAIL(RT_ERR_FORMAT, "list: all pages and %zu of them", list->n_pages);
    return check_numbers("list.pages", list->pages, list->n_pages, PB_POSITION_MAX);
}

static rt_status check_plan(const Pb__TracePlan *p)
{
    RT_TRY(pb_check_known("plan", &p->base));
    RT_TRY(pb_check_int("plan.session", p->session, 1, UINT32_MAX));
    RT_TRY(pb_check_int("plan.block", p->block, 0, PB_POSITION_MAX));
    RT_TRY(pb_check_int("plan.step", p->step, 0, PB_POSITION_MAX));
    RT_TRY(pb_check_int("plan.kind", p->kind, 0, PB_SEGMENT_KINDS - 1));
    RT_TRY(pb_check_int("plan.first", p->first, 0, PB_POSITION_MAX));
    RT_TRY(pb_check_int("plan.rows", p->rows, 1, PB_TOKENS_MAX));
    RT_TRY(check_numbers("plan.active", p->active, p->n_active, p->rows));
    RT_TRY(pb_check_int("plan.lists length", p->n_lists, 1, PB_TRACE_SHAPE_MAX));
    for (size_t i = 0; i < p->n_lists; i++)
        RT_TRY(check_list(p->lists[i]));
    return RT_OK;
}

static rt_status check_entry(const Pb__TraceEntry *e)
{
    RT_TRY(pb_check_known("entry", &e->base));
    if (!!e->head + !!e->plan + !!e->end != 1)
        return RT_FAIL(RT_ERR_FORMAT, "entry: neither a head nor a plan nor an end");
    if (e->head)
        return check_head(e->head);
    return e->plan ? check_plan(e->plan) : pb_check_known("end", &e->end->base);
}

// ---- frames --------------------------------------------------------------------------

rt_status pb_trace_pack(const Pb__TraceEntry *entry, rt_str *out)
{
    RT_CHECK_ARG(entry && out);
    RT_TRY(check_entry(entry));
    return pb_pack(&entry->base, out);
}

void pb_trace_free(Pb__TraceEntry *entry)
{
    pb_free_message(entry ? &entry->base : NULL);
}

// The frame at the reader's place.
static rt_status read_entry(pb_trace *t, Pb__TraceEntry **out)
{
    size_t size;
    RT_TRY(pb_frame_size(t->bytes + t->at, t->len - t->at, &size));
    ProtobufCMessage *message;
    RT_TRY(pb_unpack(&pb__trace_entry__descriptor, t->bytes + t->at, size, &message));
    const rt_status status = check_entry((const Pb__TraceEntry *)message);
    if (status != RT_OK) {
        pb_free_message(message);
        return status;
    }
    t->at += size;
    *out = (Pb__TraceEntry *)message;
    return RT_OK;
}

rt_status pb_trace_open(const void *bytes, size_t len, pb_trace *out)
{
    RT_CHECK_ARG((bytes || len == 0) && out);
    if (len < MAGIC_LEN || memcmp(bytes, PB_TRACE_MAGIC, MAGIC_LEN) != 0)
        return RT_FAIL(RT_ERR_FORMAT, "not a trace of page plans: it does not begin with '%.*s'",
                       MAGIC_LEN - 1, PB_TRACE_MAGIC);
    pb_trace t = {.bytes = bytes, .len = len, .at = MAGIC_LEN};
    RT_TRY(read_entry(&t, &t.head));
    if (!t.head->head) {
        pb_trace_close(&t);
        return RT_FAIL(RT_ERR_FORMAT, "the trace does not begin with its head");
    }
    *out = t;
    return RT_OK;
}

void pb_trace_close(pb_trace *t)
{
    pb_trace_free(t->head);
    *t = (pb_trace){0};
}

// ---- plans ---------------------------------------------------------------------------

uint32_t pb_trace_prefix(const pb_trace *t, const Pb__TracePlan *plan)
{
    const uint32_t block = t->head->head->block;
    return (plan->first + plan->rows - 1) / block * block;
}

uint32_t pb_trace_pages(const pb_trace *t, const Pb__TracePlan *plan)
{
    const uint32_t page = t->head->head->page;
    return (pb_trace_prefix(t, plan) + page - 1) / page;
}

uint32_t pb_trace_tokens(const pb_trace *t, const Pb__TracePlan *plan, size_t list)
{
    const Pb__TraceList *l = plan->lists[list];
    const uint32_t prefix = pb_trace_prefix(t, plan), page = t->head->head->page;
    if (plan->n_active == 0)
        return 0;
    if (l->has_all && l->all)
        return prefix;
    uint32_t tokens = 0;
    for (size_t i = 0; i < l->n_pages; i++) {
        const uint32_t left = prefix - l->pages[i] * page;
        tokens += left < page ? left : page;
    }
    return tokens;
}

// What only the head can tell.
static rt_status check_shape(const pb_trace *t, const Pb__TracePlan *p)
{
    RT_TRY(pb_check_int("plan.layer", p->layer, 0, t->head->head->layers - 1));
    RT_TRY(pb_check_int("plan.lists length", p->n_lists, 1, t->head->head->kv_heads));
    for (size_t i = 0; i < p->n_lists; i++)
        RT_TRY(check_numbers("list.pages", p->lists[i]->pages, p->lists[i]->n_pages,
                             pb_trace_pages(t, p)));
    return RT_OK;
}

static rt_status check_end(const pb_trace *t, const Pb__TraceEnd *end)
{
    if (end->plans != t->plans)
        return RT_FAIL(RT_ERR_FORMAT, "the trace ends after %llu plans, it should have %llu",
                       (unsigned long long)t->plans, (unsigned long long)end->plans);
    if (t->at != t->len)
        return RT_FAIL(RT_ERR_FORMAT, "%zu bytes follow the trace's end", t->len - t->at);
    return RT_OK;
}

rt_status pb_trace_next(pb_trace *t, Pb__TraceEntry **out)
{
    RT_CHECK_ARG(t && t->head && out);
    if (t->at == t->len)
        return RT_FAIL(RT_ERR_FORMAT,
                       "the trace has no end: it is cut off, or its run did not end");
    Pb__TraceEntry *entry;
    RT_TRY(read_entry(t, &entry));
    rt_status status;
    if (entry->head)
        status = RT_FAIL(RT_ERR_FORMAT, "the trace has a second head");
    else
        status = entry->plan ? check_shape(t, entry->plan) : check_end(t, entry->end);
    const bool more = status == RT_OK && entry->plan;
    if (!more)
        pb_trace_free(entry);
    RT_TRY(status);
    t->plans += more;
    *out = more ? entry : NULL;
    return RT_OK;
}
