// SPDX-License-Identifier: Apache-2.0
// Prefix attention on tensor cores: bf16 pages, head_dim 64 or 128 (FlashAttention-2
// with split keys; Dao 2023). Ampere instructions: mma.sync m16n8k16, ldmatrix, cp.async.
//
// A warp owns 16 lanes and keeps their queries, weights and outputs in registers; the
// warps of a block share 64 keys at a time, which arrive through cp.async three stages
// deep. 16-byte chunks are swizzled by their row, so that ldmatrix meets no bank twice.
// Queries and softmax weights are rounded to bf16; maxima, sums and outputs are f32.
#include "kernels/cuda/attn_prefix.cuh"

enum { KEYS = 64, STAGES = 3, LISTED = 512, ROWS = 16 };

template <int DIM> struct mma_shared {
    __nv_bfloat16 k[STAGES][KEYS * DIM], v[STAGES][KEYS * DIM];
    int page[LISTED]; // physical pages of list entries [window, window + LISTED)
};

__device__ static unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

// 16 bytes, or zeros where there is nothing to read.
__device__ static void copy_async(unsigned to, const void *from, bool in)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                 "r"(in ? 16 : 0));
}

__device__ static void commit_copies()
{
    asm volatile("cp.async.commit_group;\n");
}

template <int LEFT> __device__ static void wait_copies()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT));
}

