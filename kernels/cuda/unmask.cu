// SPDX-License-Identifier: Apache-2.0
// Committing tokens of a block: one warp per window. Selection is by repeated search
// over the lanes, as on the CPU: a committed position loses its MASKED bit and so
// leaves the candidates.
#include "kernels/cuda/common.cuh"

struct window {
    kern_unmask_window spec;
    int *ids, *state;
    const int *token;
    const float *confidence, *entropy;
    int first, end; // candidates lie in [first, end)
};

__device__ static bool is_masked(const window &w, int i)
{
    return (w.state[i] & KERN_ROW_MASKED) != 0;
}

__device__ static void commit(const window &w, int i)
{
    w.ids[i] = w.token[i];
    w.state[i] = (w.state[i] & ~KERN_ROW_MASKED) | KERN_ROW_NEW;
}

// One lane commits; the others see it.
__device__ static void commit_one(const window &w, int i)
{
    if (threadIdx.x == 0)
        commit(w, i);
    __syncwarp();
}

// The first candidate with the largest sign * value; NaN is worst. -1: no candidate.
__device__ static int best_masked(const window &w, const float *value, float sign)
{
    int best = -1;
    float best_value = 0.0f;
    for (int i = w.first + (int)threadIdx.x; i < w.end; i += WARP) {
        if (!is_masked(w, i))
            continue;
        const float v = isnan(value[i]) ? -CUDART_INF_F : sign * value[i];
        if (best < 0 || v > best_value) {
            best = i;
            best_value = v;
        }
    }
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const int other = __shfl_xor_sync(ALL_LANES, best, offset);
        const float v = __shfl_xor_sync(ALL_LANES, best_value, offset);
        if (other >= 0 && (best < 0 || v > best_value || (v == best_value && other < best))) {
            best = other;
            best_value = v;
        }
    }
    return best;
}

__device__ static void commit_leftmost(const window &w)
{
    int left = w.spec.quota;
    for (int base = w.first; base < w.end && left > 0; base += WARP) {
        const int i = base + (int)threadIdx.x;
        const bool masked = i < w.end && is_masked(w, i);
        const unsigned found = __ballot_sync(ALL_LANES, masked);
        if (masked && __popc(found & ((1u << threadIdx.x) - 1u)) < left)
            commit(w, i);
        left -= __popc(found);
    }
}

__device__ static void commit_confident(const window &w)
{
    for (int n = 0; n < w.spec.quota; n++) {
        const int i = best_masked(w, w.confidence, 1.0f);
        if (i < 0)
            return;
        commit_one(w, i);
    }
}

__device__ static void commit_dynamic(const window &w)
{
    int sure = 0;
    for (int i = w.first + (int)threadIdx.x; i < w.end; i += WARP)
        sure += is_masked(w, i) && w.confidence[i] > w.spec.threshold;
    if (warp_sum_int(sure) < w.spec.quota) {
        commit_confident(w);
        return;
    }
    for (int i = w.first + (int)threadIdx.x; i < w.end; i += WARP)
        if (is_masked(w, i) && w.confidence[i] > w.spec.threshold)
            commit(w, i);
}

__device__ static void commit_entropy(const window &w)
{
    float sum = 0.0f;
    for (bool first = true;; first = false) {
        const int i = best_masked(w, w.entropy, -1.0f);
        if (i < 0 || (!first && !(sum + w.entropy[i] < w.spec.threshold)))
            return;
        sum += w.entropy[i];
        commit_one(w, i);
    }
}

// The leftmost sub-block that still has a mask.
__device__ static void find_candidates(window &w)
{
    const int sub = w.spec.sub_block;
    w.first = 0;
    w.end = w.spec.count;
    if (sub <= 0)
        return;
    int masked = w.spec.count;
    for (int i = threadIdx.x; i < w.spec.count && masked == w.spec.count; i += WARP)
        if (is_masked(w, i))
            masked = i;
    masked = __reduce_min_sync(ALL_LANES, masked);
    w.first = masked / sub * sub;
    if (w.spec.count - w.first > sub)
        w.end = w.first + sub;
}

__global__ void unmask_kernel(const kern_unmask_window *windows, const int *token,
                              const float *confidence, const float *entropy, int *ids, int *state)
{
    window w;
    w.spec = windows[blockIdx.x];
    w.ids = ids + w.spec.first;
    w.state = state + w.spec.first;
    w.token = token + w.spec.row0;
    w.confidence = confidence + w.spec.row0;
    w.entropy = entropy + w.spec.row0;
    for (int i = threadIdx.x; i < w.spec.count; i += WARP)
        w.state[i] &= ~KERN_ROW_NEW;
    __syncwarp();
    find_candidates(w);
    switch (w.spec.rule) {
    case KERN_UNMASK_SEQUENTIAL:
        commit_leftmost(w);
        break;
    case KERN_UNMASK_STATIC:
        commit_confident(w);
        break;
    case KERN_UNMASK_DYNAMIC:
        commit_dynamic(w);
        break;
    case KERN_UNMASK_ENTROPY:
        commit_entropy(w);
        break;
    }
}

extern "C" int kern_cuda_launch_unmask(const kern_cuda_ctx *ctx, const kern_unmask_args *a)
{
    unmask_kernel<<<a->n, WARP, 0, ctx->stream>>>(
        ptr<kern_unmask_window>(a->windows), ptr<int>(a->token), ptr<float>(a->confidence),
        ptr<float>(a->entropy), ptr<int>(a->ids), ptr<int>(a->state));
    return cudaGetLastError();
}
