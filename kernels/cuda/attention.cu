// SPDX-License-Identifier: Apache-2.0
// Prefix attention for any shape, in f32 arithmetic, and the merge with in-block
// attention. The bf16 shapes that matter go to attn_mma.cu.
#include "kernels/cuda/attn_prefix.cuh"
#include "kernels/cuda/attn_tile.cuh"

// ---- prefix ------------------------------------------------------------------------

template <typename T> struct page_keys {
    typedef T type;
    const prefix_view &a;
    const batch_view &b;
    const prefix_tile &tile;
    int kv_head;

    __device__ void at(int token, const T **k, const T **v) const
    {
        const size_t offset = token_offset(a, b, tile, kv_head, token);
        *k = (const T *)a.k + offset;
        *v = (const T *)a.v + offset;
    }
};

// Adds the log-sum-exp of a lane's scores per page; the thread holds the score of key
// `first` + its number. Runs are whole pages, so a page is one warp's, in order.
__device__ static void add_page_lse(const prefix_tile &t, float *page_lse, int page, int first,
                                    float s)
{
    const int width = min(page, WARP), lane = threadIdx.x % WARP;
    float top = s;
    for (int offset = width / 2; offset > 0; offset /= 2)
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, offset));
    float sum = top == -CUDART_INF_F ? 0.0f : expf(s - top);
    for (int offset = width / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (lane % width || top == -CUDART_INF_F)
        return;
    float *out = page_lse + listed_page(t, (first + lane) / page);
    const float here = top + logf(sum), before = *out;
    const float most = fmaxf(here, before);
    *out = before == -CUDART_INF_F ? here : most + logf(expf(here - most) + expf(before - most));
}

template <int DIM, int R>
__device__ static void store_lane(const prefix_view &a, const prefix_tile &t, int kv_head, int lane,
                                  int split, float m, float l, const float *o)
{
    const int thread = threadIdx.x % WARP;
    if (a.splits > 1) {
        const size_t at =
            (((size_t)(blockIdx.x / a.kv_heads) * a.kv_heads + kv_head) * a.splits + split) *
                a.lanes +
            lane;
        if (thread == 0)
            a.stat[at] = make_float2(m, l);
#pragma unroll
        for (int i = 0; i < DIM / WARP; i++)
            if (thread + i * WARP < a.dim)
                a.part[at * a.dim + thread + i * WARP] = o[i];
        return;
    }
    const size_t at = (size_t)lane_row(a, t, lane) * a.heads + lane_head(a, t, kv_head, lane);
    if (thread == 0)
        a.lse[at] = l > 0.0f ? m + logf(l) : -CUDART_INF_F;
#pragma unroll
    for (int i = 0; i < DIM / WARP; i++)
        if (thread + i * WARP < a.dim)
            a.o[at * a.dim + thread + i * WARP] = l > 0.0f ? o[i] / l : 0.0f;
}

// Block (tile and KV head, run).
template <typename T, int DIM, int R>
__global__ void __launch_bounds__(TILE_THREADS)
    prefix_kernel(prefix_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) char memory[];
    attn_shared<DIM, R> &shared = *(attn_shared<DIM, R> *)memory;
    const int kv_head = blockIdx.x % a.kv_heads, warp = threadIdx.x / WARP;
    prefix_tile t;
    if (!tile_at(a, b, p, blockIdx.x / a.kv_heads, kv_head, &t))
        return;
    attn_lanes<DIM, R> lanes;
    lanes.clear();
    float *page_lse[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int lane = warp * R + r;
        const bool in = lane < t.lanes;
        const int row = in ? lane_row(a, t, lane) : 0;
        const int head = in ? lane_head(a, t, kv_head, lane) : 0;
        lanes.limit[r] = in ? list_tokens(b, t.list, t.list_count, b.prefix(row)) : 0;
        page_lse[r] = in ? lane_page_lse(a, b, t, kv_head, lane) : nullptr;
        attn_load_query(shared, lane,
                        in ? a.q + (size_t)row * a.stride + (size_t)head * a.dim : nullptr, a.dim,
                        a.scale);
    }
    int first, end;
    split_at(a, t, blockIdx.y, &first, &end);
    const page_keys<T> keys = {a, b, t, kv_head};
    for (; first < end; first += TILE_KEYS) {
        __syncthreads();
        attn_load_keys(shared, keys, first, end, a.dim);
        __syncthreads();
        float s[R];
        attn_scores(shared, lanes, first, s);
#pragma unroll
        for (int r = 0; r < R; r++)
            if (page_lse[r])
                add_page_lse(t, page_lse[r], b.page, first, s[r]);
        attn_fold(shared, lanes, s);
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        if (warp * R + r < t.lanes)
            store_lane<DIM, R>(a, t, kv_head, warp * R + r, blockIdx.y, lanes.m[r], lanes.l[r],
                               lanes.o[r]);
}

