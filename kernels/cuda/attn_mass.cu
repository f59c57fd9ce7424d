// SPDX-License-Identifier: Apache-2.0
// Attention mass of the pages, from the log-sum-exps that prefix attention left.
#include "kernels/cuda/common.cuh"

struct mass_view {
    const float *page_lse, *lse;
    float *mass;
    int heads, kv_heads, score_lists, list0;
};

enum { MASS_PAGES = WARP, MASS_PARTS = 16 };

// Whether the segment reads a page; lists ascend.
__device__ static bool is_read(const plan_view &p, int seg, int list, int page)
{
    int count, low = 0;
    const int *pages = p.list(seg, list, &count);
    for (int high = count; low < high;) {
        const int middle = (low + high) / 2;
        if (pages[middle] < page)
            low = middle + 1;
        else
            high = middle;
    }
    return count < 0 || (low < count && pages[low] == page);
}

// A row and head that measures: where its pages begin, how many, and its log-sum-exp.
struct mass_lane {
    size_t at;
    float lse;
    int pages;
};

// The next lanes that measure, from number `from` of the segment's rows and heads of a list on,
// as many as the block has threads at most, in order. Returns how many.
__device__ static int gather_lanes(const mass_view &a, const batch_view &b, int seg, int head0,
                                   int each, int from, mass_lane *lanes, int *memory)
{
    const int i = from + threadIdx.x, row0 = b.seg_row0[seg], row = row0 + i / each;
    const int head = head0 + i % each;
    mass_lane lane = {0, -CUDART_INF_F, 0};
    if (row < b.seg_row0[seg + 1] && b.kv_slot[row] < 0) {
        const size_t place = (size_t)b.seg_mass[seg] * b.block + b.pos[row] % b.block;
        lane = {(place * a.heads + head) * b.max_pages, a.lse[(size_t)row * a.heads + head],
                b.pages_of(b.prefix(row))};
    }
    const bool measures = lane.lse > -CUDART_INF_F;
    int count;
    const int before = block_scan(measures, memory, &count);
    if (measures)
        lanes[before] = lane;
    __syncthreads();
    return count;
}

// A block takes 32 pages of one list of one segment: a thread is a page, warps share the
// rows and heads and are added in order.
__global__ void __launch_bounds__(MASS_PARTS *WARP)
    page_mass_kernel(mass_view a, batch_view b, plan_view p)
{
    __shared__ float sums[MASS_PARTS][MASS_PAGES];
    __shared__ mass_lane lanes[MASS_PARTS * WARP];
    __shared__ int memory[MASS_PARTS];
    begin_kernel();
    const int seg = blockIdx.z, list = blockIdx.y, number = b.seg_mass[seg];
    const int thread = threadIdx.x % WARP, part = threadIdx.x / WARP;
    const int g = blockIdx.x * MASS_PAGES + thread;
    if (number < 0)
        return;
    const int lists = a.score_lists == 1 ? 1 : a.kv_heads, local = list - a.list0;
    const int each = a.score_lists == 1 ? a.heads : a.heads / a.kv_heads;
    const bool here = local >= 0 && local < lists;
    const int row0 = b.seg_row0[seg], end = b.seg_row0[seg + 1];
    const bool read =
        here && g < b.pages_of(b.prefix(end - 1)) && is_read(p, seg, p.lists == 1 ? 0 : local, g);
    float sum = 0.0f;
    for (int from = 0; here && from < (end - row0) * each; from += MASS_PARTS * WARP) {
        const int count = gather_lanes(a, b, seg, a.score_lists == 1 ? 0 : local * each, each, from,
                                       lanes, memory);
#pragma unroll 8
        for (int i = part; i < count; i += MASS_PARTS)
            sum += read && g < lanes[i].pages ? expf(a.page_lse[lanes[i].at + g] - lanes[i].lse)
                                              : 0.0f;
        __syncthreads();
    }
    sums[part][thread] = sum;
    __syncthreads();
    if (part > 0 || g >= b.max_pages)
        return;
    for (int i = 1; i < MASS_PARTS; i++)
        sum += sums[i][thread];
    a.mass[((size_t)number * a.score_lists + list) * b.max_pages + g] = sum;
}

extern "C" int kern_cuda_launch_page_mass(const kern_cuda_ctx *ctx, const kern_page_mass_args *a)
{
    const mass_view v = {ptr<float>(a->page_lse),
                         ptr<float>(a->lse),
                         ptr<float>(a->mass),
                         a->heads,
                         a->kv_heads,
                         a->score_lists,
                         a->list0};
    const dim3 grid(blocks_of(a->batch->max_pages, MASS_PAGES), a->score_lists, a->batch->segs);
    if (a->batch->max_pages == 0)
        return 0;
    return enqueue(ctx, page_mass_kernel, grid, MASS_PARTS * WARP, 0, v, view(a->batch),
                   view(a->plan, a->batch));
}
