// SPDX-License-Identifier: Apache-2.0
// What the kernels of page scores share. The lanes of a KV head are its query heads in
// every active row: lane = place * group + head, place among the active rows. What they leave
// is kept by row and query head.
#ifndef KERNELS_CUDA_PLAN_SCORE_CUH
#define KERNELS_CUDA_PLAN_SCORE_CUH

#include "kernels/cuda/common.cuh"

struct score_view {
    const float *q;
    const void *kmin, *kmax;
    const unsigned char *kstep;
    int stride, heads, kv_heads, dim, group, act_cap;
    float scale;      // with log2(e): shares are powers of two
    int seg0;         // first segment of this launch
    int span, chunks; // pages of a chunk whose sum is kept, and chunks
    int width;        // of a row of bounds: max_pages, rounded up to fours
    float *bounds;    // [segs, act_cap, heads, width], below 4 GB
    float2 *stats;    // [segs, act_cap, heads, chunks]: maximum and sum of a chunk
    float *score;     // [scan_segs, score_lists, act_cap, max_pages]
    int score_lists, list0;
};

// Active rows of the segment, and the pages of their prefix (they are one block).
__device__ inline int active_rows(const batch_view &b, const plan_view &p, int seg, int *pages)
{
    const int count = min(p.act_count[seg], p.act_cap);
    *pages = count > 0 ? b.pages_of(b.prefix(b.seg_row0[seg])) : 0;
    return count;
}

// Where a lane of a KV head lies in bounds and stats; seg counts from seg0.
__device__ inline int lane_row(const score_view &a, int seg, int kv_head, int lane)
{
    return (seg * a.act_cap + lane / a.group) * a.heads + kv_head * a.group + lane % a.group;
}

// 2^x; results below the normal numbers are 0.
__device__ inline float power2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Maximum and sum of powers of two, as they come.
__device__ inline float2 join_sums(float2 x, float2 y)
{
    const float top = fmaxf(x.x, y.x), base = top == -CUDART_INF_F ? 0.0f : top;
    return make_float2(top, x.y * power2(x.x - base) + y.y * power2(y.x - base));
}

// The same over the threads whose numbers differ in the bits of [FIRST, END).
template <int FIRST, int END> __device__ inline float2 join_lanes(float2 x)
{
    float top = x.x;
#pragma unroll
    for (int offset = FIRST; offset < END; offset *= 2)
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, offset));
    float sum = x.y * power2(x.x - (top == -CUDART_INF_F ? 0.0f : top));
#pragma unroll
    for (int offset = FIRST; offset < END; offset *= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    return make_float2(top, sum);
}

// ---- shares ---------------------------------------------------------------------
//
// A block adds up the shares of a run of pages of a row: a thread has four pages, a warp every
// eighth head. Code that runs once waits for its instructions, so there should be few.

enum { SHARE_RUN = 4 * WARP, SHARE_WARPS = 8, SHARE_THREADS = SHARE_WARPS * WARP };
enum {
    SHARE_AHEAD = 4,
    SHARE_TEAM = WARP / SHARE_AHEAD
}; // heads of a warp at once, threads of one

struct share_parts {
    float4 sum[SHARE_WARPS][WARP];
};

// The heads of a row that a list adds up: `row` is the first in bounds and stats.
struct share_row {
    int row, heads;
    int pages, chunks; // of the prefix
};

// What a thread needs: bounds of its pages for the warp's heads, and maximum and sum of two
// chunks of its team's head.
struct share_inputs {
    float4 bound[SHARE_AHEAD];
    float2 stat[2];
};

// Query heads of a list; 0 if it is not one of this rank's.
__device__ inline int heads_of_list(const score_view &a, int list, int *head0)
{
    *head0 = a.score_lists == 1 ? 0 : (list - a.list0) * a.group;
    const int heads = a.score_lists == 1 ? a.heads : a.group;
    return *head0 >= 0 && *head0 + heads <= a.heads ? heads : 0;
}

// The warp's head number i from head0 on.
__device__ inline int share_head(int head0, int i)
{
    return head0 + i * SHARE_WARPS + (int)threadIdx.x / WARP;
}

