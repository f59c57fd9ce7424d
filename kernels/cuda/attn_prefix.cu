// SPDX-License-Identifier: Apache-2.0
// Prefix attention: the choice of a kernel and of runs, a kernel for any shape in f32
// arithmetic, and the joining of runs. The bf16 shapes that matter go to attn_mma.cu and
// attn_wgmma.cu.
#include "kernels/cuda/attn_prefix.cuh"
#include "kernels/cuda/attn_tile.cuh"

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
    begin_kernel();
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

enum { COMBINE_THREADS = 128 };

// Adds the runs of a lane, in order. Block (tile and KV head, lane): a thread takes every
// 128th channel. A warp's lanes hold the weights of 32 runs at a time.
__global__ void __launch_bounds__(COMBINE_THREADS)
    combine_kernel(prefix_view a, batch_view b, plan_view p)
{
    begin_kernel();
    const int kv_head = blockIdx.x % a.kv_heads, tile = blockIdx.x / a.kv_heads;
    const int lane = blockIdx.y, thread = threadIdx.x % WARP;
    const size_t at0 = (size_t)blockIdx.x * a.splits * a.lanes + lane;
    prefix_tile t;
    if (!tile_at(a, b, p, tile, kv_head, &t) || lane >= t.lanes)
        return;
    float top = -CUDART_INF_F;
    for (int s = thread; s < a.splits; s += WARP)
        top = fmaxf(top, a.stat[at0 + (size_t)s * a.lanes].x);
    top = warp_max(top);
    const size_t out = (size_t)lane_row(a, t, lane) * a.heads + lane_head(a, t, kv_head, lane);
    for (int c = threadIdx.x; c < a.dim + threadIdx.x % WARP; c += COMBINE_THREADS) {
        const int channel = min(c, a.dim - 1);
        float o = 0.0f, sum = 0.0f;
        for (int base = 0; base < a.splits; base += WARP) {
            const int s = base + thread, count = min(a.splits - base, WARP);
            const float2 stat =
                s < a.splits ? a.stat[at0 + (size_t)s * a.lanes] : make_float2(top, 0.0f);
            const float weight = stat.y > 0.0f ? expf(stat.x - top) : 0.0f;
            sum += warp_sum(weight * stat.y);
            const float *part = a.part + (at0 + (size_t)base * a.lanes) * a.dim + channel;
#pragma unroll 16
            for (int i = 0; i < count; i++)
                o += __shfl_sync(ALL_LANES, weight, i) * part[(size_t)i * a.lanes * a.dim];
        }
        if (c < a.dim)
            a.o[out * a.dim + c] = sum > 0.0f ? o / sum : 0.0f;
        if (c == 0)
            a.lse[out] = sum > 0.0f ? top + logf(sum) : -CUDART_INF_F;
    }
}

__global__ void fill_kernel(float *x, size_t count, float value)
{
    begin_kernel();
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
    return error ? error
                 : enqueue(ctx, prefix_kernel<T, DIM, R>, dim3(v.tiles * v.kv_heads, v.splits),
                           TILE_THREADS, shared, v, b, p);
}

template <typename T>
static int launch_dim(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                      const plan_view &p)
{
    return v.dim <= 64    ? launch_prefix<T, 64, 4>(ctx, v, b, p)
           : v.dim <= 128 ? launch_prefix<T, 128, 4>(ctx, v, b, p)
                          : launch_prefix<T, 256, 2>(ctx, v, b, p);
}

static prefix_shape any_shape(const prefix_view &v, const batch_view &b)
{
    return {TILE_WARPS * (v.dim <= 128 ? 4 : 2), b.page > TILE_KEYS ? b.page : TILE_KEYS, 48 << 10};
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

// Runs of a tile. The blocks run in waves of `slots`, each as long as a run; joining a
// run costs about as much as another JOIN tokens. A split must pay.
static int best_splits(size_t tiles, size_t slots, size_t tokens, int most)
{
    enum { JOIN = 128 };
    int best = 1;
    double least = (double)blocks_of(tiles, (unsigned)slots) * (double)tokens;
    for (int splits = 2; splits <= most; splits++) {
        const double waves = (double)blocks_of(tiles * (size_t)splits, (unsigned)slots);
        const double cost = waves * ((double)tokens / splits + JOIN);
        if (cost < 0.97 * least) {
            least = cost;
            best = splits;
        }
    }
    return best;
}

static void choose_splits(const kern_cuda_ctx *ctx, const batch_view &b, prefix_shape shape,
                          prefix_view *v)
{
    enum { MOST = 128, RESERVED = 1024 }; // shared memory that a block takes beside its own
    v->lanes = shape.lanes;
    v->align = shape.align;
    v->tiles = most_tiles(b, *v);
    const size_t tokens = (size_t)b.max_pages * b.page, tiles = (size_t)v->tiles * v->kv_heads;
    const size_t each = tiles * v->lanes * (sizeof(float2) + v->dim * sizeof(float));
    const size_t fit = ctx->workspace_bytes / each, runs = tokens / v->align;
    const size_t most = fit < runs ? fit : runs;
    const size_t blocks = ctx->shared / (shape.shared + RESERVED);
    const size_t slots = ctx->sms * (blocks < 1 ? 1 : blocks > 4 ? 4 : blocks);
    v->splits = best_splits(tiles, slots, tokens, most < MOST ? (int)most : MOST);
    v->stat = (float2 *)ctx->workspace;
    v->part = (float *)(v->stat + (size_t)v->splits * tiles * v->lanes);
}

static int launch_runs(const kern_cuda_ctx *ctx, bool narrow, const batch_view &b,
                       const plan_view &p, prefix_view *v)
{
    if (narrow && wgmma_takes(ctx, *v, b)) {
        choose_splits(ctx, b, wgmma_shape(*v, b), v);
        return launch_wgmma(ctx, *v, b, p);
    }
    if (narrow && mma_takes(*v, b)) {
        choose_splits(ctx, b, mma_shape(*v, b), v);
        return launch_mma(ctx, *v, b, p);
    }
    choose_splits(ctx, b, any_shape(*v, b), v);
    return narrow ? launch_dim<__nv_bfloat16>(ctx, *v, b, p) : launch_dim<float>(ctx, *v, b, p);
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
    int error = 0;
    if (v.page_lse && sums > 0)
        error = enqueue(ctx, fill_kernel, 4 * ctx->sms, 256, 0, v.page_lse, sums, -INFINITY);
    if (!error)
        error = launch_runs(ctx, kern_buf_dtype(a->kv.k) == KERN_BF16, b, p, &v);
    if (error || v.splits == 1)
        return error;
    return enqueue(ctx, combine_kernel, dim3(v.tiles * v.kv_heads, v.lanes), COMBINE_THREADS, 0, v,
                   b, p);
}
