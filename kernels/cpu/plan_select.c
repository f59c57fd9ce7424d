// SPDX-License-Identifier: Apache-2.0
// Choice of pages on the CPU: every active row takes its best pages, the list of a
// segment is their union. The cut of a row is found by radix selection on the
// score's order-preserving key: four passes over the pages, whatever the scores.
#include "kernels/cpu/plan.h"

#include <string.h>

typedef struct select_run {
    kern_dev *dev;
    const kern_page_select_args *args;
} select_run;

// Keys order as the floats do; NaN, which no score should be, leads.
static uint32_t order_key(float score)
{
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The key of the `need`-th best of `count` scores (1 <= need <= count); `ties` is
// how many scores with that very key belong to the best `need`.
static uint32_t find_cut(const float *score, int count, int need, int *ties)
{
    uint32_t cut = 0, known = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int histogram[256] = {0};
        for (int i = 0; i < count; i++) {
            const uint32_t key = order_key(score[i]);
            if ((key & known) == cut)
                histogram[key >> shift & 0xffu]++;
        }
        uint32_t digit = 255;
        for (; histogram[digit] < need; digit--)
            need -= histogram[digit];
        cut |= digit << shift;
        known |= 0xffu << shift;
    }
    *ties = need;
    return cut;
}

// Marks the pages that a row takes of the prefix pages [0, pages), budget < pages.
static void mark_row(const float *score, int pages, int budget, unsigned char *marked)
{
    marked[0] = 1;
    marked[pages - 1] = 1;
    const int need = budget - (pages > 1 ? 2 : 1);
    if (need <= 0)
        return;
    int ties;
    const uint32_t cut = find_cut(score + 1, pages - 2, need, &ties);
    for (int g = 1; g < pages - 1; g++) {
        const uint32_t key = order_key(score[g]);
        if (key > cut || (key == cut && ties-- > 0))
            marked[g] = 1;
    }
}

static void select_list(void *ctx, size_t item, int thread)
{
    const select_run *run = ctx;
    const kern_page_select_args *args = run->args;
    const kern_batch *batch = args->batch;
    const kern_plan *plan = args->plan;
    const int seg = (int)(item / (size_t)plan->lists), list = (int)(item % (size_t)plan->lists);
    const size_t width = (size_t)batch->max_pages;
    int32_t *out = kern_i32(plan->pages) + item * width;
    int32_t *out_count = kern_i32(plan->page_count) + item;
    *out_count = 0;
    const plan_rows rows = plan_active(batch, plan, seg);
    if (rows.count == 0)
        return;
    const int pages = plan_pages(batch, plan_prefix(batch, rows.row[0]));
    const int budget = plan_budget(args->top, pages);
    unsigned char *marked = (unsigned char *)kern_cpu_scratch(run->dev, thread, (width + 3) / 4);
    memset(marked, budget == pages, (size_t)pages);
    const size_t entry = (size_t)seg * (size_t)args->score_lists + (size_t)(args->list0 + list);
    const float *score = kern_cf32(args->score) + entry * (size_t)plan->act_cap * width;
    for (int i = 0; budget < pages && i < rows.count; i++)
        mark_row(score + (size_t)i * width, pages, budget, marked);
    for (int g = 0; g < pages; g++)
        if (marked[g])
            out[(*out_count)++] = g;
}

rt_status kern_cpu_page_select(kern_dev *dev, const kern_page_select_args *args)
{
    const kern_batch *batch = args->batch;
    const size_t width = (size_t)batch->max_pages;
    RT_TRY(kern_cpu_scratch_check("kern_page_select", (width + 3) / 4));
    RT_TRY(plan_check_sparse("kern_page_select", batch, args->plan));
    select_run run = {dev, args};
    const size_t lists = (size_t)batch->sparse_segs * (size_t)args->plan->lists;
    kern_cpu_run(dev, lists, lists * (size_t)args->plan->act_cap * width, select_list, &run);
    return RT_OK;
}
