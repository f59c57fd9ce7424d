// SPDX-License-Identifier: Apache-2.0
// What the attention kernels share: which lanes and keys a block works on, and where it
// leaves them.
//
// A lane is a row and a query head of a KV head's group. A tile is up to `lanes` consecutive
// lanes for one KV head and the keys that they read: active rows of a segment and their prefix,
// or all rows of a block and the block itself. Tokens of prefixes are cut into units of `keys`
// tokens; a block is never cut and counts for `weight` units. Every worker begins with its share
// of the blocks and takes of the units of all prefixes, one after another, so many that it has
// as many units as the others or one more, wherever that cuts a tile. Where there are fewer units
// than workers, so many work. So the grid is fixed by the batch's shape while every
// multiprocessor reads the same number of keys, whichever rows are active and whatever they read.
//
// Where the rows of a segment fill several tiles of a KV head, all of these read the same keys, and
// should do so at the same time, so that memory brings them once and the L2 the other times:
// `side` workers in a row are a team, `side` tiles in a row a bundle; what is cut are bundles, for
// teams, and each worker of a team takes the team's units of a tile of its own.
//
// A share is a run of pieces, each of one tile. A piece that is a whole tile goes to `o` and
// `lse`, a block to `out` and `own_lse`; of a tile that is cut, every worker leaves (m, l, o) in
// the workspace. attention.cu adds these in order and merges the rows' two parts in `out`. At
// most two pieces of a share are parts of tiles: one that goes on with its tile, and the last.
#ifndef KERNELS_CUDA_ATTN_WORK_CUH
#define KERNELS_CUDA_ATTN_WORK_CUH

#include "kernels/cuda/common.cuh"

// Quotients of numbers x >= 0, with x * by < 2^31 unless `by` is a power of two, without the 25
// instructions of a division: a kernel's start is a chain of them.
struct divider {
    int by;
    unsigned factor; // 2^31 / by, rounded up

    __device__ int of(int x) const
    {
        return (int)((unsigned long long)x * factor >> 31);
    }
};

static inline divider divide_by(int by)
{
    return {by, (0x80000000u + (unsigned)by - 1) / (unsigned)by};
}

struct attn_view {
    const float *qkv; // [rows, stride]
    const void *k, *v;
    float *o, *lse;
    float *page_lse; // or NULL
    any_cells out;   // at first of the rows' own blocks (own_cells)
    int stride, dim;
    divider heads, kv_heads, group;
    float scale;
    divider lanes; // of a tile, a power of two
    divider keys;  // of a unit
    divider parts; // tiles of a block
    divider side;  // workers of a team, and tiles of a bundle
    divider wide;  // lanes of a bundle
    int spare;     // bundles that a segment may need beyond those its lanes would fill
    int bundles;   // upper bound of the numbers of bundles
    int blocks;    // tiles of blocks
    int weight;    // units that one counts for
    int workers;   // blocks of the kernel

    // In the workspace.
    float *own_lse; // as lse, of the rows' own blocks
    int2 *home;     // [bundles, side]: the first and the last worker of a tile
    float2 *stat;   // [2, lanes, workers]: m (to base 2), l
    float *part;    // [2, lanes, workers, dim]: o
};

struct work_tile {
    bool own;       // a block, not a prefix
    int seg, place; // among the tiles of the segment
    int kv_head, lane0, lanes;
    int row0, count; // rows of the segment or block
    const int *rows; // the active ones of them; NULL: all
    const int *list;
    int list_count; // -1: every page
    int prefix;     // before the first row
    int tokens;     // most that a lane of the tile reads
    bool level;     // all lanes read so many
};

__device__ inline int lane_row(const attn_view &a, const work_tile &t, int lane)
{
    const int i = a.group.of(t.lane0 + lane);
    return t.rows ? t.rows[i] : t.row0 + i;
}

__device__ inline int lane_head(const attn_view &a, const work_tile &t, int lane)
{
    const int i = t.lane0 + lane;
    return t.kv_head * a.group.by + i - a.group.of(i) * a.group.by;
}

// The first bundle of a segment. Segments are whole blocks of rows, but for the batch's end.
__device__ inline int first_bundle(const attn_view &a, int seg, int row0)
{
    return a.wide.of(row0 * a.heads.by) + a.spare * seg;
}

