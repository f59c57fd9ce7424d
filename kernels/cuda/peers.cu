// SPDX-License-Identifier: Apache-2.0
// Sums over ranks through memory that their GPUs share.
//
// Every block writes its part of the values into the memory of the other ranks, raises a
// flag there, waits for theirs, and adds what arrived in rank order: one way over the link,
// no other launch, and the same bits on every rank.
//
// A block's flag is the number of its calls. Two areas take turns: a rank raises the flag of
// a call when it has read what came in the call before it, so the area of the one before
// that is free. A block that waits in vain, for the deadline or until the host says so, sets
// `failed` and goes on with what is there.
#include "kernels/cuda/common.cuh"

__device__ static float4 *area(const kern_cuda_peers &p, int owner, unsigned call, int from)
{
    const size_t at = ((size_t)blockIdx.x * 2 + call % 2) * p.ranks + from;
    return (float4 *)(p.data[owner] + at * KERN_PEER_FLOATS);
}

__device__ static unsigned long long now_ns()
{
    unsigned long long t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

__device__ static bool arrived(const unsigned *flag, unsigned call)
{
    unsigned seen;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
    return (int)(seen - call) >= 0;
}

// By one thread for each other rank.
__device__ static void wait_for(const kern_cuda_peers &p, int rank, unsigned call)
{
    enum { SPINS = 4096 }; // between looks at the clock and at the host's word
    const unsigned *flag = p.flags[p.rank] + blockIdx.x * p.ranks + rank;
    const unsigned long long start = now_ns();
    for (int i = 1; !arrived(flag, call); i++) {
        if (i % SPINS != 0)
            continue;
        if (now_ns() - start > p.deadline_ns || *(volatile int *)p.aborted) {
            *(volatile int *)p.failed = 1;
            return;
        }
    }
}

// `mine(i)` are four values of this rank; afterwards sum(i) adds those of all.
struct peer_exchange {
    const kern_cuda_peers &p;
    unsigned call;

    template <typename Mine> __device__ void send(int count, const Mine &mine) const
    {
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            const float4 v = mine(i);
            for (int r = 0; r < p.ranks; r++)
                if (r != p.rank)
                    area(p, r, call, p.rank)[i] = v;
        }
    }
    // All that was sent is there, and what the others sent is here.
    __device__ void meet() const
    {
        __syncthreads();
        const int rank = threadIdx.x;
        if (rank < p.ranks && rank != p.rank) {
            unsigned *flag = p.flags[rank] + blockIdx.x * p.ranks + p.rank;
            __threadfence_system();
            asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(call) : "memory");
            wait_for(p, rank, call);
        }
        __syncthreads();
        if (threadIdx.x == 0)
            p.calls[blockIdx.x] = call;
    }
    __device__ float4 sum(int i, float4 mine) const
    {
        float4 all = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int r = 0; r < p.ranks; r++) {
            const float4 v = r == p.rank ? mine : __ldcg(area(p, p.rank, call, r) + i);
            all.x += v.x;
            all.y += v.y;
            all.z += v.z;
            all.w += v.w;
        }
        return all;
    }
};

// Block b: values [b * part, (b + 1) * part), in place.
__global__ void peer_sum_kernel(kern_cuda_peers p, float4 *values, int count, int part)
{
    begin_kernel();
    const peer_exchange x = {p, p.calls[blockIdx.x] + 1};
    float4 *here = values + (size_t)blockIdx.x * part;
    const int n = min(count - (int)blockIdx.x * part, part);
    x.send(n, [&](int i) { return here[i]; });
    x.meet();
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        here[i] = x.sum(i, here[i]);
}

extern "C" int kern_cuda_launch_peer_sum(const kern_cuda_ctx *ctx, const kern_cuda_peers *p,
                                         float *values, size_t count)
{
    const int fours = (int)(count / 4), least = 256;
    const int share = (int)blocks_of((size_t)fours, KERN_PEER_BLOCKS);
    const int part = share > least ? share : least;
    return enqueue(ctx, peer_sum_kernel, blocks_of((size_t)fours, (unsigned)part), 256, 0, *p,
                   (float4 *)values, fours, part);
}

// kern_rmsnorm of a row whose `add` is the sum of all ranks' `add`. Four values of a thread
// stay in registers for each quarter of the longest row.
enum { NORM_THREADS = 512, NORM_KEPT = KERN_PEER_FLOATS / 4 / NORM_THREADS };

__global__ void __launch_bounds__(NORM_THREADS)
    peer_rmsnorm_kernel(kern_cuda_peers p, float4 *stream, const float4 *add, const float *weight,
                        any_cells out, int fours, float eps)
{
    __shared__ float shared[WARP];
    begin_kernel();
    const peer_exchange x = {p, p.calls[blockIdx.x] + 1};
    const size_t at = (size_t)blockIdx.x * fours;
    x.send(fours, [&](int i) { return add[at + i]; });
    x.meet();
    float4 v[NORM_KEPT];
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < NORM_KEPT; j++) {
        const int i = threadIdx.x + j * NORM_THREADS;
        v[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i < fours) {
            const float4 s = x.sum(i, add[at + i]), old = stream[at + i];
            v[j] = make_float4(old.x + s.x, old.y + s.y, old.z + s.z, old.w + s.w);
            stream[at + i] = v[j];
        }
        squares += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
    }
    if (!out.at)
        return;
    const float scale = 1.0f / sqrtf(block_sum(squares, shared) / (float)(fours * 4) + eps);
#pragma unroll
    for (int j = 0; j < NORM_KEPT; j++) {
        const int i = threadIdx.x + j * NORM_THREADS;
        if (i >= fours)
            continue;
        const float4 w = ((const float4 *)weight)[i];
        out.set((at + i) * 4, v[j].x * scale * w.x);
        out.set((at + i) * 4 + 1, v[j].y * scale * w.y);
        out.set((at + i) * 4 + 2, v[j].z * scale * w.z);
        out.set((at + i) * 4 + 3, v[j].w * scale * w.w);
    }
}

extern "C" int kern_cuda_launch_peer_rmsnorm(const kern_cuda_ctx *ctx, const kern_cuda_peers *p,
                                             const kern_rmsnorm_args *a)
{
    return enqueue(ctx, peer_rmsnorm_kernel, a->rows, NORM_THREADS, 0, *p,
                   (float4 *)kern_buf_ptr(a->x), (const float4 *)kern_buf_ptr(a->add),
                   ptr<float>(a->weight), cells(a->out), a->cols / 4, a->eps);
}
