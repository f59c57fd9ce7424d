// SPDX-License-Identifier: Apache-2.0
// Attention on tensor cores, whichever instructions multiply (FlashAttention-2
// with split keys; Dao 2023): bf16 pages, head_dim 64 or 128.
//
// Some warps of a block do nothing but fetch: K and V of KEYS keys are a stage of a ring in
// shared memory, filled by cp.async, and two barriers a stage say when it is full and when
// it is empty again. The fetching warps run ahead into the next piece of the block's share,
// so that memory never waits. Each of the other warps owns 16 lanes of the tile and keeps
// their queries, weights and outputs in registers, in the layout of mma.sync m16n8k16,
// which is also that of a warp in wgmma m64. Rows of a stage are split into runs of 128
// bytes, whose 16-byte chunks are swizzled by the row: ldmatrix meets no bank twice, and it
// is wgmma's 128-byte swizzle. Queries and softmax weights are rounded to bf16; maxima, sums
// and outputs are f32.
//
// A configuration C of the kernel (attend) is a type with
//   DIM, WARPS, STAGES   WARPS own lanes, and FETCHERS more fetch
//   GROUP                warps that multiply together
//   QUERIES              bytes of shared memory for queries
//   queries              a warp's 16 queries: made of that memory; then begin(), set(c, i,
//                        word) for the words that the thread would hold in mma, end()
//   arrived()            called by a thread before it reads a stage that has become full
//   take_keys(...)       a warp's lanes take the keys of a piece, stage after stage
#ifndef KERNELS_CUDA_ATTN_MMA_CUH
#define KERNELS_CUDA_ATTN_MMA_CUH

#include "kernels/cuda/attn_work.cuh"

enum { KEYS = 64, ROWS = 16, FETCHERS = 4 };

// A block delays the rest of its worker's share by so many units (measured: 4 us, 6 us).
static inline int block_weight(int lanes)
{
    return lanes <= 64 ? 2 : 3;
}

template <class C> struct key_ring {
    __nv_bfloat16 k[C::STAGES][KEYS * C::DIM], v[C::STAGES][KEYS * C::DIM];
    char q[C::QUERIES];
    uint64_t full[C::STAGES], empty[C::STAGES];
    share_room room;
};

// A stage of the ring, and the parity of the round in which it is visited.
template <class C> struct ring_place {
    int stage = 0;
    unsigned parity = 0;

    __device__ void advance()
    {
        if (++stage == C::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

__device__ inline unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

__device__ inline unsigned pack(float low, float high)
{
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *(const unsigned *)&two;
}

__device__ inline float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ inline float quad_sum(float x)
{
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// c [16, 8] += a [16, 16] b [16, 8].
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- barriers ---------------------------------------------------------------------

__device__ inline void barrier_init(uint64_t *barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

__device__ inline void barrier_arrive(uint64_t *barrier)
{
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(
                     shared_address(barrier))
                 : "memory");
}

// Waits for the end of the round of this parity.
__device__ inline void barrier_wait(uint64_t *barrier, unsigned parity)
{
    const unsigned address = shared_address(barrier);
    unsigned passed;
    do
        asm volatile("{\n.reg .pred p;\n"
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
                     "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
#else
                     "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
#endif
                     "selp.b32 %0, 1, 0, p;\n}\n"
                     : "=r"(passed)
                     : "r"(address), "r"(parity)
                     : "memory");
    while (!passed);
}

// ---- keys -----------------------------------------------------------------------

// Pages that one worker reads leave the L2 before what is read again and again.
__device__ inline uint64_t cache_policy(bool read_once)
{
    uint64_t once, again;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(once));
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;\n" : "=l"(again));
    return read_once ? once : again;
}

// 16 bytes, or zeros where there is nothing to read.
__device__ inline void copy_async(unsigned to, const void *from, bool in, uint64_t policy)
{
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;\n" ::"r"(to),
                 "l"(from), "r"(in ? 16 : 0), "l"(policy));
}

// The thread arrives when its copies so far are done.
__device__ inline void arrive_copies(uint64_t *barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];\n" ::"r"(shared_address(barrier))
                 : "memory");
}

// Byte offset of a 16-byte chunk of a row in a stage.
__device__ inline unsigned chunk_at(int row, int chunk)
{
    return (unsigned)((chunk / 8 * KEYS + row) * 128 + (chunk % 8 ^ (row & 7)) * 16);
}

enum { NO_ROW = -1 };

// Row of K and V, as [*, dim], that holds a token of the tile's list.
__device__ inline int token_row(const attn_view &a, const batch_view &b, const work_piece &piece,
                                int token)
{
    if (token >= piece.end)
        return NO_ROW;
    const work_tile &t = piece.t;
    const int shift = __ffs(b.page) - 1;
    const int page = b.page_table[(size_t)t.seg * b.max_pages + listed_page(t, token >> shift)];
    return ((page * a.kv_heads.by + t.kv_head) << shift) + (token & (b.page - 1));
}

