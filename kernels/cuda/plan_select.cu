// SPDX-License-Identifier: Apache-2.0
// Choice of pages. A block marks the best pages of one active row in a bitmap; the block
// that ends last joins the rows' bitmaps, the kept list and the first and last page,
// writes the list and counts what it costs. Kept lists by mass are one such row.
//
// Scores are compared through order-preserving keys: the same lists as the CPU's, bit for
// bit. Each thread's best score bounds the cut from below; few pages reach that bound, and
// these are ranked by counting. Where too many do (ties, a large budget), radix selection
// over all pages finds the cut.
#include "kernels/cuda/common.cuh"

enum { THREADS = 512, BINS = 256, CANDIDATES = 512 };

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
    int candidates;
    unsigned key[CANDIDATES];
    int page[CANDIDATES];
    bool last;
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

// The first `digits` bytes of the `need`-th best of the keys key(0), ... key(count - 1), the
// others 0 (1 <= need <= count); *ties is how many of those that share these bytes belong
// to the best `need`.
template <class Key>
__device__ static unsigned find_cut(select_shared &s, const Key &key, int count, int need,
                                    int digits, int *ties)
{
    unsigned cut = 0, known = 0;
    for (int shift = 24; shift > 24 - 8 * digits; shift -= 8) {
        for (int i = threadIdx.x; i < BINS; i += THREADS)
            s.histogram[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += THREADS) {
            const unsigned k = key(i);
            if ((k & known) == cut)
                atomicAdd(&s.histogram[k >> shift & (BINS - 1)], 1);
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

__device__ static void mark(unsigned *bitmap, int page)
{
    atomicOr(&bitmap[page / WARP], 1u << page % WARP);
}

// Gathers the pages [1, 1 + count) that can be among the best `need`: at least as many
// threads as that hold a score with the first bytes of the bound or more.
__device__ static void gather(select_shared &s, const float *score, int count, int need)
{
    unsigned best = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < count; i += THREADS)
        best = max(best, order_key(score[1 + i]));
    int ties;
    unsigned bound = 0;
    if (need <= THREADS)
        bound = find_cut(
            s, [&](int) { return best; }, THREADS, need, 2, &ties);
    if (threadIdx.x == 0)
        s.candidates = 0;
    __syncthreads();
#pragma unroll 8
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const unsigned key = order_key(score[1 + i]);
        if (key < bound)
            continue;
        const int at = atomicAdd(&s.candidates, 1);
        if (at < CANDIDATES) {
            s.key[at] = key;
            s.page[at] = 1 + i;
        }
    }
    __syncthreads();
}

// Marks the candidates of which fewer than `need` are better; ties: the lower page.
__device__ static void mark_candidates(const select_shared &s, int need, unsigned *bitmap)
{
    for (int i = threadIdx.x / WARP; i < s.candidates; i += THREADS / WARP) {
        int ahead = 0;
        for (int j = threadIdx.x % WARP; j < s.candidates; j += WARP)
            ahead += s.key[j] > s.key[i] || (s.key[j] == s.key[i] && s.page[j] < s.page[i]);
        ahead = warp_sum_int(ahead);
        if (threadIdx.x % WARP == 0 && ahead < need)
            mark(bitmap, s.page[i]);
    }
}

// Marks the best `need` pages of [1, 1 + count), whatever the scores.
__device__ static void mark_by_radix(select_shared &s, const float *score, int count, int need,
                                     unsigned *bitmap)
{
    const auto key = [&](int i) { return order_key(score[1 + i]); };
    int ties;
    const unsigned cut = find_cut(s, key, count, need, 4, &ties);
    for (int base = 0; base < count; base += THREADS) {
        const int i = base + (int)threadIdx.x;
        const unsigned mine = i < count ? key(i) : 0;
        int found;
        const int before = block_scan(i < count && mine == cut, s.scan, &found);
        if (i < count && (mine > cut || (mine == cut && before < ties)))
            mark(bitmap, 1 + i);
        ties -= found;
    }
}

// Bitmap, in shared memory, of the pages that a row takes of [0, pages), pages >= 1; all
// threads take part. The first and the last page are among them.
__device__ static void mark_row(select_shared &s, const float *score, int pages, int budget,
                                unsigned *bitmap)
{
    const int inner = pages - 2, need = budget - (pages > 1 ? 2 : 1);
    const bool all = budget >= pages;
    for (int w = threadIdx.x; w < (pages + WARP - 1) / WARP; w += THREADS) {
        const int in = min(pages - w * WARP, (int)WARP);
        bitmap[w] = all ? 0xffffffffu >> (WARP - in) : w == 0 ? 1u : 0u;
    }
    __syncthreads();
    if (threadIdx.x == 0)
        mark(bitmap, pages - 1);
    if (!all && need > 0) {
        gather(s, score, inner, need);
        if (s.candidates <= CANDIDATES)
            mark_candidates(s, need, bitmap);
        else
            mark_by_radix(s, score, inner, need, bitmap);
    }
    __syncthreads();
}

// Writes the marked pages in ascending order; returns their number to every thread.
__device__ static int write_list(select_shared &s, const unsigned *bitmap, int pages, int *out)
{
    int count = 0;
    const int words = (pages + WARP - 1) / WARP;
    for (int base = 0; base < words; base += THREADS) {
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
    int words;         // of a bitmap
    unsigned *bitmap;  // [sparse_segs, lists, act_cap, words]
    unsigned *arrived; // [sparse_segs, lists], 0 before and after
    unsigned long long *counts;
};

// The list of a segment that the block works for.
struct select_place {
    int seg, list, entry; // entry of lists and counts
    int active, prefix, pages;
    int rows; // that scan
    kern_page_choice choice;
};

// True in the block that comes last of `count`; it sees what the others wrote.
__device__ static bool comes_last(select_shared &s, unsigned *arrived, int count)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        s.last = atomicAdd(arrived, 1u) == (unsigned)count - 1;
        if (s.last)
            *arrived = 0;
        __threadfence();
    }
    __syncthreads();
    return s.last;
}

