// SPDX-License-Identifier: Apache-2.0
// Page scores: QUEST bounds, a softmax over the pages per row and head, and the sum of
// the shares over the heads of a list.
//
// max(q min, q max) is max(q, 0) max + min(q, 0) min. A block holds the metadata of 32
// pages of one KV head in shared memory and takes the lanes (active rows x heads of
// the group) a tile at a time: a warp has four lanes, a thread one page. Bounds, and
// their maximum and sum per run of pages, go to the workspace; a second kernel joins
// the sums, a third turns bounds into shares and adds them up.
#include "kernels/cuda/common.cuh"

enum { PAGES = 32, WARPS = 8, PER_WARP = 4, LANES = WARPS * PER_WARP };

struct score_view {
    const float *q, *kmin, *kmax;
    int stride, heads, kv_heads, dim, group;
    float scale;
    int seg0;       // first segment of this launch
    int chunks;     // runs of PAGES pages
    int tile_rows;  // rows of a tile of lanes
    int tile_heads; // heads of a tile
    float *bounds;  // [segs, act_cap, heads, max_pages]
    float2 *stats;  // [segs, act_cap, heads, chunks]: maximum and sum of a run
    float2 *total;  // [segs, act_cap, heads]: maximum, 1 / sum over all
    float *score;   // [scan_segs, score_lists, act_cap, max_pages]
    int score_lists, list0;
};

// Active rows of the segment, and the pages of their prefix (they are one block).
__device__ static int active_rows(const batch_view &b, const plan_view &p, int seg, int *pages)
{
    const int count = min(p.act_count[seg], p.act_cap);
    *pages = count > 0 ? b.pages_of(b.prefix(p.act_rows[b.seg_row0[seg]])) : 0;
    return count;
}

template <int DIM> struct score_tile {
    float most[PAGES][DIM + 4], least[PAGES][DIM + 4];
    float q[LANES][DIM];
};

template <int DIM>
__device__ static void load_pages(score_tile<DIM> &t, const score_view &a, const batch_view &b,
                                  int seg, int kv_head, int first, int pages)
{
    for (int i = threadIdx.x / WARP; i < PAGES; i += WARPS) {
        const bool in = first + i < pages;
        const int page = in ? b.page_table[(size_t)seg * b.max_pages + first + i] : 0;
        const size_t at = ((size_t)page * a.kv_heads + kv_head) * a.dim;
        for (int c = threadIdx.x % WARP; c < DIM; c += WARP) {
            t.most[i][c] = in && c < a.dim ? a.kmax[at + c] : 0.0f;
            t.least[i][c] = in && c < a.dim ? a.kmin[at + c] : 0.0f;
        }
    }
}

// Lane i of a tile: row place0 + i / tile_heads, head head0 + i % tile_heads.
template <int DIM>
__device__ static void load_lanes(score_tile<DIM> &t, const score_view &a, const int *rows,
                                  int place0, int places, int head0, int heads)
{
    for (int i = threadIdx.x / WARP; i < LANES; i += WARPS) {
        const int place = place0 + i / heads, head = head0 + i % heads;
        const bool in = i / heads < places;
        const float *q = a.q + (in ? (size_t)rows[place] * a.stride + (size_t)head * a.dim : 0);
        for (int c = threadIdx.x % WARP; c < DIM; c += WARP)
            t.q[i][c] = in && c < a.dim ? q[c] * a.scale : 0.0f;
    }
}