// Tiles of a KV head that so many rows of a segment fill.
__device__ inline int head_tiles(const attn_view &a, int rows)
{
    return max(a.lanes.of(rows * a.group.by + a.lanes.by - 1), 1);
}

// Makes `t` the tile of this place in its segment, where those of a KV head follow each other;
// there may be none.
__device__ inline void turn_to(const attn_view &a, work_tile &t, int place)
{
    const int tiles = head_tiles(a, t.count);
    t.place = place;
    t.kv_head = tiles == 1 ? place : place / tiles;
    t.lane0 = (place - t.kv_head * tiles) * a.lanes.by;
}

// Before begin_kernel the L1 may still hold what an earlier kernel found there.
template <bool EARLY> __device__ inline int peek(const int *from)
{
    return EARLY ? __ldcg(from) : *from;
}

// What the host says of a tile of a bundle: EARLY, before begin_kernel.
template <bool EARLY>
__device__ inline work_tile place_tile(const attn_view &a, const batch_view &b, int bundle,
                                       int member)
{
    work_tile t = {};
    for (int high = b.segs - 1; t.seg < high;) { // the last that begins here or before
        const int middle = (t.seg + high + 1) / 2;
        if (first_bundle(a, middle, peek<EARLY>(b.seg_row0 + middle)) <= bundle)
            t.seg = middle;
        else
            high = middle - 1;
    }
    t.row0 = peek<EARLY>(b.seg_row0 + t.seg);
    t.count = peek<EARLY>(b.seg_row0 + t.seg + 1) - t.row0;
    t.level = t.count <= b.block;
    t.prefix = peek<EARLY>(b.pos + t.row0) / b.block * b.block;
    turn_to(a, t, (bundle - first_bundle(a, t.seg, t.row0)) * a.side.by + member);
    return t;
}

// What the plan adds. The tile may have no lanes: then what it reads is not set.
__device__ inline void fill_tile(const attn_view &a, const batch_view &b, const plan_view &p,
                                 work_tile &t)
{
    const int active = p.act_count[t.seg], kv_head = min(t.kv_head, a.kv_heads.by - 1);
    t.list = p.list(t.seg, p.lists == 1 ? 0 : kv_head, &t.list_count);
    t.rows = active == t.count ? nullptr : p.act_rows + t.row0;
    t.lanes = t.kv_head == kv_head ? min(active * a.group.by - t.lane0, a.lanes.by) : 0;
    if (t.lanes <= 0)
        return;
    // Rows and prefixes ascend; those of a block have the same prefix.
    const int prefix = t.level ? t.prefix : b.prefix(lane_row(a, t, t.lanes - 1));
    t.tokens = list_tokens(b, t.list, t.list_count, prefix);
}

__device__ inline work_tile block_at(const attn_view &a, const batch_view &b, int number)
{
    work_tile t = {};
    const int tile = a.kv_heads.of(number), block = a.parts.of(tile);
    t.own = t.level = true;
    t.kv_head = number - tile * a.kv_heads.by;
    t.row0 = block * b.block;
    t.count = t.tokens = min(b.rows - t.row0, b.block);
    t.lane0 = (tile - block * a.parts.by) * a.lanes.by;
    t.lanes = min(t.count * a.group.by - t.lane0, a.lanes.by);
    return t;
}

// Units of a prefix tile; one where it has lanes but nothing to read, since that too is a
// result.
__device__ inline int tile_units(const attn_view &a, const work_tile &t)
{
    return t.lanes <= 0 ? 0 : max(a.keys.of(t.tokens + a.keys.by - 1), 1);
}

// The units that every worker of a team takes of a bundle: those of its longest tile. Fills `t`,
// which is one of its tiles.
__device__ inline int bundle_units(const attn_view &a, const batch_view &b, const plan_view &p,
                                   work_tile &t)
{
    const int first = a.side.of(t.place) * a.side.by;
    fill_tile(a, b, p, t);
    int units = tile_units(a, t);
#pragma unroll 1
    for (int i = 0; i < a.side.by; i++) {
        work_tile other = t;
        if (first + i == t.place)
            continue;
        turn_to(a, other, first + i);
        fill_tile(a, b, p, other);
        units = max(units, tile_units(a, other));
    }
    return units;
}

