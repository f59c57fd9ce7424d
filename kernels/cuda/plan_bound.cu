// SPDX-License-Identifier: Apache-2.0
// QUEST bounds of f32 metadata, without tensor cores: to compare with the CPU.
//
// max(q min, q max) is max(q, 0) max + min(q, 0) min. A block holds the metadata of 32
// pages of one KV head in shared memory and takes the lanes a tile at a time: a warp has
// four lanes, a thread one page.
#include "kernels/cuda/plan_score.cuh"

enum { PAGES = KERN_CUDA_PLAN_RUN, WARPS = 8, PER_WARP = 4, LANES = WARPS * PER_WARP };

template <int DIM> struct bound_tile {
    float most[PAGES][DIM + 4], least[PAGES][DIM + 4];
    float q[LANES][DIM];
};

template <int DIM>
__device__ static void load_pages(bound_tile<DIM> &t, const score_view &a, const batch_view &b,
                                  int seg, int kv_head, int first, int pages)
{
    const float *kmin = (const float *)a.kmin, *kmax = (const float *)a.kmax;
    for (int i = threadIdx.x / WARP; i < PAGES; i += WARPS) {
        const bool in = first + i < pages;
        const int page = in ? b.page_table[(size_t)seg * b.max_pages + first + i] : 0;
        const size_t at = ((size_t)page * a.kv_heads + kv_head) * a.dim;
        for (int c = threadIdx.x % WARP; c < DIM; c += WARP) {
            t.most[i][c] = in && c < a.dim ? kmax[at + c] : 0.0f;
            t.least[i][c] = in && c < a.dim ? kmin[at + c] : 0.0f;
        }
    }
}

template <int DIM>
__device__ static void load_lanes(bound_tile<DIM> &t, const score_view &a, const int *rows,
                                  int kv_head, int lane0, int lanes)
{
    for (int i = threadIdx.x / WARP; i < LANES; i += WARPS) {
        const int lane = lane0 + i;
        const bool in = lane < lanes;
        const int head = kv_head * a.group + lane % a.group;
        const float *q =
            a.q + (in ? (size_t)rows[lane / a.group] * a.stride + (size_t)head * a.dim : 0);
        for (int c = threadIdx.x % WARP; c < DIM; c += WARP)
            t.q[i][c] = in && c < a.dim ? q[c] * a.scale : 0.0f;
    }
}

// Bounds of the warp's lanes for this thread's page.
template <int DIM> __device__ static void bound(const bound_tile<DIM> &t, float (&s)[PER_WARP])
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
__device__ static void keep_bounds(const bound_tile<DIM> &t, const score_view &a,
                                   const batch_view &b, int kv_head, int lane0, int lanes,
                                   int pages)
{
    const int page = blockIdx.x * PAGES + threadIdx.x % WARP;
    float s[PER_WARP];
    bound(t, s);
    for (int r = 0; r < PER_WARP; r++) {
        const int lane = lane0 + (threadIdx.x / WARP) * PER_WARP + r;
        if (lane >= lanes)
            break;
        const bool in = page < pages;
        const float top = warp_max(in ? s[r] : -CUDART_INF_F);
        const float sum = warp_sum(in ? power2(s[r] - top) : 0.0f);
        const size_t at = lane_row(a, blockIdx.z, kv_head, lane);
        if (page < bound_width(pages))
            a.bounds[at * a.width + page] = in ? s[r] : -CUDART_INF_F;
        if (threadIdx.x % WARP == 0)
            a.stats[at * a.chunks + blockIdx.x] = make_float2(top, sum);
    }
}

// Block (run of pages, KV head, segment).
template <int DIM>
__global__ void __launch_bounds__(WARPS *WARP) bound_kernel(score_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) char memory[];
    bound_tile<DIM> &t = *(bound_tile<DIM> *)memory;
    begin_kernel();
    const int seg = a.seg0 + blockIdx.z, kv_head = blockIdx.y, first = blockIdx.x * PAGES;
    int pages;
    const int lanes = active_rows(b, p, seg, &pages) * a.group;
    if (first >= pages)
        return;
    load_pages(t, a, b, seg, kv_head, first, pages);
    for (int lane = 0; lane < lanes; lane += LANES) {
        __syncthreads();
        load_lanes(t, a, p.act_rows + b.seg_row0[seg], kv_head, lane, lanes);
        __syncthreads();
        keep_bounds(t, a, b, kv_head, lane, lanes, pages);
    }
}

template <int DIM>
static int launch(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                  const plan_view &p, int segs)
{
    static_assert(sizeof(bound_tile<DIM>) <= LEAST_SHARED);
    return enqueue_with<bound_tile<DIM>>(ctx, bound_kernel<DIM>, dim3(v.chunks, v.kv_heads, segs),
                                         WARPS * WARP, v, b, p);
}

int bound_span_f32(void)
{
    return PAGES;
}

int launch_bounds_f32(const kern_cuda_ctx *ctx, const score_view &v, const batch_view &b,
                      const plan_view &p, int segs)
{
    return v.dim <= 64    ? launch<64>(ctx, v, b, p, segs)
           : v.dim <= 128 ? launch<128>(ctx, v, b, p, segs)
                          : launch<256>(ctx, v, b, p, segs);
}
