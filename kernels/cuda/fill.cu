// SPDX-License-Identifier: Apache-2.0
// Random contents of buffers, a thread making the four numbers of one counter; and a pass
// that only reads.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/philox.cuh"

// Two normals from two uniform words (Box and Muller).
__device__ static float2 normals(unsigned a, unsigned b)
{
    const float radius = sqrtf(-2.0f * logf(uniform_open(a)));
    float sine, cosine;
    sincospif(2.0f * uniform_open(b), &sine, &cosine);
    return make_float2(radius * cosine, radius * sine);
}

template <typename T>
__global__ void fill_normal_kernel(T *out, size_t count, uint2 key, float scale)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * i >= count)
        return;
    const uint4 word = philox(key, make_uint4((unsigned)i, (unsigned)(i >> 32), 0, 0));
    const float2 a = normals(word.x, word.y), b = normals(word.z, word.w);
    const float four[4] = {a.x, a.y, b.x, b.y};
    for (size_t j = 0; j < 4 && 4 * i + j < count; j++)
        out[4 * i + j] = from_f32<T>(scale * four[j]);
}

extern "C" int kern_cuda_launch_fill_normal(const kern_cuda_ctx *ctx,
                                            const kern_fill_normal_args *a)
{
    const unsigned grid = blocks_of(a->count, 4 * 256);
    const uint2 key = make_uint2((unsigned)a->seed, (unsigned)(a->seed >> 32));
    void *out = kern_buf_ptr(a->dst);
    if (kern_buf_dtype(a->dst) == KERN_F32)
        fill_normal_kernel<<<grid, 256, 0, ctx->stream>>>((float *)out, a->count, key, a->scale);
    else if (kern_buf_dtype(a->dst) == KERN_BF16)
        fill_normal_kernel<<<grid, 256, 0, ctx->stream>>>((__nv_bfloat16 *)out, a->count, key,
                                                          a->scale);
    else
        fill_normal_kernel<<<grid, 256, 0, ctx->stream>>>((__half *)out, a->count, key, a->scale);
    return cudaGetLastError();
}

// Eight loads of 16 bytes are in flight per thread: enough to cover the latency of HBM.
enum { XOR_LOADS = 8, XOR_THREADS = 512 };

__global__ void xor_kernel(const uint4 *src, size_t count, const unsigned *tail, int tail_words,
                           unsigned *out)
{
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    const size_t first = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned sum = first < tail_words ? tail[first] : 0;
    for (size_t i = first; i < count; i += XOR_LOADS * stride) {
        uint4 v[XOR_LOADS];
#pragma unroll
        for (int j = 0; j < XOR_LOADS; j++)
            v[j] = i + j * stride < count ? __ldcs(src + i + j * stride) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < XOR_LOADS; j++)
            sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    sum = __reduce_xor_sync(ALL_LANES, sum);
    if (threadIdx.x % WARP == 0 && sum)
        atomicXor(out, sum);
}

extern "C" int kern_cuda_launch_xor_words(const kern_cuda_ctx *ctx, const kern_xor_words_args *a)
{
    unsigned *out = ptr<unsigned>(a->out);
    const unsigned *src = ptr<unsigned>(a->src);
    const size_t count = a->words / 4;
    const cudaError_t error = cudaMemsetAsync(out, 0, sizeof *out, ctx->stream);
    if (error != cudaSuccess)
        return error;
    xor_kernel<<<4 * ctx->sms, XOR_THREADS, 0, ctx->stream>>>(
        (const uint4 *)src, count, src + 4 * count, (int)(a->words % 4), out);
    return cudaGetLastError();
}
