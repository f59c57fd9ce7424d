// SPDX-License-Identifier: Apache-2.0
// The page plan on the CPU: how far tokens moved (locality), which of them read
// the prefix (active set), and what a plan costs and hashes to.
#include "kernels/cpu/plan.h"

#include <string.h>

rt_status plan_check_rows(const char *op, const kern_batch *batch, const kern_plan *plan)
{
    const int32_t *seg_row0 = kern_ci32(batch->seg_row0);
    for (int seg = 0; seg < batch->segs; seg++) {
        const plan_rows rows = plan_active(batch, plan, seg);
        int32_t least = seg_row0[seg];
        if (rows.count < 0 || rows.count > seg_row0[seg + 1] - least)
            return RT_FAIL(RT_ERR_INVALID, "%s: segment %d: %d active of %d rows", op, seg,
                           rows.count, seg_row0[seg + 1] - least);
        for (int i = 0; i < rows.count; i++, least++) {
            if (rows.row[i] < least || rows.row[i] >= seg_row0[seg + 1])
                return RT_FAIL(RT_ERR_INVALID, "%s: segment %d: active row %d out of order", op,
                               seg, rows.row[i]);
            least = rows.row[i];
        }
    }
    return RT_OK;
}

rt_status plan_check_prefixes(const char *op, const kern_batch *batch, const kern_plan *plan,
                              int segs)
{
    for (int seg = 0; seg < segs; seg++) {
        const plan_rows rows = plan_active(batch, plan, seg);
        if (rows.count > 0 &&
            plan_pages(batch, plan_prefix(batch, rows.row[rows.count - 1])) > batch->max_pages)
            return RT_FAIL(RT_ERR_LIMIT, "%s: segment %d: the prefix exceeds %d pages", op, seg,
                           batch->max_pages);
    }
    return RT_OK;
}

rt_status plan_check_sparse(const char *op, const kern_batch *batch, const kern_plan *plan)
{
    RT_TRY(plan_check_rows(op, batch, plan));
    RT_TRY(plan_check_prefixes(op, batch, plan, batch->sparse_segs));
    for (int seg = 0; seg < batch->sparse_segs; seg++)
        if (kern_ci32(plan->act_count)[seg] > plan->act_cap)
            return RT_FAIL(RT_ERR_LIMIT, "%s: segment %d: %d active rows, capacity %d", op, seg,
                           kern_ci32(plan->act_count)[seg], plan->act_cap);
    return RT_OK;
}

rt_status plan_check_mass(const char *op, const kern_batch *batch)
{
    for (int seg = 0; seg < batch->segs; seg++) {
        const int number = kern_ci32(batch->seg_mass)[seg];
        const int last = kern_ci32(batch->seg_row0)[seg + 1] - 1;
        if (number < -1 || number >= batch->mass_segs)
            return RT_FAIL(RT_ERR_INVALID, "%s: batch.seg_mass: segment %d has %d of %d", op, seg,
                           number, batch->mass_segs);
        if (number >= 0 && last >= 0 &&
            plan_pages(batch, plan_prefix(batch, last)) > batch->max_pages)
            return RT_FAIL(RT_ERR_LIMIT, "%s: segment %d: the prefix exceeds %d pages", op, seg,
                           batch->max_pages);
    }
    return RT_OK;
}

// ---- locality ------------------------------------------------------------------

// Sum of (x - prev)^2, 0 where that is rounding; prev becomes x. Sixteen running sums,
// so that the order of additions is fixed and still fits vectors.
static float compare_row(const float *x, float *prev, int cols)
{
    enum { SUMS = 16 };
    float changes[SUMS] = {0}, squares[SUMS] = {0};
    int c = 0;
    for (; c + SUMS <= cols; c += SUMS)
        for (int j = 0; j < SUMS; j++) {
            const float d = x[c + j] - prev[c + j];
            changes[j] += d * d;
            squares[j] += x[c + j] * x[c + j];
        }
    for (; c < cols; c++) {
        const float d = x[c] - prev[c];
        changes[0] += d * d;
        squares[0] += x[c] * x[c];
    }
    for (int half = SUMS / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) {
            changes[j] += changes[j + half];
            squares[j] += squares[j + half];
        }
    memcpy(prev, x, (size_t)cols * sizeof *x);
    return changes[0] < KERN_NO_CHANGE * KERN_NO_CHANGE * squares[0] ? 0.0f : changes[0];
}

static void locality_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_locality_args *args = ctx;
    const kern_batch *batch = args->batch;
    float *delta = kern_f32(args->delta) + row;
    *delta = 0.0f;
    const int slot = kern_ci32(batch->cache_slot)[row];
    if (slot < 0)
        return;
    const float *x = kern_cf32(args->x) + row * (size_t)args->stride;
    const float sum =
        compare_row(x, kern_f32(args->prev) + (size_t)slot * (size_t)args->cols, args->cols);
    if (kern_ci32(batch->seg_kind)[kern_ci32(batch->row_seg)[row]] == KERN_SEG_STEP)
        *delta = sum / (float)args->cols * args->scale;
}

rt_status kern_cpu_locality(kern_dev *dev, const kern_locality_args *args)
{
    kern_locality_args ctx = *args;
    const size_t slots = kern_buf_count(args->prev) / (size_t)args->cols;
    for (int row = 0; row < args->batch->rows; row++) {
        const int slot = kern_ci32(args->batch->cache_slot)[row];
        if (slot >= 0 && (size_t)slot >= slots)
            return RT_FAIL(RT_ERR_INVALID,
                           "kern_locality: batch.cache_slot: row %d has %d, prev %zu", row, slot,
                           slots);
    }
    kern_cpu_run(dev, (size_t)args->batch->rows, (size_t)args->batch->rows * (size_t)args->cols,
                 locality_row, &ctx);
    return RT_OK;
}