struct work_piece {
    work_tile t;
    int first, end; // tokens of the tile's list
    int slot;       // in stat and part, for lane 0; -1: a whole tile
};

// What is left of a worker's share.
struct work_share {
    int block, stride; // the block that comes next, and how many numbers on the one after it
    bool begins;       // the first piece of prefixes comes next
    int bundle, unit;  // the bundle, and the unit of it, that come next
    int first, end;    // among the units of all bundles
};

struct share_room {
    int counts[WARP];
    int bundle, unit, units;
    work_tile t;
};

// How much of `all` the workers before `worker` take, if the first ones take one more.
__device__ inline int even_share(int all, int workers, int worker)
{
    const int each = all / workers;
    return each * worker + min(worker, all - each * workers);
}

// Blocks, as many to a team as it has workers.
__device__ inline int team_blocks(const attn_view &a)
{
    return a.side.of(a.blocks + a.side.by - 1);
}

// How many of `all` units of bundles the teams before `team` take. The last ones begin with a
// block more than the others, which first make up for that. Only the last may have nothing: the
// workers of a tile follow each other.
__device__ inline int units_before(const attn_view &a, int all, int teams, int team)
{
    const int lighter = teams - team_blocks(a) % teams, first = min(all, a.weight * lighter);
    return even_share(first, lighter, min(team, lighter)) + even_share(all - first, teams, team);
}

// Begins the kernel and finds the share of this block. All threads; `room` is shared.
__device__ inline work_share begin_share(const attn_view &a, const batch_view &b,
                                         const plan_view &p, share_room &room)
{
    const int each = (a.bundles + (int)blockDim.x - 1) / (int)blockDim.x;
    const int from = min((int)threadIdx.x * each, a.bundles), to = min(from + each, a.bundles);
    const int team = a.side.of(blockIdx.x), member = blockIdx.x - team * a.side.by;
    work_tile t = {};
    int mine = 0, last = 0, all;
    if (from < to)
        t = place_tile<true>(a, b, from, member);
    begin_kernel();
    for (int i = from; i < to; i++) {
        if (i > from)
            t = place_tile<false>(a, b, i, member);
        last = bundle_units(a, b, p, t);
        mine += last;
    }
    const int before = block_scan(mine, room.counts, &all);
    const int teams = min(a.side.of(a.workers), all + team_blocks(a));
    if (team >= teams)
        return {a.blocks, 1, false, 0, 0, 0, 0};
    work_share s = {(teams - 1 - team) * a.side.by + member, teams * a.side.by, true, 0, 0, 0, 0};
    s.first = units_before(a, all, teams, team);
    s.end = units_before(a, all, teams, team + 1);
    if (s.first == s.end)
        return s;
    if (before <= s.first && s.first < before + mine) { // this thread's bundles, from the last on
        int bundle = to - 1, begin = before + mine - last;
        for (; s.first < begin; begin -= last) {
            t = place_tile<false>(a, b, --bundle, member);
            last = bundle_units(a, b, p, t);
        }
        room.bundle = bundle;
        room.unit = s.first - begin;
        room.units = last;
        room.t = t;
    }
    __syncthreads();
    s.bundle = room.bundle;
    s.unit = room.unit;
    return s;
}

// Takes the next block off a share; false when it has no more.
__device__ inline bool next_block(const attn_view &a, const batch_view &b, work_share &s,
                                  work_piece &piece)
{
    for (; s.block < a.blocks; s.block += s.stride) {
        piece = {block_at(a, b, s.block), 0, 0, -1};
        piece.end = piece.t.tokens;
        if (piece.t.lanes > 0) {
            s.block += s.stride;
            return true;
        }
    }
    return false;
}

