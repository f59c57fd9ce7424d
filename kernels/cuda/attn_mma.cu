// SPDX-License-Identifier: Apache-2.0
// Attention with Ampere's instructions: mma.sync m16n8k16 and ldmatrix. Every warp
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

// The stages take 96 KB: a block fills a multiprocessor of 100 KB of shared memory.
template <int DIM_, int LANES> struct ampere {
    enum { DIM = DIM_, WARPS = LANES / ROWS, GROUP = 1, STAGES = 3, QUERIES = 16 };

    struct queries { // in registers
        unsigned a[DIM / 16][4];

        __device__ queries(char *)
        {
        }
        __device__ void begin()
        {
        }
        __device__ void set(int c, int i, unsigned word)
        {
            a[c][i] = word;
        }
        __device__ void end()
        {
        }
    };

    __device__ static void arrived()
    {
    }

    __device__ static void scores(const queries &q, unsigned k, float (&s)[KEYS / 8][4])
    {
        const int thread = threadIdx.x % WARP;
        const int row = thread % 8 + thread / 16 * 8, chunk = thread / 8 % 2;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] = 0.0f;
#pragma unroll
        for (int c = 0; c < DIM / 16; c++)
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                unsigned b[4];
                load_matrices(b, k + chunk_at(n * 16 + row, c * 2 + chunk));
                multiply(s[2 * n], q.a[c], b[0], b[1]);
                multiply(s[2 * n + 1], q.a[c], b[2], b[3]);
            }
    }

    __device__ static void values(float (&o)[DIM / 8][4], const unsigned (&p)[KEYS / 16][4],
                                  unsigned v)
    {
        const int thread = threadIdx.x % WARP, row = thread % 16, chunk = thread / 16;
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
            for (int n = 0; n < DIM / 16; n++) {
                unsigned b[4];
                load_transposed(b, v + chunk_at(k * 16 + row, n * 2 + chunk));
                multiply(o[2 * n], p[k], b[0], b[1]);
                multiply(o[2 * n + 1], p[k], b[2], b[3]);
            }
    }

    __device__ static void take_keys(key_ring<ampere> &ring, ring_place<ampere> &at,
                                     mma_lanes<DIM> &w, const queries &q, const attn_view &a,
                                     const batch_view &b, const work_piece &piece)
    {
        const float scale = a.scale * LOG2_E; // of exponents to base 2
        for (int token = piece.first; token < piece.end; token += KEYS, at.advance()) {
            float s[KEYS / 8][4], keep[2];
            unsigned p[KEYS / 16][4];
            enter(ring, at);
            scores(q, shared_address(ring.k[at.stage]), s);
            weigh(w, scale, token, s, keep);
            rescale(w, keep);
            pack_weights(s, p);
            sum_pages(w, b, piece.t, token, p);
            values(w.o, p, shared_address(ring.v[at.stage]));
            leave(ring, at);
        }
    }
};

template <int DIM, int LANES>
__global__ void __launch_bounds__((LANES / ROWS + FETCHERS) * WARP, 1)
    mma_kernel(attn_view a, batch_view b, plan_view p)
{
    attend<ampere<DIM, LANES>>(a, b, p);
}

template <int DIM, int LANES>
static int launch(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b,
                  const plan_view &p)
{
    static_assert(sizeof(key_ring<ampere<DIM, LANES>>) <= LEAST_SHARED);
    return launch_attend<ampere<DIM, LANES>>(ctx, mma_kernel<DIM, LANES>, v, b, p);
}

template <int DIM>
static int launch_lanes(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b,
                        const plan_view &p)
{
    switch (v.lanes.by) {
    case 16:
        return launch<DIM, 16>(ctx, v, b, p);
    case 32:
        return launch<DIM, 32>(ctx, v, b, p);
    case 64:
        return launch<DIM, 64>(ctx, v, b, p);
    default:
        return launch<DIM, 128>(ctx, v, b, p);
    }
}

int launch_mma(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b,
               const plan_view &p)
{
    return v.dim == 64 ? launch_lanes<64>(ctx, v, b, p) : launch_lanes<128>(ctx, v, b, p);
}

bool mma_takes(const attn_view &v, const batch_view &b)
{
    const bool pages = !v.page_lse || (b.page >= 8 && b.page <= KEYS);
    const bool fours = v.stride % 4 == 0; // keys of blocks are read four at a time
    return (v.dim == 64 || v.dim == 128) && v.scale > 0.0f && pages && fours;
}

// The rows of a segment in one tile, as far as a tile goes.
work_shape mma_shape(const attn_view &v, const batch_view &b)
{
    const int want = (b.rows + b.segs - 1) / b.segs * v.group.by;
    const int lanes = want <= 16 ? 16 : want <= 32 ? 32 : want <= 64 ? 64 : 128;
    const size_t shared =
        v.dim == 64 ? sizeof(key_ring<ampere<64, 16>>) : sizeof(key_ring<ampere<128, 16>>);
    return {lanes, KEYS, block_weight(lanes), 1, shared};
}
