// SPDX-License-Identifier: Apache-2.0
// Choice of pages. Every active row marks its best pages in a bitmap (the cut is found
// by radix selection on the score's order-preserving key, the same lists as the CPU's
// bit for bit); a second kernel joins the rows' bitmaps, the kept list and the first
// and last page, and writes the list. Kept lists by mass are one such row.
#include "kernels/cuda/common.cuh"

enum { THREADS = 512, BINS = 256 };

// Keys order as the floats do; NaN, which no score should be, leads.
__device__ static unsigned order_key(float score)
{
    const unsigned bits = __float_as_uint(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct select_shared {
    int histogram[BINS];
    int scan[WARP];
    unsigned digit;
    int need;
};

// The bin in which the `need`-th best falls, and how many it takes of that bin.
__device__ static void find_digit(select_shared &s, int need)
{
    __syncthreads();
    if (threadIdx.x < WARP) { // a lane holds 8 bins, the highest first
        const int lane = threadIdx.x;
        int mine = 0;
        for (int i = 0; i < BINS / WARP; i++)
            mine += s.histogram[BINS - 1 - lane * (BINS / WARP) - i];
        int sum = mine;
        for (int offset = 1; offset < WARP; offset *= 2) {
            const int other = __shfl_up_sync(ALL_LANES, sum, offset);
            sum += lane >= offset ? other : 0;
        }
        int above = sum - mine;
        if (above < need && need <= sum) {
            int bin = BINS - 1 - lane * (BINS / WARP);
            for (; above + s.histogram[bin] < need; bin--)
                above += s.histogram[bin];
            s.digit = (unsigned)bin;
            s.need = need - above;
        }
    }
    __syncthreads();
}

// The key of the `need`-th best of `count` scores (1 <= need <= count); *ties is how
// many scores with that very key belong to the best `need`.
__device__ static unsigned find_cut(select_shared &s, const float *score, int count, int need,
                                    int *ties)
{
    unsigned cut = 0, known = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < BINS; i += blockDim.x)
            s.histogram[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            const unsigned key = order_key(score[i]);
            if ((key & known) == cut)
                atomicAdd(&s.histogram[key >> shift & (BINS - 1)], 1);
        }
        find_digit(s, need);
        need = s.need;
        cut |= s.digit << shift;
        known |= 0xffu << shift;
        __syncthreads();
    }
    *ties = need;
    return cut;
}

// Bitmap of the pages that a row takes of [0, pages); all threads take part. Words
// beyond the prefix are left alone.
__device__ static void mark_row(select_shared &s, const float *score, int pages, int budget,
                                unsigned *bitmap)
{
    const int inner = pages - 2, need = budget - (pages > 1 ? 2 : 1);
    const bool all = budget >= pages;
    int ties = 0;
    unsigned cut = 0xffffffffu;
    if (!all && need > 0)
        cut = find_cut(s, score + 1, inner, need, &ties);
    for (int base = 0; base < pages; base += blockDim.x) {
        const int g = base + (int)threadIdx.x;
        const bool choose = !all && need > 0 && g > 0 && g < pages - 1;
        const unsigned key = choose ? order_key(score[g]) : 0;
        int found;
        const int before = block_scan(choose && key == cut, s.scan, &found);
        const bool marked = g < pages && (all || g == 0 || g == pages - 1 ||
                                          (choose && (key > cut || (key == cut && before < ties))));
        ties -= found;
        const unsigned word = __ballot_sync(ALL_LANES, marked);
        if (threadIdx.x % WARP == 0 && g < pages)
            bitmap[g / WARP] = word;
    }
}

// Writes the marked pages in ascending order; returns their number to every thread.
__device__ static int write_list(select_shared &s, const unsigned *bitmap, int pages, int *out)
{
    int count = 0;
    const int words = (pages + WARP - 1) / WARP;
    for (int base = 0; base < words; base += blockDim.x) {
        const int w = base + (int)threadIdx.x;
        unsigned word = w < words ? bitmap[w] : 0;
        int found;
        int at = count + block_scan(__popc(word), s.scan, &found);
        for (; word; word &= word - 1)
            out[at++] = w * WARP + __ffs(word) - 1;
        count += found;
    }
    return count;
}

struct select_view {
    const float *score;
    kern_page_choice choice[KERN_SEG_KINDS];
    const int *kept_pages, *kept_count;
    int kept_lists, kept_cap;
    int score_lists, list0;
    int words;        // of a bitmap
    unsigned *bitmap; // [scan_segs, lists, act_cap, words]
};

__device__ static int seg_pages(const batch_view &b, const plan_view &p, int seg)
{
    return p.act_count[seg] > 0 ? b.pages_of(b.prefix(p.act_rows[b.seg_row0[seg]])) : 0;
}

// Block (place among the active rows, list, scanning segment).
__global__ void __launch_bounds__(THREADS) mark_kernel(select_view a, batch_view b, plan_view p)
{
    __shared__ select_shared shared;
    const int place = blockIdx.x, list = blockIdx.y, seg = blockIdx.z;
    const int pages = seg_pages(b, p, seg), top = a.choice[b.seg_kind[seg]].top;
    if (place >= p.act_count[seg] || pages == 0 || top == 0)
        return;
    const size_t entry = (size_t)seg * a.score_lists + a.list0 + list;
    const float *score = a.score + (entry * p.act_cap + place) * b.max_pages;
    unsigned *bitmap = a.bitmap + (((size_t)seg * p.lists + list) * p.act_cap + place) * a.words;
    mark_row(shared, score, pages, plan_budget(top, pages), bitmap);
}

