// SPDX-License-Identifier: Apache-2.0
// What the kernels of page scores share. The lanes of a KV head are its query heads in
// every active row: lane = place * group + head, place among the active rows.
#ifndef KERNELS_CUDA_PLAN_SCORE_CUH
#define KERNELS_CUDA_PLAN_SCORE_CUH

#include "kernels/cuda/common.cuh"

struct score_view {
    const float *q;
    const void *kmin, *kmax;
    const unsigned char *kstep;
    int stride, heads, kv_heads, dim, group;
    float scale;      // with log2(e): shares are powers of two
    int seg0;         // first segment of this launch
    int lanes;        // of a KV head, at most
    int span, chunks; // pages of a run whose sum is kept, and runs
    float *bounds;    // [segs, kv_heads, lanes, max_pages]
    float2 *stats;    // [segs, kv_heads, lanes, chunks]: maximum and sum of a run
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

// First lane of a KV head in bounds and stats; seg counts from seg0.
__device__ inline int first_lane(const score_view &a, int seg, int kv_head)
{
    return (seg * a.kv_heads + kv_head) * a.lanes;
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

enum { SHARE_THREADS = 512, SHARE_TEAM = 16 };

// A head of a list: its lane in bounds and stats, maximum, and 1 / sum.
struct __align__(16) lane_total
{
    int lane;
    float top, scale;
    int spare;
};

// Query heads of a list; 0 if it is not one of this rank's.
__device__ inline int heads_of_list(const score_view &a, int list, int *head0)
{
    *head0 = a.score_lists == 1 ? 0 : (list - a.list0) * a.group;
    const int heads = a.score_lists == 1 ? a.heads : a.group;
    return *head0 >= 0 && *head0 + heads <= a.heads ? heads : 0;
}

// Totals of the heads of a list over all runs: a team of threads each.
__device__ inline void total_lanes(const score_view &a, int place, int head0, int heads, int runs,
                                   lane_total *total)
{
    const int team = threadIdx.x / SHARE_TEAM, member = threadIdx.x % SHARE_TEAM;
    for (int base = 0; base < heads; base += SHARE_THREADS / SHARE_TEAM) {
        const int head = head0 + min(base + team, heads - 1);
        const int lane =
            first_lane(a, blockIdx.z, head / a.group) + place * a.group + head % a.group;
        float2 sum = make_float2(-CUDART_INF_F, 0.0f);
        for (int c = member; c < runs; c += SHARE_TEAM)
            sum = join_sums(sum, a.stats[(size_t)lane * a.chunks + c]);
        sum = join_lanes<1, SHARE_TEAM>(sum);
        if (member == 0 && base + team < heads)
            total[base + team] = lane_total{lane, sum.x, 1.0f / sum.y, 0};
    }
    __syncthreads();
}

// The sum of the heads' shares of a page, in order.
__device__ inline float add_shares(const score_view &a, int max_pages, int heads, int page,
                                   const lane_total *total)
{
    float sum = 0.0f;
#pragma unroll 16
    for (int i = 0; i < heads; i++) {
        const lane_total t = total[i];
        sum += power2(a.bounds[(size_t)t.lane * max_pages + page] - t.top) * t.scale;
    }
    return sum;
}

// ---- launches -------------------------------------------------------------------

score_view score_view_of(const kern_cuda_ctx *ctx, const kern_page_score_args *a);
// Bytes of workspace for bounds and stats of a segment.
size_t score_bytes(const score_view &v, int max_pages);
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
