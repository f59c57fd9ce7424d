// SPDX-License-Identifier: Apache-2.0
// The best pages of a row from its pieces: a block puts the best of a run of pages in order, a
// warp merges the lists of runs. Whatever the scores, the same lists as the CPU's, bit for bit.
#ifndef KERNELS_CUDA_PLAN_BEST_CUH
#define KERNELS_CUDA_PLAN_BEST_CUH

#include "kernels/cuda/plan_pick.cuh"

// Pages of a run that a thread holds, the most that a list keeps, and the lists that a thread, a
// warp merges at once. A list has the best page first, of equal ones the lower.
enum { RUN_EACH = 4, BEST_MOST = 64, LISTS_EACH = 3, BEST_LISTS = LISTS_EACH * WARP };
static_assert((int)RUN_EACH * PICK_THREADS <= PICK_CANDIDATES, "all pages of a run may be equal");

// Keys of no page, and the least of a page (none but a NaN has less): a list that ends with
// the former has no page left.
enum { NO_KEY = 1, LEAST_KEY = 2 };

__device__ inline unsigned ranked_key(float score)
{
    return max(order_key(score), (unsigned)LEAST_KEY);
}

// Gathers the thread's pages that are above the bound, and of those that equal it at most `ties`.
__device__ inline void gather_run(pick_shared &s, const unsigned (&key)[RUN_EACH], int first,
                                  unsigned bound, int ties)
{
    int above = 0, equal = 0;
#pragma unroll
    for (int i = 0; i < RUN_EACH; i++) {
        above += key[i] > bound;
        equal += key[i] == bound;
    }
    equal = max(min(equal, ties), 0);
    if (above + equal == 0)
        return;
    int at = atomicAdd(&s.candidates, above + equal);
#pragma unroll
    for (int i = 0; i < RUN_EACH; i++)
        if (key[i] > bound || (key[i] == bound && equal-- > 0))
            s.candidate[at++] = ranked_page{key[i], first + i};
}

// Gathers again where too many pages equal the bound to compare all: the first `need` are enough.
__device__ inline void gather_few(pick_shared &s, const unsigned (&key)[RUN_EACH], int first,
                                  unsigned bound, int need)
{
    int equal = 0, all;
#pragma unroll
    for (int i = 0; i < RUN_EACH; i++)
        equal += key[i] == bound;
    const int before = block_scan(equal, s.scan, &all);
    if (threadIdx.x == 0)
        s.candidates = 0;
    __syncthreads();
    gather_run(s, key, first, bound, need - before);
    __syncthreads();
}

// The best `need` < BEST_MOST of a run, in order. A thread has the keys of the pages from
// `first` on, in the order of the threads.
__device__ inline void rank_run(pick_shared &s, const unsigned (&key)[RUN_EACH], int first,
                                int need, ranked_page *out)
{
    unsigned best = key[0];
#pragma unroll
    for (int i = 1; i < RUN_EACH; i++)
        best = max(best, key[i]);
    if (threadIdx.x == 0)
        s.candidates = 0;
    const unsigned bound = max(bound_cut(s, best, need), (unsigned)LEAST_KEY);
    gather_run(s, key, first, bound, RUN_EACH);
    __syncthreads();
    if (s.candidates > PICK_THREADS)
        gather_few(s, key, first, bound, need);
    rank_candidates(s, need, [=](int rank, ranked_page x) { out[rank] = x; });
    for (int i = s.candidates + (int)threadIdx.x; i < need; i += PICK_THREADS)
        out[i] = ranked_page{NO_KEY, 0};
}

// Lists of a row lie so far apart that there is one more page to look at than they have.
__device__ inline int best_stride(int need)
{
    return need / 4 * 4 + 4;
}

// The best `need` of `count` <= EACH * WARP lists of ascending pages, which hold that many:
// the warp calls take(rank, page) in order, in one thread.
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
        take(rank, mine);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (from == i)
                head[i] = *++at[i];
    }
}

template <typename Take>
__device__ inline void merge_lists(const ranked_page *lists, int count, int need, const Take &take)
{
    if (count <= WARP)
        merge_some<1>(lists, count, need, take);
    else
        merge_some<LISTS_EACH>(lists, count, need, take);
}

#endif