// Bounds of the warp's lanes for this thread's page.
template <int DIM> __device__ static void bound(const score_tile<DIM> &t, float (&s)[PER_WARP])
{
    const int warp = threadIdx.x / WARP, page = threadIdx.x % WARP;
    for (int r = 0; r < PER_WARP; r++)
        s[r] = 0.0f;
    for (int c = 0; c < DIM; c += 4) {
        const float4 high = *(const float4 *)&t.most[page][c];
        const float4 low = *(const float4 *)&t.least[page][c];
#pragma unroll
        for (int r = 0; r < PER_WARP; r++) {
            const float4 q = *(const float4 *)&t.q[warp * PER_WARP + r][c];
            s[r] += fmaxf(q.x, 0.0f) * high.x + fminf(q.x, 0.0f) * low.x;
            s[r] += fmaxf(q.y, 0.0f) * high.y + fminf(q.y, 0.0f) * low.y;
            s[r] += fmaxf(q.z, 0.0f) * high.z + fminf(q.z, 0.0f) * low.z;
            s[r] += fmaxf(q.w, 0.0f) * high.w + fminf(q.w, 0.0f) * low.w;
        }
    }
}

template <int DIM>
__device__ static void keep_bounds(const score_tile<DIM> &t, const score_view &a,
                                   const batch_view &b, const plan_view &p, int place0, int lanes,
                                   int head0, int heads, int pages)
{
    const int page = blockIdx.x * PAGES + threadIdx.x % WARP;
    float s[PER_WARP];
    bound(t, s);
    for (int r = 0; r < PER_WARP; r++) {
        const int i = (threadIdx.x / WARP) * PER_WARP + r;
        if (i >= lanes)
            break;
        const bool in = page < pages;
        const float top = warp_max(in ? s[r] : -CUDART_INF_F);
        const float sum = warp_sum(in ? expf(s[r] - top) : 0.0f);
        const size_t at =
            ((size_t)blockIdx.z * p.act_cap + place0 + i / heads) * a.heads + head0 + i % heads;
        if (in)
            a.bounds[at * b.max_pages + page] = s[r];
        if (threadIdx.x % WARP == 0)
            a.stats[at * a.chunks + blockIdx.x] = make_float2(top, sum);
    }
}

// Block (run of pages, KV head, segment).
template <int DIM>
__global__ void __launch_bounds__(WARPS *WARP) bound_kernel(score_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) char memory[];
    score_tile<DIM> &t = *(score_tile<DIM> *)memory;
    const int seg = a.seg0 + blockIdx.z, kv_head = blockIdx.y, first = blockIdx.x * PAGES;
    int pages;
    const int rows = active_rows(b, p, seg, &pages);
    if (first >= pages)
        return;
    load_pages(t, a, b, seg, kv_head, first, pages);
    for (int place = 0; place < rows; place += a.tile_rows) {
        const int places = min(a.tile_rows, rows - place);
        for (int head = 0; head < a.group; head += a.tile_heads) {
            const int heads = min(a.tile_heads, a.group - head);
            const int head0 = kv_head * a.group + head;
            __syncthreads();
            load_lanes(t, a, p.act_rows + b.seg_row0[seg], place, places, head0, heads);
            __syncthreads();
            keep_bounds(t, a, b, p, place, places * heads, head0, heads, pages);
        }
    }
}

// Maximum and sum of a row and head over the runs: a warp each.
__global__ void total_kernel(score_view a, batch_view b, plan_view p)
{
    const int seg = a.seg0 + blockIdx.y, lane = threadIdx.x % WARP;
    const int i = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    int pages;
    const int rows = active_rows(b, p, seg, &pages), chunks = (pages + PAGES - 1) / PAGES;
    if (i >= rows * a.heads || chunks == 0)
        return;
    const size_t at = (size_t)blockIdx.y * p.act_cap * a.heads + i;
    const float2 *stats = a.stats + at * a.chunks;
    float top = -CUDART_INF_F, sum = 0.0f;
    for (int c = lane; c < chunks; c += WARP)
        top = fmaxf(top, stats[c].x);
    top = warp_max(top);
    for (int c = lane; c < chunks; c += WARP)
        sum += expf(stats[c].x - top) * stats[c].y;
    sum = warp_sum(sum);
    if (lane == 0)
        a.total[at] = make_float2(top, 1.0f / sum);
}

