// SPDX-License-Identifier: Apache-2.0
// Attention of a forward: over the prefix (attn_prefix.cu), then, in one kernel, what the
// workers left of cut tiles is added, the rows attend to their own block, and both are
// merged.
//
// The block needs nothing of the prefix, so merge_kernel attends to it before begin_kernel,
// while the prefix kernel is still running. It may: it only starts when every block of the
// prefix kernel has passed begin_kernel (all of them begin with it), so all kernels
// before that one are done and what they wrote is in the L2; and until begin_kernel
// merge_kernel writes nothing and reads through the L2 alone (__ldcg), never what the prefix
// kernel writes.
#include "kernels/cuda/attn_prefix.cuh"
#include "kernels/cuda/attn_tile.cuh"

struct merge_view {
    prefix_view prefix;
    float *cache_o, *cache_lse;
    any_cells out;

    __device__ const float *head(int row, int h) const
    {
        return prefix.q + (size_t)row * prefix.stride + (size_t)h * prefix.dim;
    }
};

struct block_keys {
    typedef float type;
    const merge_view &a;
    int row0, kv_head;

    __device__ void at(int token, const float **k, const float **v) const
    {
        *k = a.head(row0 + token, a.prefix.heads + kv_head);
        *v = a.head(row0 + token, a.prefix.heads + a.prefix.kv_heads + kv_head);
    }
};

// Place of a row among the active rows of its segment; -1: it is not. Whole warps.
__device__ static int active_place(const batch_view &b, const plan_view &p, int seg, int row)
{
    const int row0 = __ldcg(b.seg_row0 + seg), count = __ldcg(p.act_count + seg);
    if (count == __ldcg(b.seg_row0 + seg + 1) - row0)
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

// The prefix part of a lane: the channels of this thread, and its log-sum-exp.
template <int DIM> struct prefix_part {
    float o[DIM / WARP], lse;
};

template <int DIM>
__device__ static void load_part(prefix_part<DIM> &part, const float *o, float lse, int dim)
{
    part.lse = lse;
#pragma unroll
    for (int i = 0; i < DIM / WARP; i++) {
        const int c = threadIdx.x % WARP + i * WARP;
        part.o[i] = c < dim ? o[c] : 0.0f;
    }
}

// Adds what workers [home.x, home.y] left of a lane, in order. A warp's threads hold the
// weights of 32 of them at a time.
template <int DIM>
__device__ static void add_parts(prefix_part<DIM> &part, const prefix_view &a, int2 home, int lane)
{
    const int thread = threadIdx.x % WARP, workers = home.y - home.x + 1;
    float top = -CUDART_INF_F, sum = 0.0f, o[DIM / WARP] = {};
    for (int w = thread; w < workers; w += WARP)
        top = fmaxf(top, a.stat[(size_t)(2 * (home.x + w) + (w == 0)) * a.lanes + lane].x);
    top = warp_max(top);
    for (int base = 0; base < workers; base += WARP) {
        const int w = base + thread, count = min(workers - base, WARP);
        const float2 stat = w < workers
                                ? a.stat[(size_t)(2 * (home.x + w) + (w == 0)) * a.lanes + lane]
                                : make_float2(top, 0.0f);
        const float weight = stat.y > 0.0f ? expf(stat.x - top) : 0.0f;
        sum += warp_sum(weight * stat.y);
#pragma unroll 8
        for (int i = 0; i < count; i++) {
            const float scale = __shfl_sync(ALL_LANES, weight, i);
            const size_t slot = 2 * (home.x + base + i) + (base + i == 0);
            const float *from = a.part + (slot * a.lanes + lane) * a.dim + thread;
#pragma unroll
            for (int j = 0; j < DIM / WARP; j++)
                o[j] += scale * (thread + j * WARP < a.dim ? from[j * WARP] : 0.0f);
        }
    }
    part.lse = sum > 0.0f ? top + logf(sum) : -CUDART_INF_F;
#pragma unroll
    for (int j = 0; j < DIM / WARP; j++)
        part.o[j] = sum > 0.0f ? o[j] / sum : 0.0f;
}

template <int DIM>
__device__ static void store_part(const prefix_part<DIM> &part, float *o, float *lse, int dim)
{
    const int thread = threadIdx.x % WARP;
    if (thread == 0)
        *lse = part.lse;
#pragma unroll
    for (int i = 0; i < DIM / WARP; i++)
        if (thread + i * WARP < dim)
            o[thread + i * WARP] = part.o[i];
}

// Takes the prefix part of a row and head from where it is, refreshes the cache when it is
// new, and writes out = (e^Lp o_p + e^Lb o_b) / (e^Lp + e^Lb). A part without weight does not
// count, whatever it holds: the cache of an empty prefix may be anything.
template <int DIM>
__device__ static void merge_lane(const merge_view &v, const batch_view &b, int row, int head,
                                  int seg, int place, float m, float l, const float *o)
{
    const prefix_view &a = v.prefix;
    const int slot = b.cache_slot[row], kv_head = head / a.group;
    const size_t here = (size_t)row * a.heads + head;
    const size_t cached = (size_t)max(slot, 0) * a.heads + head;
    prefix_part<DIM> part;
    if (place < 0) {
        load_part(part, v.cache_o + cached * a.dim, v.cache_lse[cached], a.dim);
    } else {
        const int lane = place * a.group + head % a.group;
        const int tile = first_tile(a, b, seg) + lane / a.lanes;
        const int2 home = a.home[tile * a.kv_heads + kv_head];
        if (home.x == home.y) {
            load_part(part, a.o + here * a.dim, a.lse[here], a.dim);
        } else {
            add_parts(part, a, home, lane % a.lanes);
            store_part(part, a.o + here * a.dim, a.lse + here, a.dim);
        }
        if (slot >= 0)
            store_part(part, v.cache_o + cached * a.dim, v.cache_lse + cached, a.dim);
    }
    const float lse_b = m + logf(l), top = fmaxf(part.lse, lse_b);
    const float wp = expf(part.lse - top), wb = expf(lse_b - top);
    const float part_p = wp / (wp + wb), part_b = wb / (wp + wb);
#pragma unroll
    for (int i = 0; i < DIM / WARP; i++) {
        const int c = threadIdx.x % WARP + i * WARP;
        const float o_b = o[i] / l;
        if (c < a.dim)
            v.out.set(here * a.dim + c, part_p == 0.0f ? o_b : part_p * part.o[i] + part_b * o_b);
    }
}

// Block (tile of lanes, KV head, block of rows); the last block may be a part of one.
template <int DIM, int R>
__global__ void __launch_bounds__(TILE_THREADS)
    merge_kernel(merge_view v, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) char memory[];
    attn_shared<DIM, R> &shared = *(attn_shared<DIM, R> *)memory;
    const prefix_view &a = v.prefix;
    const int row0 = blockIdx.z * b.block, count = min(b.rows - row0, b.block);
    const int kv_head = blockIdx.y, warp = threadIdx.x / WARP, seg = __ldcg(b.row_seg + row0);
    const int lane0 = (blockIdx.x * TILE_WARPS + warp) * R, all = count * a.group;
    attn_lanes<DIM, R> lanes;
    int place[R];
    lanes.clear();
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int row = row0 + (lane0 + r) / a.group;
        const bool in = lane0 + r < all;
        lanes.limit[r] = in ? count : 0;
        place[r] = in ? active_place(b, p, seg, row) : -1;
        attn_load_query(shared, warp * R + r,
                        in ? v.head(row, kv_head * a.group + (lane0 + r) % a.group) : nullptr,
                        a.dim, a.scale);
    }
    const block_keys keys = {v, row0, kv_head};
    for (int first = 0; first < count; first += TILE_KEYS) {
        __syncthreads();
        attn_load_keys(shared, keys, first, count, a.dim);
        __syncthreads();
        float s[R];
        attn_scores(shared, lanes, first, s);
        attn_fold(shared, lanes, s);
    }
    begin_kernel();
