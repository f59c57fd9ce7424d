// SPDX-License-Identifier: Apache-2.0
// What the prefix attention kernels share: which lanes and keys a block works on, and
// where it leaves them.
//
// A lane is an active row and a query head of a KV head's group. A tile is up to `lanes`
// consecutive lanes of a segment for one KV head; the tokens that it reads are cut into
// units of `keys` tokens. The units of all tiles, one after another, are shared out
// evenly: block c of `workers` takes [c/workers, (c+1)/workers) of them, wherever that cuts
// a tile. Where there are fewer units than workers, so many work. So the grid is fixed by
// the batch's shape while every multiprocessor reads the same number of keys, whichever rows
// are active and whatever they read.
//
// A share is a run of pieces, each of one tile. A piece that is a whole tile goes to `o`
// and `lse`; of a tile that is cut, every worker leaves (m, l, o) in the workspace, and
// attention.cu adds them in order. At most two pieces of a share are parts of tiles: the
// first (slot 2c), and the last (slot 2c + 1), which begins its tile.
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
    int lanes;    // of a tile
    int keys;     // of a unit
    int spare;    // 1 where a segment may need a tile more than its lanes fill, else 0
    int tiles;    // upper bound, over all segments
    int workers;  // blocks
    int2 *home;   // [tiles, kv_heads]: the first and the last worker of a tile
    float2 *stat; // [2 workers, lanes]: m, l
    float *part;  // [2 workers, lanes, dim]: o
};

struct prefix_tile {
    int seg, kv_head, lane0, lanes;
    const int *rows; // active rows of the segment
    const int *list;
    int list_count; // -1: every page
    int tokens;     // most that a lane of the tile reads
};

// The first tile of a segment. Segments are whole blocks of rows, but for the batch's end.
__device__ inline int first_tile(const prefix_view &a, const batch_view &b, int seg)
{
    return b.seg_row0[seg] * a.group / a.lanes + a.spare * seg;
}

// Tile and KV head number `number`. It may have no lanes: then nothing else is set.
__device__ inline prefix_tile tile_at(const prefix_view &a, const batch_view &b, const plan_view &p,
                                      int number)
{
    prefix_tile t;
    const int tile = number / a.kv_heads;
    t.kv_head = number % a.kv_heads;
    t.seg = 0;
    for (int high = b.segs - 1; t.seg < high;) { // the last that begins here or before
        const int middle = (t.seg + high + 1) / 2;
        if (first_tile(a, b, middle) <= tile)
            t.seg = middle;
        else
            high = middle - 1;
    }
    const int row0 = b.seg_row0[t.seg], rows = b.seg_row0[t.seg + 1] - row0;
    t.lane0 = (tile - first_tile(a, b, t.seg)) * a.lanes;
    t.lanes = min(p.act_count[t.seg] * a.group - t.lane0, a.lanes);
    if (t.lanes <= 0)
        return t;
    t.rows = p.act_rows + row0;
    t.list = p.list(t.seg, p.lists == 1 ? 0 : t.kv_head, &t.list_count);
    // Rows and prefixes ascend; those of a block have the same prefix.
    const int last = rows <= b.block ? row0 : t.rows[(t.lane0 + t.lanes - 1) / a.group];
    t.tokens = list_tokens(b, t.list, t.list_count, b.prefix(last));
    return t;
}

// Units of a tile; one where it has lanes but nothing to read, since that too is a result.
__device__ inline int tile_units(const prefix_view &a, const prefix_tile &t)
{
    return t.lanes <= 0 ? 0 : max((t.tokens + a.keys - 1) / a.keys, 1);
}

// What is left of a worker's share.
struct prefix_share {
    int number, unit; // the tile, and the unit of it, that come next
    int first, end;   // among the units of all tiles
    int all, workers; // units of all tiles, and who shares them
};

