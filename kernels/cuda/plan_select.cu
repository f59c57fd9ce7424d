// SPDX-License-Identifier: Apache-2.0
// Choice of pages. A block marks the best pages of one active row in a bitmap; the block
// that ends last joins the rows' bitmaps, the kept list and the first and last page,
// writes the list and counts what it costs. Kept lists by mass are one such row.
//
// Where nobody else adds to the scores (page_plan), the same kernel makes them first, from
// the bounds of plan_scan.cu: several blocks share a row, and the last of them goes on.
#include "kernels/cuda/plan_pick.cuh"
#include "kernels/cuda/plan_score.cuh"

struct select_view {
    const float *score; // [scan_segs, score_lists, act_cap, max_pages]
    kern_page_choice choice[KERN_SEG_KINDS];
    const int *kept_pages, *kept_count;
    int kept_lists, kept_cap;
    int score_lists, list0;
    int seg0;          // first segment of this launch
    int words;         // of a bitmap
    unsigned *bitmap;  // [segs, lists, act_cap, words]
    unsigned *arrived; // [segs, lists, 1 + act_cap]: rows, then blocks of a row
    unsigned long long *counts;
};

// The list of a segment that the block works for.
struct select_place {
    int seg, list;
    int entry; // of lists and page counts
    int local; // of bitmaps and arrivals
    int active, prefix, pages;
    int rows; // that scan
    kern_page_choice choice;
};

// True in the block that comes last of `count`; it sees what the others wrote.
__device__ static bool comes_last(unsigned *arrived, int count)
{
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1u) == (unsigned)count - 1;
        if (last)
            *arrived = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// The union of the rows' bitmaps, the kept list, and the first and last page.
__device__ static void join_rows(const select_view &a, const plan_view &p, const select_place &at,
                                 int slot, unsigned *bitmap)
{
    const unsigned *rows = a.bitmap + (size_t)at.local * p.act_cap * a.words;
    for (int w = threadIdx.x; w < (at.pages + WARP - 1) / WARP; w += PICK_THREADS) {
        unsigned word = w == 0 ? 1u : 0u;
        if (w == (at.pages - 1) / WARP)
            word |= 1u << (at.pages - 1) % WARP;
#pragma unroll 8
        for (int i = 0; i < at.rows; i++)
            word |= __ldcg(rows + (size_t)i * a.words + w);
        bitmap[w] = word;
    }
    __syncthreads();
    if (!at.choice.kept || !a.kept_pages)
        return;
    const size_t kept = (size_t)slot * a.kept_lists + at.list;
    for (int i = threadIdx.x; i < a.kept_count[kept]; i += PICK_THREADS) {
        const int page = a.kept_pages[kept * a.kept_cap + i];
        if (page < at.pages)
            mark(bitmap, page);
    }
    __syncthreads();
}

__device__ static void add(unsigned long long *counter, int x)
{
    atomicAdd(counter, (unsigned long long)x);
}

// Adds the reading of this list to the segment's counters, as the CPU does.
__device__ static void count_list(const select_view &a, const batch_view &b, const select_place &at,
                                  const int *list, int listed)
{
    unsigned long long *count = a.counts + (size_t)at.seg * KERN_COUNT_N;
    add(&count[KERN_COUNT_PREFIX], at.prefix);
    if (at.list == 0)
        add(&count[KERN_COUNT_ACTIVE], at.active);
    if (at.active == 0)
        return;
    add(&count[KERN_COUNT_READ], list_tokens(b, list, listed, at.prefix));
    add(&count[KERN_COUNT_SCANNED], at.seg < b.scan_segs ? at.pages : 0);
    add(&count[KERN_COUNT_UNION], listed);
    add(&count[KERN_COUNT_BUDGET], plan_budget(at.choice.budget, at.pages));
}

// What the batch says of a list, and then what the plan does.
__device__ static select_place find_place(const select_view &a, const batch_view &b, int lists,
                                          int seg, int list)
{
    select_place at = {seg, list};
    at.entry = seg * lists + list;
    at.local = at.entry - a.seg0 * lists;
    const int row = b.seg_row0[seg]; // a segment is one block, or empty
    at.prefix = row < b.seg_row0[seg + 1] ? b.prefix(row) : 0;
    at.choice = a.choice[b.seg_kind[seg]];
    return at;
}

__device__ static void find_active(const batch_view &b, const plan_view &p, select_place &at)
{
    at.active = p.act_count[at.seg];
    at.pages = at.active > 0 ? b.pages_of(at.prefix) : 0;
    const bool scans = at.seg < b.scan_segs && at.choice.top > 0 && at.pages > 0;
    at.rows = scans ? min(at.active, p.act_cap) : 0;
}

