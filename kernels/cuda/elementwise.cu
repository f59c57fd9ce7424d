// SPDX-License-Identifier: Apache-2.0
// Embedding, RMSNorm, head norms with rotary embedding, SwiGLU, row gathering, and
// the conversions around a GEMM. Memory-bound: a row or a head is one block or warp.
#include "kernels/cuda/common.cuh"

template <typename T>
__global__ void embed_kernel(const T *table, const int *ids, float *out, int cols, int first_id,
                             int shard_rows)
{
    begin_kernel();
    const size_t row = blockIdx.x;
    const long long index = (long long)ids[row] - first_id;
    const bool here = index >= 0 && index < shard_rows;
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        out[row * cols + c] = here ? to_f32(table[index * cols + c]) : 0.0f;
}

template <typename T> static int launch_embed(const kern_cuda_ctx *ctx, const kern_embed_args *a)
{
    return enqueue(ctx, embed_kernel<T>, a->rows, 256, 0, ptr<T>(a->table), ptr<int>(a->ids),
                   ptr<float>(a->out), a->cols, a->first_id, a->shard_rows);
}

extern "C" int kern_cuda_launch_embed(const kern_cuda_ctx *ctx, const kern_embed_args *a)
{
    const kern_dtype dtype = kern_buf_dtype(a->table);
    return dtype == KERN_BF16  ? launch_embed<__nv_bfloat16>(ctx, a)
           : dtype == KERN_F16 ? launch_embed<__half>(ctx, a)
                               : launch_embed<float>(ctx, a);
}

// The first KEPT elements of a thread stay in registers until the sum is known; longer rows
// are read again.
enum { KEPT = 8 };

__global__ void rmsnorm_kernel(float *x, const float *add, const float *weight, any_cells out,
                               int cols, float eps)
{
    __shared__ float shared[WARP];
    const size_t at = (size_t)blockIdx.x * cols;
    const int first = threadIdx.x, step = blockDim.x, rest = first + KEPT * step;
    float v[KEPT], w[KEPT], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        w[i] = out.at && first + i * step < cols ? weight[first + i * step] : 0.0f;
    begin_kernel();
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const int c = first + i * step;
        v[i] = c < cols ? x[at + c] + (add ? add[at + c] : 0.0f) : 0.0f;
        sum += v[i] * v[i];
    }
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if (add && first + i * step < cols)
            x[at + first + i * step] = v[i];
    for (int c = rest; c < cols; c += step) {
        const float y = x[at + c] + (add ? add[at + c] : 0.0f);
        if (add)
            x[at + c] = y;
        sum += y * y;
    }
    if (!out.at)
        return;
    const float scale = 1.0f / sqrtf(block_sum(sum, shared) / (float)cols + eps);
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const int c = first + i * step;
        if (c < cols)
            out.set(at + c, v[i] * scale * w[i]);
    }
    for (int c = rest; c < cols; c += step)
        out.set(at + c, x[at + c] * scale * weight[c]);
}

extern "C" int kern_cuda_launch_rmsnorm(const kern_cuda_ctx *ctx, const kern_rmsnorm_args *a)
{
    const unsigned threads = a->cols > 4096 ? 1024 : a->cols > 1024 ? 512 : 128;
    return enqueue(ctx, rmsnorm_kernel, a->rows, threads, 0, ptr<float>(a->x), ptr<float>(a->add),
                   ptr<float>(a->weight), cells(a->out), a->cols, a->eps);
}

// A warp takes one head of one row.
__global__ void qk_rope_kernel(float *qkv, const float *q_norm, const float *k_norm, const int *pos,
                               const float *cosine, const float *sine, int rows, int heads,
                               int kv_heads, int dim, float eps)
{
    begin_kernel();
    const int warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    const int head = blockIdx.y * warps + threadIdx.x / WARP, half = dim / 2;
    const size_t row = blockIdx.x;
    if (head >= heads + kv_heads)
        return;
    float *x = qkv + (row * (heads + 2 * kv_heads) + head) * (size_t)dim;
    const float *weight = head < heads ? q_norm : k_norm;
    float scale = 1.0f;
    if (weight) {
        float sum = 0.0f;
        for (int c = lane; c < dim; c += WARP)
            sum += x[c] * x[c];
        scale = 1.0f / sqrtf(warp_sum(sum) / (float)dim + eps);
    }
    const size_t angle = (size_t)pos[row] * half;
    for (int c = lane; c < half; c += WARP) {
        float a = x[c], b = x[c + half];
        if (weight) {
            a *= scale * weight[c];
            b *= scale * weight[c + half];
        }
        const float cs = cosine[angle + c], sn = sine[angle + c];
        x[c] = a * cs - b * sn;
        x[c + half] = b * cs + a * sn;
    }
}