// ---- active set ------------------------------------------------------------------

// Segments are one block: comparing all pairs is the short way. Ties: the lower row leads.
static bool changed_more(const float *delta, int other, int row)
{
    return delta[other] > delta[row] || (delta[other] == delta[row] && other < row);
}

// True if fewer than k of the candidate rows [first, end) changed more than `row`. Rows
// with an `excluded` bit in their state are no candidates.
static bool among_most_changed(const kern_active_args *args, int row, int first, int end,
                               int excluded)
{
    const float *delta = kern_cf32(args->delta);
    const int32_t *state = kern_ci32(args->batch->row_state);
    int ahead = 0;
    for (int other = first; other < end; other++)
        ahead += !(state[other] & excluded) && changed_more(delta, other, row);
    return ahead < args->k;
}

// True if the rows that changed more than `row` hold less than the share of all change.
static bool within_share(const kern_active_args *args, int row, int first, int end)
{
    const float *delta = kern_cf32(args->delta);
    float ahead = 0.0f, all = 0.0f;
    for (int other = first; other < end; other++) {
        all += delta[other];
        ahead += changed_more(delta, other, row) ? delta[other] : 0.0f;
    }
    return ahead < args->share * all;
}

static bool is_active(const kern_active_args *args, int row, int first, int end)
{
    const int32_t state = kern_ci32(args->batch->row_state)[row];
    switch (args->rule) {
    case KERN_ACTIVE_ALL:
        return true;
    case KERN_ACTIVE_TOPK:
        return among_most_changed(args, row, first, end, 0);
    case KERN_ACTIVE_NEW_TOPK:
        return (state & KERN_ROW_NEW) || among_most_changed(args, row, first, end, KERN_ROW_NEW);
    case KERN_ACTIVE_UNSETTLED:
        return (state & (KERN_ROW_MASKED | KERN_ROW_NEW)) != 0;
    case KERN_ACTIVE_SHARE:
        return within_share(args, row, first, end);
    }
    return true;
}

rt_status kern_cpu_active(kern_dev *dev, const kern_active_args *args)
{
    (void)dev;
    const kern_batch *batch = args->batch;
    const kern_plan *plan = args->plan;
    const int32_t *seg_row0 = kern_ci32(batch->seg_row0);
    for (int seg = 0; seg < batch->segs; seg++) {
        const bool sparse = seg < batch->sparse_segs;
        const int kind = kern_ci32(batch->seg_kind)[seg];
        const bool all = !sparse || kind != KERN_SEG_STEP, none = sparse && kind == KERN_SEG_REST;
        const int first = seg_row0[seg], end = seg_row0[seg + 1];
        int count = 0;
        for (int row = first; row < end && !none; row++)
            if (all || is_active(args, row, first, end))
                kern_i32(plan->act_rows)[first + count++] = row;
        kern_i32(plan->act_count)[seg] = count;
        if (sparse && count > plan->act_cap)
            return RT_FAIL(RT_ERR_LIMIT, "kern_active: segment %d: %d active rows, capacity %d",
                           seg, count, plan->act_cap);
        for (int list = 0; !sparse && list < plan->lists; list++)
            kern_i32(plan->page_count)[seg * plan->lists + list] = -1;
    }
    return RT_OK;
}

// ---- statistics ------------------------------------------------------------------

rt_status kern_cpu_plan_count(kern_dev *dev, const kern_plan_count_args *args)
{
    (void)dev;
    const kern_batch *batch = args->batch;
    const int32_t *seg_row0 = kern_ci32(batch->seg_row0);
    for (int seg = batch->sparse_segs; seg < batch->segs; seg++) {
        int64_t *count = (int64_t *)args->counts->ptr + (size_t)seg * KERN_COUNT_N;
        const int rows = seg_row0[seg + 1] - seg_row0[seg];
        if (rows == 0)
            continue;
        const int64_t read =
            (int64_t)plan_prefix(batch, seg_row0[seg + 1] - 1) * args->lists * args->layers;
        count[KERN_COUNT_PREFIX] += read;
        count[KERN_COUNT_READ] += read;
        count[KERN_COUNT_ACTIVE] += (int64_t)rows * args->layers;
    }
    return RT_OK;
}

static uint32_t fnv1a(uint32_t hash, const int32_t *words, int count)
{
    for (int i = 0; i < count; i++)
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ ((uint32_t)words[i] >> shift & 0xffu)) * 16777619u;
    return hash;
}

rt_status kern_cpu_plan_checksum(kern_dev *dev, const kern_plan_checksum_args *args)
{
    (void)dev;
    uint32_t hash = 2166136261u;
    for (int seg = 0; seg < args->batch->sparse_segs; seg++) {
        const plan_rows rows = plan_active(args->batch, args->plan, seg);
        hash = fnv1a(hash, &rows.count, 1);
        hash = fnv1a(hash, rows.row, rows.count);
        for (int list = 0; args->pages && list < args->plan->lists; list++) {
            const plan_list entry = plan_pages_of(args->batch, args->plan, seg, list);
            hash = fnv1a(hash, &entry.count, 1);
            hash = fnv1a(hash, entry.page, entry.count);
        }
    }
    const int32_t folded = (int32_t)((hash ^ hash >> 31) & 0x7fffffffu);
    kern_i32(args->out)[0] = folded;
    kern_i32(args->out)[1] = -folded;
    return RT_OK;
}
