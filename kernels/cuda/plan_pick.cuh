// SPDX-License-Identifier: Apache-2.0
// How a block takes the best pages of a row: a bitmap of them, and a bitmap as a list.
//
// Scores are compared through order-preserving keys: the same lists as the CPU's, bit for
// bit. The best scores of a few groups of threads bound the cut from below; few pages reach
// that bound, and these are ranked by counting. Where too many do (ties, a large budget),
// radix selection over all pages finds the cut.
#ifndef KERNELS_CUDA_PLAN_PICK_CUH
#define KERNELS_CUDA_PLAN_PICK_CUH

#include "kernels/cuda/common.cuh"

enum { PICK_THREADS = 256, PICK_GROUPS = 64, PICK_BINS = 256, PICK_CANDIDATES = 1024 };

// Keys order as the floats do; NaN, which no score should be, leads.
__device__ inline unsigned order_key(float score)
{
    const unsigned bits = __float_as_uint(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A page and its key.
struct __align__(8) ranked_page
{
    unsigned key;
    int page;
};

struct pick_shared {
    int histogram[PICK_BINS];
    int scan[WARP];
    unsigned digit;
    int need;
    uint4 best[PICK_GROUPS / 4];
    unsigned bound;
    int candidates;
    ranked_page candidate[PICK_CANDIDATES];
};

// The bin in which the `need`-th best falls, and how many it takes of that bin.
__device__ inline void find_digit(pick_shared &s, int need)
{
    __syncthreads();
    if (threadIdx.x < WARP) { // a lane holds 8 bins, the highest first
        const int lane = threadIdx.x;
        int mine = 0;
        for (int i = 0; i < PICK_BINS / WARP; i++)
            mine += s.histogram[PICK_BINS - 1 - lane * (PICK_BINS / WARP) - i];
        int sum = mine;
        for (int offset = 1; offset < WARP; offset *= 2) {
            const int other = __shfl_up_sync(ALL_LANES, sum, offset);
            sum += lane >= offset ? other : 0;
        }
        int above = sum - mine;
        if (above < need && need <= sum) {
            int bin = PICK_BINS - 1 - lane * (PICK_BINS / WARP);
            for (; above + s.histogram[bin] < need; bin--)
                above += s.histogram[bin];
            s.digit = (unsigned)bin;
            s.need = need - above;
        }
    }
    __syncthreads();
}

// The `need`-th best of `count` keys (1 <= need <= count), which key_at gives; *ties is how
// many of that very key belong to the best `need`.
template <typename KeyAt>
__device__ inline unsigned find_cut(pick_shared &s, const KeyAt &key_at, int count, int need,
                                    int *ties)
{
    unsigned cut = 0, known = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < PICK_BINS; i += PICK_THREADS)
            s.histogram[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += PICK_THREADS) {
            const unsigned key = key_at(i);
            if ((key & known) == cut)
                atomicAdd(&s.histogram[key >> shift & (PICK_BINS - 1)], 1);
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

__device__ inline void mark(unsigned *bitmap, int page)
{
    atomicOr(&bitmap[page / WARP], 1u << page % WARP);
}

// The same through the address in shared memory, which a loop need not work out again.
__device__ inline void mark_shared(unsigned bitmap, unsigned page)
{
    asm volatile("red.shared.or.b32 [%0], %1;\n" ::"r"(bitmap + page / WARP * 4),
                 "r"(1u << page % WARP)
                 : "memory");
}

// A key that at least `need` of the scores of which the threads hold the best ones reach:
// the `need`-th best of the groups' best. Ties of groups: the lower one.
__device__ inline unsigned bound_cut(pick_shared &s, unsigned best, int need)
{
    const int each = PICK_THREADS / PICK_GROUPS;
    const int group = threadIdx.x / each, member = threadIdx.x % each;
    if (need > PICK_GROUPS)
        return 0;
    for (int offset = 1; offset < each; offset *= 2)
        best = max(best, __shfl_xor_sync(ALL_LANES, best, offset));
    if (member == 0)
        ((unsigned *)s.best)[group] = best;
    __syncthreads();
    int ahead = 0;
#pragma unroll
    for (int i = 0; i < PICK_GROUPS / 4 / each; i++) {
        const int at = i * each + member;
        const uint4 x = s.best[at];
        ahead += x.x > best || (x.x == best && at * 4 < group);
        ahead += x.y > best || (x.y == best && at * 4 + 1 < group);
        ahead += x.z > best || (x.z == best && at * 4 + 2 < group);
        ahead += x.w > best || (x.w == best && at * 4 + 3 < group);
    }
    for (int offset = 1; offset < each; offset *= 2)
        ahead += __shfl_xor_sync(ALL_LANES, ahead, offset);
    if (member == 0 && ahead == need - 1)
        s.bound = best;
    __syncthreads();
    return s.bound;
}

// Gathers the pages of [1, 1 + count) that can be among the best `need`.
__device__ inline void gather(pick_shared &s, const float *score, int count, int need)
{
    unsigned best = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < count; i += PICK_THREADS)
        best = max(best, order_key(__ldcg(score + 1 + i)));
    if (threadIdx.x == 0)
        s.candidates = 0;
    const unsigned bound = bound_cut(s, best, need);
    __syncthreads();
#pragma unroll 8
    for (int i = threadIdx.x; i < count; i += PICK_THREADS) {
        const unsigned key = order_key(__ldcg(score + 1 + i));
        if (key < bound)
            continue;
        const int at = atomicAdd(&s.candidates, 1);
        if (at < PICK_CANDIDATES)
            s.candidate[at] = ranked_page{key, 1 + i};
    }
    __syncthreads();
}

// Calls take(rank, page) for the candidates of which fewer than `need` are better, in one thread
// each; ties: the lower page. A team of threads counts for one.
template <typename Take>
__device__ inline void rank_candidates(const pick_shared &s, int need, const Take &take)
{
    const int team = 4, each = WARP / team, member = threadIdx.x % team, count = s.candidates;
#pragma unroll 1
    for (int i = threadIdx.x / team; i / each * each < count; i += PICK_THREADS / team) {
        const ranked_page mine = s.candidate[min(i, count - 1)];
        int ahead = 0;
#pragma unroll 2
        for (int j = member; j < count; j += team) {
            const ranked_page x = s.candidate[j];
            ahead += x.key > mine.key || (x.key == mine.key && x.page < mine.page);
        }
#pragma unroll
        for (int offset = 1; offset < team; offset *= 2)
            ahead += __shfl_xor_sync(ALL_LANES, ahead, offset);
        if (member == 0 && i < count && ahead < need)
            take(ahead, mine);
    }
}

// Marks the best `need` pages of [1, 1 + count), whatever the scores.
__device__ inline void mark_by_radix(pick_shared &s, const float *score, int count, int need,
                                     unsigned *bitmap)
{
    const auto key_at = [=](int i) { return order_key(__ldcg(score + 1 + i)); };
    int ties;
    const unsigned cut = find_cut(s, key_at, count, need, &ties);
    for (int base = 0; base < count; base += PICK_THREADS) {
        const int i = base + (int)threadIdx.x;
        const unsigned mine = i < count ? key_at(i) : 0;
        int found;
        const int before = block_scan(i < count && mine == cut, s.scan, &found);
        if (i < count && (mine > cut || (mine == cut && before < ties)))
            mark(bitmap, 1 + i);
        ties -= found;
    }
}

// Clears the bitmap but for the pages that every list has, the first and the last of [0, pages),
// or all of them.
__device__ inline void begin_bitmap(unsigned *bitmap, int pages, bool all)
{
    const int last = (pages - 1) / WARP;
#pragma unroll 1
    for (int w = threadIdx.x; w <= last; w += PICK_THREADS) {
        const unsigned ends = (w == 0 ? 1u : 0u) | (w == last ? 1u << (pages - 1) % WARP : 0u);
        bitmap[w] = all ? 0xffffffffu >> (WARP - min(pages - w * WARP, (int)WARP)) : ends;
    }
    __syncthreads();
}

// Marks the best `need` pages between the first and the last of [0, pages), need < pages - 2;
// all threads take part.
__device__ __noinline__ static void mark_row(pick_shared &s, const float *score, int pages,
                                             int need, unsigned *bitmap)
{
    gather(s, score, pages - 2, need);
    if (s.candidates <= PICK_THREADS)
        rank_candidates(s, need, [=](int, ranked_page x) { mark(bitmap, x.page); });
    else
        mark_by_radix(s, score, pages - 2, need, bitmap);
    __syncthreads();
}

// Writes the marked pages in ascending order; returns their number to every thread.
__device__ inline int write_list(pick_shared &s, const unsigned *bitmap, int pages, int *out)
{
    int count = 0;
    const int words = (pages + WARP - 1) / WARP;
#pragma unroll 1
    for (int base = 0; base < words; base += PICK_THREADS) {
        const int w = base + (int)threadIdx.x;
        unsigned word = w < words ? bitmap[w] : 0;
        int found;
        int at = count + block_scan(__popc(word), s.scan, &found);
#pragma unroll 1
        for (; word; word &= word - 1)
            out[at++] = w * WARP + __ffs(word) - 1;
        count += found;
    }
    return count;
}

#endif
