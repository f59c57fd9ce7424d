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
    float *bounds;    // [segs, act_cap, heads, max_pages]
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

enum { SHARE_RUN = 128, SHARE_PARTS = 2, SHARE_THREADS = SHARE_RUN * SHARE_PARTS, SHARE_TEAM = 8 };

// Sums of a run of pages, of every other head.
struct share_parts {
    float sum[SHARE_PARTS][SHARE_RUN];
};

// Query heads of a list; 0 if it is not one of this rank's.
__device__ inline int heads_of_list(const score_view &a, int list, int *head0)
{
    *head0 = a.score_lists == 1 ? 0 : (list - a.list0) * a.group;
    const int heads = a.score_lists == 1 ? a.heads : a.group;
    return *head0 >= 0 && *head0 + heads <= a.heads ? heads : 0;
}

// What a thread needs of a run of pages to make shares: the bounds of its page for the first
// of its heads, and maximum and sum of the first of its team's chunks.
enum { SHARE_AHEAD = 16, STATS_AHEAD = 2 };
struct share_inputs {
    float bound[SHARE_AHEAD];
    float2 stat[STATS_AHEAD];
};

// The heads of a row that a list adds up: `row` is the first in bounds and stats.
struct share_row {
    int row, heads;
    int pages, chunks; // of the prefix
};

__device__ inline void fetch_bounds(float (&x)[SHARE_AHEAD], const score_view &a, int max_pages,
                                    const share_row &r, int first, int head0)
{
    const int page = min(first + (int)threadIdx.x % SHARE_RUN, r.pages - 1);
    const unsigned size = max_pages * sizeof(float); // of a row; all of them are below 4 GB
    const unsigned last = (r.row + r.heads - 1) * size + page * sizeof(float);
    unsigned at = (r.row + head0) * size + page * sizeof(float);
#pragma unroll
    for (int i = 0; i < SHARE_AHEAD; i++) { // heads that there are not get the last one's
        x[i] = *(const float *)((const char *)a.bounds + min(at, last));
        at += SHARE_PARTS * size;
    }
}

__device__ inline float2 fetch_stat(const score_view &a, const share_row &r, int head, int chunk)
{
    return chunk < r.chunks ? a.stats[((size_t)r.row + head) * a.chunks + chunk]
                            : make_float2(-CUDART_INF_F, 0.0f);
}

__device__ inline void fetch_shares(share_inputs &in, const score_view &a, int max_pages,
                                    const share_row &r, int first)
{
    fetch_bounds(in.bound, a, max_pages, r, first, threadIdx.x / SHARE_RUN);
#pragma unroll
    for (int i = 0; i < STATS_AHEAD; i++)
        in.stat[i] = fetch_stat(a, r, min((int)threadIdx.x / SHARE_TEAM, r.heads - 1),
                                threadIdx.x % SHARE_TEAM + i * SHARE_TEAM);
}

// Maximum and 1 / sum of the row's heads over all chunks: a team of threads each.
__device__ inline void total_heads(const share_inputs &in, const score_view &a, const share_row &r,
                                   float2 *total)
{
    const int team = threadIdx.x / SHARE_TEAM, member = threadIdx.x % SHARE_TEAM;
    for (int base = 0; base < r.heads; base += SHARE_THREADS / SHARE_TEAM) {
        const int head = min(base + team, r.heads - 1);
        int c = member;
        float2 sum = make_float2(-CUDART_INF_F, 0.0f);
        if (base == 0) {
            sum = join_sums(in.stat[0], in.stat[1]);
            c += STATS_AHEAD * SHARE_TEAM;
        }
        for (; c < r.chunks; c += SHARE_TEAM)
            sum = join_sums(sum, fetch_stat(a, r, head, c));
        sum = join_lanes<1, SHARE_TEAM>(sum);
        if (member == 0 && base + team < r.heads)
            total[base + team] = make_float2(sum.x, __fdividef(1.0f, sum.y));
    }
    __syncthreads();
}

// The sum of the shares of the row's heads of page `first` + threadIdx.x, which is in the
// prefix: the result of the first SHARE_RUN threads. All take part; the order of the sum is
// the same in every call.
__device__ inline float add_shares(share_parts &s, share_inputs &in, const score_view &a,
                                   int max_pages, const share_row &r, int first,
                                   const float2 *total)
{
    const int part = threadIdx.x / SHARE_RUN, at = threadIdx.x % SHARE_RUN;
    float sum = 0.0f;
    for (int base = 0; base < r.heads; base += SHARE_AHEAD * SHARE_PARTS) {
        if (base > 0)
            fetch_bounds(in.bound, a, max_pages, r, first, base + part);
#pragma unroll
        for (int i = 0; i < SHARE_AHEAD; i++) {
            const int head = base + part + i * SHARE_PARTS;
            if (head < r.heads)
                sum += power2(in.bound[i] - total[head].x) * total[head].y;
        }
    }
    s.sum[part][at] = sum;
    __syncthreads();
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < SHARE_PARTS; i++)
        all += s.sum[i][at];
    return all;
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
