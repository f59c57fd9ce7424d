// SPDX-License-Identifier: Apache-2.0
// Importance of keys on the CPU: products with the block's mean query, and their peaks by
// page. An item is a run of pages of one list of one segment.
#include "kernels/cpu/plan.h"

#include <math.h>
#include <string.h>

enum { RUN = 64 }; // pages

static int runs_of(const kern_batch *batch)
{
    return (batch->max_pages + RUN - 1) / RUN;
}

// The mean query of the denoised rows of a segment, summed over the heads of each KV head
// [first, first + count): [count, dim].
static void mean_query(const kern_key_score_args *args, int seg, int first, int count, float *out)
{
    const kern_batch *batch = args->batch;
    const int32_t *seg_row0 = kern_ci32(batch->seg_row0);
    const size_t dim = (size_t)args->kv.head_dim;
    const int group = args->heads / args->kv.kv_heads;
    int rows = 0;
    memset(out, 0, (size_t)count * dim * sizeof *out);
    for (int row = seg_row0[seg]; row < seg_row0[seg + 1]; row++) {
        if (kern_ci32(batch->kv_slot)[row] >= 0)
            continue;
        rows++;
        const float *q =
            kern_cf32(args->q) + (size_t)row * (size_t)args->stride + (size_t)(first * group) * dim;
        for (int h = 0; h < count * group; h++)
            for (size_t c = 0; c < dim; c++)
                out[(size_t)(h / group) * dim + c] += q[(size_t)h * dim + c];
    }
    for (size_t i = 0; rows > 0 && i < (size_t)count * dim; i++)
        out[i] /= (float)rows;
}

static float product(const float *a, const float *b, size_t n)
{
    enum { SUMS = 8 };
    float sums[SUMS] = {0}, sum = 0.0f;
    size_t i = 0;
    for (; i + SUMS <= n; i += SUMS)
        for (size_t j = 0; j < SUMS; j++)
            sums[j] += a[i + j] * b[i + j];
    for (; i < n; i++)
        sums[0] += a[i] * b[i];
    for (size_t j = 0; j < SUMS; j++)
        sum += sums[j];
    return sum;
}

typedef struct score_run {
    kern_dev *dev;
    const kern_key_score_args *args;
} score_run;

// Scores of the tokens of page `g`, of KV heads [first, first + count).
static void score_page(const kern_key_score_args *args, int seg, int g, int tokens, int first,
                       int count, const float *q, float *out)
{
    const kern_kv *kv = &args->kv;
    const size_t page = (size_t)args->batch->page, dim = (size_t)kv->head_dim;
    const int32_t *table = kern_ci32(args->batch->page_table);
    const size_t at = (size_t)table[(size_t)seg * (size_t)args->batch->max_pages + (size_t)g];
    for (int h = 0; h < count; h++) {
        const float *k =
            kern_cf32(kv->k) + (at * (size_t)kv->kv_heads + (size_t)(first + h)) * page * dim;
        for (int t = 0; t < tokens; t++)
            out[t] += product(q + (size_t)h * dim, k + (size_t)t * dim, dim);
    }
}

static void score_list(void *ctx, size_t item, int thread)
{
    const score_run *run = ctx;
    const kern_key_score_args *args = run->args;
    const kern_batch *batch = args->batch;
    const size_t runs = (size_t)runs_of(batch), lists = (size_t)args->score_lists;
    const int seg = (int)(item / runs / lists), list = (int)(item / runs % lists);
    const int begin = (int)(item % runs) * RUN, number = kern_ci32(batch->seg_mass)[seg];
    if (number < 0)
        return;
    const int end = begin + RUN < batch->max_pages ? begin + RUN : batch->max_pages;
    const size_t page = (size_t)batch->page;
    float *out = kern_f32(args->score) +
                 (((size_t)number * lists + (size_t)list) * (size_t)batch->max_pages) * page;
    memset(out + (size_t)begin * page, 0, (size_t)(end - begin) * page * sizeof *out);
    const int local = list - args->list0, mine = lists == 1 ? 1 : args->kv.kv_heads;
    if (local < 0 || local >= mine)
        return;
    const int first = lists == 1 ? 0 : local, count = lists == 1 ? args->kv.kv_heads : 1;
    float *q =
        kern_cpu_scratch(run->dev, thread, (size_t)args->kv.kv_heads * (size_t)args->kv.head_dim);
    mean_query(args, seg, first, count, q);
    const int prefix = plan_prefix(batch, kern_ci32(batch->seg_row0)[seg + 1] - 1);
    for (int g = begin; g < end && g < plan_pages(batch, prefix); g++)
        score_page(args, seg, g, plan_page_tokens(batch, g, prefix), first, count, q,
                   out + (size_t)g * page);
}

rt_status kern_cpu_key_score(kern_dev *dev, const kern_key_score_args *args)
{
    const kern_batch *batch = args->batch;
    const size_t width = (size_t)args->kv.kv_heads * (size_t)args->kv.head_dim;
    RT_TRY(kern_cpu_scratch_check(dev, "kern_key_score", width));
    RT_TRY(plan_check_mass("kern_key_score", batch));
    score_run run = {dev, args};
    const size_t items = (size_t)batch->segs * (size_t)args->score_lists * (size_t)runs_of(batch);
    rt_pool_run(dev->pool, items, score_list, &run);
    return RT_OK;
}

// ---- peaks ----------------------------------------------------------------------------

static void peak_list(void *ctx, size_t item, int thread)
{
    (void)thread;
    const kern_key_peaks_args *args = ctx;
    const kern_batch *batch = args->batch;
    const size_t lists = (size_t)args->lists, width = (size_t)batch->max_pages;
    const int seg = (int)(item / lists), page = batch->page;
    const int number = kern_ci32(batch->seg_mass)[seg];
    if (number < 0)
        return;
    const size_t at = ((size_t)number * lists + item % lists) * width;
    const float *score = kern_cf32(args->score) + at * (size_t)page;
    float *mass = kern_f32(args->mass) + at;
    const int prefix = plan_prefix(batch, kern_ci32(batch->seg_row0)[seg + 1] - 1);
    for (int g = 0; g < batch->max_pages; g++) {
        const int from = g * page > 0 ? g * page - 1 : 0;
        const int to = (g + 1) * page + 1 < prefix ? (g + 1) * page + 1 : prefix;
        float most = g * page < prefix ? -INFINITY : 0.0f;
        for (int t = from; t < to && g * page < prefix; t++)
            most = score[t] > most ? score[t] : most;
        mass[g] = most;
    }
}

rt_status kern_cpu_key_peaks(kern_dev *dev, const kern_key_peaks_args *args)
{
    kern_key_peaks_args ctx = *args;
    RT_TRY(plan_check_mass("kern_key_peaks", args->batch));
    rt_pool_run(dev->pool, (size_t)args->batch->segs * (size_t)args->lists, peak_list, &ctx);
    return RT_OK;
}
