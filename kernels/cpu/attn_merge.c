// SPDX-License-Identifier: Apache-2.0
// In-block attention and its merge with the prefix part on the CPU. The rows of a
// batch are whole blocks, but for the last, so block b is rows [b * block,
// (b + 1) * block), as far as there are; an item
// is one block and one KV head, on the same tile as prefix attention, with the
// keys and values read where the projection left them.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attn_tile.h"
#include "kernels/cpu/plan.h"
#include "kernels/cpu/vexp.h"

#include <math.h>
#include <string.h>

typedef struct merge_run {
    kern_dev *dev;
    const kern_attn_args *args;
    int group; // query heads of a KV head
} merge_run;

static size_t scratch_floats(int dim)
{
    return attn_tile_floats(dim) + attn_state_floats(dim, ATTN_LANES) + (size_t)dim;
}

static bool is_active(const kern_attn_args *args, int row)
{
    const plan_rows rows =
        plan_active(args->batch, args->plan, kern_ci32(args->batch->row_seg)[row]);
    int low = 0, high = rows.count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (rows.row[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low < rows.count && rows.row[low] == row;
}

// out = (e^Lp o_p + e^Lb o_b) / (e^Lp + e^Lb). A part without weight is not read:
// an empty prefix leaves no o_p.
static void merge_head(const float *o_p, float lse_p, const float *o_b, float lse_b, int dim,
                       float *out)
{
    const float top = lse_p > lse_b ? lse_p : lse_b;
    const float wp = kern_vexpf(lse_p - top), wb = kern_vexpf(lse_b - top);
    const float p = wp / (wp + wb), b = wb / (wp + wb);
    for (int c = 0; c < dim; c++)
        out[c] = p == 0.0f ? o_b[c] : p * o_p[c] + b * o_b[c];
}

// Takes the prefix part of a row and head from where it is, refreshes the cache
// when it is new, and writes the merged output.
static void merge_lane(const kern_attn_args *args, int row, int head, const float *o_b, float lse_b)
{
    const size_t dim = (size_t)args->kv.head_dim, heads = (size_t)args->heads;
    const size_t here = (size_t)row * heads + (size_t)head;
    const int slot = kern_ci32(args->batch->cache_slot)[row];
    const size_t cached = (size_t)(slot < 0 ? 0 : slot) * heads + (size_t)head;
    const float *o_p = kern_cf32(args->o) + here * dim;
    float lse_p = kern_cf32(args->lse)[here];
    if (!is_active(args, row)) {
        o_p = kern_cf32(args->cache_o) + cached * dim;
        lse_p = kern_cf32(args->cache_lse)[cached];
    } else if (slot >= 0) {
        memcpy(kern_f32(args->cache_o) + cached * dim, o_p, dim * sizeof *o_p);
        kern_f32(args->cache_lse)[cached] = lse_p;
    }
    merge_head(o_p, lse_p, o_b, lse_b, args->kv.head_dim, kern_f32(args->out) + here * dim);
}

// Rows of the block that begins at row0.
static int block_rows(const kern_batch *batch, int row0)
{
    const int left = batch->rows - row0;
    return left < batch->block ? left : batch->block;
}

static void attend_block(const merge_run *run, int row0, int kv_head, const attn_tile *tile,
                         attn_state *state)
{
    const kern_attn_args *args = run->args;
    const int block = block_rows(args->batch, row0);
    const float *k[ATTN_KEYS], *v[ATTN_KEYS];
    for (int first = 0; first < block; first += ATTN_KEYS) {
        const int count = block - first < ATTN_KEYS ? block - first : ATTN_KEYS;
        for (int i = 0; i < count; i++) {
            k[i] = attn_qkv_head(args, row0 + first + i, args->heads + kv_head);
            v[i] = attn_qkv_head(args, row0 + first + i, args->heads + args->kv.kv_heads + kv_head);
        }
        attn_tile_keys(tile, first, count, k, v, state);
    }
}

static void merge_block(void *ctx, size_t item, int thread)
{
    const merge_run *run = ctx;
    const kern_attn_args *args = run->args;
    const int group = run->group, dim = args->kv.head_dim;
    const int row0 = (int)(item / (size_t)args->kv.kv_heads) * args->batch->block;
    const int block = block_rows(args->batch, row0);
    const int kv_head = (int)(item % (size_t)args->kv.kv_heads);
    float *scratch = kern_cpu_scratch(run->dev, thread, scratch_floats(dim));
    attn_tile tile;
    attn_state state;
    attn_tile_init(&tile, dim, scratch);
    attn_state_init(&state, ATTN_LANES, scratch + attn_tile_floats(dim));
    float *o_b = scratch + scratch_floats(dim) - dim;
    for (int lane0 = 0; lane0 < block * group; lane0 += ATTN_LANES) {
        const int left = block * group - lane0;
        const int lanes = left < ATTN_LANES ? left : ATTN_LANES;
        for (int i = 0; i < lanes; i++) {
            const int row = row0 + (lane0 + i) / group;
            const int head = kv_head * group + (lane0 + i) % group;
            attn_tile_set(&tile, i, attn_qkv_head(args, row, head), args->scale, block);
        }
        attn_tile_close(&tile, lanes);
        attn_state_clear(&state, dim, lanes);
        attend_block(run, row0, kv_head, &tile, &state);
        for (int i = 0; i < lanes; i++) {
            const float lse_b = attn_state_finish(&state, dim, i, o_b);
            merge_lane(args, row0 + (lane0 + i) / group, kv_head * group + (lane0 + i) % group, o_b,
                       lse_b);
        }
    }
}

// Rows are whole blocks; the last may be a part of one.
static rt_status check_blocks(const kern_batch *batch)
{
    const int32_t *pos = kern_ci32(batch->pos), *seg = kern_ci32(batch->row_seg);
    const int block = batch->block;
    for (int row = 0; row < batch->rows; row += block) {
        const int last = row + block_rows(batch, row) - 1;
        if (seg[row] != seg[last] || pos[row] % block || pos[last] - pos[row] != last - row)
            return RT_FAIL(RT_ERR_INVALID,
                           "kern_attn: batch: rows from %d are not a whole block of %d", row,
                           block);
    }
    return RT_OK;
}

// Cache slots exist, and rows that reuse one have it.
static rt_status check_slots(const kern_attn_args *args)
{
    const size_t heads = (size_t)args->heads, dim = (size_t)args->kv.head_dim;
    const size_t lse_slots = kern_buf_count(args->cache_lse) / heads;
    const size_t o_slots = kern_buf_count(args->cache_o) / heads / dim;
    const size_t slots = lse_slots < o_slots ? lse_slots : o_slots;
    for (int row = 0; row < args->batch->rows; row++) {
        const int slot = kern_ci32(args->batch->cache_slot)[row];
        if (slot >= 0 && (size_t)slot >= slots)
            return RT_FAIL(RT_ERR_INVALID,
                           "kern_attn: batch.cache_slot: row %d has %d, the cache %zu", row, slot,
                           slots);
        if (slot < 0 && !is_active(args, row))
            return RT_FAIL(RT_ERR_INVALID,
                           "kern_attn: batch.cache_slot: row %d has none, nor is it active", row);
    }
    return RT_OK;
}

rt_status attn_check_blocks(const kern_dev *dev, const kern_attn_args *args)
{
    RT_TRY(kern_cpu_scratch_check(dev, "kern_attn", scratch_floats(args->kv.head_dim)));
    RT_TRY(check_blocks(args->batch));
    return check_slots(args);
}

void attn_merge_blocks(kern_dev *dev, const kern_attn_args *args)
{
    merge_run run = {dev, args, args->heads / args->kv.kv_heads};
    const kern_batch *batch = args->batch;
    const int blocks = (batch->rows + batch->block - 1) / batch->block;
    const size_t items = (size_t)blocks * (size_t)args->kv.kv_heads;
    rt_pool_run(dev->pool, items, merge_block, &run);
}
