// SPDX-License-Identifier: Apache-2.0
// A tile of attention on plain f32 arithmetic: 8 warps of R lanes each (a lane is a row
// and a query head of one KV group) against keys, 32 at a time, with an online softmax.
//
// K and V of 32 keys are shared by the block. For scores a thread is one key, so that
// maximum and sum of a lane are warp reductions; for values it is every 32nd channel.
// Takes any head_dim up to DIM and any source of keys.
#ifndef KERNELS_CUDA_ATTN_TILE_CUH
#define KERNELS_CUDA_ATTN_TILE_CUH

#include "kernels/cuda/common.cuh"

enum { TILE_WARPS = 8, TILE_KEYS = 32, TILE_THREADS = TILE_WARPS * WARP };

template <int DIM, int R> struct attn_shared {
    float q[TILE_WARPS * R][DIM];
    float k[TILE_KEYS][DIM + 4]; // rows 4 banks apart: threads read 16 bytes each
    float v[TILE_KEYS][DIM];
    float p[TILE_WARPS][R][TILE_KEYS];
};

// A warp's lanes: what they have seen (m = largest score, l = sum e^(s - m), o = sum
// e^(s - m) v of the thread's channels) and how many keys each may see.
template <int DIM, int R> struct attn_lanes {
    float m[R], l[R], o[R][DIM / WARP];
    int limit[R];

    __device__ void clear()
    {
#pragma unroll
        for (int r = 0; r < R; r++) {
            m[r] = -CUDART_INF_F;
            l[r] = 0.0f;
#pragma unroll
            for (int i = 0; i < DIM / WARP; i++)
                o[r][i] = 0.0f;
        }
    }
};

// Reads past the L1, which is of no use for what is read once.
template <typename T> __device__ inline float attn_read(const T *x)
{
    return to_f32(__ldcg(x));
}

// Loads the query of lane `lane` of the tile by its warp; NULL: zeros.
template <int DIM, int R>
__device__ void attn_load_query(attn_shared<DIM, R> &t, int lane, const float *q, int dim,
                                float scale)
{
    for (int c = threadIdx.x % WARP; c < DIM; c += WARP)
        t.q[lane][c] = q && c < dim ? attn_read(q + c) * scale : 0.0f;
}

// Loads keys [first, first + 32); those from `end` on become zeros. keys.at(token, &k,
// &v) says where a key's vectors are.
template <int DIM, int R, typename Keys>
__device__ void attn_load_keys(attn_shared<DIM, R> &t, const Keys &keys, int first, int end,
                               int dim)
{
    for (int j = threadIdx.x / WARP; j < TILE_KEYS; j += TILE_WARPS) {
        const typename Keys::type *k = nullptr, *v = nullptr;
        if (first + j < end)
            keys.at(first + j, &k, &v);
#pragma unroll
        for (int c = threadIdx.x % WARP; c < DIM; c += WARP) {
            t.k[j][c] = k && c < dim ? attn_read(k + c) : 0.0f;
            t.v[j][c] = v && c < dim ? attn_read(v + c) : 0.0f;
        }
    }
}

// s[r] of this thread's key, -infinity beyond the lane's limit.
template <int DIM, int R>
__device__ void attn_scores(const attn_shared<DIM, R> &t, const attn_lanes<DIM, R> &lanes,
                            int first, float (&s)[R])
{
    const int warp = threadIdx.x / WARP, key = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < R; r++)
        s[r] = 0.0f;
#pragma unroll 8
    for (int c = 0; c < DIM; c += 4) {
        const float4 k = *(const float4 *)&t.k[key][c];
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float4 q = *(const float4 *)&t.q[warp * R + r][c];
            s[r] += q.x * k.x + q.y * k.y + q.z * k.z + q.w * k.w;
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        s[r] = first + key < lanes.limit[r] ? s[r] : -CUDART_INF_F;
}

// Folds the 32 keys whose scores are s into the lanes.
template <int DIM, int R>
__device__ void attn_fold(attn_shared<DIM, R> &t, attn_lanes<DIM, R> &lanes, const float (&s)[R])
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const float top = fmaxf(lanes.m[r], warp_max(s[r]));
        const bool none = top == -CUDART_INF_F;
        const float p = none ? 0.0f : expf(s[r] - top);
        const float keep = none ? 1.0f : expf(lanes.m[r] - top);
        lanes.l[r] = lanes.l[r] * keep + warp_sum(p);
        lanes.m[r] = top;
        t.p[warp][r][lane] = p;
#pragma unroll
        for (int i = 0; i < DIM / WARP; i++)
            lanes.o[r][i] *= keep;
    }
    __syncwarp();
    for (int j = 0; j < TILE_KEYS; j += 4) {
        float4 p[R];
#pragma unroll
        for (int r = 0; r < R; r++)
            p[r] = *(const float4 *)&t.p[warp][r][j];
#pragma unroll
        for (int i = 0; i < DIM / WARP; i++) {
            const int c = lane + i * WARP;
            const float v0 = t.v[j][c], v1 = t.v[j + 1][c], v2 = t.v[j + 2][c], v3 = t.v[j + 3][c];
#pragma unroll
            for (int r = 0; r < R; r++)
                lanes.o[r][i] += p[r].x * v0 + p[r].y * v1 + p[r].z * v2 + p[r].w * v3;
        }
    }
    __syncwarp();
}

#endif
