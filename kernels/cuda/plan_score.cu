// SPDX-License-Identifier: Apache-2.0
// Page scores: QUEST bounds (plan_scan.cu, plan_bound.cu), a softmax over the pages per row
// and head, and the sum of the shares over the heads of a list.
//
// The first kernel leaves bounds, and their maximum and sum per run of pages, in the
// workspace; the second joins the sums, turns bounds into shares and adds them up.
#include "kernels/cuda/plan_score.cuh"

enum { SHARED_PAGES = 128, QUAD = 4 };

// A head of a list: its lane in bounds and stats, maximum, and 1 / sum.
struct lane_total {
    int lane;
    float top, scale;
    int spare;
};

// Totals of the heads of a list over all runs: four threads each.
__device__ static void total_lanes(const score_view &a, int place, int head0, int heads, int runs,
                                   lane_total *total)
{
    for (int i = threadIdx.x / QUAD; i - (int)threadIdx.x / QUAD < heads;
         i += SHARED_PAGES / QUAD) {
        const int head = head0 + min(i, heads - 1);
        const int lane =
            first_lane(a, blockIdx.z, head / a.group) + place * a.group + head % a.group;
        const float2 *stats = a.stats + (size_t)lane * a.chunks;
        float2 sum = make_float2(-CUDART_INF_F, 0.0f);
#pragma unroll 4
        for (int c = threadIdx.x % QUAD; c < runs; c += QUAD)
            sum = join_sums(sum, stats[c]);
        for (int offset = 1; offset < QUAD; offset *= 2)
            sum = join_sums(sum, make_float2(__shfl_xor_sync(ALL_LANES, sum.x, offset),
                                             __shfl_xor_sync(ALL_LANES, sum.y, offset)));
        if (threadIdx.x % QUAD == 0 && i < heads)
            total[i] = lane_total{lane, sum.x, 1.0f / sum.y, 0};
    }
    __syncthreads();
}

__device__ static float add_shares(const float *bounds, int max_pages, int heads,
                                   const lane_total *total)
{
    float sum = 0.0f;
#pragma unroll 16
    for (int i = 0; i < heads; i++) {
        const lane_total t = total[i];
        sum += power2(bounds[(size_t)t.lane * max_pages] - t.top) * t.scale;
    }
    return sum;
}

// Adds the shares of a list's heads, in order, and clears what no row, page or local
// list has. A thread takes a page; block (pages, place of a list, segment).
__global__ void __launch_bounds__(SHARED_PAGES)
    share_kernel(score_view a, batch_view b, plan_view p)
{
    extern __shared__ lane_total total[]; // [heads of a list]
    begin_kernel();
    const int first = blockIdx.x * SHARED_PAGES, page = first + (int)threadIdx.x;
    const int place = blockIdx.y % p.act_cap, list = blockIdx.y / p.act_cap;
    const int seg = a.seg0 + blockIdx.z;
    int pages;
    const int rows = active_rows(b, p, seg, &pages);
    const int heads = a.score_lists == 1 ? a.heads : a.group;
    const int head0 = a.score_lists == 1 ? 0 : (list - a.list0) * a.group;
    float sum = 0.0f;
    if (place < rows && first < pages && head0 >= 0 && head0 + heads <= a.heads) {
        total_lanes(a, place, head0, heads, (pages + a.span - 1) / a.span, total);
        if (page < pages)
            sum = add_shares(a.bounds + page, b.max_pages, heads, total);
    }
    if (page < b.max_pages)
        a.score[(((size_t)seg * a.score_lists + list) * p.act_cap + place) * b.max_pages + page] =
            sum;
}

static int launch(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                  const plan_view &p, int segs)
{
    const int error =
        v.kstep ? launch_bounds_narrow(ctx, v, b, p, segs) : launch_bounds_f32(ctx, v, b, p, segs);
    if (error)
        return error;
    const int heads = v.score_lists == 1 ? v.heads : v.group;
    return enqueue(ctx, share_kernel,
                   dim3(blocks_of(b.max_pages, SHARED_PAGES), v.score_lists * p.act_cap, segs),
                   SHARED_PAGES, heads * sizeof(lane_total), v, b, p);
}

extern "C" int kern_cuda_launch_page_score(const kern_cuda_ctx *ctx, const kern_page_score_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    if (p.act_cap == 0 || b.max_pages == 0)
        return 0;
    score_view v = {ptr<float>(a->q), ptr<void>(a->kv.kmin), ptr<void>(a->kv.kmax),
                    ptr<unsigned char>(a->kv.kstep)};
    v.stride = a->stride;
    v.heads = a->heads;
    v.kv_heads = a->kv.kv_heads;
    v.dim = a->kv.head_dim;
    v.group = a->heads / a->kv.kv_heads;
    v.lanes = p.act_cap * v.group;
    v.scale = a->scale * 1.44269504f;
    v.score = ptr<float>(a->score);
    v.score_lists = a->score_lists;
    v.list0 = a->list0;
    v.span = v.kstep ? bound_span_narrow(ctx, v, b.max_pages, b.scan_segs) : bound_span_f32();
    v.chunks = (int)blocks_of(b.max_pages, v.span);
    const size_t lanes = (size_t)v.kv_heads * v.lanes;
    const size_t bytes = lanes * (v.chunks * sizeof(float2) + b.max_pages * sizeof(float));
    const size_t fit = ctx->workspace_bytes / bytes;
    if (fit == 0)
        return KERN_CUDA_NO_ROOM;
    for (v.seg0 = 0; v.seg0 < b.scan_segs; v.seg0 += (int)fit) {
        const int left = b.scan_segs - v.seg0, segs = left < (int)fit ? left : (int)fit;
        v.stats = (float2 *)ctx->workspace;
        v.bounds = (float *)(v.stats + segs * lanes * v.chunks);
        const int error = launch(ctx, v, b, p, segs);
        if (error)
            return error;
    }
    return 0;
}
