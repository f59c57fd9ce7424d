// SPDX-License-Identifier: Apache-2.0
// QUEST bounds of 8-bit metadata on tensor cores: head_dim 64, 128 or 256.
//
// max(q min, q max) is max(q, 0) max + min(q, 0) min: two products of pages and lanes. A
// warp takes 16 pages at a time, through shared memory of its own, in the layout of mma.sync
// m16n8k16, whose sum over channels may be taken in any order: a thread owns 16 channels of
// every 64, which are a group of one step. Queries are rounded to f16 and lie in shared
// memory in the order in which threads take them. Each thread keeps maximum and sum of its
// lanes over the pages it meets; a block joins them for its run of pages.
//
// All of this is latency. No kernel of a forward writes the batch's positions and page table,
// and in one without keys to write none writes metadata: what the first rounds take is
// fetched before begin_kernel, while the kernel before still runs.
#include "kernels/cuda/bounds.cuh"
#include "kernels/cuda/plan_score.cuh"

enum { WARPS = 8, TILE = 16, SLICE = 64 };
static_assert(WARPS * TILE >= KERN_CUDA_PLAN_RUN); // pages of a run

// Metadata of a warp's pages: of each, the largest keys, then the smallest.
template <int DIM> struct page_stage {
    uint4 bounds[TILE][2 * DIM / BOUND_GROUP];
    unsigned char step[TILE][DIM / BOUND_GROUP];
};

template <int DIM> struct scan_shared {
    static const int STAGES = DIM > 128 ? 1 : 2; // what fits on every card
    static const int TILES = DIM > 128 ? 5 : 8, LANES = 8 * TILES;
    page_stage<DIM> stage[STAGES][WARPS];
    uint4 q[TILES][DIM / SLICE][2][WARP]; // tile of 8 lanes, slice, half of 16 channels, thread
    float2 stats[LANES][WARPS];
    int row[LANES];         // of stats
    unsigned bounds[LANES]; // where a row of bounds begins
    unsigned exponents;     // BOUND_EXPONENTS, which is not to take an instruction's one constant
};

// What a block works at: a KV head of a segment, a run of pages.
struct scan_place {
    int seg, kv_head, lanes;
    int first, end; // pages of the run
    const int *rows;
    int places; // rows that there can be
};

__device__ static unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

// What is read once should not drive out of the cache what the next kernel reads.
__device__ static unsigned long long read_once()
{
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
    return policy;
}

template <int BYTES>
__device__ static void copy_async(unsigned to, const void *from, unsigned long long policy)
{
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3;\n" ::"r"(to),
                 "l"(from), "n"(BYTES), "l"(policy));
}

// Where the 16-byte chunk of a page lies in its row of a stage: the threads that read together
// take half a row of two neighbours.
__device__ static int chunk_of(int page, int chunk)
{
    return chunk ^ (page & 1) << 2;
}

// First page of the warp's tile of a round; the run may have ended before.
__device__ static int tile_page(const scan_place &at, int round)
{
    return at.first + (round * WARPS + (int)threadIdx.x / WARP) * TILE;
}

// Where the thread's page of a tile lies, one of 16. It is looked up a round ahead of the copies.
__device__ static int find_page(const batch_view &b, const scan_place &at, int round)
{
    const int first = tile_page(at, round);
    if (first >= at.end)
        return 0;
    const int page = min(first + (int)threadIdx.x % TILE, at.end - 1);
    return b.page_table[(size_t)at.seg * b.max_pages + page];
}

