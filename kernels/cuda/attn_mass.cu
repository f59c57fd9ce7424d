// SPDX-License-Identifier: Apache-2.0
// Attention mass of the pages, from the log-sum-exps that prefix attention left.
#include "kernels/cuda/common.cuh"

struct mass_view {
    const float *page_lse, *lse;
    float *mass;
    int heads, kv_heads, score_lists, list0;
};

// Pages of a block, a thread each; warps that share the lanes; and lanes whose loads a warp has
// under way at once, so that a block of 16 rows of 16 heads waits for memory once.
enum { MASS_PAGES = WARP, MASS_PARTS = 16, TOGETHER = 16 };

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
    int number, pages; // number: of the row and head
    float lse;
};

// The next lanes that measure, from number `from` of the segment's rows and heads of a list on,
// as many as the block has threads at most, in order, but for their log-sum-exps. Returns how
// many. Reads what the host wrote, past the L1: it is called before begin_kernel too.
__device__ static int gather_lanes(const mass_view &a, const batch_view &b, int seg, int head0,
                                   int each, int from, mass_lane *lanes, int *memory)
{
    const int i = from + threadIdx.x, head = head0 + i % each;
    const int row = __ldcg(b.seg_row0 + seg) + i / each;
    const bool measures = row < __ldcg(b.seg_row0 + seg + 1) && __ldcg(b.kv_slot + row) < 0;
    int count;
    const int before = block_scan(measures, memory, &count);
    if (measures) {
        const int pos = __ldcg(b.pos + row), at = pos % b.block;
        const size_t place = (size_t)__ldcg(b.seg_mass + seg) * b.block + at;
        lanes[before] = {(place * a.heads + head) * b.max_pages, row * a.heads + head,
                         b.pages_of(pos - at), 0.0f};
    }
    __syncthreads();
    return count;
}

// What the lanes that are a warp's among the next MASS_PARTS * TOGETHER give page g. All loads
// are under way before the first is used; those that do not count read another lane's.
__device__ static float add_lanes(const mass_view &a, const mass_lane *lanes, int first, int count,
                                  int g)
{
    float x[TOGETHER], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < TOGETHER; i++)
        x[i] = a.page_lse[lanes[min(first + i * MASS_PARTS, count - 1)].at + g];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
        const mass_lane &lane = lanes[min(first + i * MASS_PARTS, count - 1)];
        const bool in =
            first + i * MASS_PARTS < count && g < lane.pages && lane.lse > -CUDART_INF_F;
        sum += in ? __expf(x[i] - lane.lse) : 0.0f;
    }
    return sum;
}

// A block takes 32 pages of one list of one segment: a thread is a page, warps share the
// rows and heads and are added in order. The first lanes are found while the kernel before
// this one still runs.
__global__ void __launch_bounds__(MASS_PARTS *WARP)
    page_mass_kernel(mass_view a, batch_view b, plan_view p)
{
    __shared__ float sums[MASS_PARTS][MASS_PAGES];
    __shared__ mass_lane lanes[MASS_PARTS * WARP];
    __shared__ int memory[MASS_PARTS];
    const int seg = blockIdx.z, list = blockIdx.y, number = __ldcg(b.seg_mass + seg);
    const int thread = threadIdx.x % WARP, part = threadIdx.x / WARP;
    const int g = blockIdx.x * MASS_PAGES + thread;
    const int lists = a.score_lists == 1 ? 1 : a.kv_heads, local = list - a.list0;
    const int each = a.score_lists == 1 ? a.heads : a.heads / a.kv_heads;
    const int head0 = a.score_lists == 1 ? 0 : local * each;
    const int row0 = __ldcg(b.seg_row0 + seg), end = __ldcg(b.seg_row0 + seg + 1);
    const bool here = number >= 0 && local >= 0 && local < lists;
    const int all = here ? (end - row0) * each : 0;
    const int prefix = __ldcg(b.pos + end - 1) / b.block * b.block;
    int count = here ? gather_lanes(a, b, seg, head0, each, 0, lanes, memory) : 0;
    begin_kernel();
    if (number < 0)
        return;
    const bool read =
        here && g < b.pages_of(prefix) && is_read(p, seg, p.lists == 1 ? 0 : local, g);
    float sum = 0.0f;
    for (int from = 0; from < all;) {
        if ((int)threadIdx.x < count)
            lanes[threadIdx.x].lse = a.lse[lanes[threadIdx.x].number];
        __syncthreads();
        for (int i = part; i < count; i += MASS_PARTS * TOGETHER)
            sum += read ? add_lanes(a, lanes, i, count, g) : 0.0f;
        __syncthreads();
        from += MASS_PARTS * WARP;
        if (from < all)
            count = gather_lanes(a, b, seg, head0, each, from, lanes, memory);
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
    return enqueue(ctx, page_mass_kernel, grid, MASS_PARTS * WARP, 0, v, view(a->batch),
                   view(a->plan, a->batch));
}