// The union of the rows' bitmaps, the kept list, and the first and last page.
__device__ static void join_rows(const select_view &a, const plan_view &p, const select_place &at,
                                 int slot, unsigned *bitmap)
{
    const unsigned *rows = a.bitmap + (size_t)at.entry * p.act_cap * a.words;
    for (int w = threadIdx.x; w < (at.pages + WARP - 1) / WARP; w += THREADS) {
        unsigned word = w == 0 ? 1u : 0u;
        if (w == (at.pages - 1) / WARP)
            word |= 1u << (at.pages - 1) % WARP;
#pragma unroll 4
        for (int i = 0; i < at.rows; i++)
            word |= __ldcg(rows + (size_t)i * a.words + w);
        bitmap[w] = word;
    }
    __syncthreads();
    if (!at.choice.kept || !a.kept_pages)
        return;
    const size_t kept = (size_t)slot * a.kept_lists + at.list;
    for (int i = threadIdx.x; i < a.kept_count[kept]; i += THREADS) {
        const int page = a.kept_pages[kept * a.kept_cap + i];
        if (page < at.pages)
            mark(bitmap, page);
    }
    __syncthreads();
}

// Adds the reading of this list to the segment's counters, as the CPU does.
__device__ static void count_list(const select_view &a, const batch_view &b, const plan_view &p,
                                  const select_place &at, const int *list, int listed)
{
    unsigned long long *count = a.counts + (size_t)at.seg * KERN_COUNT_N;
    const int prefix = at.prefix;
    atomicAdd(&count[KERN_COUNT_PREFIX], (unsigned long long)prefix);
    if (at.list == 0)
        atomicAdd(&count[KERN_COUNT_ACTIVE], (unsigned long long)at.active);
    if (at.active == 0)
        return;
    const int pages = at.pages, scanned = at.seg < b.scan_segs ? pages : 0;
    const int budget = plan_budget(at.choice.budget, pages);
    atomicAdd(&count[KERN_COUNT_READ], (unsigned long long)list_tokens(b, list, listed, prefix));
    atomicAdd(&count[KERN_COUNT_SCANNED], (unsigned long long)scanned);
    atomicAdd(&count[KERN_COUNT_UNION], (unsigned long long)listed);
    atomicAdd(&count[KERN_COUNT_BUDGET], (unsigned long long)budget);
}