extern "C" int kern_cuda_launch_qk_rope(const kern_cuda_ctx *ctx, const kern_qk_rope_args *a)
{
    const unsigned warps = 4;
    const dim3 grid(a->rows, blocks_of(a->heads + a->kv_heads, warps));
    return enqueue(ctx, qk_rope_kernel, grid, warps * WARP, 0, ptr<float>(a->qkv),
                   ptr<float>(a->q_norm), ptr<float>(a->k_norm), ptr<int>(a->pos),
                   ptr<float>(a->cos), ptr<float>(a->sin), a->rows, a->heads, a->kv_heads,
                   a->head_dim, a->eps);
}

enum { STRIP = 8 }; // neighbouring columns of a thread

__device__ inline float swiglu(float gate, float up)
{
    return gate / (1.0f + expf(-gate)) * up;
}

__global__ void swiglu_kernel(any_cells gate_up, any_cells out, int cols)
{
    begin_kernel();
    const int first = (blockIdx.y * blockDim.x + threadIdx.x) * STRIP;
    const size_t row = blockIdx.x, gates = row * 2 * cols, ups = gates + cols;
    if (cols % STRIP) {
        for (int c = first; c < first + STRIP && c < cols; c++)
            out.set(row * cols + c, swiglu(gate_up.get(gates + c), gate_up.get(ups + c)));
    } else if (first < cols) {
        alignas(16) float gate[STRIP], up[STRIP];
        gate_up.get8(gates + first, gate);
        gate_up.get8(ups + first, up);
#pragma unroll
        for (int i = 0; i < STRIP; i++)
            up[i] = swiglu(gate[i], up[i]);
        out.set8(row * cols + first, up);
    }
}

extern "C" int kern_cuda_launch_swiglu(const kern_cuda_ctx *ctx, const kern_swiglu_args *a)
{
    const unsigned threads = 128;
    const dim3 grid(a->rows, blocks_of(a->cols, threads * STRIP));
    return enqueue(ctx, swiglu_kernel, grid, threads, 0, cells(a->gate_up), cells(a->out), a->cols);
}

__global__ void gather_kernel(any_cells x, const int *index, any_cells out, int cols)
{
    begin_kernel();
    const size_t row = blockIdx.x, from = index[row];
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        out.set(row * cols + c, x.get(from * cols + c));
}

extern "C" int kern_cuda_launch_gather_rows(const kern_cuda_ctx *ctx,
                                            const kern_gather_rows_args *a)
{
    return enqueue(ctx, gather_kernel, a->rows, 256, 0, cells(a->x), ptr<int>(a->index),
                   cells(a->out), a->cols);
}

template <typename T> __global__ void narrow_kernel(const float *x, size_t count, T *out)
{
    begin_kernel();
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i + 4 <= count && (uintptr_t)x % 16 == 0) {
        const float4 v = *(const float4 *)(x + i);
        alignas(8)
            T four[4] = {from_f32<T>(v.x), from_f32<T>(v.y), from_f32<T>(v.z), from_f32<T>(v.w)};
        *(uint2 *)(out + i) = *(const uint2 *)four;
        return;
    }
    for (size_t j = i; j < i + 4 && j < count; j++)
        out[j] = from_f32<T>(x[j]);
}

extern "C" int kern_cuda_launch_narrow(const kern_cuda_ctx *ctx, const float *x, size_t count,
                                       kern_dtype dtype, void *out)
{
    const unsigned grid = blocks_of(count, 4 * 256);
    return dtype == KERN_BF16
               ? enqueue(ctx, narrow_kernel<__nv_bfloat16>, grid, 256, 0, x, count,
                         (__nv_bfloat16 *)out)
               : enqueue(ctx, narrow_kernel<__half>, grid, 256, 0, x, count, (__half *)out);
}

__global__ void bias_kernel(const float *bias, int cols, float *y)
{
    begin_kernel();
    const int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c < cols)
        y[(size_t)blockIdx.x * cols + c] = bias[c];
}

extern "C" int kern_cuda_launch_bias(const kern_cuda_ctx *ctx, const float *bias, int rows,
                                     int cols, float *y)
{
    const dim3 grid(rows, blocks_of(cols, 256));
    return enqueue(ctx, bias_kernel, grid, 256, 0, bias, cols, y);
}
