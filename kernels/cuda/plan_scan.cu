// SPDX-License-Identifier: Apache-2.0
// QUEST bounds of 8-bit metadata on tensor cores: head_dim 64, 128 or 256.
//
// max(q min, q max) is max(q, 0) max + min(q, 0) min: two products of pages and lanes. A
// warp takes 16 pages straight from memory into the layout of mma.sync m16n8k16, whose sum
// over channels may be taken in any order: a thread owns 16 channels of every 64, which
// are a group of one step. Queries are rounded to f16 and lie in shared memory in the order
// in which threads take them. Each thread keeps maximum and sum of its lanes over the
// pages it meets; a block joins them for its run of pages.
#include "kernels/cuda/bounds.cuh"
#include "kernels/cuda/plan_score.cuh"

enum { WARPS = 8, TILE = 16, TILES = 5, LANES = 8 * TILES, SLICE = 64 };

template <int DIM> struct scan_shared {
    uint4 q[TILES][DIM / SLICE][2][WARP]; // tile of 8 lanes, slice, half of 16 channels, thread
    float2 stats[WARPS][LANES];
};

// Metadata of two pages, the thread's channels.
template <int DIM> struct page_pair {
    uint4 most[2][DIM / SLICE], least[2][DIM / SLICE];
    unsigned char step[2][DIM / SLICE];
};

struct scan_place {
    int seg, kv_head, lanes, pages;
    const int *rows, *table;
};

template <int DIM>
__device__ static void load_pages(page_pair<DIM> &m, const score_view &a, const scan_place &at,
                                  int page0)
{
    const int quad = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int page = at.table[min(page0 + 8 * r, at.pages - 1)];
        const size_t meta = ((size_t)page * a.kv_heads + at.kv_head) * DIM + quad * BOUND_GROUP;
#pragma unroll
        for (int s = 0; s < DIM / SLICE; s++) {
            const size_t from = meta + s * SLICE;
            m.most[r][s] = *(const uint4 *)((const char *)a.kmax + from);
            m.least[r][s] = *(const uint4 *)((const char *)a.kmin + from);
            m.step[r][s] = a.kstep[from / BOUND_GROUP];
        }
    }
}

__device__ static unsigned scaled_pair(float x, float y, float scale)
{
    const __half2 two = __floats2half2_rn(x * scale, y * scale);
    return *(const unsigned *)&two;
}

// Lanes [lane0, lane0 + LANES) as f16, zeros beyond the last.
template <int DIM>
__device__ static void load_lanes(scan_shared<DIM> &t, const score_view &a, const scan_place &at,
                                  int lane0, int tiles)
{
    const float scale = a.scale * BOUND_SCALE;
    for (int i = threadIdx.x; i < tiles * DIM; i += WARPS * WARP) {
        const int lane = lane0 + i / (DIM / 8), c = i % (DIM / 8) * 8;
        const int thread = i / (DIM / 8) % 8 * 4 + c % SLICE / BOUND_GROUP;
        uint4 q = make_uint4(0, 0, 0, 0);
        if (lane < at.lanes) {
            const int head = at.kv_head * a.group + lane % a.group;
            const float *from =
                a.q + (size_t)at.rows[lane / a.group] * a.stride + (size_t)head * DIM + c;
            const float4 x = *(const float4 *)from, y = *(const float4 *)(from + 4);
            q = make_uint4(scaled_pair(x.x, x.y, scale), scaled_pair(x.z, x.w, scale),
                           scaled_pair(y.x, y.y, scale), scaled_pair(y.z, y.w, scale));
        }
        t.q[i / DIM][c / SLICE][c % BOUND_GROUP / 8][thread] = q;
    }
}

__device__ static void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static unsigned above(unsigned pair)
{
    const __half2 x = __hmax2(*(const __half2 *)&pair, __float2half2_rn(0.0f));
    return *(const unsigned *)&x;
}

__device__ static unsigned below(unsigned pair)
{
    const __half2 x = __hmin2(*(const __half2 *)&pair, __float2half2_rn(0.0f));
    return *(const unsigned *)&x;
}

__device__ static unsigned word(const uint4 &x, int i)
{
    return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

// Four channels of both pages, as an operand.
__device__ static void widen(unsigned (&out)[4], const uint4 (&bytes)[2], int i,
                             const __half2 (&step)[2], const __half2 (&shift)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        out[r] = bound_pair<false>(word(bytes[r], i), step[r], shift[r]);
        out[2 + r] = bound_pair<true>(word(bytes[r], i), step[r], shift[r]);
    }
}

// d[n] += bounds of the warp's pages, lanes of tile n.
template <int DIM>
__device__ static void add_bounds(float (&d)[TILES][4], const page_pair<DIM> &m,
                                  const scan_shared<DIM> &t, int tiles)
{
#pragma unroll
    for (int s = 0; s < DIM / SLICE; s++) {
        const __half2 step[2] = {step_pair(m.step[0][s]), step_pair(m.step[1][s])};
        const __half2 shift[2] = {step_shift(step[0]), step_shift(step[1])};
        const uint4 most[2] = {m.most[0][s], m.most[1][s]};
        const uint4 least[2] = {m.least[0][s], m.least[1][s]};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned high[2][4], low[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                widen(high[i], most, 2 * half + i, step, shift);
                widen(low[i], least, 2 * half + i, step, shift);
            }
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                if (n >= tiles)
                    continue;
                const uint4 q = t.q[n][s][half][threadIdx.x % WARP];
                multiply(d[n], high[0], above(q.x), above(q.y));
                multiply(d[n], low[0], below(q.x), below(q.y));
                multiply(d[n], high[1], above(q.z), above(q.w));
                multiply(d[n], low[1], below(q.z), below(q.w));
            }
        }
    }
}