__device__ static void load_matrices(unsigned (&r)[4], unsigned from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

__device__ static void load_transposed(unsigned (&r)[4], unsigned from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

// c [16, 8] += a [16, 16] b [16, 8].
__device__ static void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static unsigned pack(float low, float high)
{
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *(const unsigned *)&two;
}

// 2^x; results below the normal numbers are 0.
__device__ static float power(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ static float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ static float quad_sum(float x)
{
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Byte offset of a 16-byte chunk in a tile of rows of DIM values.
template <int DIM> __device__ static unsigned chunk_at(int row, int chunk)
{
    return (unsigned)((row * (DIM / 8) + (chunk ^ (row & 7))) * 16);
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

template <int DIM> __device__ static void load_window(mma_shared<DIM> &s, const key_run &run)
{
    const int *table = run.b.page_table + (size_t)run.t.seg * run.b.max_pages;
    const int entries = (run.end + run.b.page - 1) / run.b.page;
    for (int i = threadIdx.x; i < LISTED && run.window + i < entries; i += blockDim.x)
        s.page[i] = table[listed_page(run.t, run.window + i)];
}

// Starts the copies of keys [token, token + KEYS) to a stage.
template <int DIM, int WARPS>
__device__ static void fetch(mma_shared<DIM> &s, const key_run &run, int token, int stage)
{
    const int chunks = DIM / 8, step = WARPS * WARP / chunks;
    const int chunk = threadIdx.x % chunks, row0 = threadIdx.x / chunks;
    const unsigned k = shared_address(s.k[stage]), v = shared_address(s.v[stage]);
#pragma unroll
    for (int i = 0; i < KEYS / step; i++) {
        const int row = row0 + i * step, place = token + row;
        const bool in = place < run.end;
        const int physical = in ? s.page[(place >> run.shift) - run.window] : 0;
        const int offset = place & (run.b.page - 1);
        const size_t at =
            (((size_t)physical * run.a.kv_heads + run.kv_head << run.shift) + offset) * DIM +
            chunk * 8;
        const unsigned to = chunk_at<DIM>(row, chunk);
        copy_async(k + to, (const __nv_bfloat16 *)run.a.k + (in ? at : 0), in);
        copy_async(v + to, (const __nv_bfloat16 *)run.a.v + (in ? at : 0), in);
    }
}

// The same, after moving the window when the list has run beyond it. All threads.
template <int DIM, int WARPS>
__device__ static void fetch_next(mma_shared<DIM> &s, key_run &run, int token, int stage)
{
    if (token < run.end) {
        const int last = (min(token + KEYS, run.end) - 1) >> run.shift;
        if (last - run.window >= LISTED) {
            run.window = token >> run.shift;
            __syncthreads();
            load_window(s, run);
            __syncthreads();
        }
        fetch<DIM, WARPS>(s, run, token, stage);
    }
    commit_copies(); // an empty group too: waits count groups
}

// ---- a warp's 16 lanes ----------------------------------------------------------------

// Thread t of a warp holds rows t / 4 and t / 4 + 8 of the 16, in the layout of mma.
template <int DIM> struct mma_lanes {
    unsigned q[DIM / 16][4];
    float o[DIM / 8][4];
    float m[2], l[2]; // maximum (base 2) and this thread's part of the sum
    int limit[2];     // keys that a lane may see
    float *page_lse[2];
};

template <int DIM>
__device__ static void load_lanes(mma_lanes<DIM> &w, const key_run &run, int lane0)
{
    const prefix_view &a = run.a;
    const int thread = threadIdx.x % WARP;
    const float *q[2];
    for (int r = 0; r < 2; r++) {
        const int lane = lane0 + thread / 4 + 8 * r;
        const bool in = lane < run.t.lanes;
        const int row = in ? lane_row(a, run.t, lane) : 0;
        const int head = in ? lane_head(a, run.t, run.kv_head, lane) : 0;
        q[r] = in ? a.q + (size_t)row * a.stride + (size_t)head * DIM : nullptr;
        w.limit[r] = in ? list_tokens(run.b, run.t.list, run.t.list_count, run.b.prefix(row)) : 0;
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
            w.q[s][i] = from ? pack(from[c], from[c + 1]) : 0;
        }
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            w.o[n][i] = 0.0f;
}

// s [16, KEYS] = q k^T.
template <int DIM>
__device__ static void score_keys(const mma_lanes<DIM> &w, unsigned k, float (&s)[KEYS / 8][4])
{
    const int thread = threadIdx.x % WARP;
    const int row = thread % 8 + thread / 16 * 8, chunk = thread / 8 % 2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[n][i] = 0.0f;
#pragma unroll
    for (int c = 0; c < DIM / 16; c++)
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            unsigned b[4];
            load_matrices(b, k + chunk_at<DIM>(n * 16 + row, c * 2 + chunk));
            multiply(s[2 * n], w.q[c], b[0], b[1]);
            multiply(s[2 * n + 1], w.q[c], b[2], b[3]);
        }
}

template <int DIM>
__device__ static void mask_keys(const mma_lanes<DIM> &w, int first, float (&s)[KEYS / 8][4])
{
    const int column = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (column + n * 8 + i % 2 >= w.limit[i / 2])
                s[n][i] = -CUDART_INF_F;
}

// Scores become weights e^(s - m); sums and outputs so far are rescaled to the new m.
template <int DIM>
__device__ static void soften(mma_lanes<DIM> &w, float scale, float (&s)[KEYS / 8][4])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = -CUDART_INF_F;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        top = fmaxf(w.m[r], quad_max(top) * scale);
        const float base = top == -CUDART_INF_F ? 0.0f : top;
        const float keep = power(w.m[r] - base);
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
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

// The log-sum-exp of the pages among these keys, from the weights: 8 <= page <= 64. A
// page whose weights underflow keeps -infinity; its share of the attention is 0.
template <int DIM>
__device__ static void sum_pages(const mma_lanes<DIM> &w, const key_run &run, int first,
                                 const float (&s)[KEYS / 8][4])
{
    const float log2 = 0.69314718f;
    const int each = run.b.page / 8; // columns of tiles
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
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

// o += weights v.
template <int DIM>
__device__ static void add_values(mma_lanes<DIM> &w, unsigned v, const float (&s)[KEYS / 8][4])
{
    const int thread = threadIdx.x % WARP, row = thread % 16, chunk = thread / 16;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        const unsigned p[4] = {pack(s[2 * k][0], s[2 * k][1]), pack(s[2 * k][2], s[2 * k][3]),
                               pack(s[2 * k + 1][0], s[2 * k + 1][1]),
                               pack(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            unsigned b[4];
            load_transposed(b, v + chunk_at<DIM>(k * 16 + row, n * 2 + chunk));
            multiply(w.o[2 * n], p, b[0], b[1]);
            multiply(w.o[2 * n + 1], p, b[2], b[3]);
        }
    }
}

template <int DIM>
__device__ static void store_lanes(const mma_lanes<DIM> &w, const key_run &run, int lane0,
                                   int split)
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

// Block (tile and KV head, run): WARPS x 16 lanes.
template <int DIM, int WARPS>
__global__ void __launch_bounds__(WARPS *WARP, WARPS <= 4 ? 2 : 1)
    mma_kernel(prefix_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(128) char memory[];
    mma_shared<DIM> &shared = *(mma_shared<DIM> *)memory;
    prefix_tile t;
    const int kv_head = blockIdx.x % a.kv_heads, lane0 = threadIdx.x / WARP * ROWS;
    if (!tile_at(a, b, p, blockIdx.x / a.kv_heads, kv_head, &t))
        return;
    key_run run = {a, b, t, kv_head};
    split_at(a, t, blockIdx.y, &run.first, &run.end);
    run.shift = __ffs(b.page) - 1;
    run.window = run.first >> run.shift;
    load_window(shared, run);
    __syncthreads();
    fetch_next<DIM, WARPS>(shared, run, run.first, 0);
    fetch_next<DIM, WARPS>(shared, run, run.first + KEYS, 1);
    mma_lanes<DIM> w;
    load_lanes(w, run, lane0);
    const float scale = a.scale * 1.44269504f; // of exponents to base 2
    const bool works = lane0 < t.lanes;
    const bool measures = __any_sync(ALL_LANES, w.page_lse[0] || w.page_lse[1]);
    for (int first = run.first, stage = 0; first < run.end;
         first += KEYS, stage = stage + 1 == STAGES ? 0 : stage + 1) {
        wait_copies<STAGES - 2>();
        __syncthreads(); // the stage has come, and the one to be filled is no longer read
        fetch_next<DIM, WARPS>(shared, run, first + (STAGES - 1) * KEYS,
                               (stage + STAGES - 1) % STAGES);
        if (!works)
            continue;
        float s[KEYS / 8][4];
        score_keys(w, shared_address(shared.k[stage]), s);
        if (__any_sync(ALL_LANES, min(w.limit[0], w.limit[1]) < first + KEYS))
            mask_keys(w, first, s);
        soften(w, scale, s);
        if (measures)
            sum_pages(w, run, first, s);
        add_values(w, shared_address(shared.v[stage]), s);
    }
    if (works)
        store_lanes(w, run, lane0, blockIdx.y);
}

template <int DIM, int WARPS>
static int launch(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                  const plan_view &p)
{
    const size_t shared = sizeof(mma_shared<DIM>);
    const int error = cudaFuncSetAttribute(
        mma_kernel<DIM, WARPS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error)
        return error;
    mma_kernel<DIM, WARPS>
        <<<dim3(v.tiles * v.kv_heads, v.splits), WARPS * WARP, shared, ctx->stream>>>(v, b, p);
    return cudaGetLastError();
}

template <int DIM>
static int launch_warps(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                        const plan_view &p)
{
    switch (v.lanes / ROWS) {
    case 1:
        return launch<DIM, 1>(ctx, v, b, p);
    case 2:
        return launch<DIM, 2>(ctx, v, b, p);
    case 4:
        return launch<DIM, 4>(ctx, v, b, p);
    default:
        return launch<DIM, 8>(ctx, v, b, p);
    }
}

bool mma_takes(const prefix_view &v, const batch_view &b)
{
    const bool pages = !v.page_lse || (b.page >= 8 && b.page <= KEYS);
    return (v.dim == 64 || v.dim == 128) && v.scale > 0.0f && pages;
}

int launch_mma(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
               const plan_view &p)
{
    return v.dim == 64 ? launch_warps<64>(ctx, v, b, p) : launch_warps<128>(ctx, v, b, p);
}

// A block of a request in one tile, as far as a tile goes.
int mma_lanes_of(const prefix_view &v, const batch_view &b)
{
    const int want = (b.block < b.rows ? b.block : b.rows) * v.group;
    return want <= 16 ? 16 : want <= 32 ? 32 : want <= 64 ? 64 : 128;
}
