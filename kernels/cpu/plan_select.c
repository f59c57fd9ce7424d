// SPDX-License-Identifier: Apache-2.0
// Choice of pages on the CPU: every active row takes its best pages, the list of a
// segment is their union, with the request's kept list where its kind wants it. The
// cut of a row is found by radix selection on the score's order-preserving key: four
// passes over the pages, whatever the scores.
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

static kern_page_choice choice_of(const kern_page_select_args *args, int seg)
{
    return args->choice[kern_ci32(args->batch->seg_kind)[seg]];
}

static void mark_scans(const kern_page_select_args *args, int seg, int list, int pages,
                       unsigned char *marked)
{
    const kern_batch *batch = args->batch;
    const int top = choice_of(args, seg).top;
    if (top == 0)
        return;
    const int budget = plan_budget(top, pages);
    if (budget == pages) {
        memset(marked, 1, (size_t)pages);
        return;
    }
    const size_t width = (size_t)batch->max_pages;
    const size_t entry = (size_t)seg * (size_t)args->score_lists + (size_t)(args->list0 + list);
    const float *score = kern_cf32(args->score) + entry * (size_t)args->plan->act_cap * width;
    const int rows = kern_ci32(args->plan->act_count)[seg];
    for (int i = 0; i < rows; i++)
        mark_row(score + (size_t)i * width, pages, budget, marked);
}

static void mark_kept(const kern_page_select_args *args, int seg, int list, int pages,
                      unsigned char *marked)
{
    const kern_kept_lists *kept = args->kept;
    if (!choice_of(args, seg).kept)
        return;
    const size_t entry =
        (size_t)kern_ci32(args->batch->seg_slot)[seg] * (size_t)kept->lists + (size_t)list;
    const int32_t *page = kern_ci32(kept->pages) + entry * (size_t)kept->cap;
    for (int i = 0; i < kern_ci32(kept->count)[entry]; i++)
        if (page[i] < pages)
            marked[page[i]] = 1;
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
    if (pages == 0)
        return;
    unsigned char *marked = (unsigned char *)kern_cpu_scratch(run->dev, thread, (width + 3) / 4);
    memset(marked, 0, (size_t)pages);
    marked[0] = marked[pages - 1] = 1;
    mark_scans(args, seg, list, pages, marked);
    mark_kept(args, seg, list, pages, marked);
    for (int g = 0; g < pages; g++)
        if (marked[g])
            out[(*out_count)++] = g;
}

// The request of a segment has a row in the kept lists.
static rt_status check_kept(const char *op, const kern_batch *batch, const kern_kept_lists *kept,
                            int seg)
{
    const size_t lists = (size_t)kept->lists, cap = (size_t)kept->cap;
    const size_t by_count = kern_buf_count(kept->count) / lists;
    const size_t by_pages = kern_buf_count(kept->pages) / lists / cap;
    const size_t slots = by_count < by_pages ? by_count : by_pages;
    const int slot = kern_ci32(batch->seg_slot)[seg];
    if (slot >= 0 && (size_t)slot < slots)
        return RT_OK;
    return RT_FAIL(RT_ERR_INVALID, "%s: batch.seg_slot: segment %d has %d, kept lists %zu", op, seg,
                   slot, slots);
}

static rt_status check_choices(const kern_page_select_args *args)
{
    const kern_batch *batch = args->batch;
    for (int seg = 0; seg < batch->sparse_segs; seg++) {
        const kern_page_choice choice = choice_of(args, seg);
        if ((choice.top > 0) != (seg < batch->scan_segs))
            return RT_FAIL(RT_ERR_INVALID,
                           "kern_page_select: choice: segment %d of %d that scan "
                           "is of a kind that takes %d pages",
                           seg, batch->scan_segs, choice.top);
        if (choice.kept && !args->kept)
            return RT_FAIL(RT_ERR_INVALID, "kern_page_select: kept is NULL");
        if (choice.kept)
            RT_TRY(check_kept("kern_page_select", batch, args->kept, seg));
    }
    return RT_OK;
}

