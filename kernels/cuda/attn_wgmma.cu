// SPDX-License-Identifier: Apache-2.0
// Prefix attention with Hopper's instructions: wgmma, by two warpgroups of 64 lanes. A
// tile of 128 lanes is shared between them, so that its keys are read once; in a tile of
// 64 each takes half of the keys, which halves what the runs leave to be joined.
//
// K and V of 128 keys are a stage of 64 KB, three of which fill a multiprocessor. Both
// operands of wgmma that are keys come from shared memory in the 128-byte swizzle; q and
// the softmax weights come from registers. Elsewhere the kernels are empty, and
// kern_cuda_ctx says so.
#include "kernels/cuda/attn_mma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

// What wgmma is to know of a matrix in shared memory: tiles of 8 rows of 128 bytes,
// `stride` bytes apart along the rows and `leading` across them.
__device__ static uint64_t describe(unsigned address, unsigned leading, unsigned stride)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | 1ull << 62;
}

#if HAS_WGMMA
// Registers of an operand change hands, before the first and after the last of a run of
// wgmma: the compiler neither moves their values across nor uses them for others between.
template <int N> __device__ static void hold(float (&d)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

template <int N> __device__ static void hold(unsigned (&a)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+r"(a[n][0]), "+r"(a[n][1]), "+r"(a[n][2]), "+r"(a[n][3])::"memory");
}

#define D4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define D32(n) D4(n), D4(n + 1), D4(n + 2), D4(n + 3), D4(n + 4), D4(n + 5), D4(n + 6), D4(n + 7)

// d [64, 64] = a [64, 16] b [16, 64] (+ d where `adds`); TRANSPOSED: rows of b are k.
template <int TRANSPOSED>
__device__ static void wgmma(float (&d)[8][4], const unsigned (&a)[4], uint64_t b, int adds)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}\n"
                 : D32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(TRANSPOSED));
}

// The same for 128 columns.
template <int TRANSPOSED>
__device__ static void wgmma(float (&d)[16][4], const unsigned (&a)[4], uint64_t b, int adds)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}\n"
                 : D32(0), D32(8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(TRANSPOSED));
}

template <int N, int M> __device__ static void begin_wgmma(float (&d)[N][4], unsigned (&a)[M][4])
{
    hold(d);
    hold(a);
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

template <int N, int M> __device__ static void end_wgmma(float (&d)[N][4], unsigned (&a)[M][4])
{
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" ::
                     : "memory");
    hold(d);
    hold(a);
}

template <int DIM_, int LANES> struct hopper {
    enum {
        DIM = DIM_,
        WARPS = 8,
        GROUP = 4,
        KEYS = 128,
        SPAN = 64,
        SPANS = LANES / 64,
        STAGES = 3
    };

    __device__ static int lane0(int warp)
    {
        return warp * ROWS % LANES;
    }
    __device__ static int key0(int warp)
    {
        return LANES == 64 ? warp / 4 * SPAN : 0;
    }
    __device__ static void arrived() // what cp.async wrote becomes visible to wgmma
    {
        asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
    }

    // Works on a copy of q, made by arithmetic that the compiler cannot undo: ptxas of CUDA
    // 13.0 gives the registers of an operand away after its first use, also in a loop.
    __device__ static void scores(const unsigned (&q)[DIM / 16][4], unsigned k,
                                  float (&s)[SPAN / 8][4])
    {
        const unsigned none = gridDim.z - 1;
        unsigned copy[DIM / 16][4];
#pragma unroll
        for (int c = 0; c < DIM / 16; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                asm volatile("xor.b32 %0, %1, %2;" : "=r"(copy[c][i]) : "r"(q[c][i]), "r"(none));
        begin_wgmma(s, copy);
#pragma unroll
        for (int c = 0; c < DIM / 16; c++)
            wgmma<0>(s, copy[c], describe(k + c / 4 * KEYS * 128 + c % 4 * 32, 16, 1024), c > 0);
        end_wgmma(s, copy);
    }

    __device__ static void values(float (&o)[DIM / 8][4], unsigned (&p)[SPAN / 16][4], unsigned v)
    {
        begin_wgmma(o, p);
#pragma unroll
        for (int i = 0; i < SPAN / 16; i++)
            wgmma<1>(o, p[i], describe(v + i * 16 * 128, KEYS * 128, 1024), 1);
        end_wgmma(o, p);
    }
};
#else
template <int DIM_, int LANES> struct hopper {
    enum {
        DIM = DIM_,
        WARPS = 8,
        GROUP = 4,
        KEYS = 128,
        SPAN = 64,
        SPANS = LANES / 64,
        STAGES = 3
    };
};
#endif

template <int DIM, int LANES>
__global__ void __launch_bounds__(256, 1) wgmma_kernel(prefix_view a, batch_view b, plan_view p)
{
#if HAS_WGMMA
    begin_kernel();
    attend<hopper<DIM, LANES>>(a, b, p);
#endif
}

template <int DIM, int LANES>
static int launch(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                  const plan_view &p)
{
    return launch_attend<hopper<DIM, LANES>>(ctx, wgmma_kernel<DIM, LANES>, v, b, p);
}

int launch_wgmma(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                 const plan_view &p)
{
    if (v.dim == 64)
        return v.lanes == 64 ? launch<64, 64>(ctx, v, b, p) : launch<64, 128>(ctx, v, b, p);
    return v.lanes == 64 ? launch<128, 64>(ctx, v, b, p) : launch<128, 128>(ctx, v, b, p);
}

bool wgmma_takes(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b)
{
    return ctx->wgmma && mma_takes(v, b) && mma_shape(v, b).lanes >= 64;
}

prefix_shape wgmma_shape(const prefix_view &v, const batch_view &b)
{
    prefix_shape shape = mma_shape(v, b);
    shape.shared =
        v.dim == 64 ? sizeof(key_stages<hopper<64, 64>>) : sizeof(key_stages<hopper<128, 64>>);
    return shape;
}

// ---- what the card runs ----------------------------------------------------------------

__global__ void probe_kernel(int *out)
{
    out[0] = HAS_WGMMA;
#ifdef __CUDA_ARCH__
    out[1] = __CUDA_ARCH__ >= 900;
#endif
}

extern "C" int kern_cuda_launch_probe(kern_cuda_ctx *ctx)
{
    int found[2];
    probe_kernel<<<1, 1, 0, ctx->stream>>>((int *)ctx->workspace);
    int error =
        cudaMemcpyAsync(found, ctx->workspace, sizeof found, cudaMemcpyDeviceToHost, ctx->stream);
    if (!error)
        error = cudaStreamSynchronize(ctx->stream);
    ctx->wgmma = !error && found[0];
    ctx->overlap = !error && found[1];
    return error;
}
