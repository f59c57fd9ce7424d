// SPDX-License-Identifier: Apache-2.0
// The best pages of a row from its pieces: a block puts the best of a piece in order, a warp
// merges pieces. No scores, equal ones neither, make it slower or take another way: the
// same lists as the CPU's, bit for bit.
#ifndef KERNELS_CUDA_PLAN_BEST_CUH
#define KERNELS_CUDA_PLAN_BEST_CUH

#include "kernels/cuda/plan_pick.cuh"

// Pages that are ranked at once, the most that lists keep of them, and the lists that a thread,
// a warp merges at once.
enum { RUN = 128, BEST_MOST = 64, LISTS_EACH = 3, BEST_LISTS = LISTS_EACH * WARP };

// A list of these has the best first, of equal ones the lower page.
struct __align__(8) ranked_page
{
    unsigned key;
    int page;
};

// Keys of no page, and the least of a page (none but a NaN has less): a list that ends with
// the former has no page left.
enum { NO_KEY = 1, LEAST_KEY = 2 };

__device__ inline unsigned ranked_key(float score)
{
    return max(order_key(score), (unsigned)LEAST_KEY);
}

// The best `need` of a run of pages from `first` on, in order. A team of threads counts who
// is ahead of a page: of equal ones those before it.
__device__ inline void rank_run(const unsigned (&key)[RUN], int first, int need, ranked_page *out)
{
    const int team = PICK_THREADS / RUN;
    const int page = threadIdx.x / team, member = threadIdx.x % team, four = page / 4;
    const unsigned mine = key[page];
    const uint4 *fours = (const uint4 *)key, own = fours[four];
    int ahead = 0;
#pragma unroll 4
    for (int i = 0; i < RUN / 4 / team; i++) {
        const int at = i * team + member;
        const uint4 x = fours[at];
        const unsigned bar = at < four ? mine - 1 : mine;
        ahead += (x.x > bar) + (x.y > bar) + (x.z > bar) + (x.w > bar);
    }
    if (member == 0)
        ahead += (page % 4 > 0 && own.x == mine) + (page % 4 > 1 && own.y == mine) +
                 (page % 4 > 2 && own.z == mine);
#pragma unroll
    for (int offset = 1; offset < team; offset *= 2)
        ahead += __shfl_xor_sync(ALL_LANES, ahead, offset);
    if (member == 0 && ahead < need)
        out[ahead] = ranked_page{mine, first + page};
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
