// SPDX-License-Identifier: Apache-2.0
// Top-k and top-p as a threshold key, 8 bits a round, on the CPU.
//
// TOP_K: bins are taken from the top while fewer than `need` tokens lie above; the
// last one taken holds the k-th token. TOP_P: bins are taken while the mass above
// is at most `need`; so the token that crosses top_p stays, and one that starts
// exactly there. After 4 rounds the threshold is the key of the last token that
// stays: tokens equal to it stay too.
//
// A row whose filter is off (top_k == 0, top_p >= 1) keeps threshold 0 after TOP_K
// and the floor after TOP_P; its histogram is zero. The floor of TOP_P is 0 for a
// row without top_k, so TOP_K may be skipped when no row of the batch has one.
#include "kernels/cpu/vocab.h"

#include <string.h>

enum { RUN = 256, BITS = 8 };

static bool is_off(const kern_vocab_filter_args *a, const kern_sample_row *sample)
{
    return a->filter == KERN_FILTER_TOP_K ? sample->top_k <= 0 : !(sample->top_p < 1.0f);
}

static void start_state(const kern_vocab_filter_args *a, const kern_sample_row *sample,
                        uint32_t state[KERN_STATE_WORDS])
{
    const bool top_p = a->filter == KERN_FILTER_TOP_P;
    const uint32_t floor = top_p && sample->top_k > 0 ? state[KERN_STATE_THRESHOLD] : 0;
    state[KERN_STATE_THRESHOLD] = is_off(a, sample) ? floor : 0;
    state[KERN_STATE_FLOOR] = floor;
    state[KERN_STATE_NEED] = kern_vexp_bits(top_p ? 0.0f : (float)sample->top_k);
    state[KERN_STATE_SPARE] = 0;
}

typedef struct hist_job {
    const float *logits;
    float scale, m;
    uint32_t threshold, floor;
    int shift;    // of this round's bits
    int skip;     // index of the mask id in the shard, or beyond it
    bool by_mass; // TOP_P
} hist_job;

static void count_run(const hist_job *job, size_t first, size_t count, double *bins)
{
    uint32_t keys[RUN];
    float mass[RUN];
    for (size_t i = 0; i < count; i++) {
        const int32_t order = kern_vocab_order(job->logits[first + i] * job->scale);
        keys[i] = kern_vocab_key(order);
        mass[i] = kern_vocab_value(order);
    }
    if (job->by_mass) {
        for (size_t i = 0; i < count; i++)
            mass[i] = kern_vexpf(mass[i] - job->m);
    }
    for (size_t i = 0; i < count; i++) {
        // Bits above this round's; in round 0 there are none, and no shift by 32.
        const uint32_t above = ((keys[i] ^ job->threshold) >> job->shift) >> BITS;
        if (above != 0 || keys[i] < job->floor || first + i == (size_t)job->skip)
            continue;
        bins[(keys[i] >> job->shift) & (KERN_HIST_BINS - 1)] +=
            job->by_mass ? (double)mass[i] : 1.0;
    }
}

static void hist_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_vocab_filter_args *a = ctx;
    const size_t shard = (size_t)a->shard;
    const kern_sample_row *sample = kern_vocab_sample(a->sample, row);
    uint32_t *state = (uint32_t *)a->state->ptr + row * KERN_STATE_WORDS;
    if (a->round == 0)
        start_state(a, sample, state);
    const bool in_shard = a->mask_id >= a->first_id && a->mask_id - a->first_id < a->shard;
    const hist_job job = {
        .logits = kern_cf32(a->logits) + row * shard,
        .scale = sample->inv_temperature,
        .m = kern_cf32(a->norm)[row * KERN_NORM_WORDS + KERN_NORM_M],
        .threshold = state[KERN_STATE_THRESHOLD],
        .floor = state[KERN_STATE_FLOOR],
        .shift = 32 - BITS * (a->round + 1),
        .skip = in_shard ? a->mask_id - a->first_id : a->shard,
        .by_mass = a->filter == KERN_FILTER_TOP_P,
    };
    double bins[KERN_HIST_BINS] = {0};
    for (size_t i = 0; i < shard && !is_off(a, sample); i += RUN)
        count_run(&job, i, shard - i < RUN ? shard - i : RUN, bins);
    float *hist = kern_f32(a->hist) + row * KERN_HIST_BINS;
    for (size_t b = 0; b < KERN_HIST_BINS; b++)
        hist[b] = (float)bins[b];
}

rt_status kern_cpu_vocab_hist(kern_dev *dev, const kern_vocab_filter_args *args)
{
    kern_vocab_filter_args copy = *args;
    const size_t rows = (size_t)args->rows;
    kern_cpu_run(dev, rows, 4 * rows * (size_t)args->shard, hist_row, &copy);
    return RT_OK;
}

// The bin of the last token that stays, and what lies above that bin. Empty bins
// are passed over; 0 if all are empty.
static uint32_t last_bin(const float *hist, kern_filter filter, float need, float *above)
{
    uint32_t last = 0;
    double sum = 0.0;
    *above = 0.0f;
    for (uint32_t b = KERN_HIST_BINS; b-- > 0;) {
        if (!(hist[b] > 0.0f))
            continue;
        if (filter == KERN_FILTER_TOP_K ? sum >= (double)need : sum > (double)need)
            break;
        last = b;
        *above = (float)sum;
        sum += (double)hist[b];
    }
    return last;
}

static void narrow_row(const kern_vocab_filter_args *a, size_t row)
{
    const kern_sample_row *sample = kern_vocab_sample(a->sample, row);
    if (is_off(a, sample))
        return;
    const float *hist = kern_cf32(a->hist) + row * KERN_HIST_BINS;
    uint32_t *state = (uint32_t *)a->state->ptr + row * KERN_STATE_WORDS;
    float need = kern_vexp_float(state[KERN_STATE_NEED]);
    if (a->round == 0 && a->filter == KERN_FILTER_TOP_P) {
        double total = 0.0;
        for (size_t b = 0; b < KERN_HIST_BINS; b++)
            total += (double)hist[b];
        need = (float)((double)sample->top_p * total);
    }
    float above;
    const uint32_t bin = last_bin(hist, a->filter, need, &above);
    state[KERN_STATE_THRESHOLD] |= bin << (32 - BITS * (a->round + 1));
    state[KERN_STATE_NEED] = kern_vexp_bits(need - above);
    const bool done = a->round == 3;
    if (done && state[KERN_STATE_THRESHOLD] < state[KERN_STATE_FLOOR])
        state[KERN_STATE_THRESHOLD] = state[KERN_STATE_FLOOR]; // all mass underflowed
}

rt_status kern_cpu_vocab_narrow(kern_dev *dev, const kern_vocab_filter_args *args)
{
    (void)dev;
    for (size_t row = 0; row < (size_t)args->rows; row++)
        narrow_row(args, row);
    return RT_OK;
}