// A fetching warp's part of a stage: 16 keys, the rows of whose pages its threads know.
template <class C>
__device__ void fetch(key_ring<C> &ring, const attn_view &a, int mine, const ring_place<C> &at,
                      uint64_t policy)
{
    enum { CHUNKS = C::DIM / 8, STEP = WARP / CHUNKS, MINE = KEYS / FETCHERS };
    const int thread = threadIdx.x % WARP, chunk = thread % CHUNKS;
    const int row0 = (threadIdx.x / WARP - C::WARPS) * MINE;
    barrier_wait(&ring.empty[at.stage], at.parity ^ 1);
    const unsigned k = shared_address(ring.k[at.stage]), v = shared_address(ring.v[at.stage]);
    const __nv_bfloat16 *const from_k = (const __nv_bfloat16 *)a.k + chunk * 8;
    const __nv_bfloat16 *const from_v = (const __nv_bfloat16 *)a.v + chunk * 8;
#pragma unroll
    for (int i = 0; i < MINE; i += STEP) {
        const int row = i + thread / CHUNKS, from = __shfl_sync(ALL_LANES, mine, row);
        const size_t offset = (size_t)(from == NO_ROW ? 0 : from) * C::DIM;
        const unsigned to = chunk_at(row0 + row, chunk);
        copy_async(k + to, from_k + offset, from != NO_ROW, policy);
        copy_async(v + to, from_v + offset, from != NO_ROW, policy);
    }
    arrive_copies(&ring.full[at.stage]);
}

// What is looked up for the next stage is on its way while the warp waits for room.
template <class C>
__device__ void fetch_pages(key_ring<C> &ring, const attn_view &a, const batch_view &b,
                            const work_piece &piece, ring_place<C> &at, uint64_t policy)
{
    enum { MINE = KEYS / FETCHERS };
    int token = piece.first + (threadIdx.x / WARP - C::WARPS) * MINE + threadIdx.x % MINE;
    int row = token_row(a, b, piece, token);
    for (int left = piece.end - piece.first; left > 0; left -= KEYS, at.advance()) {
        token += KEYS;
        const int next = token_row(a, b, piece, token);
        fetch(ring, a, row, at, policy);
        row = next;
    }
}

// Eight channels, rounded to bf16.
__device__ inline uint4 narrow_chunk(const float *from)
{
    const float4 low = *(const float4 *)from, high = *(const float4 *)(from + 4);
    return make_uint4(pack(low.x, low.y), pack(low.z, low.w), pack(high.x, high.y),
                      pack(high.z, high.w));
}

// The same for keys of a block, which are among the rows; each warp takes every fourth run.
template <class C>
__device__ void fetch_own(key_ring<C> &ring, const attn_view &a, const work_piece &piece,
                          ring_place<C> &at)
{
    enum { CHUNKS = C::DIM / 8, STEP = WARP / CHUNKS };
    const int thread = threadIdx.x % WARP, chunk = thread % CHUNKS;
    const int row0 = (threadIdx.x / WARP - C::WARPS) * STEP + thread / CHUNKS;
    const int to_value = a.kv_heads.by * C::DIM;
    for (int token = piece.first; token < piece.end; token += KEYS, at.advance()) {
        barrier_wait(&ring.empty[at.stage], at.parity ^ 1);
        char *const k = (char *)ring.k[at.stage], *const v = (char *)ring.v[at.stage];
#pragma unroll 2
        for (int row = row0; row < KEYS; row += STEP * FETCHERS) {
            uint4 key = {}, value = {};
            if (token + row < piece.end) {
                const float *const from = own_key(a, piece.t, token + row) + chunk * 8;
                key = narrow_chunk(from);
                value = narrow_chunk(from + to_value);
            }
            *(uint4 *)(k + chunk_at(row, chunk)) = key;
            *(uint4 *)(v + chunk_at(row, chunk)) = value;
        }
        barrier_arrive(&ring.full[at.stage]);
    }
}

// The work of a fetching warp.
template <class C>
__device__ void fetch_share(key_ring<C> &ring, const attn_view &a, const batch_view &b,
                            const plan_view &p, work_share &share)
{
    const uint64_t policy = cache_policy(a.side.by == 1);
    ring_place<C> at;
    for (work_piece piece; next_piece(a, b, p, ring.room, share, piece);)
        if (piece.t.own)
            fetch_own(ring, a, piece, at);
        else
            fetch_pages(ring, a, b, piece, at, policy);
}

// ---- a warp's 16 lanes ----------------------------------------------------------------