// Block (list, sparse segment): the union, as a list.
__global__ void __launch_bounds__(THREADS) join_kernel(select_view a, batch_view b, plan_view p)
{
    extern __shared__ unsigned joined[];
    __shared__ select_shared shared;
    const int list = blockIdx.x, seg = blockIdx.y, entry = seg * p.lists + list;
    const int pages = seg_pages(b, p, seg), words = (pages + WARP - 1) / WARP;
    const kern_page_choice choice = a.choice[b.seg_kind[seg]];
    const int rows = seg < b.scan_segs && choice.top > 0 ? min(p.act_count[seg], p.act_cap) : 0;
    const unsigned *bitmap = a.bitmap + (size_t)entry * p.act_cap * a.words;
    for (int w = threadIdx.x; w < words; w += blockDim.x) {
        unsigned word = w == 0 ? 1u : 0u;
        if (w == (pages - 1) / WARP)
            word |= 1u << (pages - 1) % WARP;
        for (int i = 0; i < rows; i++)
            word |= bitmap[(size_t)i * a.words + w];
        joined[w] = word;
    }
    __syncthreads();
    if (choice.kept && a.kept_pages && pages > 0) {
        const size_t kept = (size_t)b.seg_slot[seg] * a.kept_lists + list;
        for (int i = threadIdx.x; i < a.kept_count[kept]; i += blockDim.x) {
            const int page = a.kept_pages[kept * a.kept_cap + i];
            if (page < pages)
                atomicOr(&joined[page / WARP], 1u << page % WARP);
        }
    }
    __syncthreads();
    const int count = write_list(shared, joined, pages, p.pages + (size_t)entry * b.max_pages);
    if (threadIdx.x == 0)
        p.page_count[entry] = count;
}

extern "C" int kern_cuda_launch_page_select(const kern_cuda_ctx *ctx,
                                            const kern_page_select_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    select_view v = {};
    v.score = ptr<float>(a->score);
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        v.choice[kind] = a->choice[kind];
    if (a->kept) {
        v.kept_pages = ptr<int>(a->kept->pages);
        v.kept_count = ptr<int>(a->kept->count);
        v.kept_lists = a->kept->lists;
        v.kept_cap = a->kept->cap;
    }
    v.score_lists = a->score_lists;
    v.list0 = a->list0;
    v.words = (int)blocks_of(b.max_pages, WARP);
    v.bitmap = (unsigned *)ctx->workspace;
    const size_t shared = (size_t)v.words * sizeof(unsigned);
    const size_t bitmaps = (size_t)b.scan_segs * p.lists * p.act_cap * shared;
    if (bitmaps > ctx->workspace_bytes || shared > 40960)
        return KERN_CUDA_NO_ROOM;
    if (b.scan_segs > 0 && p.act_cap > 0)
        mark_kernel<<<dim3(p.act_cap, p.lists, b.scan_segs), THREADS, 0, ctx->stream>>>(v, b, p);
    join_kernel<<<dim3(p.lists, b.sparse_segs), THREADS, shared, ctx->stream>>>(v, b, p);
    return cudaGetLastError();
}

// Block (list, segment): keeps the pages of largest mass in the row of the request.
__global__ void __launch_bounds__(THREADS)
    keep_kernel(const float *mass, batch_view b, int score_lists, int list0, int top,
                int *kept_pages, int *kept_count, int cap)
{
    extern __shared__ unsigned bitmap[];
    __shared__ select_shared shared;
    const int list = blockIdx.x, lists = gridDim.x, seg = blockIdx.y, number = b.seg_mass[seg];
    if (number < 0)
        return;
    const size_t kept = (size_t)b.seg_slot[seg] * lists + list;
    const int pages = b.pages_of(b.prefix(b.seg_row0[seg + 1] - 1));
    int count = 0;
    if (pages > 0) {
        const float *row = mass + ((size_t)number * score_lists + list0 + list) * b.max_pages;
        mark_row(shared, row, pages, plan_budget(top, pages), bitmap);
        __syncthreads();
        count = write_list(shared, bitmap, pages, kept_pages + kept * cap);
    }
    if (threadIdx.x == 0)
        kept_count[kept] = count;
}

extern "C" int kern_cuda_launch_mass_select(const kern_cuda_ctx *ctx,
                                            const kern_mass_select_args *a)
{
    const batch_view b = view(a->batch);
    const size_t shared = (size_t)blocks_of(b.max_pages, WARP) * sizeof(unsigned);
    if (shared > 40960)
        return KERN_CUDA_NO_ROOM;
    keep_kernel<<<dim3(a->kept->lists, b.segs), THREADS, shared, ctx->stream>>>(
        ptr<float>(a->mass), b, a->score_lists, a->list0, a->top, ptr<int>(a->kept->pages),
        ptr<int>(a->kept->count), a->kept->cap);
    return cudaGetLastError();
}