// Marks the pages of a row in its bitmap.
__device__ static void take_row(pick_shared &s, const select_view &a, const batch_view &b,
                                const plan_view &p, const select_place &at, int place,
                                unsigned *bitmap)
{
    const size_t entry = (size_t)at.seg * a.score_lists + a.list0 + at.list;
    mark_row(s, a.score + (entry * p.act_cap + place) * b.max_pages, at.pages,
             plan_budget(at.choice.top, at.pages), bitmap);
    unsigned *out = a.bitmap + ((size_t)at.local * p.act_cap + place) * a.words;
    for (int w = threadIdx.x; w < (at.pages + WARP - 1) / WARP; w += PICK_THREADS)
        out[w] = bitmap[w];
}

// Waits for the other rows of the list; the last one ends it.
__device__ static void end_list(pick_shared &s, const select_view &a, const batch_view &b,
                                const plan_view &p, const select_place &at, unsigned *bitmap)
{
    if (at.rows > 1 && !comes_last(a.arrived + at.local * (1 + p.act_cap), at.rows))
        return;
    int *list = p.pages + (size_t)at.entry * b.max_pages, count = 0;
    if (at.pages > 0) {
        join_rows(a, p, at, b.seg_slot ? b.seg_slot[at.seg] : 0, bitmap);
        count = write_list(s, bitmap, at.pages, list);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        p.page_count[at.entry] = count;
        if (a.counts)
            count_list(a, b, at, list, count);
    }
}

// Block (place of an active row, list, segment).
__global__ void __launch_bounds__(PICK_THREADS, 1)
    select_kernel(select_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) unsigned bitmap[];
    __shared__ pick_shared s;
    select_place at = find_place(a, b, p.lists, a.seg0 + blockIdx.z, blockIdx.y);
    begin_kernel();
    find_active(b, p, at);
    if ((int)blockIdx.x >= max(at.rows, 1))
        return;
    if (at.rows > 0)
        take_row(s, a, b, p, at, blockIdx.x, bitmap);
    end_list(s, a, b, p, at, bitmap);
}

// Block (run of pages, place of an active row and list, segment). Its first part is
// plan_score.cu's share_kernel.
__global__ void __launch_bounds__(PICK_THREADS, 1)
    plan_kernel(score_view v, select_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) unsigned bitmap[]; // before: totals of the heads
    __shared__ pick_shared s;
    const int list = blockIdx.y / p.act_cap, place = blockIdx.y % p.act_cap;
    select_place at = find_place(a, b, p.lists, a.seg0 + blockIdx.z, list);
    begin_kernel();
    find_active(b, p, at);
    const int runs = (at.pages + PICK_THREADS - 1) / PICK_THREADS;
    if (place >= max(at.rows, 1) || (int)blockIdx.x >= max(at.rows > 0 ? runs : 1, 1))
        return;
    if (at.rows > 0) {
        lane_total *total = (lane_total *)bitmap;
        const int page = blockIdx.x * PICK_THREADS + (int)threadIdx.x;
        int head0;
        const int heads = heads_of_list(v, a.list0 + list, &head0);
        total_lanes(v, place, head0, heads, (at.pages + v.span - 1) / v.span, total);
        if (page < at.pages) {
            const size_t entry = (size_t)at.seg * a.score_lists + a.list0 + list;
            v.score[(entry * p.act_cap + place) * b.max_pages + page] =
                add_shares(v, b.max_pages, heads, page, total);
        }
        if (!comes_last(a.arrived + at.local * (1 + p.act_cap) + 1 + place, runs))
            return;
        take_row(s, a, b, p, at, place, bitmap);
    }
    end_list(s, a, b, p, at, bitmap);
}

// ---- launches -------------------------------------------------------------------

enum { BITMAP_MOST = 32768 }; // what fits in shared memory beside pick_shared

static size_t bitmap_bytes(int max_pages)
{
    return blocks_of(max_pages, WARP) * sizeof(unsigned);
}

static select_view select_view_of(const kern_cuda_ctx *ctx, const kern_page_select_args *a)
{
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
    v.words = (int)blocks_of(a->batch->max_pages, WARP);
    v.bitmap = (unsigned *)ctx->workspace;
    v.arrived = ctx->arrivals;
    v.counts = ptr<unsigned long long>(a->counts);
    return v;
}

// Segments that a launch can take, with `bytes` of workspace each besides the bitmaps.
static int segs_at_once(const kern_cuda_ctx *ctx, const kern_page_select_args *a, size_t bytes)
{
    const kern_plan *p = a->plan;
    const size_t bitmap = bitmap_bytes(a->batch->max_pages);
    if (bitmap > BITMAP_MOST)
        return 0;
    const size_t room = ctx->workspace_bytes / (bytes + p->lists * p->act_cap * bitmap + 1);
    const size_t arrivals = KERN_CUDA_ARRIVALS / ((size_t)p->lists * (1 + p->act_cap));
    return (int)(room < arrivals ? room : arrivals);
}