// Thread t of a warp holds rows t / 4 and t / 4 + 8 of the 16, in the layout of mma.
template <int DIM> struct mma_lanes {
    float o[DIM / 8][4];
    float m[2], l[2]; // maximum (base 2) and this thread's part of the sum
    int limit[2];     // tokens of the list that a lane may see
    float *page_lse[2];
    bool measures; // some lane of the warp has page_lse
};

template <class C>
__device__ void load_lanes(mma_lanes<C::DIM> &w, typename C::queries &queries, const attn_view &a,
                           const batch_view &b, const work_piece &piece, int lane0)
{
    enum { DIM = C::DIM };
    const work_tile &t = piece.t;
    const int thread = threadIdx.x % WARP;
    const float *q[2];
    for (int r = 0; r < 2; r++) {
        const int lane = lane0 + thread / 4 + 8 * r;
        const bool in = lane < t.lanes;
        const int row = in ? lane_row(a, t, lane) : 0, head = in ? lane_head(a, t, lane) : 0;
        q[r] = in ? a.qkv + (size_t)row * a.stride + (size_t)head * DIM : nullptr;
        w.limit[r] = in ? min(lane_tokens(b, t, row), piece.end) : 0;
        w.page_lse[r] = in ? lane_page_lse(a, b, t, lane) : nullptr;
        w.m[r] = -CUDART_INF_F;
        w.l[r] = 0.0f;
    }
    w.measures = __any_sync(ALL_LANES, w.page_lse[0] || w.page_lse[1]);
    queries.begin();
#pragma unroll
    for (int s = 0; s < DIM / 16; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int c = s * 16 + (i / 2) * 8 + thread % 4 * 2;
            const float *from = q[i % 2];
            const float2 two = from ? *(const float2 *)(from + c) : make_float2(0.0f, 0.0f);
            queries.set(s, i, pack(two.x, two.y));
        }
    queries.end();
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            w.o[n][i] = 0.0f;
}

template <int DIM>
__device__ void mask_keys(const mma_lanes<DIM> &w, int first, float (&s)[KEYS / 8][4])
{
    const int column = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (column + n * 8 + i % 2 >= w.limit[i / 2])
                s[n][i] = -CUDART_INF_F;
}

// Scores become weights e^(s - m) of a new m; sums so far are rescaled to it, outputs so far are to
// be, by `keep`.
template <int DIM>
__device__ void soften(mma_lanes<DIM> &w, float scale, float (&s)[KEYS / 8][4], float (&keep)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most[4]; // four chains: one would wait for every step
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            const float two = fmaxf(s[n][2 * r], s[n][2 * r + 1]);
            most[n % 4] = n < 4 ? two : fmaxf(most[n % 4], two);
        }
        most[0] = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
        const float top = fmaxf(w.m[r], quad_max(most[0]) * scale);
        const float base = top == -CUDART_INF_F ? 0.0f : top;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                s[n][i] = power(s[n][i] * scale - base);
                sum += s[n][i];
            }
        keep[r] = power(w.m[r] - base);
        w.m[r] = top;
        w.l[r] = w.l[r] * keep[r] + sum;
    }
}

// Mostly the maxima are of keys long past, and there is nothing to do.
template <int DIM> __device__ void rescale(mma_lanes<DIM> &w, const float (&keep)[2])
{
    if (!__any_sync(ALL_LANES, keep[0] != 1.0f || keep[1] != 1.0f))
        return;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            w.o[n][i] *= keep[i / 2];
}

__device__ inline void pack_weights(const float (&s)[KEYS / 8][4], unsigned (&p)[KEYS / 16][4])
{
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[k][i] = pack(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
}

// The log-sum-exp of the pages among these keys, from the weights: 8 <= page <= KEYS. The
// sums are the product of the weights with ones where a key lies in a page, so that they
// cost a thirtieth of what the values do. A page whose weights underflow gets -infinity.
template <int DIM>
__device__ void sum_pages(const mma_lanes<DIM> &w, const batch_view &b, const work_tile &t,
                          int first, const unsigned (&p)[KEYS / 16][4])
{
    if (!w.measures)
        return;
    const unsigned ones = 0x3f803f80u;
    const int shift = __ffs(b.page) - 1;
    const int thread = threadIdx.x % WARP, key = thread % 4 * 2, column = thread / 4;
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
        multiply(sums, p[k], (k * 16 + key) >> shift == column ? ones : 0,
                 (k * 16 + key + 8) >> shift == column ? ones : 0);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int pages = (min(first + KEYS, w.limit[r]) + b.page - 1) >> shift;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int page = (first >> shift) + key + i;
            if (w.page_lse[r] && page < pages)
                w.page_lse[r][listed_page(t, page)] = (w.m[r] + log_2(sums[2 * r + i])) * LN_2;
        }
    }
}

