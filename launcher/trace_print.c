// SPDX-License-Identifier: Apache-2.0
#include "launcher/trace_print.h"

#include "proto/trace.h"
#include "runtime/base/file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *kind_name(uint32_t kind) // KERN_SEG_*
{
    static const char *const names[PB_SEGMENT_KINDS] = {"prefill", "commit", "open", "first",
                                                        "step"};
    return names[kind];
}

// "0-3,7": ascending numbers as ranges.
static void print_ranges(const uint32_t *list, size_t count)
{
    for (size_t i = 0; i < count;) {
        size_t end = i + 1;
        while (end < count && list[end] == list[end - 1] + 1)
            end++;
        printf(i ? ",%u" : "%u", list[i]);
        if (end > i + 1)
            printf("-%u", list[end - 1]);
        i = end;
    }
}

static void print_list(const Pb__TraceList *list, uint32_t pages)
{
    if (list->has_all && list->all) {
        printf("all %u", pages);
        return;
    }
    print_ranges(list->pages, list->n_pages);
    printf("%s(%zu of %u)", list->n_pages ? " " : "none ", list->n_pages, pages);
}

static void print_plan(const pb_trace *t, const Pb__TracePlan *p)
{
    printf("request %u, block %u, step %u, layer %u, %s at %u: active ", p->session, p->block,
           p->step, p->layer, kind_name(p->kind), p->first);
    print_ranges(p->active, p->n_active);
    printf("%s(%zu of %u); pages ", p->n_active ? " " : "none ", p->n_active, p->rows);
    for (size_t i = 0; i < p->n_lists; i++) {
        if (i > 0)
            printf("; ");
        print_list(p->lists[i], pb_trace_pages(t, p));
    }
    putchar('\n');
}

static void print_head(const Pb__TraceHead *h)
{
    printf("%s, %u layers, %u heads, %u KV heads, %u channels; blocks of %u, pages of %u tokens; "
           "%s, scope %s\n",
           h->architecture, h->layers, h->heads, h->kv_heads, h->head_dim, h->block, h->page,
           h->policy, h->scope);
}

static rt_status print_plans(pb_trace *t)
{
    print_head(t->head->head);
    for (;;) {
        Pb__TraceEntry *entry;
        RT_TRY(pb_trace_next(t, &entry));
        if (!entry)
            break;
        print_plan(t, entry->plan);
        pb_trace_free(entry);
    }
    printf("%llu plans\n", (unsigned long long)t->plans);
    return RT_OK;
}

rt_status app_trace_print(const char *path)
{
    rt_map map;
    pb_trace trace;
    RT_TRY(rt_map_open(path, &map));
    rt_status status = pb_trace_open(map.data, map.len, &trace);
    if (status == RT_OK) {
        status = print_plans(&trace);
        pb_trace_close(&trace);
    }
    rt_map_close(&map);
    const bool written = fflush(stdout) == 0 && !ferror(stdout);
    if (status != RT_OK)
        return RT_FAIL(status, "%s: %s", path, rt_last_error());
    return written ? RT_OK
                   : RT_FAIL(RT_ERR_IO, "standard output: cannot write: %s", strerror(errno));
}