// Starts the copies of the warp's tile of a round, as far as the run goes.
template <int DIM>
__device__ static void fetch(page_stage<DIM> &to, const score_view &a, const scan_place &at,
                             int round, int page)
{
    enum { CHUNKS = DIM / BOUND_GROUP, STEP = WARP / CHUNKS }; // pages at once, an even number
    const int thread = threadIdx.x % WARP, first = thread / CHUNKS, chunk = thread % CHUNKS;
    if (tile_page(at, round) < at.end) { // the whole warp
        const int row = page * a.kv_heads + at.kv_head;
        const unsigned long long policy = read_once();
        if (thread < TILE)
            copy_async<CHUNKS>(shared_address(to.step[thread]), a.kstep + (size_t)row * CHUNKS,
                               policy);
        const unsigned most = shared_address(&to.bounds[first][chunk_of(first, chunk)]);
        const unsigned least = shared_address(&to.bounds[first][chunk_of(first, CHUNKS + chunk)]);
        const char *const from_most = (const char *)a.kmax + chunk * 16;
        const char *const from_least = (const char *)a.kmin + chunk * 16;
#pragma unroll
        for (int i = 0; i < TILE; i += STEP) {
            const size_t from = (size_t)__shfl_sync(ALL_LANES, row, first + i) * DIM;
            copy_async<16>(most + i * sizeof to.bounds[0], from_most + from, policy);
            copy_async<16>(least + i * sizeof to.bounds[0], from_least + from, policy);
        }
    }
    asm volatile("cp.async.commit_group;\n"); // an empty one too: waits count groups
}

__device__ static unsigned scaled_pair(float x, float y, float scale)
{
    const __half2 two = __floats2half2_rn(x * scale, y * scale);
    return *(const unsigned *)&two;
}

__device__ static unsigned above(unsigned pair)
{
    const __half2 x = __hmax2(*(const __half2 *)&pair, __float2half2_rn(0.0f));
    return *(const unsigned *)&x;
}

__device__ static unsigned below(unsigned pair)
{
    const __half2 x = __hmin2(*(const __half2 *)&pair, __float2half2_rn(0.0f));
    return *(const unsigned *)&x;
}

__device__ static uint4 above(uint4 q)
{
    return make_uint4(above(q.x), above(q.y), above(q.z), above(q.w));
}

__device__ static uint4 below(uint4 q)
{
    return make_uint4(below(q.x), below(q.y), below(q.z), below(q.w));
}

// Eight channels of a lane at a time: what of q a thread loads. Known before the active rows.
template <int DIM> struct lane_loads {
    static const int COUNT = (scan_shared<DIM>::TILES * DIM + WARPS * WARP - 1) / (WARPS * WARP);
    int place[COUNT], column[COUNT];

    __device__ static int lane(int i)
    {
        return (i * WARPS * WARP + (int)threadIdx.x) / (DIM / 8);
    }
    __device__ static int channel()
    {
        return (int)threadIdx.x % (DIM / 8) * 8;
    }
};

// Lanes from lane0 on, with their rows of bounds.
template <int DIM>
__device__ static void find_lanes(scan_shared<DIM> &t, lane_loads<DIM> &l, const score_view &a,
                                  const scan_place &at, int lane0)
{
#pragma unroll
    for (int i = 0; i < lane_loads<DIM>::COUNT; i++) {
        const int lane = lane0 + l.lane(i), place = lane / a.group;
        l.place[i] = min(place, at.places - 1);
        l.column[i] = (at.kv_head * a.group + lane - place * a.group) * DIM + l.channel();
    }
    if (threadIdx.x == 0)
        t.exponents = BOUND_EXPONENTS;
    if (threadIdx.x < scan_shared<DIM>::LANES) {
        const int row = lane_row(a, blockIdx.z, at.kv_head, lane0 + threadIdx.x);
        t.row[threadIdx.x] = row;
        t.bounds[threadIdx.x] = (unsigned)row * a.width;
    }
}

// The rows of the lanes that are there or might be.
template <int DIM>
__device__ static void find_rows(int (&rows)[lane_loads<DIM>::COUNT], const lane_loads<DIM> &l,
                                 const scan_place &at)
{
#pragma unroll
    for (int i = 0; i < lane_loads<DIM>::COUNT; i++)
        rows[i] = at.rows[l.place[i]];
}

// Where there is room, the part of q above 0 and then the part below it are kept apart, rather than
// made anew for all pages.
template <int DIM, int TILED> static const bool APART = 2 * TILED <= scan_shared<DIM>::TILES;

