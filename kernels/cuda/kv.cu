// SPDX-License-Identifier: Apache-2.0
// Writing K and V to pages, with the pages' key bounds.
//
// A block is a row and a KV head. The first row of the batch that writes to a page
// folds the keys of all rows that do into the page's bounds, in row order: the row at
// offset 0 starts them anew. Keys count as stored, rounded, so that bounds are bounds.
#include "kernels/cuda/common.cuh"

template <typename T> __device__ float stored(float x)
{
    return to_f32(from_f32<T>(x));
}

// True when no row before `row` writes to its page. All threads get the answer.
__device__ static bool leads_page(const int *slot, int row, int page)
{
    int found = 0;
    const int mine = slot[row] / page;
    for (int r = threadIdx.x; r < row; r += blockDim.x)
        found |= slot[r] >= 0 && slot[r] / page == mine;
    return !__syncthreads_or(found);
}

template <typename T>
__global__ void kv_write_kernel(const float *qkv, T *k, T *v, float *kmin, float *kmax,
                                const int *slot, int rows, int page, int heads, int kv_heads,
                                int dim)
{
    const int row = blockIdx.x, head = blockIdx.y;
    if (slot[row] < 0)
        return;
    const size_t width = (size_t)(heads + 2 * kv_heads) * dim;
    const float *key = qkv + (size_t)(heads + head) * dim, *value = key + (size_t)kv_heads * dim;
    const int mine = slot[row] / page;
    const size_t meta = ((size_t)mine * kv_heads + head) * dim;
    const size_t at = (((size_t)mine * kv_heads + head) * page + slot[row] % page) * dim;
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
        k[at + c] = from_f32<T>(key[row * width + c]);
        v[at + c] = from_f32<T>(value[row * width + c]);
    }
    if (!leads_page(slot, row, page))
        return;
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
        float low = kmin[meta + c], high = kmax[meta + c];
        int left = page; // a page takes no more rows than it has places
        for (int r = row; r < rows && left > 0; r++) {
            if (slot[r] < 0 || slot[r] / page != mine)
                continue;
            const float x = stored<T>(key[r * width + c]);
            const bool start = slot[r] % page == 0;
            low = start || x < low ? x : low;
            high = start || x > high ? x : high;
            left--;
        }
        kmin[meta + c] = low;
        kmax[meta + c] = high;
    }
}

template <typename T> static int launch(const kern_cuda_ctx *ctx, const kern_kv_write_args *a)
{
    const kern_kv *kv = &a->kv;
    const dim3 grid(a->batch->rows, kv->kv_heads);
    kv_write_kernel<<<grid, 128, 0, ctx->stream>>>(
        ptr<float>(a->qkv), ptr<T>(kv->k), ptr<T>(kv->v), ptr<float>(kv->kmin),
        ptr<float>(kv->kmax), ptr<int>(a->batch->kv_slot), a->batch->rows, a->batch->page, a->heads,
        kv->kv_heads, kv->head_dim);
    return cudaGetLastError();
}

extern "C" int kern_cuda_launch_kv_write(const kern_cuda_ctx *ctx, const kern_kv_write_args *a)
{
    return kern_buf_dtype(a->kv.k) == KERN_BF16 ? launch<__nv_bfloat16>(ctx, a)
                                                : launch<float>(ctx, a);
}
