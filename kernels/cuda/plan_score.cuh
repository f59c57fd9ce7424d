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

// Enqueues the kernel that fills bounds and stats: of f32 metadata by ordinary
// arithmetic, of 8-bit metadata on tensor cores. Its span is the pages of a run.
int bound_span_f32(void);
int launch_bounds_f32(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                      const plan_view &p, int segs);
int bound_span_narrow(const kern_cuda_ctx *ctx, const score_view &v, int max_pages, int segs);
int launch_bounds_narrow(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                         const plan_view &p, int segs);

#endif