// Takes the bundle that comes next off a share; false where the worker's tile has no unit of it.
__device__ inline bool next_units(const attn_view &a, const batch_view &b, const plan_view &p,
                                  const share_room &room, work_share &s, work_piece &piece)
{
    const int member = blockIdx.x - a.side.of(blockIdx.x) * a.side.by, from = s.unit;
    int all;
    if (s.begins) {
        piece.t = room.t;
        all = room.units;
    } else {
        piece.t = place_tile<false>(a, b, s.bundle, member);
        all = bundle_units(a, b, p, piece.t);
    }
    const int units = tile_units(a, piece.t), to = min(min(all, from + s.end - s.first), units);
    const bool any = from < to, begins = from == 0, ends = to == units;
    piece.first = from * a.keys.by;
    piece.end = ends ? piece.t.tokens : to * a.keys.by;
    piece.slot = begins && ends ? -1 : begins * a.lanes.by * a.workers + (int)blockIdx.x;
    int2 *const home = a.home + s.bundle * a.side.by + member;
    if (any && begins && threadIdx.x == blockDim.x - 1) // not the busiest thread
        home->x = blockIdx.x;
    if (any && ends && threadIdx.x == blockDim.x - 1)
        home->y = blockIdx.x;
    s.begins = false;
    s.first += min(all - from, s.end - s.first);
    s.unit = 0;
    s.bundle++;
    return any;
}

// Takes the next piece off a share; false when nothing is left.
__device__ inline bool next_piece(const attn_view &a, const batch_view &b, const plan_view &p,
                                  const share_room &room, work_share &s, work_piece &piece)
{
    if (next_block(a, b, s, piece))
        return true;
    while (s.first < s.end)
        if (next_units(a, b, p, room, s, piece))
            return true;
    return false;
}

// How many tokens of a tile's list a lane may see.
__device__ inline int lane_tokens(const batch_view &b, const work_tile &t, int row)
{
    return t.level ? t.tokens : list_tokens(b, t.list, t.list_count, b.prefix(row));
}

// Where the page sums of a lane go; NULL: not wanted.
__device__ inline float *lane_page_lse(const attn_view &a, const batch_view &b, const work_tile &t,
                                       int lane)
{
    if (!a.page_lse || t.own || b.seg_mass[t.seg] < 0)
        return nullptr;
    const int row = lane_row(a, t, lane);
    if (b.kv_slot[row] >= 0)
        return nullptr;
    const size_t place = (size_t)b.seg_mass[t.seg] * b.block + b.pos[row] % b.block;
    return a.page_lse + (place * a.heads.by + lane_head(a, t, lane)) * b.max_pages;
}

// The logical page of entry `i` of the tile's list.
__device__ inline int listed_page(const work_tile &t, int i)
{
    return t.list_count < 0 ? i : t.list[i];
}

// A key of the block itself, of a KV head; its value is kv_heads * dim further.
__device__ inline const float *own_key(const attn_view &a, const work_tile &t, int token)
{
    return a.qkv + (size_t)(t.row0 + token) * a.stride + (size_t)(a.heads.by + t.kv_head) * a.dim;
}

// 2^x; results below the normal numbers are 0.
__device__ inline float power(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// log2(x); below the normal numbers x counts as 0.
__device__ inline float log_2(float x)
{
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static const float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

// The view of `out` in which what rows get of their blocks waits there: bf16 for f16 too.
__device__ inline any_cells own_cells(const attn_view &a)
{
    return {a.out.at, a.out.dtype == KERN_F32 ? KERN_F32 : KERN_BF16};
}

// How a kernel cuts the work: lanes of a tile, keys of a unit, units that a block of tokens
// counts for, and the kernel's blocks that fit a multiprocessor, by registers and by shared
// memory.
struct work_shape {
    int lanes, keys, weight, blocks;
    size_t shared;
};

// The kernels on tensor cores take bf16 pages of some shapes (mma_takes): with Ampere's
// instructions (attn_mma.cu) or, tiles of 128 lanes, with Hopper's (attn_wgmma.cu).
bool mma_takes(const attn_view &v, const batch_view &b);
work_shape mma_shape(const attn_view &v, const batch_view &b);
int launch_mma(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b,
               const plan_view &p);
bool wgmma_takes(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b);
work_shape wgmma_shape(const attn_view &v);
int launch_wgmma(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b,
                 const plan_view &p);

// All of it (attn_work.cu): picks a kernel, cuts the work, and sets the fields from
// `lanes` on.
int launch_work(const kern_cuda_ctx *ctx, bool narrow, const batch_view &b, const plan_view &p,
                attn_view *v);

#endif