enum { COMBINE_THREADS = 128, MOST_SPLITS = 1024 };

// Adds the runs of a lane, in order. Block (tile and KV head, lane): a thread takes
// every 128th channel.
__global__ void __launch_bounds__(COMBINE_THREADS)
    combine_kernel(prefix_view a, batch_view b, plan_view p)
{
    __shared__ float weights[MOST_SPLITS], scratch[WARP];
    const int kv_head = blockIdx.x % a.kv_heads, tile = blockIdx.x / a.kv_heads;
    const int lane = blockIdx.y;
    prefix_tile t;
    if (!tile_at(a, b, p, tile, kv_head, &t) || lane >= t.lanes)
        return;
    const size_t at0 = ((size_t)tile * a.kv_heads + kv_head) * a.splits * a.lanes + lane;
    float top = -CUDART_INF_F, sum = 0.0f;
    for (int s = threadIdx.x; s < a.splits; s += COMBINE_THREADS)
        top = fmaxf(top, a.stat[at0 + (size_t)s * a.lanes].x);
    top = block_max(top, scratch);
    for (int s = threadIdx.x; s < a.splits; s += COMBINE_THREADS) {
        const float2 stat = a.stat[at0 + (size_t)s * a.lanes];
        weights[s] = stat.y > 0.0f ? expf(stat.x - top) : 0.0f;
        sum += weights[s] * stat.y;
    }
    sum = block_sum(sum, scratch); // and weights are there
    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
    const size_t out = (size_t)lane_row(a, t, lane) * a.heads + lane_head(a, t, kv_head, lane);
    if (threadIdx.x == 0)
        a.lse[out] = sum > 0.0f ? top + logf(sum) : -CUDART_INF_F;
    for (int c = threadIdx.x; c < a.dim; c += COMBINE_THREADS) {
        float o = 0.0f;
#pragma unroll 8
        for (int s = 0; s < a.splits; s++)
            o += weights[s] * a.part[(at0 + (size_t)s * a.lanes) * a.dim + c];
        a.o[out * a.dim + c] = o * factor;
    }
}

__global__ void fill_kernel(float *x, size_t count, float value)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (size_t)gridDim.x * blockDim.x)
        x[i] = value;
}

template <typename T, int DIM, int R>
static int launch_prefix(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                         const plan_view &p)
{
    const size_t shared = sizeof(attn_shared<DIM, R>);
    const int error = cudaFuncSetAttribute(
        prefix_kernel<T, DIM, R>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error)
        return error;
    prefix_kernel<T, DIM, R>
        <<<dim3(v.tiles * v.kv_heads, v.splits), TILE_THREADS, shared, ctx->stream>>>(v, b, p);
    return cudaGetLastError();
}

template <typename T>
static int launch_dim(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                      const plan_view &p)
{
    return v.dim <= 64    ? launch_prefix<T, 64, 4>(ctx, v, b, p)
           : v.dim <= 128 ? launch_prefix<T, 128, 4>(ctx, v, b, p)
                          : launch_prefix<T, 256, 2>(ctx, v, b, p);
}

// Most tiles that segments of whole blocks can need: only where a tile does not divide
// a block's lanes is there a tile more for a segment.
static int most_tiles(const batch_view &b, const prefix_view &v)
{
    const int block = b.block * v.group, unit = block & -block;
    const int spare = unit < v.lanes ? v.lanes - unit : 0;
    const size_t lanes = (size_t)blocks_of(b.rows, b.block) * block + (size_t)b.segs * spare;
    return (int)blocks_of(lanes, v.lanes);
}