// Lanes [lane0, lane0 + 8 TILED) as f16, zeros beyond the last.
template <int DIM, int TILED>
__device__ static void load_lanes(scan_shared<DIM> &t, const lane_loads<DIM> &l,
                                  const int (&rows)[lane_loads<DIM>::COUNT], const score_view &a,
                                  int lanes)
{
    const int count = (TILED * DIM + WARPS * WARP - 1) / (WARPS * WARP), c = l.channel();
    const float scale = a.scale * BOUND_SCALE;
    float4 x[count][2];
#pragma unroll
    for (int i = 0; i < count; i++) {
        const float *from = a.q + (size_t)rows[i] * a.stride + l.column[i];
        x[i][0] = x[i][1] = make_float4(0, 0, 0, 0);
        if (l.lane(i) < lanes) {
            x[i][0] = *(const float4 *)from;
            x[i][1] = *(const float4 *)(from + 4);
        }
    }
#pragma unroll
    for (int i = 0; i < count; i++) {
        const int lane = l.lane(i), thread = lane % 8 * 4 + c % SLICE / BOUND_GROUP;
        if (lane >= TILED * 8)
            continue;
        const uint4 q = make_uint4(
            scaled_pair(x[i][0].x, x[i][0].y, scale), scaled_pair(x[i][0].z, x[i][0].w, scale),
            scaled_pair(x[i][1].x, x[i][1].y, scale), scaled_pair(x[i][1].z, x[i][1].w, scale));
        const int tile = lane / 8, slice = c / SLICE, half = c % BOUND_GROUP / 8;
        t.q[tile][slice][half][thread] = APART<DIM, TILED> ? above(q) : q;
        if constexpr (APART<DIM, TILED>)
            t.q[TILED + tile][slice][half][thread] = below(q);
    }
}

__device__ static void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four channels of both pages, as an operand.
__device__ static void widen(unsigned (&out)[4], unsigned bytes0, unsigned bytes1,
                             unsigned exponents, const __half2 (&step)[2],
                             const __half2 (&shift)[2])
{
    out[0] = bound_pair<false>(bytes0, exponents, step[0], shift[0]);
    out[1] = bound_pair<false>(bytes1, exponents, step[1], shift[1]);
    out[2] = bound_pair<true>(bytes0, exponents, step[0], shift[0]);
    out[3] = bound_pair<true>(bytes1, exponents, step[1], shift[1]);
}

// d[n] += bounds of the warp's pages, lanes of tile0 + n of ALL.
template <int DIM, int ALL, int TILED>
__device__ static void add_bounds(float (&d)[TILED][4], const page_stage<DIM> &m,
                                  const scan_shared<DIM> &t, int tile0)
{
    const int thread = threadIdx.x % WARP, row = thread / 4, quad = thread % 4;
    const unsigned exponents = t.exponents;
#pragma unroll 1 // code that runs once waits for its instructions
    for (int i = 0; i < 2 * DIM / SLICE; i++) {
        const int group = i / 2 * 4 + quad, half = i % 2;
        __half2 step[2], shift[2];
        uint2 most[2], least[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int page = row + 8 * r;
            const uint4 *bounds = m.bounds[page];
            step[r] = step_pair(m.step[page][group]);
            shift[r] = step_shift(step[r]);
            most[r] = ((const uint2 *)&bounds[chunk_of(page, group)])[half];
            least[r] = ((const uint2 *)&bounds[chunk_of(page, DIM / BOUND_GROUP + group)])[half];
        }
        unsigned high[2][4], low[2][4];
        widen(high[0], most[0].x, most[1].x, exponents, step, shift);
        widen(high[1], most[0].y, most[1].y, exponents, step, shift);
        widen(low[0], least[0].x, least[1].x, exponents, step, shift);
        widen(low[1], least[0].y, least[1].y, exponents, step, shift);
#pragma unroll
        for (int n = 0; n < TILED; n++) {
            const bool apart = APART<DIM, ALL>;
            const uint4 q = t.q[tile0 + n][i / 2][half][thread];
            const uint4 positive = apart ? q : above(q);
            const uint4 negative = apart ? t.q[ALL + tile0 + n][i / 2][half][thread] : below(q);
            multiply(d[n], high[0], positive.x, positive.y);
            multiply(d[n], low[0], negative.x, negative.y);
            multiply(d[n], high[1], positive.z, positive.w);
            multiply(d[n], low[1], negative.z, negative.w);
        }
    }
}

