// SPDX-License-Identifier: Apache-2.0
// Choice of pages. The blocks of a list share out the pieces of its rows: they put the best of
// each in order. The one that ends last merges them, a warp each row, and adds the kept list and
// the first and last page; it writes the list and counts what it costs. Rows that take
// many pages are chosen there from all scores, one after the other.
//
// Where nobody else adds to the scores (page_plan), the blocks make them first, from the
// bounds of plan_scan.cu.
#include "kernels/cuda/plan_best.cuh"
#include "kernels/cuda/plan_score.cuh"

static_assert((int)PICK_THREADS == (int)SHARE_THREADS, "ranked where they are made");

enum { BLOCKS_AT_ONCE = 2, RUNS_MOST = 32 }; // on a multiprocessor; in a piece

struct select_view {
    float *score; // [scan_segs, score_lists, act_cap, max_pages]
    kern_page_choice choice[KERN_SEG_KINDS];
    const int *kept_pages, *kept_count;
    int kept_lists, kept_cap;
    int score_lists, list0;
    int seg0;          // first segment of this launch
    int run;           // pages that are ranked at once
    int runs;          // of these in a piece
    bool merged;       // the best of a piece are one list, not one of each run
    int row_lists;     // of a row, at most; no more than BEST_LISTS
    ranked_page *best; // [segs, lists, act_cap, row_lists, BEST_MOST]
    unsigned *arrived; // [segs, lists] blocks
    unsigned long long *counts;
};

struct select_shared {
    share_parts parts;
    pick_shared pick;
};

// The list of a segment that the block works for.
struct select_place {
    int seg, list;
    int entry; // of lists and page counts
    int local; // of best pages and arrivals
    int prefix, pages;
    bool all;         // its rows take all pages
    int need;         // pages that a row takes by score, else
    int stride;       // of its lists of the best
    int pieces;       // of a row
    int active, rows; // rows that read, and that take pages by score
    kern_page_choice choice;

    __device__ bool many() const // more than lists of the best hold
    {
        return need >= BEST_MOST;
    }
};

// True in the block that comes last of `count`; it sees what the others wrote.
__device__ static bool comes_last(unsigned *arrived, int count)
{
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned before;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;\n"
                     : "=r"(before)
                     : "l"(arrived)
                     : "memory");
        last = before == (unsigned)count - 1;
        if (last)
            *arrived = 0;
    }
    __syncthreads();
    return last;
}

// What the batch says of a list: all but the rows, of which the plan tells.
__device__ static select_place find_place(const select_view &a, const batch_view &b, int lists,
                                          int seg, int list)
{
    select_place at = {seg, list};
    at.entry = seg * lists + list;
    at.local = at.entry - a.seg0 * lists;
    const int row = b.seg_row0[seg]; // a segment is one block, or empty
    at.prefix = row < b.seg_row0[seg + 1] ? b.prefix(row) : 0;
    at.pages = b.pages_of(at.prefix);
    at.choice = a.choice[b.seg_kind[seg]];
    const int budget = plan_budget(at.choice.top, at.pages);
    const bool scans = seg < b.scan_segs && at.choice.top > 0;
    at.all = scans && budget >= at.pages;
    at.need = scans && !at.all ? budget - 2 : 0;
    at.stride = best_stride(at.need);
    at.pieces = (at.pages + a.runs * a.run - 1) / (a.runs * a.run);
    return at;
}

__device__ static float *scores_of(const select_view &a, const batch_view &b, const plan_view &p,
                                   const select_place &at, int place)
{
    const size_t entry = (size_t)at.seg * a.score_lists + a.list0 + at.list;
    return a.score + (entry * p.act_cap + place) * b.max_pages;
}

// ---- pieces -----------------------------------------------------------------------

// What is asked of a block: a piece of a row.
struct select_piece {
    int place, first, runs; // first page
    share_row row;          // of bounds, if there are any
    ranked_page *best;      // its lists
};

__device__ static select_piece find_piece(const score_view &v, const select_view &a,
                                          const plan_view &p, const select_place &at, int item)
{
    select_piece to;
    const int pieces = max(at.pieces, 1), piece = item % pieces, run0 = piece * a.runs;
    to.place = min(item / pieces, p.act_cap - 1); // an item may be none of this list's
    to.first = run0 * a.run;
    to.runs = min(a.runs, (at.pages - to.first + a.run - 1) / a.run);
    const size_t place = (size_t)at.local * p.act_cap + to.place;
    to.best = a.best + place * a.row_lists * BEST_MOST + (a.merged ? piece : run0) * at.stride;
    if (!v.bounds)
        return to;
    int head0;
    const int heads = heads_of_list(v, a.list0 + at.list, &head0);
    to.row = find_share(v, at.seg - a.seg0, to.place, head0, heads, at.pages);
    return to;
}