// Adds the shares of a list's heads, in order, and clears what no row, page or local
// list has. A thread takes a page of one place of one list.
__global__ void list_kernel(score_view a, batch_view b, plan_view p)
{
    const int g = blockIdx.x * blockDim.x + threadIdx.x;
    const int place = blockIdx.y % p.act_cap, list = blockIdx.y / p.act_cap;
    const int seg = a.seg0 + blockIdx.z;
    if (g >= b.max_pages)
        return;
    int pages;
    const int rows = active_rows(b, p, seg, &pages);
    const int count = a.score_lists == 1 ? a.heads : a.group;
    const int head0 = a.score_lists == 1 ? 0 : (list - a.list0) * a.group;
    float sum = 0.0f;
    if (place < rows && g < pages && head0 >= 0 && head0 + count <= a.heads) {
        const size_t at = ((size_t)blockIdx.z * p.act_cap + place) * a.heads + head0;
#pragma unroll 8
        for (int h = 0; h < count; h++) {
            const float2 all = a.total[at + h];
            sum += expf(a.bounds[(at + h) * b.max_pages + g] - all.x) * all.y;
        }
    }
    a.score[(((size_t)seg * a.score_lists + list) * p.act_cap + place) * b.max_pages + g] = sum;
}

template <int DIM>
static int launch(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                  const plan_view &p, int segs)
{
    const size_t shared = sizeof(score_tile<DIM>);
    const int error = cudaFuncSetAttribute(
        bound_kernel<DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error)
        return error;
    bound_kernel<DIM>
        <<<dim3(v.chunks, v.kv_heads, segs), WARPS * WARP, shared, ctx->stream>>>(v, b, p);
    total_kernel<<<dim3(blocks_of(p.act_cap * v.heads, 4), segs), 4 * WARP, 0, ctx->stream>>>(v, b,
                                                                                              p);
    list_kernel<<<dim3(blocks_of(b.max_pages, 128), v.score_lists * p.act_cap, segs), 128, 0,
                  ctx->stream>>>(v, b, p);
    return cudaGetLastError();
}

extern "C" int kern_cuda_launch_page_score(const kern_cuda_ctx *ctx, const kern_page_score_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    if (p.act_cap == 0 || b.max_pages == 0)
        return 0;
    score_view v = {ptr<float>(a->q), ptr<float>(a->kv.kmin), ptr<float>(a->kv.kmax), a->stride,
                    a->heads,         a->kv.kv_heads,         a->kv.head_dim};
    v.group = a->heads / a->kv.kv_heads;
    v.scale = a->scale;
    v.chunks = (int)blocks_of(b.max_pages, PAGES);
    v.tile_heads = v.group < LANES ? v.group : LANES;
    v.tile_rows = LANES / v.tile_heads;
    v.score = ptr<float>(a->score);
    v.score_lists = a->score_lists;
    v.list0 = a->list0;
    const size_t lanes = (size_t)p.act_cap * v.heads;
    const size_t bytes = lanes * (v.chunks + 1) * sizeof(float2) + lanes * b.max_pages * 4;
    const size_t fit = ctx->workspace_bytes / bytes;
    if (fit == 0)
        return KERN_CUDA_NO_ROOM;
    for (v.seg0 = 0; v.seg0 < b.scan_segs; v.seg0 += (int)fit) {
        const int left = b.scan_segs - v.seg0, segs = left < (int)fit ? left : (int)fit;
        v.stats = (float2 *)ctx->workspace;
        v.total = v.stats + segs * lanes * v.chunks;
        v.bounds = (float *)(v.total + segs * lanes);
        const int error = v.dim <= 64    ? launch<64>(ctx, v, b, p, segs)
                          : v.dim <= 128 ? launch<128>(ctx, v, b, p, segs)
                                         : launch<256>(ctx, v, b, p, segs);
        if (error)
            return error;
    }
    return 0;
}
