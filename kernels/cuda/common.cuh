// SPDX-License-Identifier: Apache-2.0
// What the kernels share: views of buffers, batch and plan as raw pointers, loads of
// any weight type as f32, and reductions in a fixed order.
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <math_constants.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "kernels/cuda/launch.h"
}

enum { WARP = 32 };
static const unsigned ALL_LANES = 0xffffffffu;

template <typename T> static T *ptr(kern_buf *buf)
{
    return buf ? (T *)kern_buf_ptr(buf) : nullptr;
}

template <typename T> static const T *ptr(const kern_buf *buf)
{
    return buf ? (const T *)kern_buf_ptr(buf) : nullptr;
}

static inline unsigned blocks_of(size_t count, unsigned size)
{
    return (unsigned)((count + size - 1) / size);
}

// ---- launches -------------------------------------------------------------------
//
// Where the card can, a kernel of `enqueue` is made ready while the one before it ends
// (programmatic dependent launch). begin_kernel waits for that one's results. Before it a thread
// must not return, write memory, or read what the kernel before writes; what was complete when
// that one passed its own begin_kernel may be read through the L2 (__ldcg: attention.cu and
// plan_select.cu say what that is), and what the host alone writes. Elsewhere both are plain.

__device__ inline void begin_kernel()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;\n");
#endif
}

template <typename... Params, typename... Args>
static int enqueue(const kern_cuda_ctx *ctx, void (*kernel)(Params...), dim3 grid, unsigned threads,
                   size_t shared, const Args &...args)
{
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = ctx->stream;
    config.attrs = &early;
    config.numAttrs = ctx->overlap ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, args...);
}

// Shared memory that a block may have on sm_86 and sm_89, the least of the cards.
enum { LEAST_SHARED = 99 << 10 };

// The same for a kernel whose dynamic shared memory is an S.
template <typename S, typename... Params, typename... Args>
static int enqueue_with(const kern_cuda_ctx *ctx, void (*kernel)(Params...), dim3 grid,
                        unsigned threads, const Args &...args)
{
    const int error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(S));
    return error ? error : enqueue(ctx, kernel, grid, threads, sizeof(S), args...);
}

// ---- types ----------------------------------------------------------------------

__device__ inline float to_f32(float x)
{
    return x;
}
__device__ inline float to_f32(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ inline float to_f32(__half x)
{
    return __half2float(x);
}

template <typename T> __device__ inline T from_f32(float x);
template <> __device__ inline float from_f32<float>(float x)
{
    return x;
}
template <> __device__ inline __nv_bfloat16 from_f32<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __device__ inline __half from_f32<__half>(float x)
{
    return __float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f));
}

// Elements of an activation: f32, bf16 or f16, as its buffer says.
struct any_cells {
    void *at;
    kern_dtype dtype;

    __device__ float get(size_t i) const
    {
        return dtype == KERN_F32    ? ((const float *)at)[i]
               : dtype == KERN_BF16 ? to_f32(((const __nv_bfloat16 *)at)[i])
                                    : to_f32(((const __half *)at)[i]);
    }
    __device__ void set(size_t i, float x) const
    {
        if (dtype == KERN_F32)
            ((float *)at)[i] = x;
        else if (dtype == KERN_BF16)
            ((__nv_bfloat16 *)at)[i] = from_f32<__nv_bfloat16>(x);
        else
            ((__half *)at)[i] = from_f32<__half>(x);
    }
    __device__ void set_two(size_t i, float x, float y) const // i is even
    {
        if (dtype == KERN_BF16) {
            *(__nv_bfloat162 *)((__nv_bfloat16 *)at + i) = __floats2bfloat162_rn(x, y);
        } else {
            set(i, x);
            set(i + 1, y);
        }
    }
    // Eight in a row, 16 bytes at a time; i is a multiple of 8.
    __device__ void get8(size_t i, float (&x)[8]) const
    {
        if (dtype == KERN_F32) {
            ((float4 *)x)[0] = ((const float4 *)at)[i / 4];
            ((float4 *)x)[1] = ((const float4 *)at)[i / 4 + 1];
            return;
        }
        const uint4 packed = ((const uint4 *)at)[i / 8];
        for (int k = 0; k < 8; k++)
            x[k] = dtype == KERN_BF16 ? to_f32(((const __nv_bfloat16 *)&packed)[k])
                                      : to_f32(((const __half *)&packed)[k]);
    }
    __device__ void set8(size_t i, const float (&x)[8]) const
    {
        if (dtype == KERN_F32) {
            ((float4 *)at)[i / 4] = ((const float4 *)x)[0];
            ((float4 *)at)[i / 4 + 1] = ((const float4 *)x)[1];
            return;
        }
        uint4 packed;
        for (int k = 0; k < 8; k++)
            if (dtype == KERN_BF16)
                ((__nv_bfloat16 *)&packed)[k] = from_f32<__nv_bfloat16>(x[k]);
            else
                ((__half *)&packed)[k] = from_f32<__half>(x[k]);
        ((uint4 *)at)[i / 8] = packed;
    }
};