// Scores of the thread's pages of a run: made of bounds, or as they were left.
__device__ static void find_scores(float (&score)[RUN_EACH], select_shared &s, const score_view &v,
                                   const share_row &row, share_inputs &in, const float *scores,
                                   const share_pages &to, int pages, int first)
{
    if (v.bounds) {
        add_shares(score, s.parts, in, v, row, first);
        return;
    }
#pragma unroll
    for (int i = 0; i < RUN_EACH; i++) {
        const int page = to.first + i;
        score[i] = page < pages ? scores[page] : 0.0f;
    }
}

// The best pages of a run in order, or where rows take too many, its scores for later: `scores`
// is NULL where nobody asks for them, or they are there.
__device__ static void keep_run(select_shared &s, const select_place &at,
                                const float (&score)[RUN_EACH], const share_pages &to,
                                float *scores, ranked_page *out)
{
    unsigned key[RUN_EACH];
#pragma unroll
    for (int i = 0; i < RUN_EACH; i++) {
        const int page = to.first + i;
        if (scores && page < min(to.end, at.pages))
            scores[page] = score[i];
        const bool inner = page > 0 && page < min(to.end, at.pages - 1);
        key[i] = inner ? ranked_key(score[i]) : (unsigned)NO_KEY;
    }
    if (!at.many())
        rank_run(s.pick, key, to.first, at.need, out);
}

// The runs of a piece. `in` is of the first run, and what the next one needs is fetched before
// this one is ranked.
__device__ static void take_piece(select_shared &s, const score_view &v, const select_view &a,
                                  const batch_view &b, const plan_view &p, const select_place &at,
                                  const select_piece &piece, share_inputs &in, char *memory)
{
    ranked_page *lists = a.merged ? (ranked_page *)memory : piece.best;
    float *scores = scores_of(a, b, p, at, piece.place);
#pragma unroll 1
    for (int i = 0; i < piece.runs; i++) {
        const int first = piece.first + i * a.run;
        const share_pages to = find_pages(SHARE_PAGES * SHARE_WARPS / a.run, first);
        float score[RUN_EACH];
        find_scores(score, s, v, piece.row, in, scores, to, at.pages, first);
        if (v.bounds && i + 1 < piece.runs)
            fetch_shares(in, v, piece.row, first + a.run, 0);
        keep_run(s, at, score, to, v.bounds && at.many() ? scores : nullptr, lists + i * at.stride);
        __syncthreads();
    }
    if (!a.merged || at.many())
        return;
    ranked_page *best = piece.best;
    if (threadIdx.x < WARP)
        merge_lists(lists, piece.runs, at.need, [=](int rank, ranked_page x) { best[rank] = x; });
    __syncthreads();
}

// ---- the list -----------------------------------------------------------------------

// Marks what the rows take.
__device__ static void mark_rows(select_shared &s, const select_view &a, const batch_view &b,
                                 const plan_view &p, const select_place &at, unsigned *bitmap)
{
    if (at.many()) {
        for (int place = 0; place < at.rows; place++)
            mark_row(s.pick, scores_of(a, b, p, at, place), at.pages, at.need, bitmap);
        return;
    }
    const unsigned marked = (unsigned)__cvta_generic_to_shared(bitmap);
    const int lists = a.merged ? at.pieces : (at.pages + a.run - 1) / a.run;
#pragma unroll 1
    for (int place = threadIdx.x / WARP; place < at.rows; place += PICK_THREADS / WARP) {
        const size_t row = (size_t)at.local * p.act_cap + place;
        merge_lists(a.best + row * a.row_lists * BEST_MOST, lists, at.need,
                    [=](int, ranked_page x) { mark_shared(marked, x.page); });
    }
    __syncthreads();
}

