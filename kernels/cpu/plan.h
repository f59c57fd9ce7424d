// SPDX-License-Identifier: Apache-2.0
// How the CPU operations read a batch and a page plan: prefixes, pages, lists.
#ifndef KERNELS_CPU_PLAN_H
#define KERNELS_CPU_PLAN_H

#include "kernels/kern_int.h"

// Tokens before the block of a row.
static inline int plan_prefix(const kern_batch *batch, int row)
{
    return kern_ci32(batch->pos)[row] / batch->block * batch->block;
}

static inline int plan_pages(const kern_batch *batch, int prefix)
{
    return (prefix + batch->page - 1) / batch->page;
}

// Tokens of a logical page that lie in the prefix.
static inline int plan_page_tokens(const kern_batch *batch, int page, int prefix)
{
    const int left = prefix - page * batch->page;
    return left < 0 ? 0 : left < batch->page ? left : batch->page;
}

// The rows of a segment that read the prefix, ascending.
typedef struct plan_rows {
    const int32_t *row;
    int count;
} plan_rows;

static inline plan_rows plan_active(const kern_batch *batch, const kern_plan *plan, int seg)
{
    return (plan_rows){kern_ci32(plan->act_rows) + kern_ci32(batch->seg_row0)[seg],
                       kern_ci32(plan->act_count)[seg]};
}

// The pages of one list of a segment; count -1: every page of the prefix.
typedef struct plan_list {
    const int32_t *page;
    int count;
} plan_list;

static inline plan_list plan_pages_of(const kern_batch *batch, const kern_plan *plan, int seg,
                                      int list)
{
    const size_t entry = (size_t)seg * (size_t)plan->lists + (size_t)list;
    return (plan_list){kern_ci32(plan->pages) + entry * (size_t)batch->max_pages,
                       kern_ci32(plan->page_count)[entry]};
}

// Tokens that a row with this prefix reads through a list: only the last page of
// the prefix can be partial, and lists ascend.
static inline int plan_list_tokens(const kern_batch *batch, plan_list list, int prefix)
{
    if (list.count <= 0)
        return list.count < 0 ? prefix : 0;
    const int last = list.page[list.count - 1];
    return (list.count - 1) * batch->page + plan_page_tokens(batch, last, prefix);
}

// Pages that one row takes of a prefix of `pages` pages: `top`, but the first and
// the last at least.
static inline int plan_budget(int top, int pages)
{
    const int least = pages < 2 ? pages : 2;
    return top < least ? least : top < pages ? top : pages;
}

// Pages that a share of a prefix of `pages` pages takes; 0 without one.
static inline int plan_share(float share, int pages)
{
    return share > 0.0f ? (int)(share * (float)pages) + 1 : 0;
}

// Every row that the plan names lies in its segment, in ascending order.
rt_status plan_check_rows(const char *op, const kern_batch *batch, const kern_plan *plan);

// The prefixes of the first `segs` segments fit the page table.
rt_status plan_check_prefixes(const char *op, const kern_batch *batch, const kern_plan *plan,
                              int segs);

// Both, and that the active rows of sparse segments fit the plan.
rt_status plan_check_sparse(const char *op, const kern_batch *batch, const kern_plan *plan);

// The segments that measure are numbered [0, mass_segs), and the prefixes of their rows
// fit the page table.
rt_status plan_check_mass(const char *op, const kern_batch *batch);

#endif
