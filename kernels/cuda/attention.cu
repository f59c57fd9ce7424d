// SPDX-License-Identifier: Apache-2.0
// Attention of a forward: to prefixes and blocks in one kernel (attn_work.cu), then, in
// another, what the workers left of cut tiles is added and the two parts of every row are
// merged.
//
// The second is a chain of a few waits for memory, so it makes use of the time before
// begin_kernel, while the first is still running. It may: it only starts when every block of
// the first has passed begin_kernel (all of them begin with it), so all kernels before that
// one are done and what they wrote is in the L2; and until begin_kernel it writes nothing
// and reads through the L2 alone (__ldcg), never what the first kernel writes. The first
// kernel reads early too, but only what the host wrote.
#include "kernels/cuda/attn_work.cuh"

enum { MERGE_WARPS = 2 }; // few registers: some blocks fit beside the first kernel

struct merge_view {
    attn_view work;
    float *cache_o, *cache_lse;
    divider split; // warps of a lane
};

// Place of a row among the active rows of its segment; -1: it is not. Whole warps.
__device__ static int active_place(const plan_view &p, int seg, int row0, int rows, int row)
{
    const int count = __ldcg(p.act_count + seg);
    if (count == rows)
        return row - row0;
    for (int base = 0; base < count; base += WARP) {
        const int i = base + (int)(threadIdx.x % WARP);
        const unsigned found =
            __ballot_sync(ALL_LANES, i < count && __ldcg(p.act_rows + row0 + i) == row);
        if (found)
            return base + __ffs(found) - 1;
    }
    return -1;
}

// N channels, moved at once.
template <int N> struct __align__(4 * N) channels
{
    float x[N];
};

// Channels of a lane, of its prefix or its block: N of each thread of a warp.
template <int N> struct lane_part {
    channels<N> o;
    float lse; // of all keys
};

template <int N> __device__ static channels<N> read(const float *from)
{
    channels<N> x;
    if constexpr (N == 4)
        *(float4 *)x.x = __ldcg((const float4 *)from);
    else
        x.x[0] = __ldcg(from);
    return x;
}

template <int N> __device__ static channels<N> read_cells(const any_cells &from, size_t at)
{
    channels<N> x;
    if constexpr (N == 4) {
        if (from.dtype == KERN_BF16) {
            const uint2 four = __ldcg((const uint2 *)((const __nv_bfloat16 *)from.at + at));
            const float2 low = __bfloat1622float2(*(const __nv_bfloat162 *)&four.x);
            const float2 high = __bfloat1622float2(*(const __nv_bfloat162 *)&four.y);
            return {low.x, low.y, high.x, high.y};
        }
    }
#pragma unroll
    for (int j = 0; j < N; j++)
        x.x[j] = from.get(at + j);
    return x;
}

// Adds what workers home.x to home.y, one of every team, left of a lane, from channel `c` on, in
// order. A thread holds the weight of a worker; the vectors are under way before weights are known.
template <int N>
__device__ static lane_part<N> add_parts(const attn_view &a, int2 home, int lane, int c)
{
    enum { CHUNK = 18 }; // a tile of 8 on 132 multiprocessors
    const int thread = threadIdx.x % WARP, began = a.lanes.by * a.workers;
    float top = -CUDART_INF_F, weights = 0.0f;
    lane_part<N> sum = {};
#pragma unroll 1
    for (int worker = home.x; worker <= home.y; worker += CHUNK * a.side.by) {
        const int count = min(a.side.of(home.y - worker) + 1, (int)CHUNK);
        const int at = lane * a.workers + worker, first = worker == home.x ? began : 0;
        const float *from = a.part + (size_t)at * a.dim + c;
        channels<N> x[CHUNK];
        x[0] = read<N>(from + (size_t)first * a.dim);
#pragma unroll
        for (int i = 1; i < CHUNK; i++) {
            from += a.side.by * a.dim;
            x[i] = i < count ? read<N>(from) : channels<N>{};
        }
        float2 stat = {-CUDART_INF_F, 0.0f};
        if (thread < count)
            stat = __ldcg(a.stat + at + thread * a.side.by + (thread == 0 ? first : 0));
        const float most = fmaxf(top, warp_max(stat.x)), base = fmaxf(most, -1e30f);
        const float weight = power(stat.x - base), keep = power(top - base);
        weights = weights * keep + warp_sum(weight * stat.y);
        top = most;
#pragma unroll
        for (int j = 0; j < N; j++)
            sum.o.x[j] *= keep;
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            const float scale = __shfl_sync(ALL_LANES, weight, i);
#pragma unroll
            for (int j = 0; j < N; j++)
                sum.o.x[j] += scale * x[i].x[j];
        }
    }
    const bool any = weights > 0.0f;
    const float factor = any ? __fdividef(1.0f, weights) : 0.0f;
    sum.lse = any ? (top + log_2(weights)) * LN_2 : -CUDART_INF_F;
#pragma unroll
    for (int j = 0; j < N; j++)
        sum.o.x[j] *= factor;
    return sum;
}