static inline any_cells cells(const kern_buf *buf)
{
    return buf ? any_cells{kern_buf_ptr(buf), kern_buf_dtype(buf)} : any_cells{nullptr, KERN_F32};
}

// ---- reductions -----------------------------------------------------------------

__device__ inline float warp_sum(float x)
{
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

__device__ inline float warp_max(float x)
{
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

__device__ inline int warp_sum_int(int x)
{
    return __reduce_add_sync(ALL_LANES, x);
}

// Sum over the block, to every thread; `shared` has room for a value per warp. All
// threads take part; blocks are whole warps.
__device__ inline float block_sum(float x, float *shared)
{
    const int warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0)
        shared[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(lane < warps ? shared[lane] : 0.0f);
}

// Sum of what the threads before this one hold; *total gets the sum of all.
__device__ inline int block_scan(int x, int *shared, int *total)
{
    const int warps = blockDim.x / WARP, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int sum = x;
    for (int offset = 1; offset < WARP; offset *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, sum, offset);
        sum += lane >= offset ? other : 0;
    }
    __syncthreads();
    if (lane == WARP - 1)
        shared[warp] = sum;
    __syncthreads();
    const int mine = lane < warps ? shared[lane] : 0;
    const int before = warp_sum_int(lane < warp ? mine : 0);
    *total = warp_sum_int(mine);
    return before + sum - x;
}

// ---- batch and plan ----------------------------------------------------------------

struct batch_view {
    int rows, segs, sparse_segs, scan_segs, mass_segs;
    int block, page, max_pages;
    const int *pos, *row_state, *row_seg, *seg_row0, *seg_kind, *seg_slot, *seg_mass;
    const int *page_table, *kv_slot, *cache_slot;

    __device__ int prefix(int row) const // tokens before the block of a row
    {
        return pos[row] / block * block;
    }
    __device__ int pages_of(int tokens) const
    {
        return (tokens + page - 1) / page;
    }
    __device__ int page_tokens(int g, int tokens) const // of page g, that lie in the prefix
    {
        return min(max(tokens - g * page, 0), page);
    }
};

static inline batch_view view(const kern_batch *b)
{
    batch_view v = {b->rows,      b->segs,  b->sparse_segs, b->scan_segs,
                    b->mass_segs, b->block, b->page,        b->max_pages};
    v.pos = ptr<int>(b->pos);
    v.row_state = ptr<int>(b->row_state);
    v.row_seg = ptr<int>(b->row_seg);
    v.seg_row0 = ptr<int>(b->seg_row0);
    v.seg_kind = ptr<int>(b->seg_kind);
    v.seg_slot = ptr<int>(b->seg_slot);
    v.seg_mass = ptr<int>(b->seg_mass);
    v.page_table = ptr<int>(b->page_table);
    v.kv_slot = ptr<int>(b->kv_slot);
    v.cache_slot = ptr<int>(b->cache_slot);
    return v;
}

struct plan_view {
    int lists, act_cap, max_pages;
    int *act_rows, *act_count, *pages, *page_count;

    // The pages of one list of a segment; count -1: every page of the prefix.
    __device__ const int *list(int seg, int l, int *count) const
    {
        *count = page_count[seg * lists + l];
        return pages + (size_t)(seg * lists + l) * max_pages;
    }
};

static inline plan_view view(const kern_plan *p, const kern_batch *b)
{
    return plan_view{p->lists,
                     p->act_cap,
                     b->max_pages,
                     ptr<int>(p->act_rows),
                     ptr<int>(p->act_count),
                     ptr<int>(p->pages),
                     ptr<int>(p->page_count)};
}

// Tokens that a row with this prefix reads through a list (only the last page of the
// prefix can be partial, and lists ascend).
__device__ inline int list_tokens(const batch_view &b, const int *list, int count, int prefix)
{
    if (count <= 0)
        return count < 0 ? prefix : 0;
    if ((prefix & (b.page - 1)) == 0) // all pages are whole
        return count * b.page;
    return (count - 1) * b.page + b.page_tokens(list[count - 1], prefix);
}

// Pages that one row takes of a prefix of `pages`: `top`, but the first and last.
__device__ inline int plan_budget(int top, int pages)
{
    const int least = min(pages, 2);
    return top < least ? least : min(top, pages);
}

// Pages that a share of a prefix of `pages` pages takes; 0 without one.
__device__ inline int plan_share(float share, int pages)
{
    return share > 0.0f ? (int)(share * (float)pages) + 1 : 0;
}

#endif
