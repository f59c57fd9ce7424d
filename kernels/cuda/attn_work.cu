// SPDX-License-Identifier: Apache-2.0
// Attention to prefixes and blocks: the choice of a kernel and of the cut, and a kernel for
// any shape in f32 arithmetic. The bf16 shapes that matter go to attn_mma.cu and attn_wgmma.cu.
#include "kernels/cuda/attn_tile.cuh"
#include "kernels/cuda/attn_work.cuh"

template <typename T> struct page_keys {
    typedef T type;
    const attn_view &a;
    const batch_view &b;
    const work_tile &t;

    __device__ void at(int token, const T **k, const T **v) const
    {
        const int page = b.page_table[(size_t)t.seg * b.max_pages + listed_page(t, token / b.page)];
        const size_t row = ((size_t)page * a.kv_heads.by + t.kv_head) * b.page + token % b.page;
        *k = (const T *)a.k + row * a.dim;
        *v = (const T *)a.v + row * a.dim;
    }
};

struct block_keys {
    typedef float type;
    const attn_view &a;
    const work_tile &t;

    __device__ void at(int token, const float **k, const float **v) const
    {
        *k = own_key(a, t, token);
        *v = *k + a.kv_heads.by * a.dim;
    }
};

// Adds the log-sum-exp of a lane's scores per page; the thread holds the score of key
// `first` + its number. Units are whole pages, so a page is one warp's, in order.
__device__ static void add_page_lse(const work_tile &t, float *page_lse, int page, int first,
                                    int limit, float s)
{
    const int width = min(page, WARP), key = first + threadIdx.x % WARP;
    float top = s;
    for (int offset = width / 2; offset > 0; offset /= 2)
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, offset));
    float sum = top == -CUDART_INF_F ? 0.0f : expf(s - top);
    for (int offset = width / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (key % width || key >= limit)
        return;
    float *out = page_lse + listed_page(t, key / page);
    const float here = top + logf(sum), before = key % page ? *out : -CUDART_INF_F;
    const float most = fmaxf(here, before);
    *out = before == -CUDART_INF_F ? here : most + logf(expf(here - most) + expf(before - most));
}

template <int DIM, int R>
__device__ static void store_lane(const attn_view &a, const work_piece &piece, int lane, float m,
                                  float l, const float *o)
{
    const work_tile &t = piece.t;
    const int thread = threadIdx.x % WARP;
    const bool whole = piece.slot < 0;
    const size_t at = whole ? (size_t)lane_row(a, t, lane) * a.heads.by + lane_head(a, t, lane)
                            : (size_t)lane * a.workers + piece.slot;
    if (thread == 0 && whole)
        (t.own ? a.own_lse : a.lse)[at] = l > 0.0f ? m + logf(l) : -CUDART_INF_F;
    if (thread == 0 && !whole)
        a.stat[at] = make_float2(m * LOG2_E, l);
    const float divisor = !whole ? 1.0f : l > 0.0f ? l : CUDART_INF_F;
    float *to = whole ? a.o : a.part;
#pragma unroll
    for (int i = 0; i < DIM / WARP; i++) {
        const int c = thread + i * WARP;
        if (c < a.dim && t.own)
            own_cells(a).set(at * a.dim + c, o[i] / divisor);
        else if (c < a.dim)
            to[at * a.dim + c] = o[i] / divisor;
    }
}

template <int DIM, int R, typename Keys>
__device__ static void take_piece(attn_shared<DIM, R> &shared, const attn_view &a,
                                  const batch_view &b, const work_piece &piece, const Keys &keys)
{
    const work_tile &t = piece.t;
    const int lane0 = threadIdx.x / WARP * R;
    attn_lanes<DIM, R> lanes;
    lanes.clear();
    float *page_lse[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const bool in = lane0 + r < t.lanes;
        const int row = in ? lane_row(a, t, lane0 + r) : 0;
        const int head = in ? lane_head(a, t, lane0 + r) : 0;
        lanes.limit[r] = in ? lane_tokens(b, t, row) : 0;
        page_lse[r] = in ? lane_page_lse(a, b, t, lane0 + r) : nullptr;
        attn_load_query(shared, lane0 + r,
                        in ? a.qkv + (size_t)row * a.stride + (size_t)head * a.dim : nullptr, a.dim,
                        a.scale);
    }
    for (int first = piece.first; first < piece.end; first += TILE_KEYS) {
        __syncthreads();
        attn_load_keys(shared, keys, first, piece.end, a.dim);
        __syncthreads();
        float s[R];
        attn_scores(shared, lanes, first, s);
#pragma unroll
        for (int r = 0; r < R; r++)
            if (page_lse[r])
                add_page_lse(t, page_lse[r], b.page, first, lanes.limit[r], s[r]);
        attn_fold(shared, lanes, s);
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        if (lane0 + r < t.lanes)
            store_lane<DIM, R>(a, piece, lane0 + r, lanes.m[r], lanes.l[r], lanes.o[r]);
}

template <typename T, int DIM, int R>
__global__ void __launch_bounds__(TILE_THREADS) any_kernel(attn_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) char memory[];
    __shared__ share_room room;
    attn_shared<DIM, R> &shared = *(attn_shared<DIM, R> *)memory;
    work_share share = begin_share(a, b, p, room);
    for (work_piece piece; next_piece(a, b, p, room, share, piece);) {
        const work_tile &t = piece.t;
        if (t.own)
            take_piece(shared, a, b, piece, block_keys{a, t});
        else
            take_piece(shared, a, b, piece, page_keys<T>{a, b, t});
    }
}

