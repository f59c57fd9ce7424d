// SPDX-License-Identifier: Apache-2.0
// The best pages of a row from its pieces: a block puts the best of a piece in order, a warp
// merges the lists of a row. Whatever the scores, the same lists as the CPU's, bit for bit.
#ifndef KERNELS_CUDA_PLAN_BEST_CUH
#define KERNELS_CUDA_PLAN_BEST_CUH

#include "kernels/cuda/plan_pick.cuh"

// Pages of a run that a thread scores, the most that a list keeps, and the lists that a thread,
// a warp merges at once. A list has the best page first, of equal ones the lower.
enum {
    RUN_EACH = 4,
    BEST_MOST = KERN_CUDA_PLAN_BEST,
    LISTS_EACH = 3,
    BEST_LISTS = LISTS_EACH * WARP
};
static_assert((int)BEST_LISTS == KERN_CUDA_PLAN_PIECES);

// Keys of no page, and the least of a page (none but a NaN has less): a list that ends with
// the former has no page left.
enum { NO_KEY = 1, LEAST_KEY = 2 };

__device__ inline unsigned ranked_key(float score)
{
    return max(order_key(score), (unsigned)LEAST_KEY);
}

// A key that at least `need` of the keys reach of which the threads hold the best ones. From few
// groups of threads, or where many are needed by halving: 16 bits are near enough.
__device__ inline unsigned bound_best(pick_shared &s, unsigned best, int need)
{
    if (need <= PICK_GROUPS / 2)
        return bound_cut(s, best, need);
    unsigned bound = 0;
#pragma unroll 1
    for (unsigned bit = 1u << 31; bit >= 1u << 16; bit >>= 1)
        if (__syncthreads_count(best >= (bound | bit)) >= need)
            bound |= bit;
    return bound;
}

// Gathers the best `need` themselves, where too many reach the bound.
__device__ __noinline__ static void gather_best(pick_shared &s, const unsigned *keys, int count,
                                                int first, int need)
{
    int ties;
    const unsigned cut = find_cut(
        s, [=](int i) { return keys[i]; }, count, need, &ties);
    if (threadIdx.x == 0)
        s.candidates = 0;
    __syncthreads();
    for (int base = 0; base < count; base += PICK_THREADS) {
        const int i = base + (int)threadIdx.x;
        const unsigned key = i < count ? keys[i] : 0;
        int found;
        const int before = block_scan(key == cut, s.scan, &found);
        if (key > cut || (key == cut && before < ties))
            s.candidate[atomicAdd(&s.candidates, 1)] = ranked_page{key, first + i};
        ties -= found;
    }
    __syncthreads();
}

// The best `need` < BEST_MOST of the pages from `first` on that have these keys, in order, and no
// page behind them.
__device__ inline void rank_piece(pick_shared &s, const unsigned *keys, int count, int first,
                                  int need, ranked_page *out)
{
    unsigned best = 0;
    for (int i = threadIdx.x; i < count; i += PICK_THREADS)
        best = max(best, keys[i]);
    if (threadIdx.x == 0)
        s.candidates = 0;
    const unsigned bound = max(bound_best(s, best, need), (unsigned)LEAST_KEY);
    for (int i = threadIdx.x; i < count; i += PICK_THREADS) {
        const unsigned key = keys[i];
        if (key < bound)
            continue;
        const int at = atomicAdd(&s.candidates, 1);
        if (at < PICK_CANDIDATES)
            s.candidate[at] = ranked_page{key, first + i};
    }
    __syncthreads();
    if (s.candidates > PICK_THREADS)
        gather_best(s, keys, count, first, need);
    rank_candidates(s, need, [=](int rank, ranked_page x) { out[rank] = x; });
    for (int i = min(s.candidates, need) + (int)threadIdx.x; i <= need; i += PICK_THREADS)
        out[i] = ranked_page{NO_KEY, 0};
}

// How far apart the lists of a row lie: there is one more page to look at than they have.
__device__ inline int best_stride(int need)
{
    return need / 4 * 4 + 4;
}

// The best `need` of `count` <= EACH * WARP lists of ascending pages, which hold that many:
// the warp calls take(page) for each, in one thread.
template <int EACH, typename Take>
__device__ inline void merge_some(const ranked_page *lists, int count, int need, const Take &take)
{
    const int lane = threadIdx.x % WARP, stride = best_stride(need);
    const unsigned lower = (1u << lane) - 1;
    const ranked_page *at[EACH];
    ranked_page head[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        at[i] = lists + (EACH * lane + i) * stride;
        head[i] = EACH * lane + i < count ? *at[i] : ranked_page{0, 0}; // behind every page
    }
#pragma unroll 1
    for (int rank = 0; rank < need; rank++) {
        ranked_page mine = head[0];
        int from = 0;
#pragma unroll
        for (int i = 1; i < EACH; i++)
            if (head[i].key > mine.key) {
                mine = head[i];
                from = i;
            }
        const unsigned best = __reduce_max_sync(ALL_LANES, mine.key);
        const unsigned tied = __ballot_sync(ALL_LANES, mine.key == best);
        if (mine.key != best || (tied & lower))
            continue;
        take(mine);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (from == i)
                head[i] = *++at[i];
    }
}

template <typename Take>
__device__ inline void merge_lists(const ranked_page *lists, int count, int need, const Take &take)
{
    if (count == 1)
        for (int rank = threadIdx.x % WARP; rank < need; rank += WARP)
            take(lists[rank]);
    else if (count <= WARP)
        merge_some<1>(lists, count, need, take);
    else
        merge_some<LISTS_EACH>(lists, count, need, take);
}

#endif
