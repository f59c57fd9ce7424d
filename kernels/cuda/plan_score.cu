// SPDX-License-Identifier: Apache-2.0
// Page scores: QUEST bounds (plan_scan.cu, plan_bound.cu), a softmax over the pages per row
// and head, and the sum of the shares over the heads of a list.
//
// The first kernel leaves bounds, and their maximum and sum per run of pages, in the
// workspace; the second joins the sums, turns bounds into shares and adds them up. Where
// nobody else adds to the scores, plan_select.cu goes on from the first.
#include "kernels/cuda/plan_score.cuh"

score_view score_view_of(const kern_cuda_ctx *ctx, const kern_page_score_args *a)
{
    score_view v = {ptr<float>(a->q), ptr<void>(a->kv.kmin), ptr<void>(a->kv.kmax),
                    ptr<unsigned char>(a->kv.kstep)};
    v.stride = a->stride;
    v.heads = a->heads;
    v.kv_heads = a->kv.kv_heads;
    v.dim = a->kv.head_dim;
    v.group = a->heads / a->kv.kv_heads;
    v.act_cap = a->plan->act_cap;
    v.scale = a->scale * 1.44269504f;
    v.score = ptr<float>(a->score);
    v.score_lists = a->score_lists;
    v.list0 = a->list0;
    const int pages = a->batch->max_pages;
    v.span = v.kstep ? bound_span_narrow(ctx, v, pages, a->batch->scan_segs) : bound_span_f32();
    v.chunks = (int)blocks_of(pages, v.span);
    v.width = bound_width(pages);
    return v;
}

size_t score_bytes(const score_view &v)
{
    const size_t row = v.width * sizeof(float) + v.chunks * sizeof(float2);
    return ((size_t)v.act_cap * v.heads * row + 15) / 16 * 16;
}

size_t plans_that_fit(const kern_cuda_ctx *ctx, size_t bytes)
{
    const size_t most = KERN_CUDA_PLAN_BYTES;
    return (ctx->workspace_bytes < most ? ctx->workspace_bytes : most) / bytes;
}

int launch_bounds(const kern_cuda_ctx *ctx, const kern_page_score_args *a, score_view &v, int segs)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    v.bounds = (float *)ctx->workspace;
    v.stats = (float2 *)(v.bounds + (size_t)segs * v.act_cap * v.heads * v.width);
    return v.kstep ? launch_bounds_narrow(ctx, v, b, p, segs, a->batch->write_rows == 0)
                   : launch_bounds_f32(ctx, v, b, p, segs);
}

// Adds the shares of a list's heads, and clears what no row, page or local list has. Block
// (run of pages, place of a list, segment).
__global__ void __launch_bounds__(SHARE_THREADS)
    share_kernel(score_view a, batch_view b, plan_view p)
{
    __shared__ share_parts parts;
    begin_kernel();
    const int place = blockIdx.y % p.act_cap, list = blockIdx.y / p.act_cap;
    const int seg = a.seg0 + blockIdx.z;
    const int warps = share_warps(a.score_lists == 1 ? a.heads : a.group);
    const int first = blockIdx.x * (SHARE_PAGES * SHARE_WARPS / warps);
    int pages, head0;
    const int rows = active_rows(b, p, seg, &pages), heads = heads_of_list(a, list, &head0);
    float score[4] = {};
    if (place < rows && first < pages && heads > 0) {
        const share_row row = find_share(a, blockIdx.z, place, head0, heads, pages);
        share_inputs in;
        fetch_shares(in, a, row, first, 0);
        add_shares(score, parts, in, a, row, first);
    }
    const share_pages at = find_pages(warps, first);
    float *out =
        a.score + (((size_t)seg * a.score_lists + list) * p.act_cap + place) * (size_t)b.max_pages;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int page = at.first + i;
        if (page < min(at.end, b.max_pages))
            out[page] = page < pages ? score[i] : 0.0f;
    }
}

extern "C" int kern_cuda_launch_page_score(const kern_cuda_ctx *ctx, const kern_page_score_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    if (p.act_cap == 0 || b.max_pages == 0)
        return 0;
    score_view v = score_view_of(ctx, a);
    const int fit = (int)plans_that_fit(ctx, score_bytes(v));
    if (fit == 0)
        return KERN_CUDA_NO_ROOM;
    for (v.seg0 = 0; v.seg0 < b.scan_segs; v.seg0 += fit) {
        const int segs = b.scan_segs - v.seg0 < fit ? b.scan_segs - v.seg0 : fit;
        const dim3 grid(blocks_of(b.max_pages, share_run(v.score_lists == 1 ? v.heads : v.group)),
                        v.score_lists * p.act_cap, segs);
        int error = launch_bounds(ctx, a, v, segs);
        if (!error)
            error = enqueue(ctx, share_kernel, grid, SHARE_THREADS, 0, v, b, p);
        if (error)
            return error;
    }
    return 0;
}
