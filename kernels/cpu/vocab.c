// SPDX-License-Identifier: Apache-2.0
// Softmax statistics, sampling and the choice among ranks on the CPU.
//
// A row is one item. Sums run in f32 over runs of 1024 tokens and in f64 above, so
// that a vocabulary of 150 000 costs no accuracy.
#include "kernels/cpu/vocab.h"
#include "runtime/base/rng.h"

#include <math.h>

enum { LANES = 16, RUN = 1024 };

static int32_t max_order(const float *logits, size_t count, float scale)
{
    int32_t best = INT32_MIN;
    for (size_t i = 0; i < count; i++) {
        const int32_t order = kern_vocab_order(logits[i] * scale);
        best = order > best ? order : best;
    }
    return best;
}

// Adds the terms of z and w of up to RUN tokens.
static void add_run(const float *logits, size_t count, float scale, float m, double *z, double *w)
{
    float zs[LANES] = {0}, ws[LANES] = {0};
    for (size_t i = 0; i < count; i += LANES) {
        const size_t width = count - i < LANES ? count - i : LANES;
        float part[LANES];
        for (size_t j = 0; j < LANES; j++)
            part[j] = j < width ? logits[i + j] * scale : -INFINITY;
        for (size_t j = 0; j < LANES; j++) {
            // The clamp keeps d e^d finite for l = -inf.
            const float d = kern_vexp_clamp(kern_vocab_value(kern_vocab_order(part[j])) - m);
            const float e = kern_vexpf(d);
            zs[j] += e;
            ws[j] += d * e;
        }
    }
    for (size_t j = 0; j < LANES; j++) {
        *z += (double)zs[j];
        *w += (double)ws[j];
    }
}

static void norm_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_vocab_norm_args *a = ctx;
    const size_t shard = (size_t)a->shard;
    const float *logits = kern_cf32(a->logits) + row * shard;
    const float scale = kern_vocab_sample(a->sample, row)->inv_temperature;
    float *norm = kern_f32(a->norm) + row * KERN_NORM_WORDS;
    const float m = shard ? kern_vocab_value(max_order(logits, shard, scale)) : -INFINITY;
    double z = 0.0, w = 0.0;
    for (size_t i = 0; i < shard && m > -INFINITY; i += RUN)
        add_run(logits + i, shard - i < RUN ? shard - i : RUN, scale, m, &z, &w);
    norm[KERN_NORM_M] = m;
    norm[KERN_NORM_Z] = (float)z;
    norm[KERN_NORM_W] = (float)w;
}

rt_status kern_cpu_vocab_norm(kern_dev *dev, const kern_vocab_norm_args *args)
{
    kern_vocab_norm_args copy = *args;
    const size_t rows = (size_t)args->rows;
    kern_cpu_run(dev, rows, 4 * rows * (size_t)args->shard, norm_row, &copy);
    return RT_OK;
}

static uint32_t token_word(const kern_sample_row *sample, int id)
{
    const uint64_t key = (uint64_t)sample->seed_hi << 32 | sample->seed_lo;
    const uint32_t counter[4] = {sample->position, sample->step, (uint32_t)id, 0};
    return rt_philox4x32(key, counter).v[0];
}

static float gumbel(uint32_t word)
{
    return -logf(-logf(rt_uniform_open(word)));
}

// A word with n leading ones gives u < 1 - 2^-(n+1), so -log(-log u) < (n + 1) log 2.
static float gumbel_bound(uint32_t word)
{
    const float rounding = 1e-3f; // of logf, generously
    const int ones = word == UINT32_MAX ? 32 : __builtin_clz(~word);
    return (float)(ones + 1) * 0.69314718f + rounding;
}

typedef struct candidate {
    float score, logit;
    int32_t id; // -1: none yet
} candidate;

// Noise is bounded: a token that cannot reach the best score so far with the
// largest noise needs no word, and one that cannot with its word no logarithms.
static candidate best_candidate(const kern_vocab_pick_args *a, size_t row)
{
    const size_t shard = (size_t)a->shard;
    const float *logits = kern_cf32(a->logits) + row * shard;
    const kern_sample_row *sample = kern_vocab_sample(a->sample, row);
    const uint32_t threshold =
        a->state ? (uint32_t)kern_ci32(a->state)[row * KERN_STATE_WORDS + KERN_STATE_THRESHOLD] : 0;
    const float most_noise = gumbel(UINT32_MAX) + 1e-3f;
    candidate best = {.score = -INFINITY, .logit = -INFINITY, .id = -1};
    for (size_t i = 0; i < shard; i++) {
        const int32_t id = a->first_id + (int32_t)i;
        const int32_t order = kern_vocab_order(logits[i] * sample->inv_temperature);
        if (id == a->mask_id || kern_vocab_key(order) < threshold)
            continue;
        const float l = kern_vocab_value(order);
        float score = l;
        if (!sample->greedy) {
            if (l + most_noise < best.score)
                continue;
            const uint32_t word = token_word(sample, id);
            if (l + gumbel_bound(word) < best.score)
                continue;
            score = l + gumbel(word);
        }
        if (best.id < 0 || score > best.score)
            best = (candidate){.score = score, .logit = l, .id = id};
    }
    return best;
}

