// SPDX-License-Identifier: Apache-2.0
// In-block attention and its merge with the prefix part.
#include "kernels/cuda/attn_tile.cuh"

struct merge_view {
    const float *qkv, *o, *lse;
    float *cache_o, *cache_lse, *out;
    int heads, kv_heads, dim, group;
    float scale;

    __device__ const float *head(int row, int h) const
    {
        return qkv + ((size_t)row * (heads + 2 * kv_heads) + h) * dim;
    }
};

struct block_keys {
    typedef float type;
    const merge_view &a;
    int row0, kv_head;

    __device__ void at(int token, const float **k, const float **v) const
    {
        *k = a.head(row0 + token, a.heads + kv_head);
        *v = a.head(row0 + token, a.heads + a.kv_heads + kv_head);
    }
};

__device__ static bool row_is_active(const batch_view &b, const plan_view &p, int row)
{
    const int seg = b.row_seg[row], count = p.act_count[seg];
    const int *rows = p.act_rows + b.seg_row0[seg];
    int low = 0, high = count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && rows[low] == row;
}

// Takes the prefix part of a row and head from where it is, refreshes the cache when
// it is new, and writes out = (e^Lp o_p + e^Lb o_b) / (e^Lp + e^Lb). A part without
// weight is not read: an empty prefix leaves no o_p.
template <int DIM>
__device__ static void merge_lane(const merge_view &a, const batch_view &b, const plan_view &p,
                                  int row, int head, float m, float l, const float *o)
{
    const int slot = b.cache_slot[row];
    const size_t here = (size_t)row * a.heads + head;
    const size_t cached = (size_t)max(slot, 0) * a.heads + head;
    const bool active = row_is_active(b, p, row);
    const float *o_p = active ? a.o + here * a.dim : a.cache_o + cached * a.dim;
    const float lse_p = active ? a.lse[here] : a.cache_lse[cached], lse_b = m + logf(l);
    const float top = fmaxf(lse_p, lse_b);
    const float wp = expf(lse_p - top), wb = expf(lse_b - top);
    const float part_p = wp / (wp + wb), part_b = wb / (wp + wb);
    const bool refresh = active && slot >= 0;
#pragma unroll
    for (int i = 0; i < DIM / WARP; i++) {
        const int c = threadIdx.x % WARP + i * WARP;
        if (c >= a.dim)
            break;
        const float o_b = o[i] / l;
        a.out[here * a.dim + c] = part_p == 0.0f ? o_b : part_p * o_p[c] + part_b * o_b;
        if (refresh)
            a.cache_o[cached * a.dim + c] = o_p[c];
    }
    if (refresh && threadIdx.x % WARP == 0)
        a.cache_lse[cached] = lse_p;
}

// Block (tile of lanes, KV head, block of rows); the last block may be a part of one.
template <int DIM, int R>
__global__ void __launch_bounds__(TILE_THREADS)
    merge_kernel(merge_view a, batch_view b, plan_view p)
{
    extern __shared__ __align__(16) char memory[];
    attn_shared<DIM, R> &shared = *(attn_shared<DIM, R> *)memory;
    const int row0 = blockIdx.z * b.block, count = min(b.rows - row0, b.block);
    const int kv_head = blockIdx.y, warp = threadIdx.x / WARP;
    const int lane0 = blockIdx.x * TILE_WARPS * R, all = count * a.group;
    attn_lanes<DIM, R> lanes;
    lanes.clear();
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int lane = lane0 + warp * R + r;
        const bool in = lane < all;
        lanes.limit[r] = in ? count : 0;
        attn_load_query(shared, warp * R + r,
                        in ? a.head(row0 + lane / a.group, kv_head * a.group + lane % a.group)
                           : nullptr,
                        a.dim, a.scale);
    }
    const block_keys keys = {a, row0, kv_head};
    for (int first = 0; first < count; first += TILE_KEYS) {
        __syncthreads();
        attn_load_keys(shared, keys, first, count, a.dim);
        __syncthreads();
        float s[R];
        attn_scores(shared, lanes, first, s);
        attn_fold(shared, lanes, s);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int lane = lane0 + warp * R + r;
        if (lane < all)
            merge_lane<DIM>(a, b, p, row0 + lane / a.group, kv_head * a.group + lane % a.group,
                            lanes.m[r], lanes.l[r], lanes.o[r]);
    }
}

template <int DIM, int R>
static int launch_merge(const kern_cuda_ctx *ctx, const merge_view &v, const batch_view &b,
                        const plan_view &p)
{
    const size_t shared = sizeof(attn_shared<DIM, R>);
    const int error = cudaFuncSetAttribute(
        merge_kernel<DIM, R>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error)
        return error;
    const int block = b.block < b.rows ? b.block : b.rows;
    const dim3 grid(blocks_of((size_t)block * v.group, TILE_WARPS * R), v.kv_heads,
                    blocks_of(b.rows, b.block));
    merge_kernel<DIM, R><<<grid, TILE_THREADS, shared, ctx->stream>>>(v, b, p);
    return cudaGetLastError();
}

extern "C" int kern_cuda_launch_attn_merge(const kern_cuda_ctx *ctx, const kern_attn_merge_args *a)
{
    const batch_view b = view(a->batch);
    const plan_view p = view(a->plan, a->batch);
    const merge_view v = {ptr<float>(a->qkv),
                          ptr<float>(a->o),
                          ptr<float>(a->lse),
                          ptr<float>(a->cache_o),
                          ptr<float>(a->cache_lse),
                          ptr<float>(a->out),
                          a->heads,
                          a->kv_heads,
                          a->head_dim,
                          a->heads / a->kv_heads,
                          a->scale};
    // With few rows a lane a warp: more blocks, the same arithmetic.
    if (b.rows * a->heads <= 8 * TILE_WARPS * ctx->sms)
        return v.dim <= 64    ? launch_merge<64, 1>(ctx, v, b, p)
               : v.dim <= 128 ? launch_merge<128, 1>(ctx, v, b, p)
                              : launch_merge<256, 1>(ctx, v, b, p);
    return v.dim <= 64    ? launch_merge<64, 4>(ctx, v, b, p)
           : v.dim <= 128 ? launch_merge<128, 4>(ctx, v, b, p)
                          : launch_merge<256, 2>(ctx, v, b, p);
}
