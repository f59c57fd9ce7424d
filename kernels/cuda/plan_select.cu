// SPDX-License-Identifier: Apache-2.0
// Choice of pages. The blocks of a list share out the runs of pages of all its rows: each puts
// the best of what it has of a row in order. The one that ends last merges them, a warp each row,
// and adds the kept list and the first and last page; it writes the list and counts what it
// costs. Rows that take many pages are chosen there from all scores, one after the other.
//
// Where nobody else adds to the scores (page_plan), the blocks make them first, from the
// bounds of plan_scan.cu.
#include "kernels/cuda/plan_best.cuh"
#include "kernels/cuda/plan_score.cuh"

static_assert((int)PICK_THREADS == (int)SHARE_THREADS, "ranked where they are made");

enum { BLOCKS_AT_ONCE = 2, PIECE_MOST = 8192 }; // on a multiprocessor; pages of a piece

struct select_view {
    float *score; // [scan_segs, score_lists, act_cap, max_pages]
    kern_page_choice choice[KERN_SEG_KINDS];
    const int *kept_pages, *kept_count;
    int kept_lists, kept_cap;
    int score_lists, list0;
    int seg0;          // first segment of this launch
    int run;           // pages that are scored at once
    int least, most;   // runs of a share, so that a row has few lists; of a piece
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
    int active, rows; // rows that read, and that take pages by score
    int runs;         // of a row
    int each, shares; // runs of a share, of all rows one after another; shares
    kern_page_choice choice;