template <typename T, int DIM, int R>
static int launch_tiles(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b,
                        const plan_view &p)
{
    static_assert(sizeof(attn_shared<DIM, R>) <= LEAST_SHARED);
    return enqueue_with<attn_shared<DIM, R>>(ctx, any_kernel<T, DIM, R>, dim3(v.workers),
                                             TILE_THREADS, v, b, p);
}

template <typename T>
static int launch_dim(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b,
                      const plan_view &p)
{
    return v.dim <= 64    ? launch_tiles<T, 64, 4>(ctx, v, b, p)
           : v.dim <= 128 ? launch_tiles<T, 128, 4>(ctx, v, b, p)
                          : launch_tiles<T, 256, 2>(ctx, v, b, p);
}

static work_shape any_shape(const attn_view &v, const batch_view &b)
{
    const size_t shared = v.dim <= 64    ? sizeof(attn_shared<64, 4>)
                          : v.dim <= 128 ? sizeof(attn_shared<128, 4>)
                                         : sizeof(attn_shared<256, 2>);
    return {TILE_WARPS * (v.dim <= 128 ? 4 : 2), b.page > TILE_KEYS ? b.page : TILE_KEYS, 1, 4,
            shared};
}

// Tiles to work on side by side: as many as a segment fills of a KV head, on average. With four,
// products take longer than memory takes to bring the keys. Sparse steps have few rows and keys.
static int side_of(const batch_view &b, int group, int lanes)
{
    enum { MOST = 4 };
    if (b.sparse_segs == b.segs)
        return 1;
    const int tiles = (int)blocks_of((size_t)b.rows * group, (unsigned)(b.segs * lanes));
    return tiles >= MOST ? MOST : tiles >= 2 ? 2 : 1;
}

// Cuts the work by the shape of a kernel, and lays out the workspace; false: no room.
static bool cut(const kern_cuda_ctx *ctx, const batch_view &b, work_shape shape, attn_view *v)
{
    enum { RESERVED = 1024 }; // shared memory that a block takes beside its own
    const int fit = (int)(ctx->shared / (shape.shared + RESERVED));
    const int group = v->group.by, block = b.block < b.rows ? b.block : b.rows;
    const int side = side_of(b, group, shape.lanes), heads = (int)blocks_of(v->kv_heads.by, side);
    const bool exact = b.block * group % shape.lanes == 0; // segments fill their tiles
    v->lanes = divide_by(shape.lanes);
    v->keys = divide_by(shape.keys);
    v->parts = divide_by((int)blocks_of((size_t)block * group, shape.lanes));
    v->side = divide_by(side);
    v->wide = divide_by(side * shape.lanes);
    v->spare = !exact ? 1 + heads : v->kv_heads.by % side ? 1 : 0;
    v->bundles = b.rows * v->heads.by / v->wide.by + v->spare * b.segs + 1 + heads;
    v->blocks = (int)blocks_of(b.rows, b.block) * v->parts.by * v->kv_heads.by;
    v->weight = shape.weight;
    v->workers = ctx->sms * (fit < 1 ? 1 : fit < shape.blocks ? fit : shape.blocks) / side * side;
    const size_t slots = 2 * (size_t)v->workers;
    v->part = (float *)ctx->workspace;
    v->stat = (float2 *)(v->part + (slots * shape.lanes * v->dim + 3) / 4 * 4);
    v->home = (int2 *)(v->stat + slots * shape.lanes);
    v->own_lse = (float *)(v->home + v->bundles * side);
    return (char *)(v->own_lse + (size_t)b.rows * v->heads.by) <=
           (char *)ctx->workspace + ctx->workspace_bytes;
}

int launch_work(const kern_cuda_ctx *ctx, bool narrow, const batch_view &b, const plan_view &p,
                attn_view *v)
{
    const bool mma = narrow && mma_takes(*v, b), wgmma = narrow && wgmma_takes(ctx, *v, b);
    const work_shape shape = wgmma ? wgmma_shape(*v) : mma ? mma_shape(*v, b) : any_shape(*v, b);
    if (!cut(ctx, b, shape, v))
        return KERN_CUDA_NO_ROOM;
    return wgmma    ? launch_wgmma(ctx, *v, b, p)
           : mma    ? launch_mma(ctx, *v, b, p)
           : narrow ? launch_dim<__nv_bfloat16>(ctx, *v, b, p)
                    : launch_dim<float>(ctx, *v, b, p);
}