static void pick_row(void *ctx, size_t row, int thread)
{
    (void)thread;
    const kern_vocab_pick_args *a = ctx;
    const candidate best = best_candidate(a, row);
    float *pick = kern_f32(a->pick) + row * KERN_PICK_WORDS;
    pick[KERN_PICK_SCORE] = best.score;
    pick[KERN_PICK_LOGIT] = best.logit;
    pick[KERN_PICK_ID] = kern_vexp_float((uint32_t)best.id);
}

rt_status kern_cpu_vocab_pick(kern_dev *dev, const kern_vocab_pick_args *args)
{
    kern_vocab_pick_args copy = *args;
    const size_t rows = (size_t)args->rows;
    kern_cpu_run(dev, rows, 4 * rows * (size_t)args->shard, pick_row, &copy);
    return RT_OK;
}

// With M = max m_i: z = sum e^(m_i - M) z_i, w = sum e^(m_i - M) (w_i + (m_i - M) z_i).
rt_status kern_cpu_vocab_norm_merge(kern_dev *dev, const kern_vocab_norm_merge_args *args)
{
    (void)dev;
    const size_t rows = (size_t)args->rows, ranks = (size_t)args->ranks;
    const float *norms = kern_cf32(args->norms);
    for (size_t row = 0; row < rows; row++) {
        float m = -INFINITY;
        for (size_t r = 0; r < ranks; r++)
            m = fmaxf(m, norms[(r * rows + row) * KERN_NORM_WORDS + KERN_NORM_M]);
        double z = 0.0, w = 0.0;
        for (size_t r = 0; r < ranks; r++) {
            const float *part = norms + (r * rows + row) * KERN_NORM_WORDS;
            if (part[KERN_NORM_M] == -INFINITY)
                continue;
            const double shift = (double)part[KERN_NORM_M] - (double)m, scale = exp(shift);
            z += scale * (double)part[KERN_NORM_Z];
            w += scale * ((double)part[KERN_NORM_W] + shift * (double)part[KERN_NORM_Z]);
        }
        float *norm = kern_f32(args->norm) + row * KERN_NORM_WORDS;
        norm[KERN_NORM_M] = m;
        norm[KERN_NORM_Z] = (float)z;
        norm[KERN_NORM_W] = (float)w;
    }
    return RT_OK;
}

static candidate candidate_of(const float *pick)
{
    return (candidate){.score = pick[KERN_PICK_SCORE],
                       .logit = pick[KERN_PICK_LOGIT],
                       .id = (int32_t)kern_vexp_bits(pick[KERN_PICK_ID])};
}

static candidate choose_candidate(const float *picks, size_t ranks, size_t rows, size_t row)
{
    candidate best = candidate_of(picks + row * KERN_PICK_WORDS);
    for (size_t r = 1; r < ranks; r++) {
        const candidate other = candidate_of(picks + (r * rows + row) * KERN_PICK_WORDS);
        if (other.id < 0)
            continue;
        if (best.id < 0 || other.score > best.score ||
            (other.score == best.score && other.id < best.id))
            best = other;
    }
    return best;
}

rt_status kern_cpu_vocab_choose(kern_dev *dev, const kern_vocab_choose_args *args)
{
    (void)dev;
    const size_t rows = (size_t)args->rows;
    for (size_t row = 0; row < rows; row++) {
        const candidate best =
            choose_candidate(kern_cf32(args->picks), (size_t)args->ranks, rows, row);
        const float *norm = kern_cf32(args->norm) + row * KERN_NORM_WORDS;
        const double m = (double)norm[KERN_NORM_M], z = (double)norm[KERN_NORM_Z];
        double confidence = 0.0, entropy = 0.0;
        if (z > 0.0) {
            confidence = exp((double)best.logit - m) / z;
            entropy = log(z) - (double)norm[KERN_NORM_W] / z;
        }
        kern_i32(args->token)[row] = best.id;
        kern_f32(args->confidence)[row] = (float)confidence;
        kern_f32(args->entropy)[row] = entropy > 0.0 ? (float)entropy : 0.0f;
    }
    return RT_OK;
}
