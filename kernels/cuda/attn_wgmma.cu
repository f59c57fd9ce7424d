// SPDX-License-Identifier: Apache-2.0
// Attention with Hopper's instructions: wgmma, by two warpgroups of 64 lanes, which
// share the keys. Queries, keys and values come from shared memory in the 128-byte swizzle,
// softmax weights from registers. Elsewhere the kernels are empty, and kern_cuda_ctx says so.
#include "kernels/cuda/attn_mma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

#if HAS_WGMMA
// What wgmma is to know of a matrix in shared memory: rows of 128 bytes, eight of them 1024 bytes
// after the eight before, and 64 columns `leading` bytes after the 64 before.
struct matrix {
    unsigned low; // the half that differs

    // All threads have the same address; by this sum the compiler can tell, and adds in uniform
    // registers, which is where wgmma wants it.
    __device__ matrix(unsigned address, unsigned leading)
        : low(__reduce_or_sync(ALL_LANES, address >> 4 | leading >> 4 << 16))
    {
    }
    // The matrix that begins so many bytes further.
    __device__ uint64_t at(unsigned bytes) const
    {
        return (uint64_t)(1024 >> 4 | 1 << 30) << 32 | (low + bytes / 16);
    }
};

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

// d [64, 64] = a b^T (+ d where `adds`), a and b of 16 columns in shared memory.
__device__ static void wgmma_scores(float (&d)[8][4], uint64_t a, uint64_t b, int adds)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "%32, %33, p, 1, 1, 0, 0;\n}\n"
                 : D32(0)
                 : "l"(a), "l"(b), "r"(adds));
}

// d [64, 64] += a [64, 16] b [16, 64], a in registers; rows of b are keys.
__device__ static void wgmma_values(float (&d)[8][4], const unsigned (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;\n"
                 : D32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The same for 128 columns.
__device__ static void wgmma_values(float (&d)[16][4], const unsigned (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, 1, 1, 1, 1;\n"
                 : D32(0), D32(8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ static void begin_wgmma()
{
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

// What was begun becomes a group, for which to wait.
__device__ static void commit_wgmma()
{
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits for all groups but the last LEFT.
template <int LEFT> __device__ static void await_wgmma()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(LEFT) : "memory");
}

template <int DIM_> struct hopper {
    enum { DIM = DIM_, WARPS = 8, GROUP = 4, STAGES = 6, QUERIES = WARPS * ROWS * DIM * 2 };

    struct queries { // in shared memory, 64 of a warpgroup together
        unsigned address;

        __device__ queries(char *memory)
            : address(shared_address(memory) + threadIdx.x / 128 * 64 * DIM * 2)
        {
        }
        __device__ void meet()
        {
            asm volatile("barrier.sync %0, 128;\n" ::"r"(1 + threadIdx.x / 128) : "memory");
        }
        __device__ void begin() // nobody reads the ones before
        {
            meet();
        }
        __device__ void set(int c, int i, unsigned word)
        {
            const int row = threadIdx.x % 128 / WARP * ROWS + threadIdx.x % WARP / 4 + i % 2 * 8;
            const unsigned at = address + chunk_at(row, c * 2 + i / 2) + threadIdx.x % 4 * 4;
            asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(at), "r"(word) : "memory");
        }
        __device__ void end()
        {
            arrived();
            meet();
        }
    };

    __device__ static void arrived() // what was written otherwise becomes visible to wgmma
    {
        asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
    }

    // Begins s [64, KEYS] = q k^T of a warpgroup.
    __device__ static void begin_scores(const queries &q, unsigned k, float (&s)[KEYS / 8][4])
    {
        hold(s);
        begin_wgmma();
        const matrix from_q(q.address, 16), from_k(k, 16);
#pragma unroll
        for (int c = 0; c < DIM / 16; c++) {
            const unsigned at = c / 4 * KEYS * 128 + c % 4 * 32;
            wgmma_scores(s, from_q.at(at), from_k.at(at), c > 0);
        }
        commit_wgmma();
    }

    // Begins o [64, DIM] += p v.
    __device__ static void begin_values(float (&o)[DIM / 8][4], unsigned (&p)[KEYS / 16][4],
                                        unsigned v)
    {
        hold(o);
        hold(p);
        begin_wgmma();
        const matrix from_v(v, KEYS * 128);
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++)
            wgmma_values(o, p[i], from_v.at(i * 16 * 128));
        commit_wgmma();
    }

    __device__ static void end_values(float (&o)[DIM / 8][4], unsigned (&p)[KEYS / 16][4])
    {
        await_wgmma<0>();
        hold(o);
        hold(p);
    }

    // The scores of a stage and the values of the one behind it go to the tensor cores together.
    // (The compiler waits for both before it makes weights; made to wait later it was 5 % slower.)
    __device__ static void take_keys(key_ring<hopper> &ring, ring_place<hopper> &at,
                                     mma_lanes<DIM> &w, const queries &q, const attn_view &a,
                                     const batch_view &b, const work_piece &piece)
    {
        const float scale = a.scale * LOG2_E; // of exponents to base 2
        float s[KEYS / 8][4], keep[2];
        unsigned p[KEYS / 16][4];
        if (piece.first >= piece.end)
            return;
        enter(ring, at);
        begin_scores(q, shared_address(ring.k[at.stage]), s);
        await_wgmma<0>();
        hold(s);
        weigh(w, scale, piece.first, s, keep);
        pack_weights(s, p);
        sum_pages(w, b, piece.t, piece.first, p);
        for (int token = piece.first + KEYS; token < piece.end; token += KEYS) {
            ring_place<hopper> next = at;
            next.advance();
            enter(ring, next);
            begin_scores(q, shared_address(ring.k[next.stage]), s);
            begin_values(w.o, p, shared_address(ring.v[at.stage]));
            await_wgmma<1>();
            hold(s);
            weigh(w, scale, token, s, keep);
            end_values(w.o, p);
            leave(ring, at);
            rescale(w, keep);
            pack_weights(s, p);
            sum_pages(w, b, piece.t, token, p);
            at = next;
        }
        begin_values(w.o, p, shared_address(ring.v[at.stage]));
        end_values(w.o, p);
        leave(ring, at);
        at.advance();
    }
};
#else
template <int DIM_> struct hopper {
    enum { DIM = DIM_, WARPS = 8, STAGES = 6, QUERIES = WARPS * ROWS * DIM * 2 };
};
#endif

template <int DIM>
__global__ void __launch_bounds__((8 + FETCHERS) * WARP, 1)
    wgmma_kernel(attn_view a, batch_view b, plan_view p)
{
#if HAS_WGMMA
    attend<hopper<DIM>>(a, b, p);
#endif
}

int launch_wgmma(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b,
                 const plan_view &p)
{
    return v.dim == 64 ? launch_attend<hopper<64>>(ctx, wgmma_kernel<64>, v, b, p)
                       : launch_attend<hopper<128>>(ctx, wgmma_kernel<128>, v, b, p);
}

bool wgmma_takes(const kern_cuda_ctx *ctx, const attn_view &v, const batch_view &b)
{
    return ctx->wgmma && mma_takes(v, b) && mma_shape(v, b).lanes == 128;
}

work_shape wgmma_shape(const attn_view &v)
{
    return {128, KEYS, block_weight(128), 1,
            v.dim == 64 ? sizeof(key_ring<hopper<64>>) : sizeof(key_ring<hopper<128>>)};
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
