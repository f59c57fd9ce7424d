// SPDX-License-Identifier: Apache-2.0
// How far tokens moved (locality), which of them read the prefix (active set), and what a plan
// costs and hashes to.
#include "kernels/cuda/common.cuh"

// ---- locality ------------------------------------------------------------------

__global__ void locality_kernel(const float *x, float *prev, float *delta, batch_view b, int cols,
                                int stride, float scale)
{
    __shared__ float shared[WARP];
    begin_kernel();
    const int row = blockIdx.x, slot = b.cache_slot[row];
    float change = 0.0f, squares = 0.0f;
    for (int c = threadIdx.x; slot >= 0 && c < cols; c += blockDim.x) {
        const float now = x[(size_t)row * stride + c], d = now - prev[(size_t)slot * cols + c];
        prev[(size_t)slot * cols + c] = now;
        change += d * d;
        squares += now * now;
    }
    change = block_sum(change, shared);
    squares = block_sum(squares, shared);
    const bool later = slot >= 0 && b.seg_kind[b.row_seg[row]] == KERN_SEG_STEP;
    const bool changed = change >= KERN_NO_CHANGE * KERN_NO_CHANGE * squares;
    if (threadIdx.x == 0)
        delta[row] = later && changed ? change / (float)cols * scale : 0.0f;
}

extern "C" int kern_cuda_launch_locality(const kern_cuda_ctx *ctx, const kern_locality_args *a)
{
    return enqueue(ctx, locality_kernel, dim3(a->batch->rows), 256, 0, ptr<float>(a->x),
                   ptr<float>(a->prev), ptr<float>(a->delta), view(a->batch), a->cols, a->stride,
                   a->scale);
}

// ---- active set ------------------------------------------------------------------

struct active_view {
    const float *delta;
    int rule, k;
    float share;

    __device__ bool changed_more(int other, int row) const // ties: the lower row leads
    {
        return delta[other] > delta[row] || (delta[other] == delta[row] && other < row);
    }
};

// True if fewer than k of the candidate rows changed more than `row`. Rows with an
// `excluded` bit in their state are no candidates.
__device__ static bool among_most_changed(const active_view &a, const batch_view &b, int row,
                                          int first, int end, int excluded)
{
    int ahead = 0;
    for (int other = first; other < end; other++)
        ahead += !(b.row_state[other] & excluded) && a.changed_more(other, row);
    return ahead < a.k;
}

// True if the rows that changed more than `row` hold less than the share of all change.
// Summed as on the CPU, in the order of the rows.
__device__ static bool within_share(const active_view &a, int row, int first, int end)
{
    float ahead = 0.0f, all = 0.0f;
    for (int other = first; other < end; other++) {
        all += a.delta[other];
        ahead += a.changed_more(other, row) ? a.delta[other] : 0.0f;
    }
    return ahead < a.share * all;
}

__device__ static bool is_active(const active_view &a, const batch_view &b, int row, int first,
                                 int end)
{
    const int state = b.row_state[row];
    switch (a.rule) {
    case KERN_ACTIVE_TOPK:
        return among_most_changed(a, b, row, first, end, 0);
    case KERN_ACTIVE_NEW_TOPK:
        return (state & KERN_ROW_NEW) || among_most_changed(a, b, row, first, end, KERN_ROW_NEW);
    case KERN_ACTIVE_UNSETTLED:
        return (state & (KERN_ROW_MASKED | KERN_ROW_NEW)) != 0;
    case KERN_ACTIVE_SHARE:
        return within_share(a, row, first, end);
    default:
        return true;
    }
}