// Stores the bounds of 16 pages, from page0 - threadIdx.x % WARP / 4 on, and folds them
// into the thread's sums: lane 2 (threadIdx.x % 4) + i of tile n.
__device__ static void keep_bounds(const float (&d)[TILES][4], float2 (&sums)[TILES][2],
                                   float *bounds, int max_pages, int page0, int pages, int lanes)
{
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int lane = n * 8 + threadIdx.x % 4 * 2 + i;
            if (lane >= lanes)
                continue;
            float *to = bounds + (size_t)lane * max_pages + page0;
            const bool one = page0 < pages, both = page0 + 8 < pages;
            const float x = one ? d[n][i] : -CUDART_INF_F, y = both ? d[n][2 + i] : -CUDART_INF_F;
            if (one)
                to[0] = x;
            if (both)
                to[8] = y;
            const float top = fmaxf(sums[n][i].x, fmaxf(x, y));
            const float base = top == -CUDART_INF_F ? 0.0f : top;
            sums[n][i].y =
                sums[n][i].y * power2(sums[n][i].x - base) + power2(x - base) + power2(y - base);
            sums[n][i].x = top;
        }
}

// Joins the sums of the warp's threads, then of the block's warps.
template <int DIM>
__device__ static void keep_sums(scan_shared<DIM> &t, float2 (&sums)[TILES][2], const score_view &a,
                                 float2 *stats, int lanes)
{
    const int thread = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 2 && n * 8 < lanes; i++) {
#pragma unroll
            for (int offset = 4; offset < WARP; offset *= 2)
                sums[n][i] = join_sums(
                    sums[n][i], make_float2(__shfl_xor_sync(ALL_LANES, sums[n][i].x, offset),
                                            __shfl_xor_sync(ALL_LANES, sums[n][i].y, offset)));
            if (thread < 4)
                t.stats[threadIdx.x / WARP][n * 8 + thread * 2 + i] = sums[n][i];
        }
    __syncthreads();
    for (int lane = threadIdx.x; lane < lanes; lane += WARPS * WARP) {
        float2 sum = t.stats[0][lane];
        for (int w = 1; w < WARPS; w++)
            sum = join_sums(sum, t.stats[w][lane]);
        stats[(size_t)lane * a.chunks + blockIdx.x] = sum;
    }
}

// The pages [blockIdx.x span, + span) for at most LANES lanes.
template <int DIM>
__device__ static void scan_lanes(scan_shared<DIM> &t, const score_view &a, const batch_view &b,
                                  const scan_place &at, int lane0)
{
    const int lanes = min(at.lanes - lane0, (int)LANES), tiles = (lanes + 7) / 8;
    const size_t first = (size_t)first_lane(a, blockIdx.z, at.kv_head) + lane0;
    const int begin = blockIdx.x * a.span, end = min(begin + a.span, at.pages);
    const int thread = threadIdx.x % WARP / 4;
    int page = begin + threadIdx.x / WARP * TILE;
    page_pair<DIM> m;
    load_pages(m, a, at, page + thread);
    load_lanes(t, a, at, lane0, tiles);
    __syncthreads();
    float2 sums[TILES][2];
#pragma unroll
    for (int n = 0; n < TILES; n++)
        sums[n][0] = sums[n][1] = make_float2(-CUDART_INF_F, 0.0f);
    while (page < end) {
        float d[TILES][4] = {};
        add_bounds(d, m, t, tiles);
        keep_bounds(d, sums, a.bounds + first * b.max_pages, b.max_pages, page + thread, at.pages,
                    lanes);
        page += WARPS * TILE;
        if (page < end)
            load_pages(m, a, at, page + thread);
    }
    keep_sums(t, sums, a, a.stats + first * a.chunks, lanes);
}

// Block (run of pages, KV head, segment).
template <int DIM>
__global__ void __launch_bounds__(WARPS *WARP, 2)
    scan_kernel(score_view a, batch_view b, plan_view p)
{
    __shared__ scan_shared<DIM> t;
    begin_kernel();
    const int seg = a.seg0 + blockIdx.z;
    scan_place at = {seg, (int)blockIdx.y};
    at.lanes = active_rows(b, p, seg, &at.pages) * a.group;
    at.rows = p.act_rows + b.seg_row0[seg];
    at.table = b.page_table + (size_t)seg * b.max_pages;
    if ((int)blockIdx.x * a.span >= at.pages)
        return;
    for (int lane = 0; lane < at.lanes; lane += LANES) {
        __syncthreads();
        scan_lanes(t, a, b, at, lane);
    }
}

// Few enough runs that two blocks fit on each multiprocessor at once.
int bound_span_narrow(const kern_cuda_ctx *ctx, const score_view &v, int max_pages, int segs)
{
    const int once = WARPS * TILE;
    const int blocks = (int)blocks_of(max_pages, once) * v.kv_heads * segs;
    const int rounds = blocks / (2 * ctx->sms);
    return once * (rounds < 1 ? 1 : rounds > 8 ? 8 : rounds);
}

int launch_bounds_narrow(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                         const plan_view &p, int segs)
{
    const auto kernel = v.dim == 64    ? scan_kernel<64>
                        : v.dim == 128 ? scan_kernel<128>
                                       : scan_kernel<256>;
    return enqueue(ctx, kernel, dim3(v.chunks, v.kv_heads, segs), WARPS * WARP, 0, v, b, p);
}