// Splits the tokens until there are `blocks` blocks for every multiprocessor, as far as
// the workspace holds what they leave.
static void choose_splits(const kern_cuda_ctx *ctx, const batch_view &b, int blocks, int keys,
                          prefix_view *v)
{
    v->tiles = most_tiles(b, *v);
    v->align = b.page > keys ? b.page : keys;
    const size_t tokens = (size_t)b.max_pages * b.page, tiles = (size_t)v->tiles * v->kv_heads;
    const size_t want = (blocks * (size_t)ctx->sms) / tiles;
    const size_t most = (tokens + v->align - 1) / v->align;
    const size_t each = tiles * v->lanes * (sizeof(float2) + v->dim * sizeof(float));
    size_t splits = want < most ? want : most;
    if (splits * each > ctx->workspace_bytes)
        splits = ctx->workspace_bytes / each;
    splits = splits < MOST_SPLITS ? splits : MOST_SPLITS;
    v->splits = splits < 1 ? 1 : (int)splits;
    v->stat = (float2 *)ctx->workspace;
    v->part = (float *)(v->stat + (size_t)v->splits * tiles * v->lanes);
}

extern "C" int kern_cuda_launch_attn_prefix(const kern_cuda_ctx *ctx,
                                            const kern_attn_prefix_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    prefix_view v = {};
    v.q = ptr<float>(a->q);
    v.k = ptr<void>(a->kv.k);
    v.v = ptr<void>(a->kv.v);
    v.o = ptr<float>(a->o);
    v.lse = ptr<float>(a->lse);
    v.page_lse = ptr<float>(a->page_lse);
    v.stride = a->stride;
    v.heads = a->heads;
    v.kv_heads = a->kv.kv_heads;
    v.dim = a->kv.head_dim;
    v.group = a->heads / a->kv.kv_heads;
    v.scale = a->scale;
    const size_t sums = (size_t)b.mass_segs * b.block * a->heads * b.max_pages;
    if (v.page_lse && sums > 0)
        fill_kernel<<<4 * ctx->sms, 256, 0, ctx->stream>>>(v.page_lse, sums, -INFINITY);
    const bool narrow = kern_buf_dtype(a->kv.k) == KERN_BF16;
    int error;
    if (narrow && mma_takes(v, b)) {
        v.lanes = mma_lanes_of(v, b);
        choose_splits(ctx, b, v.lanes <= 64 ? 2 : 1, 64, &v);
        error = launch_mma(ctx, v, b, p);
    } else {
        v.lanes = TILE_WARPS * (v.dim <= 128 ? 4 : 2);
        choose_splits(ctx, b, 4, TILE_KEYS, &v);
        error = narrow ? launch_dim<__nv_bfloat16>(ctx, v, b, p) : launch_dim<float>(ctx, v, b, p);
    }
    if (error || v.splits == 1)
        return error;
    combine_kernel<<<dim3(v.tiles * v.kv_heads, v.lanes), COMBINE_THREADS, 0, ctx->stream>>>(v, b,
                                                                                             p);
    return cudaGetLastError();
}

// ---- in-block attention and merge ------------------------------------------------------

struct merge_view {
    const float *qkv, *o, *lse;
    float *cache_o, *cache_lse, *out;
    int heads, kv_heads, dim, group;
    float scale;

    __device__ const float *head(int row, int h) const
    {
        return qkv + ((size_t)row * (heads + 2 * kv_heads) + h) * dim;
    }
};

struct block_keys {
    typedef float type;
    const merge_view &a;
    int row0, kv_head;

    __device__ void at(int token, const float **k, const float **v) const
    {
        *k = a.head(row0 + token, a.heads + kv_head);
        *v = a.head(row0 + token, a.heads + a.kv_heads + kv_head);
    }
};

__device__ static bool row_is_active(const batch_view &b, const plan_view &p, int row)
{
    const int seg = b.row_seg[row], count = p.act_count[seg];
    const int *rows = p.act_rows + b.seg_row0[seg];
    int low = 0, high = count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && rows[low] == row;
}

