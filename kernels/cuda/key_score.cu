// SPDX-License-Identifier: Apache-2.0
// Importance of keys: products with the block's mean query, and their peaks by page.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP, RUN = 16 }; // RUN: pages of a block

struct key_view {
    const float *q;
    float *score;
    int stride, heads, kv_heads, dim;
    int score_lists, list0;
};

// Mean over the denoised rows of a segment, summed over the heads of each KV head
// [first, first + count), into shared memory [count, dim].
__device__ static void mean_query(const key_view &a, const batch_view &b, int seg, int first,
                                  int count, float *mean)
{
    const int group = a.heads / a.kv_heads;
    for (int i = threadIdx.x; i < count * a.dim; i += blockDim.x) {
        const int column = (first + i / a.dim) * group * a.dim + i % a.dim;
        float sum = 0.0f;
        int rows = 0;
        for (int row = b.seg_row0[seg]; row < b.seg_row0[seg + 1]; row++) {
            if (b.kv_slot[row] >= 0)
                continue;
            rows++;
            for (int h = 0; h < group; h++)
                sum += a.q[(size_t)row * a.stride + column + h * a.dim];
        }
        mean[i] = rows > 0 ? sum / (float)rows : 0.0f;
    }
    __syncthreads();
}

// Block (run of pages, list, segment); a warp takes a token at a time.
template <typename T>
__global__ void __launch_bounds__(THREADS) key_score_kernel(key_view a, batch_view b, const T *keys)
{
    extern __shared__ float mean[];
    const int seg = blockIdx.z, list = blockIdx.y, number = b.seg_mass[seg];
    if (number < 0)
        return;
    const bool shared = a.score_lists == 1;
    const int local = list - a.list0, first = shared ? 0 : local, count = shared ? a.kv_heads : 1;
    const bool mine = local >= 0 && local < (shared ? 1 : a.kv_heads);
    if (mine)
        mean_query(a, b, seg, first, count, mean);
    const int prefix = mine ? b.prefix(b.seg_row0[seg + 1] - 1) : 0;
    const int begin = blockIdx.x * RUN * b.page;
    const int end = min(begin + RUN * b.page, b.max_pages * b.page);
    float *out = a.score + ((size_t)number * a.score_lists + list) * (size_t)b.max_pages * b.page;
    for (int t = begin + (int)threadIdx.x / WARP; t < end; t += WARPS) {
        float sum = 0.0f;
        for (int h = 0; h < count && t < prefix; h++) {
            const size_t page = b.page_table[(size_t)seg * b.max_pages + t / b.page];
            const size_t at = ((page * a.kv_heads + first + h) * b.page + t % b.page) * a.dim;
            for (int c = threadIdx.x % WARP; c < a.dim; c += WARP)
                sum += mean[h * a.dim + c] * to_f32(keys[at + c]);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0)
            out[t] = sum;
    }
}

template <typename T> static int launch(const kern_cuda_ctx *ctx, const kern_key_score_args *a)
{
    const batch_view b = view(a->batch);
    const key_view v = {ptr<float>(a->q), ptr<float>(a->score), a->stride,      a->heads,
                        a->kv.kv_heads,   a->kv.head_dim,       a->score_lists, a->list0};
    const dim3 grid(blocks_of(b.max_pages, RUN), a->score_lists, b.segs);
    const size_t shared = (size_t)a->kv.kv_heads * a->kv.head_dim * sizeof(float);
    if (shared > 40960)
        return KERN_CUDA_TOO_LARGE;
    key_score_kernel<T><<<grid, THREADS, shared, ctx->stream>>>(v, b, ptr<T>(a->kv.k));
    return cudaGetLastError();
}

extern "C" int kern_cuda_launch_key_score(const kern_cuda_ctx *ctx, const kern_key_score_args *a)
{
    return kern_buf_dtype(a->kv.k) == KERN_BF16 ? launch<__nv_bfloat16>(ctx, a)
                                                : launch<float>(ctx, a);
}

// Block (run of pages, list, segment); a thread is a page.
__global__ void key_peaks_kernel(const float *scores, float *mass, batch_view b)
{
    const int seg = blockIdx.z, list = blockIdx.y, number = b.seg_mass[seg];
    const int g = blockIdx.x * blockDim.x + threadIdx.x, lists = gridDim.y;
    if (number < 0 || g >= b.max_pages)
        return;
    const size_t at = ((size_t)number * lists + list) * b.max_pages;
    const float *score = scores + at * b.page;
    const int prefix = b.prefix(b.seg_row0[seg + 1] - 1);
    const bool in = g * b.page < prefix;
    float most = in ? -CUDART_INF_F : 0.0f;
    for (int t = max(g * b.page - 1, 0); in && t < min((g + 1) * b.page + 1, prefix); t++)
        most = fmaxf(most, score[t]);
    mass[at + g] = most;
}

extern "C" int kern_cuda_launch_key_peaks(const kern_cuda_ctx *ctx, const kern_key_peaks_args *a)
{
    const batch_view b = view(a->batch);
    const dim3 grid(blocks_of(b.max_pages, THREADS), a->lists, b.segs);
    key_peaks_kernel<<<grid, THREADS, 0, ctx->stream>>>(ptr<float>(a->score), ptr<float>(a->mass),
                                                        b);
    return cudaGetLastError();
}