// The share of this block. All threads; memory: [WARP + 2], shared.
__device__ inline prefix_share find_share(const prefix_view &a, const batch_view &b,
                                          const plan_view &p, int *memory)
{
    const int numbers = a.tiles * a.kv_heads, each = (numbers + blockDim.x - 1) / blockDim.x;
    const int from = min((int)threadIdx.x * each, numbers), to = min(from + each, numbers);
    int mine = 0, all;
    for (int i = from; i < to; i++)
        mine += tile_units(a, tile_at(a, b, p, i));
    const int before = block_scan(mine, memory, &all), workers = min(a.workers, all);
    if ((int)blockIdx.x >= workers)
        return {0, 0, 0, 0, all, workers};
    const int first = (int)((long long)all * blockIdx.x / workers);
    const int end = (int)((long long)all * (blockIdx.x + 1) / workers);
    if (before <= first && first < before + mine) {
        int number = from, unit = first - before;
        for (int units; unit >= (units = tile_units(a, tile_at(a, b, p, number))); number++)
            unit -= units;
        memory[WARP] = number;
        memory[WARP + 1] = unit;
    }
    __syncthreads();
    return {memory[WARP], memory[WARP + 1], first, end, all, workers};
}

struct prefix_piece {
    prefix_tile t;
    int first, end; // tokens of the tile's list
    int slot;       // -1: a whole tile
};

// Takes the next piece off a share; false when nothing is left.
__device__ inline bool next_piece(const prefix_view &a, const batch_view &b, const plan_view &p,
                                  prefix_share &s, prefix_piece *out)
{
    while (s.first < s.end) {
        out->t = tile_at(a, b, p, s.number);
        const int units = tile_units(a, out->t), count = min(units - s.unit, s.end - s.first);
        out->first = s.unit * a.keys;
        out->end = min(out->first + count * a.keys, out->t.tokens);
        out->slot = count == units ? -1 : 2 * (int)blockIdx.x + (s.unit == 0);
        if (s.unit == 0 && count > 0 && threadIdx.x == 0) {
            const long long after = (long long)s.first + units;
            a.home[s.number] = make_int2(blockIdx.x, (int)((after * s.workers - 1) / s.all));
        }
        s.first += count;
        s.unit = 0;
        s.number++;
        if (count > 0)
            return true;
    }
    return false;
}

__device__ inline int lane_row(const prefix_view &a, const prefix_tile &t, int lane)
{
    return t.rows[(t.lane0 + lane) / a.group];
}

__device__ inline int lane_head(const prefix_view &a, const prefix_tile &t, int lane)
{
    return t.kv_head * a.group + (t.lane0 + lane) % a.group;
}

// Where the page sums of a lane go; NULL: not wanted.
__device__ inline float *lane_page_lse(const prefix_view &a, const batch_view &b,
                                       const prefix_tile &t, int lane)
{
    if (!a.page_lse || b.seg_mass[t.seg] < 0)
        return nullptr;
    const int row = lane_row(a, t, lane);
    if (b.kv_slot[row] >= 0)
        return nullptr;
    const size_t place = (size_t)b.seg_mass[t.seg] * b.block + b.pos[row] % b.block;
    return a.page_lse + (place * a.heads + lane_head(a, t, lane)) * b.max_pages;
}

// The logical page of entry `i` of the tile's list.
__device__ inline int listed_page(const prefix_tile &t, int i)
{
    return t.list_count < 0 ? i : t.list[i];
}

// How a kernel cuts the work: lanes of a tile, keys of a unit, and the blocks that fit a
// multiprocessor, by registers and by shared memory.
struct prefix_shape {
    int lanes, keys, blocks;
    size_t shared;
};

// The kernels on tensor cores take bf16 pages of some shapes (mma_takes): with Ampere's
// instructions (attn_mma.cu) or, tiles of 128 lanes, with Hopper's (attn_wgmma.cu).
bool mma_takes(const prefix_view &v, const batch_view &b);
prefix_shape mma_shape(const prefix_view &v, const batch_view &b);
int launch_mma(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
               const plan_view &p);
bool wgmma_takes(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b);
prefix_shape wgmma_shape(const prefix_view &v);
int launch_wgmma(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                 const plan_view &p);

// All of it (attn_prefix.cu): picks a kernel, cuts the work, and sets the fields from
// `lanes` on.
int launch_prefix(const kern_cuda_ctx *ctx, bool narrow, const batch_view &b, const plan_view &p,
                  prefix_view *v);

#endif