// Takes the prefix part of a row and head from where it is, refreshes the cache when
// it is new, and writes out = (e^Lp o_p + e^Lb o_b) / (e^Lp + e^Lb). A part without
// weight is not read: an empty prefix leaves no o_p.
template <int DIM>
__device__ static void merge_lane(const merge_view &a, const batch_view &b, const plan_view &p,
                                  int row, int head, float m, float l, const float *o)
{
    const int slot = b.cache_slot[row];
    const size_t here = (size_t)row * a.heads + head;
    const size_t cached = (size_t)max(slot, 0) * a.heads + head;
    const bool active = row_is_active(b, p, row);
    const float *o_p = active ? a.o + here * a.dim : a.cache_o + cached * a.dim;
    const float lse_p = active ? a.lse[here] : a.cache_lse[cached], lse_b = m + logf(l);
    const float top = fmaxf(lse_p, lse_b);
    const float wp = expf(lse_p - top), wb = expf(lse_b - top);
    const float part_p = wp / (wp + wb), part_b = wb / (wp + wb);
    const bool refresh = active && slot >= 0;
#pragma unroll
    for (int i = 0; i < DIM / WARP; i++) {
        const int c = threadIdx.x % WARP + i * WARP;
        if (c >= a.dim)
            break;
        const float o_b = o[i] / l;
        a.out[here * a.dim + c] = part_p == 0.0f ? o_b : part_p * o_p[c] + part_b * o_b;
        if (refresh)
            a.cache_o[cached * a.dim + c] = o_p[c];
    }
    if (refresh && threadIdx.x % WARP == 0)
        a.cache_lse[cached] = lse_p;
}

// Block (tile of lanes, KV head, block of rows); the last block may be a part of one.
template <int DIM, int R>
__global__ void __launch_bounds__(TILE_THREADS)
    merge_kernel(merge_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) char memory[];
    attn_shared<DIM, R> &shared = *(attn_shared<DIM, R> *)memory;
    const int row0 = blockIdx.z * b.block, count = min(b.rows - row0, b.block);
    const int kv_head = blockIdx.y, warp = threadIdx.x / WARP;
    const int lane0 = blockIdx.x * TILE_WARPS * R, all = count * a.group;
    attn_lanes<DIM, R> lanes;
    lanes.clear();
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int lane = lane0 + warp * R + r;
        const bool in = lane < all;
        lanes.limit[r] = in ? count : 0;
        attn_load_query(shared, warp * R + r,
                        in ? a.head(row0 + lane / a.group, kv_head * a.group + lane % a.group)
                           : nullptr,
                        a.dim, a.scale);
    }
    const block_keys keys = {a, row0, kv_head};
    for (int first = 0; first < count; first += TILE_KEYS) {
        __syncthreads();
        attn_load_keys(shared, keys, first, count, a.dim);
        __syncthreads();
        float s[R];
        attn_scores(shared, lanes, first, s);
        attn_fold(shared, lanes, s);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int lane = lane0 + warp * R + r;
        if (lane < all)
            merge_lane<DIM>(a, b, p, row0 + lane / a.group, kv_head * a.group + lane % a.group,
                            lanes.m[r], lanes.l[r], lanes.o[r]);
    }
}

template <int DIM, int R>
static int launch_merge(const kern_cuda_ctx *ctx, const merge_view &v, const batch_view &b,
                        const plan_view &p)
{
    const size_t shared = sizeof(attn_shared<DIM, R>);
    const int error = cudaFuncSetAttribute(
        merge_kernel<DIM, R>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error)
        return error;
    const int block = b.block < b.rows ? b.block : b.rows;
    const dim3 grid(blocks_of((size_t)block * v.group, TILE_WARPS * R), v.kv_heads,
                    blocks_of(b.rows, b.block));
    merge_kernel<DIM, R><<<grid, TILE_THREADS, shared, ctx->stream>>>(v, b, p);
    return cudaGetLastError();
}

extern "C" int kern_cuda_launch_attn_merge(const kern_cuda_ctx *ctx, const kern_attn_merge_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    const merge_view v = {ptr<float>(a->qkv),
                          ptr<float>(a->o),
                          ptr<float>(a->lse),
                          ptr<float>(a->cache_o),
                          ptr<float>(a->cache_lse),
                          ptr<float>(a->out),
                          a->heads,
                          a->kv_heads,
                          a->head_dim,
                          a->heads / a->kv_heads,
                          a->scale};
    // With few rows a lane a warp: more blocks, the same arithmetic.
    if (b.rows * a->heads <= 8 * TILE_WARPS * ctx->sms)
        return v.dim <= 64    ? launch_merge<64, 1>(ctx, v, b, p)
               : v.dim <= 128 ? launch_merge<128, 1>(ctx, v, b, p)
                              : launch_merge<256, 1>(ctx, v, b, p);
    return v.dim <= 64    ? launch_merge<64, 4>(ctx, v, b, p)
           : v.dim <= 128 ? launch_merge<128, 4>(ctx, v, b, p)
                          : launch_merge<256, 2>(ctx, v, b, p);
}
