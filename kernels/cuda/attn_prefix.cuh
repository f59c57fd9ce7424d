// SPDX-License-Identifier: Apache-2.0
// How prefix attention is cut into work, shared by its kernels.
//
// The lanes of a (segment, KV head) are its active rows times the query heads of that
// KV head, row by row. They are cut into tiles; the tokens that a tile's list names are
// cut into `splits` runs of whole pages. A block takes one run of one tile and one KV
// head; when there is more than one run it leaves (m, l, o) for a second kernel, which
// adds the runs in order. The host knows rows and segments, not how many rows are
// active: there are blocks for all, and those without work end.
#ifndef KERNELS_CUDA_ATTN_PREFIX_CUH
#define KERNELS_CUDA_ATTN_PREFIX_CUH

#include "kernels/cuda/common.cuh"

struct prefix_view {
    const float *q;
    const void *k, *v;
    float *o, *lse;
    float *page_lse; // or NULL
    int stride, heads, kv_heads, dim, group;
    float scale;
    int lanes; // of a tile
    int tiles; // upper bound, over all segments
    int splits;
    int align;    // runs are multiples of so many tokens
    float2 *stat; // [tiles, kv_heads, splits, lanes]: m, l; splits > 1
    float *part;  // [tiles, kv_heads, splits, lanes, dim]: o
};

struct prefix_tile {
    int seg, lane0, lanes;
    const int *rows; // active rows of the segment
    const int *list;
    int list_count; // -1: every page
    int tokens;     // most that a lane of the tile reads
};

// Tile number `index` of the batch for a KV head; false: it has no lanes.
__device__ inline bool tile_at(const prefix_view &a, const batch_view &b, const plan_view &p,
                               int index, int kv_head, prefix_tile *out)
{
    int seg = 0;
    for (; seg < b.segs; seg++) {
        const int rows = b.seg_row0[seg + 1] - b.seg_row0[seg];
        const int tiles = (rows * a.group + a.lanes - 1) / a.lanes;
        if (index < tiles)
            break;
        index -= tiles;
    }
    if (seg == b.segs)
        return false;
    out->seg = seg;
    out->lane0 = index * a.lanes;
    out->lanes = min(p.act_count[seg] * a.group - out->lane0, a.lanes);
    if (out->lanes <= 0)
        return false;
    out->rows = p.act_rows + b.seg_row0[seg];
    out->list = p.list(seg, p.lists == 1 ? 0 : kv_head, &out->list_count);
    // Rows ascend, and so do their prefixes.
    const int last = out->rows[(out->lane0 + out->lanes - 1) / a.group];
    out->tokens = list_tokens(b, out->list, out->list_count, b.prefix(last));
    return true;
}

// Tokens [*first, *end) of run `split`.
__device__ inline void split_at(const prefix_view &a, const prefix_tile &t, int split, int *first,
                                int *end)
{
    const int each = (t.tokens + a.splits - 1) / a.splits;
    const int length = (each + a.align - 1) / a.align * a.align;
    *first = min(split * length, t.tokens);
    *end = min(*first + length, t.tokens);
}

__device__ inline int lane_row(const prefix_view &a, const prefix_tile &t, int lane)
{
    return t.rows[(t.lane0 + lane) / a.group];
}

__device__ inline int lane_head(const prefix_view &a, const prefix_tile &t, int kv_head, int lane)
{
    return kv_head * a.group + (t.lane0 + lane) % a.group;
}

// Where the page sums of a lane go; NULL: not wanted.
__device__ inline float *lane_page_lse(const prefix_view &a, const batch_view &b,
                                       const prefix_tile &t, int kv_head, int lane)
{
    if (!a.page_lse || b.seg_mass[t.seg] < 0)
        return nullptr;
    const int row = lane_row(a, t, lane);
    if (b.kv_slot[row] >= 0)
        return nullptr;
    const size_t place = (size_t)b.seg_mass[t.seg] * b.block + b.pos[row] % b.block;
    return a.page_lse + (place * a.heads + lane_head(a, t, kv_head, lane)) * b.max_pages;
}

// The logical page of entry `i` of the tile's list.
__device__ inline int listed_page(const prefix_tile &t, int i)
{
    return t.list_count < 0 ? i : t.list[i];
}

// Offset in K and V of a token of the list.
__device__ inline size_t token_offset(const prefix_view &a, const batch_view &b,
                                      const prefix_tile &t, int kv_head, int token)
{
    const int page = b.page_table[(size_t)t.seg * b.max_pages + listed_page(t, token / b.page)];
    return (((size_t)page * a.kv_heads + kv_head) * b.page + token % b.page) * a.dim;
}

// The kernel on tensor cores (attn_mma.cu): bf16 pages, if it takes the shape.
bool mma_takes(const prefix_view &v, const batch_view &b);
int mma_lanes_of(const prefix_view &v, const batch_view &b); // of a tile
int launch_mma(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
               const plan_view &p);

#endif
