// SPDX-License-Identifier: Apache-2.0
// Embedding, RMSNorm, head norms with rotary embedding, SwiGLU, row gathering, and
// the conversions around a GEMM. Memory-bound: a row or a head is one block or warp.
#include "kernels/cuda/common.cuh"

template <typename T>
__global__ void embed_kernel(const T *table, const int *ids, float *out, int cols, int first_id,
                             int shard_rows)
{
    const size_t row = blockIdx.x;
    const long long index = (long long)ids[row] - first_id;
    const bool here = index >= 0 && index < shard_rows;
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        out[row * cols + c] = here ? to_f32(table[index * cols + c]) : 0.0f;
}

extern "C" int kern_cuda_launch_embed(const kern_cuda_ctx *ctx, const kern_embed_args *a)
{
    const int *ids = ptr<int>(a->ids);
    float *out = ptr<float>(a->out);
    const dim3 grid(a->rows), block(256);
    switch (kern_buf_dtype(a->table)) {
    case KERN_BF16:
        embed_kernel<<<grid, block, 0, ctx->stream>>>(ptr<__nv_bfloat16>(a->table), ids, out,
                                                      a->cols, a->first_id, a->shard_rows);
        break;
    case KERN_F16:
        embed_kernel<<<grid, block, 0, ctx->stream>>>(ptr<__half>(a->table), ids, out, a->cols,
                                                      a->first_id, a->shard_rows);
        break;
    default:
        embed_kernel<<<grid, block, 0, ctx->stream>>>(ptr<float>(a->table), ids, out, a->cols,
                                                      a->first_id, a->shard_rows);
    }
    return cudaGetLastError();
}

__global__ void rmsnorm_kernel(float *x, const float *add, const float *weight, float *out,
                               int cols, float eps)
{
    __shared__ float shared[WARP];
    const size_t at = (size_t)blockIdx.x * cols;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        float v = x[at + c];
        if (add) {
            v += add[at + c];
            x[at + c] = v;
        }
        sum += v * v;
    }
    if (!out)
        return;
    const float scale = 1.0f / sqrtf(block_sum(sum, shared) / (float)cols + eps);
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        out[at + c] = x[at + c] * scale * weight[c];
}

extern "C" int kern_cuda_launch_rmsnorm(const kern_cuda_ctx *ctx, const kern_rmsnorm_args *a)
{
    const unsigned threads = a->cols >= 1024 ? 512 : 128;
    rmsnorm_kernel<<<a->rows, threads, 0, ctx->stream>>>(ptr<float>(a->x), ptr<float>(a->add),
                                                         ptr<float>(a->weight), ptr<float>(a->out),
                                                         a->cols, a->eps);
    return cudaGetLastError();
}

// A warp takes one head of one row.
__global__ void qk_rope_kernel(float *qkv, const float *q_norm, const float *k_norm, const int *pos,
                               const float *cosine, const float *sine, int rows, int heads,
                               int kv_heads, int dim, float eps)
{
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
    qk_rope_kernel<<<grid, warps * WARP, 0, ctx->stream>>>(
        ptr<float>(a->qkv), ptr<float>(a->q_norm), ptr<float>(a->k_norm), ptr<int>(a->pos),
        ptr<float>(a->cos), ptr<float>(a->sin), a->rows, a->heads, a->kv_heads, a->head_dim,
        a->eps);
    return cudaGetLastError();
}

__global__ void swiglu_kernel(const float *gate_up, float *out, int cols)
{
    const int c = blockIdx.y * blockDim.x + threadIdx.x;
    const size_t row = blockIdx.x;
    if (c >= cols)
        return;
    const float gate = gate_up[row * 2 * cols + c], up = gate_up[(row * 2 + 1) * cols + c];
    out[row * cols + c] = gate / (1.0f + expf(-gate)) * up;
}

extern "C" int kern_cuda_launch_swiglu(const kern_cuda_ctx *ctx, const kern_swiglu_args *a)
{
    const dim3 grid(a->rows, blocks_of(a->cols, 256));
    swiglu_kernel<<<grid, 256, 0, ctx->stream>>>(ptr<float>(a->gate_up), ptr<float>(a->out),
                                                 a->cols);
    return cudaGetLastError();
}

__global__ void gather_kernel(const float *x, const int *index, float *out, int cols)
{
    const size_t row = blockIdx.x, from = index[row];
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        out[row * cols + c] = x[from * cols + c];
}

extern "C" int kern_cuda_launch_gather_rows(const kern_cuda_ctx *ctx,
                                            const kern_gather_rows_args *a)
{
    gather_kernel<<<a->rows, 256, 0, ctx->stream>>>(ptr<float>(a->x), ptr<int>(a->index),
                                                    ptr<float>(a->out), a->cols);
    return cudaGetLastError();
}

template <typename T> __global__ void narrow_kernel(const float *x, size_t count, T *out)
{
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
    if (dtype == KERN_BF16)
        narrow_kernel<<<grid, 256, 0, ctx->stream>>>(x, count, (__nv_bfloat16 *)out);
    else
        narrow_kernel<<<grid, 256, 0, ctx->stream>>>(x, count, (__half *)out);
    return cudaGetLastError();
}

__global__ void bias_kernel(const float *bias, int cols, float *y)
{
    const int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c < cols)
        y[(size_t)blockIdx.x * cols + c] = bias[c];
}

extern "C" int kern_cuda_launch_bias(const kern_cuda_ctx *ctx, const float *bias, int rows,
                                     int cols, float *y)
{
    const dim3 grid(rows, blocks_of(cols, 256));
    bias_kernel<<<grid, 256, 0, ctx->stream>>>(bias, cols, y);
    return cudaGetLastError();
}