__device__ inline float2 fetch_stat(const score_view &a, const share_row &r, int head, int chunk)
{
    if (chunk >= r.chunks)
        return make_float2(-CUDART_INF_F, 0.0f);
    return a.stats[(r.row + min(head, r.heads - 1)) * a.chunks + chunk];
}

// Heads and pages that there are not get others.
__device__ inline void fetch_shares(share_inputs &in, const score_view &a, const share_row &r,
                                    int first, int head0)
{
    const int lane = threadIdx.x % WARP;
    const int page = min(first + lane * 4, a.width - 4);
#pragma unroll
    for (int i = 0; i < SHARE_AHEAD; i++) {
        const unsigned row = r.row + min(share_head(head0, i), r.heads - 1);
        in.bound[i] = *(const float4 *)((const char *)a.bounds + (row * a.width + page) * 4u);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
        in.stat[i] = fetch_stat(a, r, share_head(head0, lane / SHARE_TEAM),
                                lane % SHARE_TEAM + i * SHARE_TEAM);
}

// Maximum and 1 / sum of the team's head over all chunks; 0 for 1 / sum where there is no head.
__device__ inline float2 total_head(const share_inputs &in, const score_view &a, const share_row &r,
                                    int head0)
{
    const int lane = threadIdx.x % WARP, head = share_head(head0, lane / SHARE_TEAM);
    float2 sum = join_sums(in.stat[0], in.stat[1]);
#pragma unroll 1
    for (int c = lane % SHARE_TEAM + 2 * SHARE_TEAM; c < r.chunks; c += SHARE_TEAM)
        sum = join_sums(sum, fetch_stat(a, r, head, c));
    sum = join_lanes<1, SHARE_TEAM>(sum);
    return make_float2(sum.x, head < r.heads ? __fdividef(1.0f, sum.y) : 0.0f);
}

// The sum of the shares of the row's heads of page `first` + threadIdx.x, which is in the
// prefix: the result of the first SHARE_RUN threads. All take part; `in` is of head 0. The
// order of the sum is the same in every call.
__device__ inline float add_shares(share_parts &s, share_inputs &in, const score_view &a,
                                   const share_row &r, int first)
{
    float4 all = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int head0 = 0;;) {
        const float2 total = total_head(in, a, r, head0);
#pragma unroll
        for (int i = 0; i < SHARE_AHEAD; i++) {
            const float top = __shfl_sync(ALL_LANES, total.x, i * SHARE_TEAM);
            const float scale = __shfl_sync(ALL_LANES, total.y, i * SHARE_TEAM);
            all.x += power2(in.bound[i].x - top) * scale;
            all.y += power2(in.bound[i].y - top) * scale;
            all.z += power2(in.bound[i].z - top) * scale;
            all.w += power2(in.bound[i].w - top) * scale;
        }
        head0 += SHARE_AHEAD * SHARE_WARPS;
        if (head0 >= r.heads)
            break;
        fetch_shares(in, a, r, first, head0);
    }
    s.sum[threadIdx.x / WARP][threadIdx.x % WARP] = all;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SHARE_WARPS; i++)
        sum += ((const float *)s.sum[i])[threadIdx.x % SHARE_RUN];
    return sum;
}

// ---- launches -------------------------------------------------------------------

score_view score_view_of(const kern_cuda_ctx *ctx, const kern_page_score_args *a);
// Bytes of workspace for bounds and stats of a segment, a multiple of 16.
size_t score_bytes(const score_view &v);
// Enqueues what fills bounds and stats of segments [seg0, seg0 + segs), at the start of the
// workspace.
int launch_bounds(const kern_cuda_ctx *ctx, const kern_page_score_args *a, score_view &v, int segs);

// The kernels of the last: of f32 metadata by ordinary arithmetic, of 8-bit metadata on
// tensor cores (`settled`: no key is written in this forward); and the pages of their runs.
int bound_span_f32(void);
int launch_bounds_f32(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                      const plan_view &p, int segs);
int bound_span_narrow(const kern_cuda_ctx *ctx, const score_view &v, int max_pages, int segs);
int launch_bounds_narrow(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                         const plan_view &p, int segs, bool settled);

#endif
