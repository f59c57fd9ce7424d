// SPDX-License-Identifier: Apache-2.0
// Softmax statistics, top-k and top-p thresholds, sampling and the choice among
// ranks. Sums above a thread's own run are in f64, in a fixed order.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/philox.cuh"

// ---- floats as ordered integers: kernels/cpu/vocab.h says why ---------------------

__device__ static int order_of(float l)
{
    const int lowest = (int)0x807fffffu; // -inf
    const int largest = 0x7f7fffff;      // FLT_MAX
    const int bits = __float_as_int(l + 0.0f);
    int order = bits ^ ((bits >> 31) & 0x7fffffff);
    order = order > 0x7f800000 ? lowest : order; // NaN
    order = max(order, lowest);                  // NaN with a sign
    return min(order, largest);
}

__device__ static float value_of(int order)
{
    return __int_as_float(order ^ ((order >> 31) & 0x7fffffff));
}

__device__ static unsigned key_of(int order)
{
    return (unsigned)order ^ 0x80000000u;
}

// No contraction with the addition in order_of: keys are the CPU's, bit for bit.
__device__ static int scaled_order(float logit, float scale)
{
    return order_of(__fmul_rn(logit, scale));
}

__device__ static double warp_sum_f64(double x)
{
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

// ---- statistics --------------------------------------------------------------------
//
// A row is cut into parts of a block each, so that a few rows fill the chip; a second
// kernel joins them in order. A thread holds its tokens of a part, in runs of four: many
// loads are on their way at a time, and each is made once.

enum { THREADS = 128, RUN = 4, RUNS = 8, PART = THREADS * RUNS * RUN };

static int parts_of(int shard)
{
    return shard > 0 ? (int)blocks_of((size_t)shard, PART) : 1;
}

// The place in its part of a thread's token; those of a thread ascend.
__device__ static int place_of(int run, int i)
{
    return (run * THREADS + (int)threadIdx.x) * RUN + i;
}

// Ordered integers of a thread's scaled logits, of a part with `count` of them; -inf beyond.
__device__ static void load_orders(const float *part, int count, bool aligned, float scale,
                                   int orders[RUNS][RUN])
{
    float4 l[RUNS];
#pragma unroll
    for (int run = 0; run < RUNS; run++) {
        const int at = place_of(run, 0);
        if (aligned && at + RUN <= count)
            l[run] = *(const float4 *)(part + at);
        else
            l[run] = make_float4(at < count ? part[at] : -CUDART_INF_F,
                                 at + 1 < count ? part[at + 1] : -CUDART_INF_F,
                                 at + 2 < count ? part[at + 2] : -CUDART_INF_F,
                                 at + 3 < count ? part[at + 3] : -CUDART_INF_F);
    }
#pragma unroll
    for (int run = 0; run < RUNS; run++) {
        const float four[RUN] = {l[run].x, l[run].y, l[run].z, l[run].w};
#pragma unroll
        for (int i = 0; i < RUN; i++)
            orders[run][i] = scaled_order(four[i], scale);
    }
}

__device__ static int block_max(int best, int *shared)
{
    best = __reduce_max_sync(ALL_LANES, best);
    if (threadIdx.x % WARP == 0)
        shared[threadIdx.x / WARP] = best;
    __syncthreads();
    const int mine = threadIdx.x % WARP < THREADS / WARP ? shared[threadIdx.x % WARP] : INT32_MIN;
    return __reduce_max_sync(ALL_LANES, mine);
}

// Sum over the block, to the first thread.
__device__ static double block_sum_f64(double x, double *shared)
{
    x = warp_sum_f64(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0)
        shared[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum_f64(threadIdx.x % WARP < THREADS / WARP ? shared[threadIdx.x % WARP] : 0.0);
}

// Block (row, part): m, z, w of the part, to part [parts, rows, KERN_NORM_WORDS].
__global__ void __launch_bounds__(THREADS)
    vocab_norm_kernel(const float *logits, const kern_sample_row *sample, float *norm, int shard)
{
    __shared__ int tops[WARP];
    __shared__ double sums[WARP];
    const size_t row = blockIdx.x, rows = gridDim.x;
    const int first = blockIdx.y * PART, count = min(shard - first, PART);
    int orders[RUNS][RUN], top = INT32_MIN;
    load_orders(logits + row * shard + first, count, shard % RUN == 0, sample[row].inv_temperature,
                orders);
#pragma unroll
    for (int i = 0; i < RUNS * RUN; i++)
        top = max(top, orders[i / RUN][i % RUN]);
    const float m = value_of(block_max(top, tops));
    float z = 0.0f, w = 0.0f; // of a few tokens
#pragma unroll
    for (int i = 0; i < RUNS * RUN; i++) {
        // The clamp keeps d e^d finite for l = -inf, and makes nothing of a part without a weight.
        const float d = fmaxf(value_of(orders[i / RUN][i % RUN]) - m, -104.0f);
        const float e = d > -104.0f ? expf(d) : 0.0f;
        z += e;
        w += d * e;
    }
    const double zs = block_sum_f64(z, sums), ws = block_sum_f64(w, sums);
    float *out = norm + (blockIdx.y * rows + row) * KERN_NORM_WORDS;
    if (threadIdx.x == 0) {
        out[KERN_NORM_M] = m;
        out[KERN_NORM_Z] = (float)zs;
        out[KERN_NORM_W] = (float)ws;
    }
}

// With M = max m_i: z = sum e^(m_i - M) z_i, w = sum e^(m_i - M) (w_i + (m_i - M) z_i). A warp
// takes a row.
__global__ void norm_merge_kernel(const float *norms, float *norm, int parts)
{
    const size_t row = blockIdx.x, rows = gridDim.x;
    float m = -CUDART_INF_F;
    for (size_t p = threadIdx.x; p < (size_t)parts; p += WARP)
        m = fmaxf(m, norms[(p * rows + row) * KERN_NORM_WORDS + KERN_NORM_M]);
    m = warp_max(m);
    double z = 0.0, w = 0.0;
    for (size_t p = threadIdx.x; p < (size_t)parts; p += WARP) {
        const float *part = norms + (p * rows + row) * KERN_NORM_WORDS;
        if (part[KERN_NORM_M] == -CUDART_INF_F)
            continue;
        const double shift = (double)part[KERN_NORM_M] - (double)m, scale = exp(shift);
        z += scale * (double)part[KERN_NORM_Z];
        w += scale * ((double)part[KERN_NORM_W] + shift * (double)part[KERN_NORM_Z]);
    }
    z = warp_sum_f64(z);
    w = warp_sum_f64(w);
    if (threadIdx.x > 0)
        return;
    norm[row * KERN_NORM_WORDS + KERN_NORM_M] = m;
    norm[row * KERN_NORM_WORDS + KERN_NORM_Z] = (float)z;
    norm[row * KERN_NORM_WORDS + KERN_NORM_W] = (float)w;
}

static int merge_norms(const kern_cuda_ctx *ctx, const float *norms, float *norm, int parts,
                       int rows)
{
    norm_merge_kernel<<<rows, WARP, 0, ctx->stream>>>(norms, norm, parts);
    return cudaGetLastError();
}

extern "C" int kern_cuda_launch_vocab_norm(const kern_cuda_ctx *ctx, const kern_vocab_norm_args *a)
{
    const int parts = parts_of(a->shard);
    const size_t words = (size_t)parts * a->rows * KERN_NORM_WORDS;
    if (words * sizeof(float) > ctx->workspace_bytes)
        return KERN_CUDA_NO_ROOM;
    float *norms = parts > 1 ? (float *)ctx->workspace : ptr<float>(a->norm);
    vocab_norm_kernel<<<dim3(a->rows, parts), THREADS, 0, ctx->stream>>>(
        ptr<float>(a->logits), ptr<kern_sample_row>(a->sample), norms, a->shard);
    return parts > 1 ? merge_norms(ctx, norms, ptr<float>(a->norm), parts, a->rows)
                     : cudaGetLastError();
}

extern "C" int kern_cuda_launch_vocab_norm_merge(const kern_cuda_ctx *ctx,
                                                 const kern_vocab_norm_merge_args *a)
{
    return merge_norms(ctx, ptr<float>(a->norms), ptr<float>(a->norm), a->ranks, a->rows);
}

// ---- top-k and top-p: kernels/cpu/vocab_filter.c says how --------------------------

enum { BINS = 256, BITS = 8, STATE_WORDS = 4 };
enum { STATE_THRESHOLD, STATE_FLOOR, STATE_NEED, STATE_SPARE };
enum { HIST_WARPS = 16 };

struct filter_view {
    const float *logits;
    const kern_sample_row *sample;
    const float *norm;
    unsigned *state;
    float *hist;
    int shard, skip; // index of the mask id in the shard, or beyond it
    int round;
    bool by_mass; // TOP_P
};

static filter_view view(const kern_vocab_filter_args *a)
{
    const bool in_shard = a->mask_id >= a->first_id && a->mask_id - a->first_id < a->shard;
    return filter_view{ptr<float>(a->logits),
                       ptr<kern_sample_row>(a->sample),
                       ptr<float>(a->norm),
                       ptr<unsigned>(a->state),
                       ptr<float>(a->hist),
                       a->shard,
                       in_shard ? a->mask_id - a->first_id : a->shard,
                       a->round,
                       a->filter == KERN_FILTER_TOP_P};
}

__device__ static bool is_off(const filter_view &f, const kern_sample_row &sample)
{
    return f.by_mass ? !(sample.top_p < 1.0f) : sample.top_k <= 0;
}

__device__ static void start_state(const filter_view &f, const kern_sample_row &sample,
                                   unsigned *state)
{
    const unsigned floor = f.by_mass && sample.top_k > 0 ? state[STATE_THRESHOLD] : 0;
    state[STATE_THRESHOLD] = is_off(f, sample) ? floor : 0;
    state[STATE_FLOOR] = floor;
    state[STATE_NEED] = __float_as_uint(f.by_mass ? 0.0f : (float)sample.top_k);
    state[STATE_SPARE] = 0;
}

// Adds a value per lane to the warp's own histogram: lanes of one bin are summed
// first, so that there are no atomics and the order is fixed.
__device__ static void add_lanes(double *bins, int bin, float value)
{
    unsigned left = __ballot_sync(ALL_LANES, bin >= 0);
    while (left) {
        const int leader = __ffs(left) - 1;
        const int chosen = __shfl_sync(ALL_LANES, bin, leader);
        const unsigned same = __ballot_sync(ALL_LANES, bin == chosen);
        const double sum = warp_sum_f64(bin == chosen ? (double)value : 0.0);
        if ((int)(threadIdx.x % WARP) == leader)
            bins[chosen] += sum;
        __syncwarp();
        left &= ~same;
    }
}

__global__ void __launch_bounds__(HIST_WARPS *WARP) vocab_hist_kernel(filter_view f)
{
    __shared__ double bins[HIST_WARPS][BINS];
    const size_t row = blockIdx.x;
    const kern_sample_row sample = f.sample[row];
    unsigned *state = f.state + row * STATE_WORDS;
    if (f.round == 0 && threadIdx.x == 0)
        start_state(f, sample, state);
    for (int i = threadIdx.x; i < HIST_WARPS * BINS; i += blockDim.x)
        (&bins[0][0])[i] = 0.0;
    __syncthreads();
    const unsigned threshold = state[STATE_THRESHOLD], floor = state[STATE_FLOOR];
    const int shift = 32 - BITS * (f.round + 1);
    const float m = f.norm[row * KERN_NORM_WORDS + KERN_NORM_M];
    const float *logits = f.logits + row * f.shard;
    const int end = is_off(f, sample) ? 0 : f.shard;
    for (int base = 0; base < end; base += blockDim.x) {
        const int i = base + (int)threadIdx.x;
        int bin = -1;
        float value = 1.0f;
        if (i < end && i != f.skip) {
            const int order = scaled_order(logits[i], sample.inv_temperature);
            const unsigned key = key_of(order);
            const unsigned above = ((key ^ threshold) >> shift) >> BITS;
            if (above == 0 && key >= floor)
                bin = (int)(key >> shift & (BINS - 1));
            if (f.by_mass && bin >= 0)
                value = expf(value_of(order) - m);
        }
        add_lanes(bins[threadIdx.x / WARP], bin, value);
    }
    __syncthreads();
    for (int b = threadIdx.x; b < BINS; b += blockDim.x) {
        double sum = 0.0;
        for (int w = 0; w < HIST_WARPS; w++)
            sum += bins[w][b];
        f.hist[row * BINS + b] = (float)sum;
    }
}

extern "C" int kern_cuda_launch_vocab_hist(const kern_cuda_ctx *ctx,
                                           const kern_vocab_filter_args *a)
{
    vocab_hist_kernel<<<a->rows, HIST_WARPS * WARP, 0, ctx->stream>>>(view(a));
    return cudaGetLastError();
}

// The bin of the last token that stays, and what lies above that bin.
__device__ static unsigned last_bin(const float *hist, bool by_mass, float need, float *above)
{
    unsigned last = 0;
    double sum = 0.0;
    *above = 0.0f;
    for (unsigned b = BINS; b-- > 0;) {
        if (!(hist[b] > 0.0f))
            continue;
        if (by_mass ? sum > (double)need : sum >= (double)need)
            break;
        last = b;
        *above = (float)sum;
        sum += (double)hist[b];
    }
    return last;
}

__global__ void __launch_bounds__(BINS) vocab_narrow_kernel(filter_view f)
{
    __shared__ float hist[BINS];
    const size_t row = blockIdx.x;
    const kern_sample_row sample = f.sample[row];
    hist[threadIdx.x] = f.hist[row * BINS + threadIdx.x];
    __syncthreads();
    if (threadIdx.x > 0 || is_off(f, sample))
        return;
    unsigned *state = f.state + row * STATE_WORDS;
    float need = __uint_as_float(state[STATE_NEED]);
    if (f.round == 0 && f.by_mass) {
        double total = 0.0;
        for (int b = 0; b < BINS; b++)
            total += (double)hist[b];
        need = (float)((double)sample.top_p * total);
    }
    float above;
    const unsigned bin = last_bin(hist, f.by_mass, need, &above);
    const unsigned threshold = state[STATE_THRESHOLD] | bin << (32 - BITS * (f.round + 1));
    // The floor holds even when all mass underflowed.
    state[STATE_THRESHOLD] = f.round == 3 ? max(threshold, state[STATE_FLOOR]) : threshold;
    state[STATE_NEED] = __float_as_uint(need - above);
}

extern "C" int kern_cuda_launch_vocab_narrow(const kern_cuda_ctx *ctx,
                                             const kern_vocab_filter_args *a)
{
    vocab_narrow_kernel<<<a->rows, BINS, 0, ctx->stream>>>(view(a));
    return cudaGetLastError();
}

// ---- sampling ------------------------------------------------------------------------

__device__ static float gumbel(unsigned word)
{
    return -logf(-logf(uniform_open(word)));
}

struct candidate {
    float score, logit;
    int id; // -1: none yet
};

// The larger score; ties: the lower id.
__device__ static candidate better(const candidate &a, const candidate &b)
{
    if (b.id < 0)
        return a;
    if (a.id < 0 || b.score > a.score || (b.score == a.score && b.id < a.id))
        return b;
    return a;
}

__device__ static candidate warp_best(candidate c)
{
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const candidate other = {__shfl_xor_sync(ALL_LANES, c.score, offset),
                                 __shfl_xor_sync(ALL_LANES, c.logit, offset),
                                 __shfl_xor_sync(ALL_LANES, c.id, offset)};
        c = better(c, other);
    }
    return c;
}

__device__ static void store_pick(float *pick, const candidate &best)
{
    pick[KERN_PICK_SCORE] = best.score;
    pick[KERN_PICK_LOGIT] = best.logit;
    pick[KERN_PICK_ID] = __int_as_float(best.id);
}

// A part of a row, from token `first_id` on. `mask`: the place of the mask, or none of the part.
struct row_part {
    const float *logits;
    int count, first_id, mask;
    unsigned threshold; // key of the least that may be taken
};

// The greatest of a thread's tokens.
__device__ static candidate take_greatest(const row_part &p, bool aligned, float scale)
{
    int orders[RUNS][RUN], top = INT32_MIN, at = -1;
    load_orders(p.logits, p.count, aligned, scale, orders);
#pragma unroll
    for (int i = 0; i < RUNS * RUN; i++) {
        const int place = place_of(i / RUN, i % RUN), order = orders[i / RUN][i % RUN];
        if (place < p.count && place != p.mask && key_of(order) >= p.threshold && order > top) {
            top = order;
            at = place;
        }
    }
    const float logit = at < 0 ? -CUDART_INF_F : value_of(top);
    return candidate{logit, logit, at < 0 ? -1 : p.first_id + at};
}

// The one with the greatest sum of logit and noise.
__device__ static candidate take_random(const row_part &p, const kern_sample_row &sample)
{
    candidate best = {-CUDART_INF_F, -CUDART_INF_F, -1};
    for (int i = threadIdx.x; i < p.count; i += THREADS) {
        const int id = p.first_id + i;
        const int order = scaled_order(p.logits[i], sample.inv_temperature);
        if (i == p.mask || key_of(order) < p.threshold)
            continue;
        const uint4 counter = make_uint4(sample.position, sample.step, (unsigned)id, 0);
        const uint4 word = philox(make_uint2(sample.seed_lo, sample.seed_hi), counter);
        best = better(best, candidate{value_of(order) + gumbel(word.x), value_of(order), id});
    }
    return best;
}

// Block (row, part): the part's best, to picks [rows, parts, KERN_PICK_WORDS].
__global__ void __launch_bounds__(THREADS)
    vocab_pick_kernel(const float *logits, const kern_sample_row *samples, const unsigned *state,
                      float *picks, int shard, int first_id, int mask_id)
{
    __shared__ candidate shared[WARP];
    const size_t row = blockIdx.x;
    const kern_sample_row sample = samples[row];
    const int first = blockIdx.y * PART;
    const row_part part = {logits + row * shard + first, min(shard - first, PART), first_id + first,
                           mask_id - first_id - first,
                           state ? state[row * STATE_WORDS + STATE_THRESHOLD] : 0};
    candidate best = sample.greedy ? take_greatest(part, shard % RUN == 0, sample.inv_temperature)
                                   : take_random(part, sample);
    best = warp_best(best);
    if (threadIdx.x % WARP == 0)
        shared[threadIdx.x / WARP] = best;
    __syncthreads();
    if (threadIdx.x >= WARP)
        return;
    best = threadIdx.x < THREADS / WARP ? shared[threadIdx.x]
                                        : candidate{-CUDART_INF_F, -CUDART_INF_F, -1};
    best = warp_best(best);
    if (threadIdx.x == 0)
        store_pick(picks + (row * gridDim.y + blockIdx.y) * KERN_PICK_WORDS, best);
}

__device__ static candidate candidate_of(const float *pick)
{
    return candidate{pick[KERN_PICK_SCORE], pick[KERN_PICK_LOGIT],
                     __float_as_int(pick[KERN_PICK_ID])};
}

// A warp takes a row.
__global__ void join_picks_kernel(const float *picks, float *pick, int parts)
{
    const size_t row = blockIdx.x;
    candidate best = {-CUDART_INF_F, -CUDART_INF_F, -1};
    for (int i = threadIdx.x; i < parts; i += WARP)
        best = better(best, candidate_of(picks + (row * parts + i) * KERN_PICK_WORDS));
    best = warp_best(best);
    if (threadIdx.x == 0)
        store_pick(pick + row * KERN_PICK_WORDS, best);
}

extern "C" int kern_cuda_launch_vocab_pick(const kern_cuda_ctx *ctx, const kern_vocab_pick_args *a)
{
    const int parts = parts_of(a->shard);
    const size_t words = (size_t)parts * a->rows * KERN_PICK_WORDS;
    if (words * sizeof(float) > ctx->workspace_bytes)
        return KERN_CUDA_NO_ROOM;
    float *picks = parts > 1 ? (float *)ctx->workspace : ptr<float>(a->pick);
    vocab_pick_kernel<<<dim3(a->rows, parts), THREADS, 0, ctx->stream>>>(
        ptr<float>(a->logits), ptr<kern_sample_row>(a->sample), ptr<unsigned>(a->state), picks,
        a->shard, a->first_id, a->mask_id);
    if (parts > 1)
        join_picks_kernel<<<a->rows, WARP, 0, ctx->stream>>>(picks, ptr<float>(a->pick), parts);
    return cudaGetLastError();
}

__global__ void vocab_choose_kernel(const float *picks, const float *norm, int *token,
                                    float *confidence, float *entropy, int ranks, int rows)
{
    const size_t row = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= (size_t)rows)
        return;
    candidate best = candidate_of(picks + row * KERN_PICK_WORDS);
    for (size_t r = 1; r < (size_t)ranks; r++)
        best = better(best, candidate_of(picks + (r * rows + row) * KERN_PICK_WORDS));
    const double m = (double)norm[row * KERN_NORM_WORDS + KERN_NORM_M];
    const double z = (double)norm[row * KERN_NORM_WORDS + KERN_NORM_Z];
    const double w = (double)norm[row * KERN_NORM_WORDS + KERN_NORM_W];
    double share = 0.0, nats = 0.0;
    if (z > 0.0) {
        share = exp((double)best.logit - m) / z;
        nats = log(z) - w / z;
    }
    token[row] = best.id;
    confidence[row] = (float)share;
    entropy[row] = nats > 0.0 ? (float)nats : 0.0f;
}

extern "C" int kern_cuda_launch_vocab_choose(const kern_cuda_ctx *ctx,
                                             const kern_vocab_choose_args *a)
{
    vocab_choose_kernel<<<blocks_of(a->rows, 64), 64, 0, ctx->stream>>>(
        ptr<float>(a->picks), ptr<float>(a->norm), ptr<int>(a->token), ptr<float>(a->confidence),
        ptr<float>(a->entropy), a->ranks, a->rows);
    return cudaGetLastError();
}
