// SPDX-License-Identifier: Apache-2.0
// Prefix attention on tensor cores, whichever instructions multiply (FlashAttention-2
// with split keys; Dao 2023): bf16 pages, head_dim 64 or 128.
//
// A warp owns 16 lanes and keeps their queries, weights and outputs in registers, in the
// layout of mma.sync m16n8k16, which is also that of a warp in wgmma m64. The warps of a
// block share a few stages of keys, which arrive through cp.async. Rows of a stage are
// split into runs of 128 bytes, whose 16-byte chunks are swizzled by the row: ldmatrix
// meets no bank twice, and it is wgmma's 128-byte swizzle. Queries and softmax weights are
// rounded to bf16; maxima, sums and outputs are f32.
//
// A configuration C of the kernel (attend) is a type with
//   DIM, WARPS, GROUP         warps that multiply together
//   KEYS, SPAN, SPANS, STAGES keys of a stage, those that a warp takes at a time, how often
//   lane0(warp), key0(warp)   the warp's first lane of the tile, and first key of a stage
//   arrived()                 called by all threads before a new stage is read
//   scores(q, k, s)           s [16, SPAN] = q k^T;  k, v: where the span's keys begin in
//                             shared memory
//   values(o, p, v)           o [16, DIM] += p v
#ifndef KERNELS_CUDA_ATTN_MMA_CUH
#define KERNELS_CUDA_ATTN_MMA_CUH

#include "kernels/cuda/attn_prefix.cuh"

enum { LISTED = 512, ROWS = 16 };

template <class C> struct key_stages {
    __nv_bfloat16 k[C::STAGES][C::KEYS * C::DIM], v[C::STAGES][C::KEYS * C::DIM];
    int page[LISTED]; // physical pages of list entries [window, window + LISTED)
};

__device__ inline unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

// 16 bytes, or zeros where there is nothing to read.
__device__ inline void copy_async(unsigned to, const void *from, bool in)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                 "r"(in ? 16 : 0));
}

__device__ inline void commit_copies()
{
    asm volatile("cp.async.commit_group;\n");
}

template <int LEFT> __device__ inline void wait_copies()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT));
}

__device__ inline unsigned pack(float low, float high)
{
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *(const unsigned *)&two;
}