// A thread's lanes: maximum, NO_BOUND so far, and sum over the pages it met, of lane
// 2 (threadIdx.x % 4) + i of tile n.
static const float NO_BOUND = -1e30f;
template <int TILED> struct lane_sums {
    float top[TILED][2], sum[TILED][2];
};

// Stores the bounds of the thread's pages, page and page + 8, and folds them into its sums. `rows`
// says where those of the tiles' lanes begin.
template <int TILED>
__device__ static void keep_bounds(const float (&d)[TILED][4], lane_sums<TILED> &s, float *bounds,
                                   const unsigned *rows, int page, int end, int lanes)
{
    const bool one = page < end, both = page + 8 < end;
    const bool store_one = page < bound_width(end), store_both = page + 8 < bound_width(end);
#pragma unroll
    for (int n = 0; n < TILED; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int lane = n * 8 + threadIdx.x % 4 * 2 + i;
            float *to = bounds + (rows[lane] + page);
            const float x = one ? d[n][i] : -CUDART_INF_F, y = both ? d[n][2 + i] : -CUDART_INF_F;
            if (store_one && lane < lanes)
                to[0] = x;
            if (store_both && lane < lanes)
                to[8] = y;
            const float top = fmaxf(s.top[n][i], fmaxf(x, y));
            s.sum[n][i] =
                s.sum[n][i] * power2(s.top[n][i] - top) + power2(x - top) + power2(y - top);
            s.top[n][i] = top;
        }
}

// Joins the sums of the warp's threads, of tiles from tile0 on.
template <int DIM, int TILED>
__device__ static void join_threads(scan_shared<DIM> &t, const lane_sums<TILED> &s, int tile0)
{
    const int thread = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < TILED; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float2 all = join_lanes<4, WARP>(make_float2(s.top[n][i], s.sum[n][i]));
            if (thread < 4)
                t.stats[(tile0 + n) * 8 + thread * 2 + i][threadIdx.x / WARP] = all;
        }
}

// The same of the block's warps, and keeps them.
template <int DIM>
__device__ static void join_warps(scan_shared<DIM> &t, const score_view &a, int lanes)
{
    __syncthreads();
    for (int i = threadIdx.x; i / WARP * WARP < lanes * WARPS; i += WARPS * WARP) {
        const int lane = i / WARPS;
        const float2 all = join_lanes<1, WARPS>(t.stats[lane][i % WARPS]);
        if (i % WARPS == 0 && lane < lanes)
            a.stats[(size_t)t.row[lane] * a.chunks + blockIdx.x] = all;
    }
}

// The run of pages for lanes from lane0 on, at most PARTS times 8 TILED, of which the pages' keys
// are widened anew for every part; the first rounds have been fetched.
template <int DIM, int TILED, int PARTS>
__device__ static void scan_lanes(scan_shared<DIM> &t, const lane_loads<DIM> &l,
                                  const int (&rows)[lane_loads<DIM>::COUNT], const score_view &a,
                                  const batch_view &b, const scan_place &at, int lane0)
{
    const int lanes = min(at.lanes - lane0, PARTS * TILED * 8);
    const int warp = threadIdx.x / WARP, row = threadIdx.x % WARP / 4;
    load_lanes<DIM, PARTS * TILED>(t, l, rows, a, lanes);
    __syncthreads();
    lane_sums<TILED> sums[PARTS];
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int n = 0; n < TILED; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                sums[part].top[n][i] = NO_BOUND;
                sums[part].sum[n][i] = 0.0f;
            }
    const int stages = scan_shared<DIM>::STAGES;
    int page = find_page(b, at, stages);
    for (int round = 0; at.first + round * WARPS * TILE < at.end; round++) {
        page_stage<DIM> &stage = t.stage[round % stages][warp];
        const int first = at.first + (round * WARPS + warp) * TILE + row;
        asm volatile("cp.async.wait_group %0;\n" ::"n"(stages - 1));
        __syncwarp();
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            float d[TILED][4] = {};
            add_bounds<DIM, PARTS * TILED>(d, stage, t, part * TILED);
            if (part == PARTS - 1) {
                __syncwarp();
                fetch(stage, a, at, round + stages, page);
                page = find_page(b, at, round + stages + 1);
            }
            keep_bounds(d, sums[part], a.bounds, t.bounds + part * TILED * 8, first, at.end,
                        lanes - part * TILED * 8);
        }
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++)
        join_threads(t, sums[part], part * TILED);
    join_warps(t, a, lanes);
}

