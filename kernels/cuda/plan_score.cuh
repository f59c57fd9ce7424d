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
    int width;        // of a row of bounds, bound_width(max_pages)
    float *bounds;    // [segs, act_cap, heads, width]
    float2 *stats;    // [segs, act_cap, heads, chunks]: maximum and sum of a chunk
    float *score;     // [scan_segs, score_lists, act_cap, max_pages]
    int score_lists, list0;
};

// Bounds that a row holds, of so many pages: they are read in fours, and those of no page are
// -infinity.
__host__ __device__ inline int bound_width(int pages)
{
    return (pages + 3) / 4 * 4;
}

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
// A block adds up the shares of a run of pages of a row. A thread has four pages in a line of
// four heads; as many warps as the heads take share 128 pages, and so a run has 128 pages of more
// than 16 heads, 1024 of four. Code that runs once waits for its instructions, so there
// should be few.

enum { SHARE_PAGES = 4 * WARP, SHARE_WARPS = 8, SHARE_THREADS = SHARE_WARPS * WARP };
// Heads of a warp at once, threads of one, and chunks of one that a thread fetches ahead.
enum { SHARE_AHEAD = 4, SHARE_TEAM = WARP / SHARE_AHEAD, SHARE_STATS = 4 };

struct share_parts {
    float4 sum[SHARE_WARPS][WARP];
};

// Warps that share 128 pages.
__host__ __device__ inline int share_warps(int heads)
{
    return heads > 4 * SHARE_AHEAD ? 8 : heads > 2 * SHARE_AHEAD ? 4 : heads > SHARE_AHEAD ? 2 : 1;
}

__host__ __device__ inline int share_run(int heads)
{
    return SHARE_PAGES * SHARE_WARPS / share_warps(heads);
}

// The heads of a row that a list adds up: `row` is the first in bounds and stats.
struct share_row {
    int row, heads, warps;
    int pages, chunks; // of the prefix
};

// Query heads of a list; 0 if it is not one of this rank's.
__device__ inline int heads_of_list(const score_view &a, int list, int *head0)
{
    *head0 = a.score_lists == 1 ? 0 : (list - a.list0) * a.group;
    const int heads = a.score_lists == 1 ? a.heads : a.group;
    return *head0 >= 0 && *head0 + heads <= a.heads ? heads : 0;
}

// Of row number `place` of a segment of this launch.
__device__ inline share_row find_share(const score_view &a, int seg, int place, int head0,
                                       int heads, int pages)
{
    return share_row{(seg * a.act_cap + place) * a.heads + head0, heads, share_warps(heads), pages,
                     (pages + a.span - 1) / a.span};
}

// The pages of a run that a thread gets the scores of: [first, end).
struct share_pages {
    int first, end;
};

__device__ inline share_pages find_pages(int warps, int first)
{
    const int each = max(4 / warps, 1), page = first + (int)threadIdx.x * each;
    return share_pages{page, min(page + each, first + SHARE_PAGES * SHARE_WARPS / warps)};
}

// What a thread needs: bounds of its pages for the warp's heads, and maximum and sum of a few
// chunks of its team's head.
struct share_inputs {
    float4 bound[SHARE_AHEAD];
    float2 stat[SHARE_STATS];
};

// The warp's head number i from head0 on.
__device__ inline int share_head(const share_row &r, int head0, int i)
{
    return head0 + i * r.warps + (int)threadIdx.x / WARP % r.warps;
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
    const int run = (int)threadIdx.x / WARP / r.warps;
    const int page = min(first + run * SHARE_PAGES + lane * 4, bound_width(r.pages) - 4);
#pragma unroll
    for (int i = 0; i < SHARE_AHEAD; i++) {
        const unsigned row = r.row + min(share_head(r, head0, i), r.heads - 1);
        in.bound[i] = *(const float4 *)((const char *)a.bounds + (row * a.width + page) * 4u);
    }
#pragma unroll
    for (int i = 0; i < SHARE_STATS; i++)
        in.stat[i] = fetch_stat(a, r, share_head(r, head0, lane / SHARE_TEAM),
                                lane % SHARE_TEAM + i * SHARE_TEAM);
}

// Maximum and 1 / sum of the team's head over all chunks; 0 for 1 / sum where there is no head.
__device__ inline float2 total_head(const share_inputs &in, const score_view &a, const share_row &r,
                                    int head0)
{
    const int lane = threadIdx.x % WARP, head = share_head(r, head0, lane / SHARE_TEAM);
    float2 sum = join_sums(join_sums(in.stat[0], in.stat[1]), join_sums(in.stat[2], in.stat[3]));
#pragma unroll 1
    for (int c = lane % SHARE_TEAM + SHARE_STATS * SHARE_TEAM; c < r.chunks; c += SHARE_TEAM)
        sum = join_sums(sum, fetch_stat(a, r, head, c));
    sum = join_lanes<1, SHARE_TEAM>(sum);
    return make_float2(sum.x, head < r.heads ? __fdividef(1.0f, sum.y) : 0.0f);
}

// Scores of the thread's pages (find_pages): the sums of the shares of the row's heads, in an
// order that is the same in every call. All threads take part; `in` is of head 0.
__device__ inline void add_shares(float (&score)[4], share_parts &s, share_inputs &in,
                                  const score_view &a, const share_row &r, int first)
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
        head0 += SHARE_AHEAD * r.warps;
        if (head0 >= r.heads)
            break;
        fetch_shares(in, a, r, first, head0);
    }
    score[0] = all.x, score[1] = all.y, score[2] = all.z, score[3] = all.w;
    if (r.warps == 1)
        return;
    s.sum[threadIdx.x / WARP][threadIdx.x % WARP] = all;
    __syncthreads();
    const share_pages to = find_pages(r.warps, 0);
#pragma unroll
    for (int i = 0; i < 2; i++) { // more warps, fewer pages
        const int page = to.first + i, run = page / SHARE_PAGES;
        score[i] = 0.0f;
        if (page < to.end)
#pragma unroll 2
            for (int w = 0; w < r.warps; w++)
                score[i] += ((const float *)s.sum[run * r.warps + w])[page % SHARE_PAGES];
    }
}

// ---- launches -------------------------------------------------------------------

score_view score_view_of(const kern_cuda_ctx *ctx, const kern_page_score_args *a);
// Bytes of workspace for bounds and stats of a segment, a multiple of 16.
size_t score_bytes(const score_view &v);
// Segments whose plans fit the workspace, with so many bytes of each.
size_t plans_that_fit(const kern_cuda_ctx *ctx, size_t bytes);
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