// 2^x; results below the normal numbers are 0.
__device__ inline float power(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ inline float quad_sum(float x)
{
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Byte offset of a 16-byte chunk of a row in a stage of KEYS rows.
template <int KEYS> __device__ inline unsigned chunk_at(int row, int chunk)
{
    return (unsigned)((chunk / 8 * KEYS + row) * 128 + (chunk % 8 ^ (row & 7)) * 16);
}

// ---- keys -----------------------------------------------------------------------

// Where the block reads: its run of the tile's list.
struct key_run {
    const prefix_view &a;
    const batch_view &b;
    const prefix_tile &t;
    int kv_head, first, end;
    int window; // first list entry whose page is in shared memory
    int shift;  // log2 of the tokens in a page
};

template <class C> __device__ void load_window(key_stages<C> &s, const key_run &run)
{
    const int *table = run.b.page_table + (size_t)run.t.seg * run.b.max_pages;
    const int entries = (run.end + run.b.page - 1) / run.b.page;
    for (int i = threadIdx.x; i < LISTED && run.window + i < entries; i += C::WARPS * WARP)
        s.page[i] = table[listed_page(run.t, run.window + i)];
}

// Starts the copies of keys [token, token + KEYS) to a stage.
template <class C> __device__ void fetch(key_stages<C> &s, const key_run &run, int token, int stage)
{
    const int chunks = C::DIM / 8, step = C::WARPS * WARP / chunks;
    const int chunk = threadIdx.x % chunks, row0 = threadIdx.x / chunks;
    const __nv_bfloat16 *const from_k = (const __nv_bfloat16 *)run.a.k + chunk * 8;
    const __nv_bfloat16 *const from_v = (const __nv_bfloat16 *)run.a.v + chunk * 8;
    const unsigned k = shared_address(s.k[stage]), v = shared_address(s.v[stage]);
#pragma unroll
    for (int i = 0; i < C::KEYS / step; i++) {
        const int row = row0 + i * step, place = token + row;
        const bool in = place < run.end;
        const int physical = in ? s.page[(place >> run.shift) - run.window] : 0;
        const unsigned at = ((unsigned)(physical * run.a.kv_heads + run.kv_head) << run.shift) +
                            (place & (run.b.page - 1)); // row of K and V
        const size_t offset = (size_t)(in ? at : 0) * C::DIM;
        const unsigned to = chunk_at<C::KEYS>(row, chunk);
        copy_async(k + to, from_k + offset, in);
        copy_async(v + to, from_v + offset, in);
    }
}

// The same, after moving the window when the list has run beyond it. All threads.
template <class C> __device__ void fetch_next(key_stages<C> &s, key_run &run, int token, int stage)
{
    if (token < run.end) {
        const int last = (min(token + C::KEYS, run.end) - 1) >> run.shift;
        if (last - run.window >= LISTED) {
            run.window = token >> run.shift;
            __syncthreads();
            load_window(s, run);
            __syncthreads();
        }
        fetch(s, run, token, stage);
    }
    commit_copies(); // an empty group too: waits count groups
}

// ---- a warp's 16 lanes ----------------------------------------------------------------

// Thread t of a warp holds rows t / 4 and t / 4 + 8 of the 16, in the layout of mma.
template <int DIM> struct mma_lanes {
    unsigned q[DIM / 16][4];
    float o[DIM / 8][4];
    float m[2], l[2]; // maximum (base 2) and this thread's part of the sum
    int limit[2];     // keys of the run that a lane may see
    float *page_lse[2];
};

template <int DIM> __device__ void load_lanes(mma_lanes<DIM> &w, const key_run &run, int lane0)
{
    const prefix_view &a = run.a;
    const int thread = threadIdx.x % WARP;
    const float *q[2];
    for (int r = 0; r < 2; r++) {
        const int lane = lane0 + thread / 4 + 8 * r;
        const bool in = lane < run.t.lanes;
        const int row = in ? lane_row(a, run.t, lane) : 0;
        const int head = in ? lane_head(a, run.t, run.kv_head, lane) : 0;
        const int tokens =
            in ? list_tokens(run.b, run.t.list, run.t.list_count, run.b.prefix(row)) : 0;
        q[r] = in ? a.q + (size_t)row * a.stride + (size_t)head * DIM : nullptr;
        w.limit[r] = min(tokens, run.end);
        w.page_lse[r] = in ? lane_page_lse(a, run.b, run.t, run.kv_head, lane) : nullptr;
        w.m[r] = -CUDART_INF_F;
        w.l[r] = 0.0f;
    }
#pragma unroll
    for (int s = 0; s < DIM / 16; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int c = s * 16 + (i / 2) * 8 + thread % 4 * 2;
            const float *from = q[i % 2];
            const float2 two = from ? *(const float2 *)(from + c) : make_float2(0.0f, 0.0f);
            w.q[s][i] = pack(two.x, two.y);
        }
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            w.o[n][i] = 0.0f;
}

template <int DIM, int SPAN>
__device__ void mask_keys(const mma_lanes<DIM> &w, int first, float (&s)[SPAN / 8][4])
{
    const int column = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < SPAN / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (column + n * 8 + i % 2 >= w.limit[i / 2])
                s[n][i] = -CUDART_INF_F;
}

// Scores become weights e^(s - m); sums and outputs so far are rescaled to the new m.
template <int DIM, int SPAN>
__device__ void soften(mma_lanes<DIM> &w, float scale, float (&s)[SPAN / 8][4])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = -CUDART_INF_F;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++)
            top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        top = fmaxf(w.m[r], quad_max(top) * scale);
        const float base = top == -CUDART_INF_F ? 0.0f : top;
        const float keep = power(w.m[r] - base);
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                s[n][i] = power(s[n][i] * scale - base);
                sum += s[n][i];
            }
        w.m[r] = top;
        w.l[r] = w.l[r] * keep + sum;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            w.o[n][2 * r] *= keep;
            w.o[n][2 * r + 1] *= keep;
        }
    }
}