template <int DIM>
__device__ static void fetch_first(scan_shared<DIM> &t, const score_view &a, const batch_view &b,
                                   const scan_place &at)
{
    int page[scan_shared<DIM>::STAGES];
#pragma unroll
    for (int stage = 0; stage < scan_shared<DIM>::STAGES; stage++)
        page[stage] = find_page(b, at, stage);
#pragma unroll
    for (int stage = 0; stage < scan_shared<DIM>::STAGES; stage++)
        fetch(t.stage[stage][threadIdx.x / WARP], a, at, stage, page[stage]);
}

// Block (run of pages, KV head, segment). `settled`: no key is written in this forward.
template <int DIM>
__global__ void __launch_bounds__(WARPS *WARP, 2)
    scan_kernel(score_view a, batch_view b, plan_view p, bool settled)
{
    extern __shared__ __align__(16) char memory[];
    scan_shared<DIM> &t = *(scan_shared<DIM> *)memory;
    scan_place at = {a.seg0 + (int)blockIdx.z, (int)blockIdx.y};
    const int row0 = b.seg_row0[at.seg];
    const int pages = row0 < b.seg_row0[at.seg + 1] ? b.pages_of(b.prefix(row0)) : 0;
    at.first = blockIdx.x * a.span;
    at.end = min(at.first + a.span, pages);
    at.rows = p.act_rows + row0;
    at.places = max(b.seg_row0[at.seg + 1] - row0, 1);
    lane_loads<DIM> loads;
    find_lanes(t, loads, a, at, 0);
    if (settled)
        fetch_first(t, a, b, at);
    begin_kernel();
    int rows[lane_loads<DIM>::COUNT];
    if (at.first < pages)
        find_rows<DIM>(rows, loads, at);
    at.lanes = at.first < pages ? min(p.act_count[at.seg], p.act_cap) * a.group : 0;
    for (int lane = 0; lane < at.lanes; lane += scan_shared<DIM>::LANES) {
        if (lane > 0) {
            __syncthreads();
            find_lanes(t, loads, a, at, lane);
            find_rows<DIM>(rows, loads, at);
        }
        if (lane > 0 || !settled)
            fetch_first(t, a, b, at);
        const int left = at.lanes - lane; // no tests on the way, which keep threads waiting
        if (left <= 3 * 8)
            scan_lanes<DIM, 3, 1>(t, loads, rows, a, b, at, lane);
        else if (left <= 5 * 8 || scan_shared<DIM>::TILES == 5)
            scan_lanes<DIM, 5, 1>(t, loads, rows, a, b, at, lane);
        else
            scan_lanes<DIM, 4, scan_shared<DIM>::TILES / 4>(t, loads, rows, a, b, at, lane);
    }
    asm volatile("cp.async.wait_all;\n");
}

// Few enough runs that two blocks fit on each multiprocessor at once. The last page of the
// table is seldom of the prefix: it is the block's own.
int bound_span_narrow(const kern_cuda_ctx *ctx, const score_view &v, int max_pages, int segs)
{
    const int once = WARPS * TILE;
    const int blocks = (int)blocks_of(max_pages - 1, once) * v.kv_heads * segs;
    const int rounds = blocks_of(blocks, 2 * ctx->sms);
    return once * (rounds > 8 ? 8 : rounds > 1 ? rounds : 1);
}

template <int DIM>
static int launch(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                  const plan_view &p, int segs, bool settled)
{
    static_assert(sizeof(scan_shared<DIM>) <= LEAST_SHARED);
    return enqueue_with<scan_shared<DIM>>(ctx, scan_kernel<DIM>, dim3(v.chunks, v.kv_heads, segs),
                                          WARPS * WARP, v, b, p, settled);
}

int launch_bounds_narrow(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                         const plan_view &p, int segs, bool settled)
{
    return v.dim == 64    ? launch<64>(ctx, v, b, p, segs, settled)
           : v.dim == 128 ? launch<128>(ctx, v, b, p, segs, settled)
                          : launch<256>(ctx, v, b, p, segs, settled);
}