template <int DIM>
__device__ void store_lanes(const mma_lanes<DIM> &w, const attn_view &a, const work_piece &piece,
                            int lane0)
{
    const work_tile &t = piece.t;
    const int thread = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int lane = lane0 + thread / 4 + 8 * r;
        const float l = quad_sum(w.l[r]);
        if (lane >= t.lanes)
            continue;
        const bool whole = piece.slot < 0;
        const size_t at = whole ? (size_t)lane_row(a, t, lane) * a.heads.by + lane_head(a, t, lane)
                                : (size_t)lane * a.workers + piece.slot;
        if (thread % 4 == 0 && whole)
            (t.own ? a.own_lse : a.lse)[at] = l > 0.0f ? (w.m[r] + log_2(l)) * LN_2 : -CUDART_INF_F;
        if (thread % 4 == 0 && !whole)
            a.stat[at] = make_float2(w.m[r], l);
        const float factor = !whole ? 1.0f : l > 0.0f ? __fdividef(1.0f, l) : 0.0f;
        const size_t first = at * DIM + thread % 4 * 2;
        float *to = (t.own ? (float *)a.out.at : whole ? a.o : a.part) + first;
        __nv_bfloat16 *narrow = (__nv_bfloat16 *)a.out.at + first;
        const bool narrows = t.own && a.out.dtype != KERN_F32;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            const float x = w.o[n][2 * r] * factor, y = w.o[n][2 * r + 1] * factor;
            if (narrows)
                *(unsigned *)(narrow + n * 8) = pack(x, y);
            else
                *(float2 *)(to + n * 8) = make_float2(x, y);
        }
    }
}

// ---- the kernel ------------------------------------------------------------------------

// Waits until a stage is full.
template <class C> __device__ void enter(key_ring<C> &ring, const ring_place<C> &at)
{
    barrier_wait(&ring.full[at.stage], at.parity);
    C::arrived();
}

// Leaves a stage to be filled again.
template <class C> __device__ void leave(key_ring<C> &ring, const ring_place<C> &at)
{
    __syncwarp();
    if (threadIdx.x % WARP == 0)
        barrier_arrive(&ring.empty[at.stage]);
}

// Takes nothing of a piece's keys.
template <class C>
__device__ void let_pass(key_ring<C> &ring, const work_piece &piece, ring_place<C> &at)
{
    for (int token = piece.first; token < piece.end; token += KEYS, at.advance()) {
        enter(ring, at);
        leave(ring, at);
    }
}

// Scores of the keys from `first` on become weights; see soften.
template <int DIM>
__device__ void weigh(mma_lanes<DIM> &w, float scale, int first, float (&s)[KEYS / 8][4],
                      float (&keep)[2])
{
    if (__any_sync(ALL_LANES, min(w.limit[0], w.limit[1]) < first + KEYS))
        mask_keys(w, first, s);
    soften(w, scale, s, keep);
}

// The work of the warps that own lanes. Those without lanes in a tile let its keys pass.
template <class C>
__device__ void take_share(key_ring<C> &ring, const attn_view &a, const batch_view &b,
                           const plan_view &p, work_share &share)
{
    const int warp = threadIdx.x / WARP, lane0 = warp * ROWS;
    ring_place<C> at;
    typename C::queries q(ring.q);
    for (work_piece piece; next_piece(a, b, p, ring.room, share, piece);) {
        mma_lanes<C::DIM> w;
        load_lanes<C>(w, q, a, b, piece, lane0);
        if (warp / C::GROUP * C::GROUP * ROWS < piece.t.lanes) {
            C::take_keys(ring, at, w, q, a, b, piece);
            store_lanes(w, a, piece, lane0);
        } else {
            let_pass(ring, piece, at);
        }
    }
}

template <class C>
__device__ void attend(const attn_view &a, const batch_view &b, const plan_view &p)
{
    extern __shared__ __align__(1024) char memory[];
    key_ring<C> &ring = *(key_ring<C> *)memory;
    if (threadIdx.x < C::STAGES) {
        barrier_init(&ring.full[threadIdx.x], FETCHERS * WARP);
        barrier_init(&ring.empty[threadIdx.x], C::WARPS);
    }
    work_share share = begin_share(a, b, p, ring.room);
    if (threadIdx.x / WARP >= C::WARPS)
        fetch_share(ring, a, b, p, share);
    else
        take_share(ring, a, b, p, share);
}

template <class C>
int launch_attend(const kern_cuda_ctx *ctx, void (*kernel)(attn_view, batch_view, plan_view),
                  const attn_view &v, const batch_view &b, const plan_view &p)
{
    return enqueue_with<key_ring<C>>(ctx, kernel, dim3(v.workers), (C::WARPS + FETCHERS) * WARP, v,
                                     b, p);
}

#endif