#pragma unroll
    for (int r = 0; r < R; r++)
        if (lane0 + r < all)
            merge_lane<DIM>(v, b, row0 + (lane0 + r) / a.group,
                            kv_head * a.group + (lane0 + r) % a.group, seg, place[r], lanes.m[r],
                            lanes.l[r], lanes.o[r]);
}

template <int DIM, int R>
static int launch_merge(const kern_cuda_ctx *ctx, const merge_view &v, const batch_view &b,
                        const plan_view &p)
{
    const size_t shared = sizeof(attn_shared<DIM, R>);
    const int error = cudaFuncSetAttribute(
        merge_kernel<DIM, R>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    const int block = b.block < b.rows ? b.block : b.rows;
    const dim3 grid(blocks_of((size_t)block * v.prefix.group, TILE_WARPS * R), v.prefix.kv_heads,
                    blocks_of(b.rows, b.block));
    return error ? error : enqueue(ctx, merge_kernel<DIM, R>, grid, TILE_THREADS, shared, v, b, p);
}

extern "C" int kern_cuda_launch_attn(const kern_cuda_ctx *ctx, const kern_attn_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    merge_view v = {};
    v.cache_o = ptr<float>(a->cache_o);
    v.cache_lse = ptr<float>(a->cache_lse);
    v.out = cells(a->out);
    v.prefix.q = ptr<float>(a->qkv);
    v.prefix.k = ptr<void>(a->kv.k);
    v.prefix.v = ptr<void>(a->kv.v);
    v.prefix.o = ptr<float>(a->o);
    v.prefix.lse = ptr<float>(a->lse);
    v.prefix.page_lse = ptr<float>(a->page_lse);
    v.prefix.heads = a->heads;
    v.prefix.kv_heads = a->kv.kv_heads;
    v.prefix.dim = a->kv.head_dim;
    v.prefix.stride = (a->heads + 2 * a->kv.kv_heads) * a->kv.head_dim;
    v.prefix.group = a->heads / a->kv.kv_heads;
    v.prefix.scale = a->scale;
    const int error = launch_prefix(ctx, kern_buf_dtype(a->kv.k) == KERN_BF16, b, p, &v.prefix);
    const int dim = a->kv.head_dim;
    if (error)
        return error;
    // With few rows a lane a warp: more blocks, the same arithmetic.
    if (b.rows * a->heads <= 8 * TILE_WARPS * ctx->sms)
        return dim <= 64    ? launch_merge<64, 1>(ctx, v, b, p)
               : dim <= 128 ? launch_merge<128, 1>(ctx, v, b, p)
                            : launch_merge<256, 1>(ctx, v, b, p);
    return dim <= 64    ? launch_merge<64, 4>(ctx, v, b, p)
           : dim <= 128 ? launch_merge<128, 4>(ctx, v, b, p)
                        : launch_merge<256, 2>(ctx, v, b, p);
}