// The log-sum-exp of the pages among these keys, from the weights: 8 <= page <= SPAN. A
// page whose weights underflow keeps -infinity; its share of the attention is 0.
template <int DIM, int SPAN>
__device__ void sum_pages(const mma_lanes<DIM> &w, const key_run &run, int first,
                          const float (&s)[SPAN / 8][4])
{
    const float log2 = 0.69314718f;
    const int each = run.b.page / 8; // columns of tiles
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++) {
            sum += s[n][2 * r] + s[n][2 * r + 1];
            if ((n + 1) % each)
                continue;
            const float all = quad_sum(sum);
            sum = 0.0f;
            const int entry = (first + n * 8) / run.b.page;
            if (w.page_lse[r] && all > 0.0f && threadIdx.x % 4 == 0)
                w.page_lse[r][listed_page(run.t, entry)] = w.m[r] * log2 + logf(all);
        }
    }
}

template <int SPAN>
__device__ void pack_weights(const float (&s)[SPAN / 8][4], unsigned (&p)[SPAN / 16][4])
{
#pragma unroll
    for (int k = 0; k < SPAN / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[k][i] = pack(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
}

template <int DIM>
__device__ void store_lanes(const mma_lanes<DIM> &w, const key_run &run, int lane0, int split)
{
    const prefix_view &a = run.a;
    const int thread = threadIdx.x % WARP;
    const float log2 = 0.69314718f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int lane = lane0 + thread / 4 + 8 * r;
        const float l = quad_sum(w.l[r]), m = w.m[r] * log2;
        if (lane >= run.t.lanes)
            continue;
        const bool whole = a.splits == 1;
        const size_t at = whole ? (size_t)lane_row(a, run.t, lane) * a.heads +
                                      lane_head(a, run.t, run.kv_head, lane)
                                : ((size_t)blockIdx.x * a.splits + split) * a.lanes + lane;
        if (thread % 4 == 0 && whole)
            a.lse[at] = l > 0.0f ? m + logf(l) : -CUDART_INF_F;
        if (thread % 4 == 0 && !whole)
            a.stat[at] = make_float2(m, l);
        const float factor = !whole ? 1.0f : l > 0.0f ? 1.0f / l : 0.0f;
        float *out = (whole ? a.o : a.part) + at * DIM + thread % 4 * 2;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
            *(float2 *)(out + n * 8) =
                make_float2(w.o[n][2 * r] * factor, w.o[n][2 * r + 1] * factor);
    }
}

// ---- the kernel ------------------------------------------------------------------------

// Where the halves of a block have different keys of the same lanes, the upper half's
// results join the lower's. Uses the stages; all threads.
template <class C> __device__ void join_halves(key_stages<C> &shared, mma_lanes<C::DIM> &w)
{
    enum { HALF = C::WARPS * WARP / 2, VALUES = C::DIM / 2 };
    float *const memory = (float *)shared.k; // [VALUES + 4, HALF]
    float *const mine = memory + threadIdx.x % HALF;
    __syncthreads();
    if (threadIdx.x >= HALF) {
        for (int r = 0; r < 2; r++) {
            mine[(VALUES + r) * HALF] = w.m[r];
            mine[(VALUES + 2 + r) * HALF] = w.l[r];
        }
#pragma unroll
        for (int i = 0; i < VALUES; i++)
            mine[i * HALF] = w.o[i / 4][i % 4];
    }
    __syncthreads();
    if (threadIdx.x >= HALF)
        return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float m = mine[(VALUES + r) * HALF], l = mine[(VALUES + 2 + r) * HALF];
        const float top = fmaxf(w.m[r], m), base = top == -CUDART_INF_F ? 0.0f : top;
        const float keep = power(w.m[r] - base), add = power(m - base);
        w.m[r] = top;
        w.l[r] = w.l[r] * keep + l * add;
#pragma unroll
        for (int n = 0; n < C::DIM / 8; n++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++)
                w.o[n][i] = w.o[n][i] * keep + mine[(n * 4 + i) * HALF] * add;
    }
}