    __device__ bool many() const // more than lists of the best hold
    {
        return need >= BEST_MOST;
    }
    // The share in which a row begins, and in which it ends: each makes a list of the row.
    __device__ int first_share(int place) const
    {
        return place * runs / each;
    }
    __device__ int last_share(int place) const
    {
        return ((place + 1) * runs - 1) / each;
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
    at.runs = max((at.pages + a.run - 1) / a.run, 1);
    return at;
}

// Shares out the runs of the rows, so many to a block as to any other.
__device__ static void find_rows(select_place &at, const select_view &a, int active, int act_cap)
{
    at.active = active;
    at.rows = at.need > 0 ? min(active, act_cap) : 0;
    const int all = at.rows * at.runs, blocks = gridDim.x;
    const int rounds = max((all + blocks * a.most - 1) / (blocks * a.most), 1);
    at.each = max((all + blocks * rounds - 1) / (blocks * rounds), a.least);
    at.shares = (all + at.each - 1) / at.each;
}

__device__ static float *scores_of(const select_view &a, const batch_view &b, const plan_view &p,
                                   const select_place &at, int place)
{
    const size_t entry = (size_t)at.seg * a.score_lists + a.list0 + at.list;
    return a.score + (entry * p.act_cap + place) * b.max_pages;
}

// ---- pieces -----------------------------------------------------------------------

// What a block has of a row: a run or more.
struct select_piece {
    int place, run, runs;
    share_row row;     // of bounds, if there are any
    ranked_page *best; // its list
};

// The piece of a share that begins with run `from` of those of all rows. It may be none, behind
// the last share: then it is not looked at.
__device__ static select_piece find_piece(const score_view &v, const select_view &a,
                                          const plan_view &p, const select_place &at, int share,
                                          int from)
{
    select_piece to;
    to.place = from / at.runs;
    to.run = from - to.place * at.runs;
    to.runs = min(at.runs - to.run, (share + 1) * at.each - from);
    const size_t place = (size_t)at.local * p.act_cap + to.place;
    const int list = share - at.first_share(to.place);
    to.best = a.best + place * a.row_lists * BEST_MOST + list * at.stride;
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

// Keys of the pages of a run, in their order, and where rows take many pages their scores for
// later: `scores` is NULL where nobody asks for them, or they are there.
__device__ static void keep_run(const select_place &at, const float (&score)[RUN_EACH],
                                const share_pages &to, float *scores, unsigned *keys, int first)
{
#pragma unroll
    for (int i = 0; i < RUN_EACH; i++) {
        const int page = to.first + i;
        if (page >= to.end)
            break;
        if (scores && page < at.pages)
            scores[page] = score[i];
        const bool inner = page > 0 && page < at.pages - 1;
        keys[page - first] = inner ? ranked_key(score[i]) : (unsigned)NO_KEY;
    }
}

// The best of a piece. What the next run needs is fetched before this one is scored.
__device__ static void take_piece(select_shared &s, const score_view &v, const select_view &a,
                                  const batch_view &b, const plan_view &p, const select_place &at,
                                  const select_piece &piece, unsigned *keys)
{
    const int begin = piece.run * a.run;
    float *scores = scores_of(a, b, p, at, piece.place);
    share_inputs in;
    if (v.bounds)
        fetch_shares(in, v, piece.row, begin, 0);
#pragma unroll 1
    for (int i = 0; i < piece.runs; i++) {
        const int first = begin + i * a.run;
        const share_pages to = find_pages(SHARE_PAGES * SHARE_WARPS / a.run, first);
        float score[RUN_EACH];
        find_scores(score, s, v, piece.row, in, scores, to, at.pages, first);
        if (v.bounds && i + 1 < piece.runs)
            fetch_shares(in, v, piece.row, first + a.run, 0);
        keep_run(at, score, to, v.bounds && at.many() ? scores : nullptr, keys, begin);
        __syncthreads();
    }
    if (!at.many())
        rank_piece(s.pick, keys, piece.runs * a.run, begin, at.need, piece.best);
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
#pragma unroll 1
    for (int place = threadIdx.x / WARP; place < at.rows; place += PICK_THREADS / WARP) {
        const size_t row = (size_t)at.local * p.act_cap + place;
        const int lists = at.last_share(place) - at.first_share(place) + 1;
        merge_lists(a.best + row * a.row_lists * BEST_MOST, lists, at.need,
                    [=](ranked_page x) { mark_shared(marked, x.page); });
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

// Block (shares of the runs, list, segment). What the block is to do is known before it begins,
// where the kernel before is that of bounds: this one starts when all blocks of that one have
// begun, so that whatever went before it is done.
__global__ void __launch_bounds__(PICK_THREADS, BLOCKS_AT_ONCE)
    plan_kernel(score_view v, select_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) unsigned memory[]; // keys of a piece; then a bitmap
    __shared__ select_shared s;
    select_place at = find_place(a, b, p.lists, a.seg0 + blockIdx.z, blockIdx.y);
    if (!v.bounds)
        begin_kernel();
    find_rows(at, a, __ldcg(p.act_count + at.seg), p.act_cap);
    int share = blockIdx.x, from = share * at.each;
    select_piece piece = find_piece(v, a, p, at, share, from);
    if (v.bounds)
        begin_kernel();
    const int blocks = min(at.shares, (int)gridDim.x);
    if ((int)blockIdx.x >= max(blocks, 1))
        return;
    const int end = at.rows * at.runs;
#pragma unroll 1
    while (share < at.shares) {
        take_piece(s, v, a, b, p, at, piece, memory);
        from += piece.runs;
        if (from >= min((share + 1) * at.each, end)) {
            share += gridDim.x;
            from = share * at.each;
        }
        piece = find_piece(v, a, p, at, share, from);
    }
    if (blocks <= 1 || comes_last(a.arrived + at.local, blocks))
        end_list(s, a, b, p, at, memory);
}

// ---- launches -------------------------------------------------------------------

enum {
    BITMAP_MOST = KERN_GPU_PAGES_MAX / 8
}; // bytes that fit in shared memory beside select_shared

static size_t bitmap_bytes(int max_pages)
{
    return blocks_of(max_pages, WARP) * sizeof(unsigned);
}

// Shares so long that the lists of a row can be merged at once, pieces as keys have room.
static void cut_rows(select_view &v, int max_pages)
{
    const int cut = 2; // lists of a row that begin or end within a share
    const int runs = max_pages > v.run ? (int)blocks_of(max_pages, v.run) : 1;
    v.least = (int)blocks_of(runs, BEST_LISTS - cut);
    v.most = PIECE_MOST / v.run;
    v.row_lists = v.least > 1 ? (int)blocks_of(runs, v.least) + cut : runs;
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
    cut_rows(v, a->batch->max_pages);
    v.arrived = ctx->arrivals;
    v.counts = ptr<unsigned long long>(a->counts);
    return v;
}

static size_t best_bytes(const select_view &v, const kern_plan *p)
{
    return (size_t)p->lists * p->act_cap * v.row_lists * BEST_MOST * sizeof(ranked_page);
}

// Segments that a launch can take, with `bytes` of workspace each: so many, or an error.
static int segs_at_once(const kern_cuda_ctx *ctx, const kern_page_select_args *a, size_t bytes)
{
    const size_t arrivals = KERN_CUDA_ARRIVALS / (size_t)a->plan->lists;
    if (bitmap_bytes(a->batch->max_pages) > BITMAP_MOST || arrivals == 0)
        return KERN_CUDA_TOO_LARGE;
    const size_t room = plans_that_fit(ctx, bytes + 1);
    return room == 0 ? KERN_CUDA_NO_ROOM : (int)(room < arrivals ? room : arrivals);
}

// Segments [w.seg0, w.seg0 + segs), of bounds if v has any. So many blocks that all run at once.
static int launch_plan(const kern_cuda_ctx *ctx, const score_view &v, const select_view &w,
                       const kern_page_select_args *a, int segs)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    const int runs = w.seg0 < b.scan_segs ? p.act_cap * (int)blocks_of(b.max_pages, w.run) : 0;
    const int each = BLOCKS_AT_ONCE * ctx->sms / (p.lists * segs);
    const int blocks = runs < each ? runs : each > 1 ? each : 1;
    const int piece = (int)blocks_of(runs, blocks > 1 ? blocks : 1) + w.least;
    const size_t keys = (size_t)w.run * (piece < w.most ? piece : w.most) * sizeof(unsigned);
    const size_t bitmap = bitmap_bytes(b.max_pages);
    return enqueue(ctx, plan_kernel, dim3(blocks > 1 ? blocks : 1, p.lists, segs), PICK_THREADS,
                   keys > bitmap ? keys : bitmap, v, w, b, p);
}

// Segments [seg0, end), whose scores are complete.
static int select_segs(const kern_cuda_ctx *ctx, const kern_page_select_args *a, int seg0, int end)
{
    select_view w = select_view_of(ctx, a, RUN_EACH * PICK_THREADS);
    const bool scores = seg0 < a->batch->scan_segs; // else no row takes pages by score
    const int most = segs_at_once(ctx, a, scores ? best_bytes(w, a->plan) : 0);
    if (most < 0)
        return most;
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
    const int most = segs_at_once(ctx, select, bytes + best_bytes(w, select->plan));
    if (most < 0)
        return most;
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
        return KERN_CUDA_TOO_LARGE;
    return enqueue(ctx, keep_kernel, dim3(a->kept->lists, b.segs), PICK_THREADS, shared,
                   ptr<float>(a->mass), b, a->score_lists, a->list0, a->top, a->share,
                   ptr<int>(a->kept->pages), ptr<int>(a->kept->count), a->kept->cap);
}