// Segments [seg0, end), whose scores are complete.
static int select_segs(const kern_cuda_ctx *ctx, const kern_page_select_args *a, int seg0, int end)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    select_view v = select_view_of(ctx, a);
    const int most = segs_at_once(ctx, a, 0);
    if (most == 0)
        return KERN_CUDA_NO_ROOM;
    for (v.seg0 = seg0; v.seg0 < end; v.seg0 += most) {
        const int segs = end - v.seg0 < most ? end - v.seg0 : most;
        const int rows = v.seg0 < b.scan_segs && p.act_cap > 0 ? p.act_cap : 1;
        const int error = enqueue(ctx, select_kernel, dim3(rows, p.lists, segs), PICK_THREADS,
                                  bitmap_bytes(b.max_pages), v, b, p);
        if (error)
            return error;
    }
    return 0;
}

extern "C" int kern_cuda_launch_page_select(const kern_cuda_ctx *ctx,
                                            const kern_page_select_args *a)
{
    return select_segs(ctx, a, 0, a->batch->sparse_segs);
}

extern "C" int kern_cuda_launch_page_plan(const kern_cuda_ctx *ctx, const kern_page_plan_args *args)
{
    const kern_page_score_args *score = &args->score;
    const kern_page_select_args *select = &args->select;
    const batch_view b = view(select->batch);
    const plan_view p = view(select->plan, select->batch);
    if (p.act_cap == 0 || b.max_pages == 0)
        return select_segs(ctx, select, 0, b.sparse_segs);
    score_view v = score_view_of(ctx, score);
    select_view w = select_view_of(ctx, select);
    const size_t bytes = score_bytes(v, b.max_pages);
    const int most = segs_at_once(ctx, select, bytes);
    if (most == 0)
        return KERN_CUDA_NO_ROOM;
    const size_t totals = v.heads * sizeof(lane_total), bitmap = bitmap_bytes(b.max_pages);
    for (v.seg0 = 0; v.seg0 < b.scan_segs; v.seg0 += most) {
        const int segs = b.scan_segs - v.seg0 < most ? b.scan_segs - v.seg0 : most;
        w.seg0 = v.seg0;
        w.bitmap = (unsigned *)((char *)ctx->workspace + segs * bytes);
        int error = launch_bounds(ctx, score, v, segs);
        if (!error)
            error = enqueue(ctx, plan_kernel,
                            dim3(blocks_of(b.max_pages, PICK_THREADS), p.lists * p.act_cap, segs),
                            PICK_THREADS, totals > bitmap ? totals : bitmap, v, w, b, p);
        if (error)
            return error;
    }
    return b.sparse_segs > b.scan_segs ? select_segs(ctx, select, b.scan_segs, b.sparse_segs) : 0;
}

// Block (list, segment): keeps the pages of largest mass in the row of the request.
__global__ void __launch_bounds__(PICK_THREADS, 1)
    keep_kernel(const float *mass, batch_view b, int score_lists, int list0, int top, float share,
                int *kept_pages, int *kept_count, int cap)
{
    extern __shared__ __align__(16) unsigned bitmap[];
    __shared__ pick_shared s;
    begin_kernel();
    const int list = blockIdx.x, lists = gridDim.x, seg = blockIdx.y, number = b.seg_mass[seg];
    if (number < 0)
        return;
    const size_t kept = (size_t)b.seg_slot[seg] * lists + list;
    const int pages = b.pages_of(b.prefix(b.seg_row0[seg + 1] - 1));
    const int may = share > 0.0f ? plan_share(share, pages) : top;
    int count = 0;
    if (pages > 0) {
        const float *row = mass + ((size_t)number * score_lists + list0 + list) * b.max_pages;
        mark_row(s, row, pages, plan_budget(may, pages), bitmap);
        count = write_list(s, bitmap, pages, kept_pages + kept * cap);
    }
    if (threadIdx.x == 0)
        kept_count[kept] = count;
}

extern "C" int kern_cuda_launch_mass_select(const kern_cuda_ctx *ctx,
                                            const kern_mass_select_args *a)
{
    const batch_view b = view(a->batch);
    const size_t shared = bitmap_bytes(b.max_pages);
    if (shared > BITMAP_MOST)
        return KERN_CUDA_NO_ROOM;
    return enqueue(ctx, keep_kernel, dim3(a->kept->lists, b.segs), PICK_THREADS, shared,
                   ptr<float>(a->mass), b, a->score_lists, a->list0, a->top, a->share,
                   ptr<int>(a->kept->pages), ptr<int>(a->kept->count), a->kept->cap);
}
