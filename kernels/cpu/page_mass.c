// SPDX-License-Identifier: Apache-2.0
// Attention mass of pages on the CPU: what the online softmax saw of each page,
// against what it saw in all. An item is a list of a segment.
#include "kernels/cpu/plan.h"
#include "kernels/cpu/vexp.h"

#include <math.h>
#include <string.h>

// mass[g] += e^(page_lse[g] - lse), over the listed pages of a prefix of `pages`.
static void add_shares(const float *page_lse, float lse, plan_list list, int pages, float *mass)
{
    const int count = list.count < 0 ? pages : list.count;
    for (int i = 0; i < count; i++) {
        const int g = list.count < 0 ? i : list.page[i];
        if (g < pages)
            mass[g] += kern_vexpf(page_lse[g] - lse);
    }
}

// Query heads that the local list `list` stands for.
static int first_head(const kern_page_mass_args *args, int list, int *count)
{
    const int group = args->heads / args->kv_heads;
    *count = args->score_lists == 1 ? args->heads : group;
    return args->score_lists == 1 ? 0 : list * group;
}

static void sum_list(const kern_page_mass_args *args, int seg, int number, int list, float *mass)
{
    const kern_batch *batch = args->batch;
    const int32_t *seg_row0 = kern_ci32(batch->seg_row0);
    int count;
    const int head0 = first_head(args, list, &count);
    const plan_list read = plan_pages_of(batch, args->plan, seg, args->plan->lists == 1 ? 0 : list);
    for (int row = seg_row0[seg]; row < seg_row0[seg + 1]; row++) {
        if (kern_ci32(batch->kv_slot)[row] >= 0)
            continue;
        const int place = kern_ci32(batch->pos)[row] % batch->block;
        const int pages = plan_pages(batch, plan_prefix(batch, row));
        for (int h = head0; h < head0 + count; h++) {
            const size_t lane =
                ((size_t)number * (size_t)batch->block + (size_t)place) * (size_t)args->heads +
                (size_t)h;
            const float lse = kern_cf32(args->lse)[(size_t)row * (size_t)args->heads + (size_t)h];
            if (lse > -INFINITY)
                add_shares(kern_cf32(args->page_lse) + lane * (size_t)batch->max_pages, lse, read,
                           pages, mass);
        }
    }
}

static void mass_list(void *ctx, size_t item, int thread)
{
    (void)thread;
    const kern_page_mass_args *args = ctx;
    const kern_batch *batch = args->batch;
    const int seg = (int)(item / (size_t)args->score_lists);
    const int list = (int)(item % (size_t)args->score_lists);
    const int number = kern_ci32(batch->seg_mass)[seg];
    if (number < 0)
        return;
    const size_t width = (size_t)batch->max_pages;
    float *mass =
        kern_f32(args->mass) + ((size_t)number * (size_t)args->score_lists + (size_t)list) * width;
    memset(mass, 0, width * sizeof *mass);
    const int lists = args->score_lists == 1 ? 1 : args->kv_heads;
    if (list >= args->list0 && list < args->list0 + lists)
        sum_list(args, seg, number, list - args->list0, mass);
}

rt_status kern_cpu_page_mass(kern_dev *dev, const kern_page_mass_args *args)
{
    kern_page_mass_args ctx = *args;
    RT_TRY(plan_check_mass("kern_page_mass", args->batch));
    const size_t items = (size_t)args->batch->segs * (size_t)args->score_lists;
    rt_pool_run(dev->pool, items, mass_list, &ctx);
    return RT_OK;
}