// Marks the pages of the kept list.
__device__ static void mark_kept(const select_view &a, const batch_view &b, const select_place &at,
                                 unsigned *bitmap)
{
    if (!at.choice.kept || !a.kept_pages)
        return;
    const size_t kept = (size_t)(b.seg_slot ? b.seg_slot[at.seg] : 0) * a.kept_lists + at.list;
#pragma unroll 1
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

// Adds the reading of this list to the segment's counters, as the CPU does. The last page of
// the prefix is in every list.
__device__ static void count_list(const select_view &a, const batch_view &b, const select_place &at,
                                  int listed)
{
    unsigned long long *count = a.counts + (size_t)at.seg * KERN_COUNT_N;
    const int last = at.pages - 1;
    add(&count[KERN_COUNT_PREFIX], at.prefix);
    if (at.list == 0)
        add(&count[KERN_COUNT_ACTIVE], at.active);
    if (at.active == 0)
        return;
    if (listed > 0)
        add(&count[KERN_COUNT_READ], (listed - 1) * b.page + b.page_tokens(last, at.prefix));
    add(&count[KERN_COUNT_SCANNED], at.seg < b.scan_segs ? at.pages : 0);
    add(&count[KERN_COUNT_UNION], listed);
    add(&count[KERN_COUNT_BUDGET], plan_budget(at.choice.budget, at.pages));
}

// Writes the list and counts what it costs.
__device__ static void end_list(select_shared &s, const select_view &a, const batch_view &b,
                                const plan_view &p, const select_place &at, unsigned *bitmap)
{
    int count = 0;
    if (at.active > 0 && at.pages > 0) {
        begin_bitmap(bitmap, at.pages, at.all);
        mark_rows(s, a, b, p, at, bitmap);
        mark_kept(a, b, at, bitmap);
        count = write_list(s.pick, bitmap, at.pages, p.pages + (size_t)at.entry * b.max_pages);
    }
    if (threadIdx.x > 0)
        return;
    p.page_count[at.entry] = count;
    if (a.counts)
        count_list(a, b, at, count);
}

// Block (share of the pieces, list, segment). What the batch says is looked up, and what the
// first piece needs is fetched, before it is known how many rows there are.
__global__ void __launch_bounds__(PICK_THREADS, BLOCKS_AT_ONCE)
    plan_kernel(score_view v, select_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) char memory[]; // lists of a piece's runs; then a bitmap
    __shared__ select_shared s;
    select_place at = find_place(a, b, p.lists, a.seg0 + blockIdx.z, blockIdx.y);
    select_piece piece = find_piece(v, a, p, at, blockIdx.x);
    begin_kernel();
    share_inputs in; // fetched first: the number of rows is waited for at once
    if (v.bounds && at.need > 0)
        fetch_shares(in, v, piece.row, piece.first, 0);
    at.active = p.act_count[at.seg];
    at.rows = at.need > 0 ? min(at.active, p.act_cap) : 0;
    const int items = at.rows * at.pieces, blocks = min(items, (int)gridDim.x);
    if ((int)blockIdx.x >= max(blocks, 1))
        return;
#pragma unroll 1
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        if (item != (int)blockIdx.x) {
            piece = find_piece(v, a, p, at, item);
            if (v.bounds)
                fetch_shares(in, v, piece.row, piece.first, 0);
        }
        take_piece(s, v, a, b, p, at, piece, in, memory);
    }
    if (blocks <= 1 || comes_last(a.arrived + at.local, blocks))
        end_list(s, a, b, p, at, (unsigned *)memory);
}

// ---- launches -------------------------------------------------------------------

enum { BITMAP_MOST = 32768 }; // what fits in shared memory beside select_shared

static size_t bitmap_bytes(int max_pages)
{
    return blocks_of(max_pages, WARP) * sizeof(unsigned);
}

// Pieces so long that all run at once if a third of the rows are active, and where lists of
// every run are too many to merge at once, that lists of pieces are not.
static void cut_rows(select_view &v, const kern_cuda_ctx *ctx, const kern_page_select_args *a)
{
    const int runs = (int)blocks_of(a->batch->max_pages, v.run);
    const int lists = (a->plan->act_cap + 2) / 3 * a->plan->lists * a->batch->scan_segs;
    const int wide = (int)blocks_of((size_t)runs * lists, BLOCKS_AT_ONCE * ctx->sms);
    const int most = (int)blocks_of(runs, BEST_LISTS);
    v.merged = most > 1;
    v.runs = wide > most ? wide : most;
    v.runs = v.runs > RUNS_MOST ? RUNS_MOST : v.runs > 1 ? v.runs : 1;
    v.row_lists = v.merged ? (int)blocks_of(runs, v.runs) : runs;
}

