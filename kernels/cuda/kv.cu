// SPDX-License-Identifier: Apache-2.0
// Writing K and V to pages, with the pages' key bounds.
//
// A block is a row and a KV head. The first row of the batch that writes to a page
// folds the keys of all rows that do into the page's bounds: the row at offset 0 starts
// them anew. Keys count as stored, rounded, so that bounds are bounds. Bounds of 8 bits
// are made from all keys of the page, so that they do not widen with every commit.
#include "kernels/cuda/bounds.cuh"

enum { THREADS = 128 };

struct write_view {
    const float *qkv;
    void *k, *v, *kmin, *kmax;
    unsigned char *kstep; // NULL: bounds are f32
    const int *slot;
    int rows, page, heads, kv_heads, dim;
};

// The rows of the batch that write to a page, in their order, as far as they count.
struct page_rows {
    int row[KERN_PAGE_MAX];
    int scan[WARP];
    int count, first; // [first, count) count: from the last one at offset 0 on
};

template <typename T> __device__ float stored(float x)
{
    return to_f32(from_f32<T>(x));
}

// True when no row before `row` writes to its page. All threads get the answer.
__device__ static bool leads_page(const int *slot, int row, int page)
{
    int found = 0;
    const int mine = slot[row] / page;
    for (int r = threadIdx.x; r < row; r += THREADS)
        found |= slot[r] >= 0 && slot[r] / page == mine;
    return !__syncthreads_or(found);
}

// A page takes no more rows than it has places.
__device__ static void find_rows(const write_view &a, int row, page_rows &s)
{
    const int mine = a.slot[row] / a.page;
    if (threadIdx.x == 0)
        s.first = 0;
    int count = 0;
    for (int base = row; base < a.rows && count < a.page; base += THREADS) {
        const int r = base + (int)threadIdx.x, slot = r < a.rows ? a.slot[r] : -1;
        const bool in = slot >= 0 && slot / a.page == mine;
        int found;
        const int at = count + block_scan(in, s.scan, &found);
        if (in && at < a.page) {
            s.row[at] = r;
            if (slot % a.page == 0)
                atomicMax(&s.first, at);
        }
        count += found;
    }
    if (threadIdx.x == 0)
        s.count = min(count, a.page);
    __syncthreads();
}

__device__ static void fold(float x, float &low, float &high)
{
    low = x < low ? x : low;
    high = x > high ? x : high;
}

// What the page held before its first row of this batch; infinite if nothing.
template <typename T>
__device__ static void start_bounds(const write_view &a, int offset, size_t meta, int c, float &low,
                                    float &high)
{
    low = CUDART_INF_F;
    high = -CUDART_INF_F;
    if (!a.kstep && offset > 0) {
        low = ((const float *)a.kmin)[meta + c];
        high = ((const float *)a.kmax)[meta + c];
    }
    const T *key = (const T *)a.k + meta * a.page + c;
    for (int i = 0; a.kstep && i < offset; i++)
        fold(to_f32(key[(size_t)i * a.dim]), low, high);
}

// Threads are 16 consecutive channels of a group, a group or more.
__device__ static void write_narrow(const write_view &a, size_t meta, int c, float low, float high)
{
    float most = fmaxf(fabsf(low), fabsf(high));
    for (int offset = BOUND_GROUP / 2; offset > 0; offset /= 2)
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
    const int step = bound_step(most);
    const float inverse = ldexpf(1.0f, KERN_BOUND_BIAS - step);
    ((unsigned char *)a.kmin)[meta + c] = bound_byte(floorf(low * inverse));
    ((unsigned char *)a.kmax)[meta + c] = bound_byte(ceilf(high * inverse));
    if (c % BOUND_GROUP == 0)
        a.kstep[(meta + c) / BOUND_GROUP] = (unsigned char)step;
}

template <typename T>
__device__ static void write_bounds(const write_view &a, const page_rows &s, size_t meta,
                                    const float *key, size_t width)
{
    const int offset = a.slot[s.row[s.first]] % a.page;
    for (int c = threadIdx.x; c < a.dim; c += THREADS) {
        float low, high;
        start_bounds<T>(a, offset, meta, c, low, high);
#pragma unroll 8
        for (int i = s.first; i < s.count; i++)
            fold(stored<T>(key[s.row[i] * width + c]), low, high);
        if (a.kstep) {
            write_narrow(a, meta, c, low, high);
        } else {
            ((float *)a.kmin)[meta + c] = low;
            ((float *)a.kmax)[meta + c] = high;
        }
    }
}

template <typename T> __global__ void __launch_bounds__(THREADS) kv_write_kernel(write_view a)
{
    __shared__ page_rows s;
    begin_kernel();
    const int row = blockIdx.x, head = blockIdx.y, slot = a.slot[row];
    if (slot < 0)
        return;
    const size_t width = (size_t)(a.heads + 2 * a.kv_heads) * a.dim;
    const float *key = a.qkv + (size_t)(a.heads + head) * a.dim;
    const float *value = key + (size_t)a.kv_heads * a.dim;
    const size_t meta = ((size_t)(slot / a.page) * a.kv_heads + head) * a.dim;
    const size_t at = meta * a.page + (size_t)(slot % a.page) * a.dim;
    for (int c = threadIdx.x; c < a.dim; c += THREADS) {
        ((T *)a.k)[at + c] = from_f32<T>(key[row * width + c]);
        ((T *)a.v)[at + c] = from_f32<T>(value[row * width + c]);
    }
    if (!leads_page(a.slot, row, a.page))
        return;
    find_rows(a, row, s);
    write_bounds<T>(a, s, meta, key, width);
}

extern "C" int kern_cuda_launch_kv_write(const kern_cuda_ctx *ctx, const kern_kv_write_args *a)
{
    const kern_kv *kv = &a->kv;
    const write_view v = {ptr<float>(a->qkv),
                          ptr<void>(kv->k),
                          ptr<void>(kv->v),
                          ptr<void>(kv->kmin),
                          ptr<void>(kv->kmax),
                          ptr<unsigned char>(kv->kstep),
                          ptr<int>(a->batch->kv_slot),
                          a->batch->rows,
                          a->batch->page,
                          a->heads,
                          kv->kv_heads,
                          kv->head_dim};
    const auto kernel = kern_buf_dtype(kv->k) == KERN_BF16 ? kv_write_kernel<__nv_bfloat16>
                                                           : kv_write_kernel<float>;
    return enqueue(ctx, kernel, dim3(a->batch->rows, kv->kv_heads), THREADS, 0, v);
}