// Without active rows nothing is read or scanned, and there is no budget.
static void count_segment(const kern_page_select_args *args, int seg)
{
    const kern_batch *batch = args->batch;
    const kern_plan *plan = args->plan;
    int64_t *count = (int64_t *)args->counts->ptr + (size_t)seg * KERN_COUNT_N;
    const int row = kern_ci32(batch->seg_row0)[seg];
    if (kern_ci32(batch->seg_row0)[seg + 1] == row)
        return;
    const int active = kern_ci32(plan->act_count)[seg];
    const int prefix = plan_prefix(batch, row), pages = plan_pages(batch, prefix);
    count[KERN_COUNT_PREFIX] += (int64_t)prefix * plan->lists;
    count[KERN_COUNT_ACTIVE] += active;
    for (int list = 0; active > 0 && list < plan->lists; list++) {
        const plan_list entry = plan_pages_of(batch, plan, seg, list);
        count[KERN_COUNT_READ] += plan_list_tokens(batch, entry, prefix);
        count[KERN_COUNT_SCANNED] += seg < batch->scan_segs ? pages : 0;
        count[KERN_COUNT_UNION] += entry.count;
        count[KERN_COUNT_BUDGET] += plan_budget(choice_of(args, seg).budget, pages);
    }
}

rt_status kern_cpu_page_select(kern_dev *dev, const kern_page_select_args *args)
{
    const kern_batch *batch = args->batch;
    const size_t width = (size_t)batch->max_pages;
    RT_TRY(kern_cpu_scratch_check(dev, "kern_page_select", (width + 3) / 4));
    RT_TRY(plan_check_sparse("kern_page_select", batch, args->plan));
    RT_TRY(check_choices(args));
    select_run run = {dev, args};
    const size_t lists = (size_t)batch->sparse_segs * (size_t)args->plan->lists;
    kern_cpu_run(dev, lists, lists * (size_t)args->plan->act_cap * width, select_list, &run);
    for (int seg = 0; args->counts && seg < batch->sparse_segs; seg++)
        count_segment(args, seg);
    return RT_OK;
}

rt_status kern_cpu_page_plan(kern_dev *dev, const kern_page_plan_args *args)
{
    if (args->select.batch->scan_segs > 0)
        RT_TRY(kern_cpu_page_score(dev, &args->score));
    return kern_cpu_page_select(dev, &args->select);
}

// ---- lists from attention mass ------------------------------------------------------

typedef struct mass_run {
    kern_dev *dev;
    const kern_mass_select_args *args;
} mass_run;

// Keeps the list `item` of (segment, list) in the row of its request.
static void keep_list(void *ctx, size_t item, int thread)
{
    const mass_run *run = ctx;
    const kern_mass_select_args *args = run->args;
    const kern_batch *batch = args->batch;
    const kern_kept_lists *kept = args->kept;
    const int seg = (int)(item / (size_t)kept->lists), list = (int)(item % (size_t)kept->lists);
    const int number = kern_ci32(batch->seg_mass)[seg];
    if (number < 0)
        return;
    const size_t entry =
        (size_t)kern_ci32(batch->seg_slot)[seg] * (size_t)kept->lists + (size_t)list;
    int32_t *out = kern_i32(kept->pages) + entry * (size_t)kept->cap;
    int32_t *count = kern_i32(kept->count) + entry;
    *count = 0;
    const int last = kern_ci32(batch->seg_row0)[seg + 1] - 1;
    const int pages = plan_pages(batch, plan_prefix(batch, last));
    if (pages == 0)
        return;
    const size_t width = (size_t)batch->max_pages;
    const float *mass =
        kern_cf32(args->mass) +
        ((size_t)number * (size_t)args->score_lists + (size_t)(args->list0 + list)) * width;
    unsigned char *marked = (unsigned char *)kern_cpu_scratch(run->dev, thread, (width + 3) / 4);
    const int share = plan_share(args->share, pages);
    const int budget = plan_budget(share > 0 ? share : args->top, pages);
    memset(marked, budget == pages, (size_t)pages);
    if (budget < pages)
        mark_row(mass, pages, budget, marked);
    for (int g = 0; g < pages; g++)
        if (marked[g])
            out[(*count)++] = g;
}

rt_status kern_cpu_mass_select(kern_dev *dev, const kern_mass_select_args *args)
{
    const size_t width = (size_t)args->batch->max_pages;
    RT_TRY(kern_cpu_scratch_check(dev, "kern_mass_select", (width + 3) / 4));
    RT_TRY(plan_check_mass("kern_mass_select", args->batch));
    for (int seg = 0; seg < args->batch->segs; seg++)
        if (kern_ci32(args->batch->seg_mass)[seg] >= 0)
            RT_TRY(check_kept("kern_mass_select", args->batch, args->kept, seg));
    mass_run run = {dev, args};
    const size_t lists = (size_t)args->batch->segs * (size_t)args->kept->lists;
    kern_cpu_run(dev, lists, lists * width, keep_list, &run);
    return RT_OK;
}