static select_view select_view_of(const kern_cuda_ctx *ctx, const kern_page_select_args *a, int run)
{
    select_view v = {};
    v.score = (float *)ptr<float>(a->score);
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
    v.run = run;
    cut_rows(v, ctx, a);
    v.arrived = ctx->arrivals;
    v.counts = ptr<unsigned long long>(a->counts);
    return v;
}

static size_t best_bytes(const select_view &v, const kern_plan *p)
{
    return (size_t)p->lists * p->act_cap * v.row_lists * BEST_MOST * sizeof(ranked_page);
}

// Segments that a launch can take, with `bytes` of workspace each besides the best pages.
static int segs_at_once(const kern_cuda_ctx *ctx, const kern_page_select_args *a,
                        const select_view &v, size_t bytes)
{
    if (bitmap_bytes(a->batch->max_pages) > BITMAP_MOST)
        return 0;
    const size_t room = ctx->workspace_bytes / (bytes + best_bytes(v, a->plan) + 1);
    const size_t arrivals = KERN_CUDA_ARRIVALS / (size_t)a->plan->lists;
    return (int)(room < arrivals ? room : arrivals);
}

// Segments [w.seg0, w.seg0 + segs), of bounds if v has any. So many blocks that all run at once.
static int launch_plan(const kern_cuda_ctx *ctx, const score_view &v, const select_view &w,
                       const kern_page_select_args *a, int segs)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    const int pieces = (int)blocks_of(b.max_pages, w.run * w.runs);
    const int items = w.seg0 < b.scan_segs ? p.act_cap * pieces : 0;
    const int each = BLOCKS_AT_ONCE * ctx->sms / (p.lists * segs);
    const int blocks = items < each ? items : each;
    const size_t bitmap = bitmap_bytes(b.max_pages);
    const size_t lists = w.merged ? w.runs * BEST_MOST * sizeof(ranked_page) : 0;
    return enqueue(ctx, plan_kernel, dim3(blocks > 1 ? blocks : 1, p.lists, segs), PICK_THREADS,
                   lists > bitmap ? lists : bitmap, v, w, b, p);
}

// Segments [seg0, end), whose scores are complete.
static int select_segs(const kern_cuda_ctx *ctx, const kern_page_select_args *a, int seg0, int end)
{
    select_view w = select_view_of(ctx, a, RUN_EACH * PICK_THREADS);
    const int most = segs_at_once(ctx, a, w, 0);
    if (most == 0)
        return KERN_CUDA_NO_ROOM;
    w.best = (ranked_page *)ctx->workspace;
    for (w.seg0 = seg0; w.seg0 < end; w.seg0 += most) {
        const int error =
            launch_plan(ctx, score_view{}, w, a, end - w.seg0 < most ? end - w.seg0 : most);
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
    const kern_page_select_args *select = &args->select;
    const kern_batch *batch = select->batch;
    if (select->plan->act_cap == 0 || batch->max_pages == 0)
        return select_segs(ctx, select, 0, batch->sparse_segs);
    score_view v = score_view_of(ctx, &args->score);
    select_view w = select_view_of(ctx, select, share_run(v.score_lists == 1 ? v.heads : v.group));
    const size_t bytes = score_bytes(v);
    const int most = segs_at_once(ctx, select, w, bytes);
    if (most == 0)
        return KERN_CUDA_NO_ROOM;
    for (v.seg0 = 0; v.seg0 < batch->scan_segs; v.seg0 += most) {
        const int segs = batch->scan_segs - v.seg0 < most ? batch->scan_segs - v.seg0 : most;
        w.seg0 = v.seg0;
        w.best = (ranked_page *)((char *)ctx->workspace + segs * bytes);
        int error = launch_bounds(ctx, &args->score, v, segs);
        if (!error)
            error = launch_plan(ctx, v, w, select, segs);
        if (error)
            return error;
    }
    return batch->sparse_segs > batch->scan_segs
               ? select_segs(ctx, select, batch->scan_segs, batch->sparse_segs)
               : 0;
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
        const int budget = plan_budget(may, pages);
        begin_bitmap(bitmap, pages, budget >= pages);
        if (budget > 2 && budget < pages)
            mark_row(s, row, pages, budget - 2, bitmap);
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