// A warp's lanes take SPAN keys, from `key` of the stage whose first is `first`.
template <class C>
__device__ void take_keys(key_stages<C> &shared, mma_lanes<C::DIM> &w, const key_run &run,
                          float scale, bool measures, int first, int key, int stage)
{
    float s[C::SPAN / 8][4];
    unsigned p[C::SPAN / 16][4];
    C::scores(w.q, shared_address(shared.k[stage]) + key * 128, s);
    if (__any_sync(ALL_LANES, min(w.limit[0], w.limit[1]) < first + key + C::SPAN))
        mask_keys<C::DIM, C::SPAN>(w, first + key, s);
    soften<C::DIM, C::SPAN>(w, scale, s);
    if (measures)
        sum_pages<C::DIM, C::SPAN>(w, run, first + key, s);
    pack_weights<C::SPAN>(s, p);
    C::values(w.o, p, shared_address(shared.v[stage]) + key * 128);
}

// Block (tile and KV head, run).
template <class C>
__device__ void attend(const prefix_view &a, const batch_view &b, const plan_view &p)
{
    extern __shared__ __align__(1024) char memory[];
    key_stages<C> &shared = *(key_stages<C> *)memory;
    prefix_tile t;
    const int kv_head = blockIdx.x % a.kv_heads, warp = threadIdx.x / WARP;
    const int lane0 = C::lane0(warp), key0 = C::key0(warp);
    if (!tile_at(a, b, p, blockIdx.x / a.kv_heads, kv_head, &t))
        return;
    key_run run = {a, b, t, kv_head};
    split_at(a, t, blockIdx.y, &run.first, &run.end);
    run.shift = __ffs(b.page) - 1;
    run.window = run.first >> run.shift;
    load_window(shared, run);
    __syncthreads();
    for (int i = 0; i < C::STAGES - 1; i++)
        fetch_next(shared, run, run.first + i * C::KEYS, i);
    mma_lanes<C::DIM> w;
    load_lanes(w, run, lane0);
    const float scale = a.scale * 1.44269504f; // of exponents to base 2
    const bool works = C::lane0(warp / C::GROUP * C::GROUP) < t.lanes;
    const bool measures = __any_sync(ALL_LANES, w.page_lse[0] || w.page_lse[1]);
    for (int first = run.first, stage = 0; first < run.end;
         first += C::KEYS, stage = stage + 1 == C::STAGES ? 0 : stage + 1) {
        wait_copies<C::STAGES - 2>();
        C::arrived();
        __syncthreads(); // the stage has come, and the one to be filled is no longer read
        fetch_next(shared, run, first + (C::STAGES - 1) * C::KEYS,
                   (stage + C::STAGES - 1) % C::STAGES);
        if (!works)
            continue;
        for (int key = key0; key < key0 + C::SPANS * C::SPAN; key += C::SPAN)
            take_keys(shared, w, run, scale, measures, first, key, stage);
    }
    if (C::SPANS * C::SPAN < C::KEYS)
        join_halves(shared, w);
    if (works && key0 == 0)
        store_lanes(w, run, lane0, blockIdx.y);
}

template <class C>
int launch_attend(const kern_cuda_ctx *ctx, void (*kernel)(prefix_view, batch_view, plan_view),
                  const prefix_view &v, const batch_view &b, const plan_view &p)
{
    const size_t shared = sizeof(key_stages<C>);
    const int error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return error ? error
                 : enqueue(ctx, kernel, dim3(v.tiles * v.kv_heads, v.splits), C::WARPS * WARP,
                           shared, v, b, p);
}

#endif