template <int N>
__device__ static void store_part(const lane_part<N> &part, float *o, float *lse, int c)
{
    if (c == 0)
        *lse = part.lse;
    *(channels<N> *)(o + c) = part.o;
}

// out = (e^Lp o_p + e^Lb o_b) / (e^Lp + e^Lb). A part without weight does not count, whatever
// it holds: the cache of an empty prefix may be anything.
template <int N>
__device__ static void store_merged(const any_cells &out, size_t at, const lane_part<N> &prefix,
                                    const lane_part<N> &own)
{
    const float top = fmaxf(prefix.lse, own.lse);
    const float wp = power((prefix.lse - top) * LOG2_E), wb = power((own.lse - top) * LOG2_E);
    const float factor = __fdividef(1.0f, wp + wb), share = wp * factor, rest = wb * factor;
    float sum[N];
#pragma unroll
    for (int j = 0; j < N; j++)
        sum[j] = rest * own.o.x[j] + (share == 0.0f ? 0.0f : share * prefix.o.x[j]);
    if constexpr (N == 1)
        out.set(at, sum[0]);
    else
        for (int j = 0; j < N; j += 2)
            out.set_two(at + j, sum[j], sum[j + 1]);
}

// A warp for 32 N channels of a row and head.
template <int N>
__global__ void __launch_bounds__(MERGE_WARPS *WARP)
    merge_kernel(merge_view v, batch_view b, plan_view p)
{
    const attn_view &a = v.work;
    const int warp = blockIdx.x * MERGE_WARPS + threadIdx.x / WARP, lanes = b.rows * a.heads.by;
    const int here = min(v.split.of(warp), lanes - 1), row = a.heads.of(here);
    const int c0 = (warp - here * v.split.by) * WARP * N + threadIdx.x % WARP * N;
    const bool in = c0 < a.dim;
    const int c = in ? c0 : 0;
    const int head = here - row * a.heads.by, kv_head = a.group.of(head);
    const int seg = __ldcg(b.row_seg + row), slot = __ldcg(b.cache_slot + row);
    const int row0 = __ldcg(b.seg_row0 + seg), rows = __ldcg(b.seg_row0 + seg + 1) - row0;
    const int place = active_place(p, seg, row0, rows, row);
    const int lane = place * a.group.by + head - kv_head * a.group.by;
    const size_t at = (size_t)here * a.dim, cached = (size_t)max(slot, 0) * a.heads.by + head;
    const int2 *home = a.home;
    lane_part<N> prefix;
    if (place >= 0)
        home += first_bundle(a, seg, row0) * a.side.by + kv_head * head_tiles(a, rows) +
                a.lanes.of(lane);
    else
        prefix = {read<N>(v.cache_o + cached * a.dim + c), __ldcg(v.cache_lse + cached)};
    begin_kernel();
    if (warp >= lanes * v.split.by)
        return;
    const lane_part<N> own = {read_cells<N>(own_cells(a), at + c), __ldcg(a.own_lse + here)};
    if (place >= 0) {
        const int2 workers = __ldcg(home);
        if (workers.x == workers.y)
            prefix = {read<N>(a.o + at + c), __ldcg(a.lse + here)};
        else
            prefix = add_parts<N>(a, workers, lane & (a.lanes.by - 1), c);
        if (workers.x < workers.y && in)
            store_part(prefix, a.o + at, a.lse + here, c);
        if (slot >= 0 && in)
            store_part(prefix, v.cache_o + cached * a.dim, v.cache_lse + cached, c);
    }
    if (in)
        store_merged(a.out, at + c, prefix, own);
}

static attn_view work_view(const kern_attn_args *a)
{
    attn_view v = {};
    v.qkv = ptr<float>(a->qkv);
    v.k = ptr<void>(a->kv.k);
    v.v = ptr<void>(a->kv.v);
    v.o = ptr<float>(a->o);
    v.lse = ptr<float>(a->lse);
    v.page_lse = ptr<float>(a->page_lse);
    v.out = cells(a->out);
    v.heads = divide_by(a->heads);
    v.dim = a->kv.head_dim;
    v.stride = (a->heads + 2 * a->kv.kv_heads) * a->kv.head_dim;
    v.kv_heads = divide_by(a->kv.kv_heads);
    v.group = divide_by(a->heads / a->kv.kv_heads);
    v.scale = a->scale;
    return v;
}

extern "C" int kern_cuda_launch_attn(const kern_cuda_ctx *ctx, const kern_attn_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    merge_view v = {work_view(a), ptr<float>(a->cache_o), ptr<float>(a->cache_lse)};
    const int error = launch_work(ctx, kern_buf_dtype(a->kv.k) == KERN_BF16, b, p, &v.work);
    if (error)
        return error;
    const int each = a->kv.head_dim % 4 ? 1 : 4;
    v.split = divide_by((int)blocks_of(a->kv.head_dim, WARP * each));
    const dim3 grid(blocks_of((size_t)b.rows * a->heads * v.split.by, MERGE_WARPS));
    return enqueue(ctx, each == 1 ? merge_kernel<1> : merge_kernel<4>, grid, MERGE_WARPS * WARP, 0,
                   v, b, p);
}
