// SPDX-License-Identifier: Apache-2.0
#include "launcher/trace_view.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *kind_name(uint32_t kind) // KERN_SEG_*
{
    static const char *const names[PB_SEGMENT_KINDS] = {"prefill", "commit", "open", "first",
                                                        "step",    "early",  "rest"};
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

static void print_entry(void *ctx, const pb_trace *t, const Pb__TracePlan *p)
{
    uint64_t *plans = ctx;
    if (!p) {
        print_head(t->head->head);
        return;
    }
    print_plan(t, p);
    *plans = t->plans;
}

rt_status app_trace_print(const char *path)
{
    uint64_t plans = 0;
    const rt_status status = app_trace_visit(path, print_entry, &plans);
    if (status == RT_OK)
        printf("%llu plans\n", (unsigned long long)plans);
    const bool written = fflush(stdout) == 0 && !ferror(stdout);
    if (status != RT_OK || written)
        return status;
    return RT_FAIL(RT_ERR_IO, "standard output: cannot write: %s", strerror(errno));
}
