// SPDX-License-Identifier: Apache-2.0
// What the prefix attention kernels share: which lanes and keys a block works on, and
// how runs over the keys are joined.
//
// A lane is an active row and a query head of a KV head's group. A tile is up to
// `lanes` consecutive lanes of a segment for one KV head; its list of pages is cut into
// `splits` runs of tokens, each left to a block. With more than one run the blocks
// leave (m, l, o) in the workspace and combine_kernel joins them in order. Grids are
// fixed by the batch's shape; which rows are active and what they read is found on the
// device, and blocks without work end.
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

__device__ inline int warp_scan_int(int x) // inclusive
{
    for (int offset = 1; offset < WARP; offset *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, x, offset);
        x += (int)(threadIdx.x % WARP) >= offset ? other : 0;
    }
    return x;
}

// Tile number `index` of the batch for a KV head; false: it has no lanes. Whole warps
// call it: each lane looks at a segment.
__device__ inline bool tile_at(const prefix_view &a, const batch_view &b, const plan_view &p,
                               int index, int kv_head, prefix_tile *out)
{
    const int list = p.lists == 1 ? 0 : kv_head;
    for (int base = 0; base < b.segs; base += WARP) {
        const int s = base + (int)(threadIdx.x % WARP);
        const bool in = s < b.segs;
        const int row0 = in ? b.seg_row0[s] : 0, rows = in ? b.seg_row0[s + 1] - row0 : 0;
        const int active = in ? p.act_count[s] : 0,
                  listed = in ? p.page_count[s * p.lists + list] : 0;
        const int tiles = (rows * a.group + a.lanes - 1) / a.lanes;
        const int end = warp_scan_int(tiles);
        const unsigned found = __ballot_sync(ALL_LANES, index < end);
        if (!found) {
            index -= __shfl_sync(ALL_LANES, end, WARP - 1);
            continue;
        }
        const int lane = __ffs(found) - 1;
        out->seg = base + lane;
        out->lane0 = (index - __shfl_sync(ALL_LANES, end - tiles, lane)) * a.lanes;
        out->lanes = min(__shfl_sync(ALL_LANES, active, lane) * a.group - out->lane0, a.lanes);
        if (out->lanes <= 0)
            return false;
        out->rows = p.act_rows + __shfl_sync(ALL_LANES, row0, lane);
        out->list = p.pages + (size_t)(out->seg * p.lists + list) * p.max_pages;
        out->list_count = __shfl_sync(ALL_LANES, listed, lane);
        // Rows ascend, and so do their prefixes.
        const int last = out->rows[(out->lane0 + out->lanes - 1) / a.group];
        out->tokens = list_tokens(b, out->list, out->list_count, b.prefix(last));
        return true;
    }
    return false;
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

// How a kernel cuts the work: lanes of a tile, keys it takes at a time, the unit of
// runs, and the shared memory of a block, which says how many run at once.
struct prefix_shape {
    int lanes, align;
    size_t shared;
};

// The kernels on tensor cores take bf16 pages of some shapes (mma_takes): with Ampere's
// instructions (attn_mma.cu) any tile of up to 128 lanes, with Hopper's (attn_wgmma.cu)
// tiles of 64 and 128.
bool mma_takes(const prefix_view &v, const batch_view &b);
prefix_shape mma_shape(const prefix_view &v, const batch_view &b);
int launch_mma(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
               const plan_view &p);
bool wgmma_takes(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b);
prefix_shape wgmma_shape(const prefix_view &v, const batch_view &b);
int launch_wgmma(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                 const plan_view &p);

#endif
