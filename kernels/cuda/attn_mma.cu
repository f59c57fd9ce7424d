// SPDX-License-Identifier: Apache-2.0
// Prefix attention with Ampere's instructions: mma.sync m16n8k16 and ldmatrix. Every warp
// has 16 lanes of its own and takes all keys of a stage.
#include "kernels/cuda/attn_mma.cuh"

__device__ static void load_matrices(unsigned (&r)[4], unsigned from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

__device__ static void load_transposed(unsigned (&r)[4], unsigned from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

// c [16, 8] += a [16, 16] b [16, 8].
__device__ static void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two blocks fit a multiprocessor of 228 KB of shared memory, and one of 100 KB.
template <int DIM_, int WARPS_> struct ampere {
    enum { DIM = DIM_, WARPS = WARPS_, GROUP = 1, KEYS = 64, SPAN = 64, SPANS = 1, STAGES = 3 };

    __device__ static int lane0(int warp)
    {
        return warp * ROWS;
    }
    __device__ static int key0(int)
    {
        return 0;
    }
    __device__ static void arrived()
    {
    }

    __device__ static void scores(const unsigned (&q)[DIM / 16][4], unsigned k,
                                  float (&s)[SPAN / 8][4])
    {
        const int thread = threadIdx.x % WARP;
        const int row = thread % 8 + thread / 16 * 8, chunk = thread / 8 % 2;
#pragma unroll
        for (int n = 0; n < SPAN / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] = 0.0f;
#pragma unroll
        for (int c = 0; c < DIM / 16; c++)
#pragma unroll
            for (int n = 0; n < SPAN / 16; n++) {
                unsigned b[4];
                load_matrices(b, k + chunk_at<KEYS>(n * 16 + row, c * 2 + chunk));
                multiply(s[2 * n], q[c], b[0], b[1]);
                multiply(s[2 * n + 1], q[c], b[2], b[3]);
            }
    }

    __device__ static void values(float (&o)[DIM / 8][4], const unsigned (&p)[SPAN / 16][4],
                                  unsigned v)
    {
        const int thread = threadIdx.x % WARP, row = thread % 16, chunk = thread / 16;
#pragma unroll
        for (int k = 0; k < SPAN / 16; k++)
#pragma unroll
            for (int n = 0; n < DIM / 16; n++) {
                unsigned b[4];
                load_transposed(b, v + chunk_at<KEYS>(k * 16 + row, n * 2 + chunk));
                multiply(o[2 * n], p[k], b[0], b[1]);
                multiply(o[2 * n + 1], p[k], b[2], b[3]);
            }
    }
};

template <int DIM, int WARPS>
__global__ void __launch_bounds__(WARPS *WARP, WARPS <= 4 ? 2 : 1)
    mma_kernel(prefix_view a, batch_view b, plan_view p)
{
    begin_kernel();
    attend<ampere<DIM, WARPS>>(a, b, p);
}

template <int DIM, int WARPS>
static int launch(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                  const plan_view &p)
{
    return launch_attend<ampere<DIM, WARPS>>(ctx, mma_kernel<DIM, WARPS>, v, b, p);
}

template <int DIM>
static int launch_warps(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
                        const plan_view &p)
{
    switch (v.lanes / ROWS) {
    case 1:
        return launch<DIM, 1>(ctx, v, b, p);
    case 2:
        return launch<DIM, 2>(ctx, v, b, p);
    case 4:
        return launch<DIM, 4>(ctx, v, b, p);
    default:
        return launch<DIM, 8>(ctx, v, b, p);
    }
}

int launch_mma(const kern_cuda_ctx *ctx, const prefix_view &v, const batch_view &b,
               const plan_view &p)
{
    return v.dim == 64 ? launch_warps<64>(ctx, v, b, p) : launch_warps<128>(ctx, v, b, p);
}

bool mma_takes(const prefix_view &v, const batch_view &b)
{
    const bool pages = !v.page_lse || (b.page >= 8 && b.page <= 64);
    const bool pairs = v.stride % 2 == 0; // queries are read two at a time
    return (v.dim == 64 || v.dim == 128) && v.scale > 0.0f && pages && pairs;
}

// A block of a request in one tile, as far as a tile goes.
prefix_shape mma_shape(const prefix_view &v, const batch_view &b)
{
    const int want = (b.block < b.rows ? b.block : b.rows) * v.group;
    const int lanes = want <= 16 ? 16 : want <= 32 ? 32 : want <= 64 ? 64 : 128;
    const size_t shared =
        v.dim == 64 ? sizeof(key_stages<ampere<64, 8>>) : sizeof(key_stages<ampere<128, 8>>);
    return {lanes, b.page > 16 ? b.page : 16, shared};
}