__device__ static select_place find_place(const select_view &a, const batch_view &b,
                                          const plan_view &p)
{
    select_place at = {(int)blockIdx.z, (int)blockIdx.y};
    at.entry = at.seg * p.lists + at.list;
    at.active = p.act_count[at.seg];
    const int row = b.seg_row0[at.seg]; // a segment is one block, or empty
    at.prefix = row < b.seg_row0[at.seg + 1] ? b.prefix(row) : 0;
    at.pages = at.active > 0 ? b.pages_of(at.prefix) : 0;
    at.choice = a.choice[b.seg_kind[at.seg]];
    const bool scans = at.seg < b.scan_segs && at.choice.top > 0 && at.pages > 0;
    at.rows = scans ? min(at.active, p.act_cap) : 0;
    return at;
}

// Block (place of an active row, list, sparse segment).
__global__ void __launch_bounds__(THREADS) select_kernel(select_view a, batch_view b, plan_view p)
{
    extern __shared__ unsigned bitmap[];
    __shared__ select_shared s;
    begin_kernel();
    const select_place at = find_place(a, b, p);
    const int place = blockIdx.x, words = (at.pages + WARP - 1) / WARP;
    if (place >= max(at.rows, 1))
        return;
    if (at.rows > 0) {
        const size_t entry = (size_t)at.seg * a.score_lists + a.list0 + at.list;
        mark_row(s, a.score + (entry * p.act_cap + place) * b.max_pages, at.pages,
                 plan_budget(at.choice.top, at.pages), bitmap);
        unsigned *out = a.bitmap + ((size_t)at.entry * p.act_cap + place) * a.words;
        for (int w = threadIdx.x; w < words; w += THREADS)
            out[w] = bitmap[w];
    }
    if (at.rows > 1 && !comes_last(s, a.arrived + at.entry, at.rows))
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
            count_list(a, b, p, at, list, count);
    }
}

// Bytes of a bitmap of the prefix, which must fit in shared memory beside select_shared.
static size_t bitmap_bytes(const batch_view &b)
{
    return blocks_of(b.max_pages, WARP) * sizeof(unsigned);
}

enum { BITMAP_MOST = 32768 };

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
    v.arrived = ctx->arrivals;
    v.counts = ptr<unsigned long long>(a->counts);
    const size_t shared = bitmap_bytes(b), entries = (size_t)b.sparse_segs * p.lists;
    if (entries * p.act_cap * shared > ctx->workspace_bytes || shared > BITMAP_MOST ||
        entries > KERN_CUDA_ARRIVALS)
        return KERN_CUDA_NO_ROOM;
    const int rows = b.scan_segs > 0 && p.act_cap > 0 ? p.act_cap : 1;
    return enqueue(ctx, select_kernel, dim3(rows, p.lists, b.sparse_segs), THREADS, shared, v, b,
                   p);
}

// Block (list, segment): keeps the pages of largest mass in the row of the request.
__global__ void __launch_bounds__(THREADS)
    keep_kernel(const float *mass, batch_view b, int score_lists, int list0, int top,
                int *kept_pages, int *kept_count, int cap)
{
    extern __shared__ unsigned bitmap[];
    __shared__ select_shared s;
    begin_kernel();
    const int list = blockIdx.x, lists = gridDim.x, seg = blockIdx.y, number = b.seg_mass[seg];
    if (number < 0)
        return;
    const size_t kept = (size_t)b.seg_slot[seg] * lists + list;
    const int pages = b.pages_of(b.prefix(b.seg_row0[seg + 1] - 1));
    int count = 0;
    if (pages > 0) {
        const float *row = mass + ((size_t)number * score_lists + list0 + list) * b.max_pages;
        mark_row(s, row, pages, plan_budget(top, pages), bitmap);
        count = write_list(s, bitmap, pages, kept_pages + kept * cap);
    }
    if (threadIdx.x == 0)
        kept_count[kept] = count;
}

extern "C" int kern_cuda_launch_mass_select(const kern_cuda_ctx *ctx,
                                            const kern_mass_select_args *a)
{
    const batch_view b = view(a->batch);
    const size_t shared = bitmap_bytes(b);
    if (shared > BITMAP_MOST)
        return KERN_CUDA_NO_ROOM;
    return enqueue(ctx, keep_kernel, dim3(a->kept->lists, b.segs), THREADS, shared,
                   ptr<float>(a->mass), b, a->score_lists, a->list0, a->top,
                   ptr<int>(a->kept->pages), ptr<int>(a->kept->count), a->kept->cap);
}
