// SPDX-License-Identifier: Apache-2.0
// What the .cu files offer to the host code of the CUDA backend.
//
// A launcher unwraps the checked arguments of its operation and enqueues kernels on
// the context's stream. Grids depend on what the host knows (rows, segments, page
// table width); everything else is read on the device, so that a captured graph
// stays valid for another content. A launcher returns 0, a cudaError_t, KERN_CUDA_NO_ROOM when
// the call needs more workspace than there is, or KERN_CUDA_TOO_LARGE for shapes that no kernel
// takes.
#ifndef KERNELS_CUDA_LAUNCH_H
#define KERNELS_CUDA_LAUNCH_H

#include "kernels/kern.h"
#include "kernels/kern_map.h"

#include <stdint.h>

struct CUstream_st;

typedef struct kern_cuda_ctx {
    struct CUstream_st *stream;
    int sms;         // multiprocessors
    size_t shared;   // bytes of shared memory of a multiprocessor
    bool overlap;    // a kernel can be made ready while the one before it ends
    bool wgmma;      // Hopper's matrix instructions
    void *workspace; // of operations on the stream, reused by each
    size_t workspace_bytes;
    unsigned *arrivals; // [KERN_CUDA_ARRIVALS] counts of blocks, 0 between kernels
} kern_cuda_ctx;

enum { KERN_CUDA_NO_ROOM = -1, KERN_CUDA_TOO_LARGE = -2, KERN_CUDA_ARRIVALS = 1 << 16 };

// What a page plan keeps in the workspace: sums of the bounds of so many pages at least, so many
// best pages of a piece of a row, and of so many pieces at most (kern_reserve_plans).
enum { KERN_CUDA_PLAN_RUN = 32, KERN_CUDA_PLAN_BEST = 128, KERN_CUDA_PLAN_PIECES = 96 };

// Bytes of a plan in the workspace, at most: kernels count them in 32 bits.
#define KERN_CUDA_PLAN_BYTES ((size_t)UINT32_MAX)

// Largest head_dim that the attention kernels take.
enum { KERN_CUDA_MAX_DIM = 256 };

// What a kernel knows of the memory that ranks share (peers.cu).
typedef struct kern_cuda_peers {
    float *data[KERN_PEER_RANKS];     // of each rank: [BLOCKS, 2, ranks, FLOATS]
    unsigned *flags[KERN_PEER_RANKS]; // of each rank: [BLOCKS, ranks]
    unsigned *calls;                  // [BLOCKS], this rank's own
    int rank, ranks;
    unsigned long long deadline_ns; // of a wait
    int *aborted, *failed;          // in host memory
} kern_cuda_peers;

#ifdef __cplusplus
extern "C" {
#endif

#define KERN_CUDA_LAUNCHER(name, args)                                                             \
    int kern_cuda_launch_##name(const kern_cuda_ctx *ctx, const args *a);
KERN_KERNELS_MAP(KERN_CUDA_LAUNCHER)
#undef KERN_CUDA_LAUNCHER

// Finds what the code that this card runs was compiled for: overlap and wgmma of the
// context. Waits for the card.
int kern_cuda_launch_probe(kern_cuda_ctx *ctx);
// values[i] = sum over the ranks; count is a multiple of 4.
int kern_cuda_launch_peer_sum(const kern_cuda_ctx *ctx, const kern_cuda_peers *p, float *values,
                              size_t count);
// rmsnorm with `add` summed over the ranks; cols is a multiple of 4.
int kern_cuda_launch_peer_rmsnorm(const kern_cuda_ctx *ctx, const kern_cuda_peers *p,
                                  const kern_rmsnorm_args *a);
// out[i] = x[i], rounded to bf16 or f16 (f16: clamped to its range), i < count.
int kern_cuda_launch_narrow(const kern_cuda_ctx *ctx, const float *x, size_t count,
                            kern_dtype dtype, void *out);
// y[r] = bias for every row.
int kern_cuda_launch_bias(const kern_cuda_ctx *ctx, const float *bias, int rows, int cols,
                          float *y);

#ifdef __cplusplus
}
#endif

#endif