// A segment is a block; it compacts the active rows in order.
__global__ void active_kernel(active_view a, batch_view b, plan_view p)
{
    __shared__ int shared[WARP];
    begin_kernel();
    const int seg = blockIdx.x, first = b.seg_row0[seg], end = b.seg_row0[seg + 1];
    const bool sparse = seg < b.sparse_segs;
    const bool all = !sparse || b.seg_kind[seg] != KERN_SEG_STEP;
    const bool none = sparse && b.seg_kind[seg] == KERN_SEG_REST;
    int count = 0;
    for (int base = first; base < end; base += blockDim.x) {
        const int row = base + (int)threadIdx.x;
        const bool in = row < end && !none && (all || is_active(a, b, row, first, end));
        int found;
        const int before = block_scan(in, shared, &found);
        if (in)
            p.act_rows[first + count + before] = row;
        count += found;
    }
    if (threadIdx.x == 0)
        p.act_count[seg] = count;
    for (int l = threadIdx.x; !sparse && l < p.lists; l += blockDim.x)
        p.page_count[seg * p.lists + l] = -1;
}

extern "C" int kern_cuda_launch_active(const kern_cuda_ctx *ctx, const kern_active_args *a)
{
    const active_view v = {ptr<float>(a->delta), (int)a->rule, a->k, a->share};
    if (a->batch->segs == 0)
        return 0;
    return enqueue(ctx, active_kernel, dim3(a->batch->segs), 128, 0, v, view(a->batch),
                   view(a->plan, a->batch));
}

// ---- statistics ------------------------------------------------------------------

__global__ void plan_count_kernel(batch_view b, int lists, int layers, long long *counts)
{
    begin_kernel();
    const int seg = b.sparse_segs + blockIdx.x * blockDim.x + threadIdx.x;
    if (seg >= b.segs || b.seg_row0[seg + 1] <= b.seg_row0[seg])
        return;
    long long *count = counts + (size_t)seg * KERN_COUNT_N;
    const long long read = (long long)b.prefix(b.seg_row0[seg + 1] - 1) * lists * layers;
    count[KERN_COUNT_PREFIX] += read;
    count[KERN_COUNT_READ] += read;
    count[KERN_COUNT_ACTIVE] += (long long)(b.seg_row0[seg + 1] - b.seg_row0[seg]) * layers;
}

extern "C" int kern_cuda_launch_plan_count(const kern_cuda_ctx *ctx, const kern_plan_count_args *a)
{
    const int segs = a->batch->segs - a->batch->sparse_segs;
    if (segs == 0)
        return 0;
    return enqueue(ctx, plan_count_kernel, dim3(blocks_of(segs, 64)), 64, 0, view(a->batch),
                   a->lists, a->layers, ptr<long long>(a->counts));
}

// FNV-1a is a chain: the lanes only fetch the words ahead.
__device__ static unsigned fnv1a(unsigned hash, const int *words, int count)
{
    for (int base = 0; base < count; base += WARP) {
        const int i = base + (int)threadIdx.x;
        const int mine = i < count ? words[i] : 0;
        for (int j = 0; j < min(WARP, count - base); j++) {
            const unsigned word = (unsigned)__shfl_sync(ALL_LANES, mine, j);
            for (int shift = 0; shift < 32; shift += 8)
                hash = (hash ^ (word >> shift & 0xffu)) * 16777619u;
        }
    }
    return hash;
}

__global__ void plan_checksum_kernel(batch_view b, plan_view p, bool with_pages, int *out)
{
    begin_kernel();
    unsigned hash = 2166136261u;
    for (int seg = 0; seg < b.sparse_segs; seg++) {
        hash = fnv1a(hash, p.act_count + seg, 1);
        hash = fnv1a(hash, p.act_rows + b.seg_row0[seg], p.act_count[seg]);
        for (int l = 0; with_pages && l < p.lists; l++) {
            int listed;
            const int *list = p.list(seg, l, &listed);
            hash = fnv1a(hash, p.page_count + seg * p.lists + l, 1);
            hash = fnv1a(hash, list, listed);
        }
    }
    const int folded = (int)((hash ^ hash >> 31) & 0x7fffffffu);
    if (threadIdx.x == 0) {
        out[0] = folded;
        out[1] = -folded;
    }
}

extern "C" int kern_cuda_launch_plan_checksum(const kern_cuda_ctx *ctx,
                                              const kern_plan_checksum_args *a)
{
    return enqueue(ctx, plan_checksum_kernel, dim3(1), WARP, 0, view(a->batch),
                   view(a->plan, a->batch), a->pages, ptr<int>(a->out));
}
