// SPDX-License-Identifier: Apache-2.0
// Runs the vocabulary operations as the ranks of a group would: each shard on its
// own buffers, the exchanges done here in rank order.
#ifndef TESTS_KERN_VOCAB_CASE_H
#define TESTS_KERN_VOCAB_CASE_H

#include "tests/kern/kern_testing.h"

enum { VC_RANKS = 4, VC_BINS = 256, VC_STATE = 4 };

typedef struct vocab_case {
    int rows, vocab, mask_id;
    const float *logits; // [rows, vocab]
    const kern_sample_row *sample;
    kern_dev *dev; // NULL: a CPU device of its own, with so many threads
    int threads;
    int ranks;
    int cuts[VC_RANKS + 1]; // rank i holds tokens [cuts[i], cuts[i + 1])
    bool filter;            // run TOP_K and TOP_P
} vocab_case;

// Free with vc_free_result.
typedef struct vocab_result {
    int32_t *token;
    float *confidence, *entropy, *norm;
    uint32_t *threshold; // [rows], of rank 0, after the filters; 0 without
} vocab_result;

typedef struct vc_rank {
    kern_buf *logits, *sample, *norm, *state, *hist, *pick;
    int first, shard;
} vc_rank;

static inline void vc_open_rank(kern_dev *dev, const vocab_case *c, int index, vc_rank *rank)
{
    const size_t rows = (size_t)c->rows;
    rank->first = c->cuts[index];
    rank->shard = c->cuts[index + 1] - rank->first;
    const size_t shard = (size_t)rank->shard;
    float *slice = kt_floats(rows * shard);
    for (size_t r = 0; r < rows; r++)
        memcpy(slice + r * shard, c->logits + r * (size_t)c->vocab + rank->first,
               shard * sizeof *slice);
    rank->logits = kt_in_f32(dev, slice, rows * shard);
    rank->sample = kt_in(dev, KERN_I32, c->sample, rows * KERN_SAMPLE_WORDS);
    rank->norm = kt_out_f32(dev, rows * KERN_NORM_WORDS);
    rank->state = kt_out_i32(dev, rows * VC_STATE);
    rank->hist = kt_out_f32(dev, rows * VC_BINS);
    rank->pick = kt_out_f32(dev, rows * KERN_PICK_WORDS);
    rt_free(slice);
}

static inline void vc_close_rank(vc_rank *rank)
{
    kern_buf *const owned[] = {rank->logits, rank->sample, rank->norm,
                               rank->state,  rank->hist,   rank->pick};
    for (size_t i = 0; i < KT_COUNT(owned); i++)
        kern_buf_free(owned[i]);
}

// Copies `words` floats of every rank into one [ranks, words] buffer.
static inline kern_buf *vc_gather(kern_dev *dev, const vc_rank *ranks, int count, size_t words,
                                  bool picks)
{
    kern_buf *all = kt_out_f32(dev, (size_t)count * words);
    for (int i = 0; i < count; i++) {
        float *part = kt_take(picks ? ranks[i].pick : ranks[i].norm, words);
        KT_OK(kern_write(all, (size_t)i * words, part, words));
        rt_free(part);
    }
    return all;
}

static inline void vc_norms(kern_dev *dev, const vocab_case *c, vc_rank *ranks)
{
    const size_t words = (size_t)c->rows * KERN_NORM_WORDS;
    for (int i = 0; i < c->ranks; i++) {
        const kern_vocab_norm_args args = {.logits = ranks[i].logits,
                                           .sample = ranks[i].sample,
                                           .norm = ranks[i].norm,
                                           .rows = c->rows,
                                           .shard = ranks[i].shard};
        KT_OK(kern_vocab_norm(dev, &args));
    }
    kern_buf *all = vc_gather(dev, ranks, c->ranks, words, false);
    for (int i = 0; i < c->ranks; i++) {
        const kern_vocab_norm_merge_args args = {
            .norms = all, .norm = ranks[i].norm, .ranks = c->ranks, .rows = c->rows};
        KT_OK(kern_vocab_norm_merge(dev, &args));
    }
    kern_buf_free(all);
}

static inline void vc_sum_hists(const vocab_case *c, vc_rank *ranks)
{
    const size_t count = (size_t)c->rows * VC_BINS;
    float *sum = kt_floats(count);
    for (int i = 0; i < c->ranks; i++) {
        float *hist = kt_take(ranks[i].hist, count);
        for (size_t j = 0; j < count; j++)
            sum[j] += hist[j];
        rt_free(hist);
    }
    for (int i = 0; i < c->ranks; i++)
        KT_OK(kern_write(ranks[i].hist, 0, sum, count));
    rt_free(sum);
}

static inline void vc_filter(kern_dev *dev, const vocab_case *c, vc_rank *ranks, kern_filter filter)
{
    for (int round = 0; round < 4; round++) {
        kern_vocab_filter_args args[VC_RANKS];
        for (int i = 0; i < c->ranks; i++) {
            args[i] = (kern_vocab_filter_args){.logits = ranks[i].logits,
                                               .sample = ranks[i].sample,
                                               .norm = ranks[i].norm,
                                               .state = ranks[i].state,
                                               .hist = ranks[i].hist,
                                               .rows = c->rows,
                                               .shard = ranks[i].shard,
                                               .first_id = ranks[i].first,
                                               .mask_id = c->mask_id,
                                               .filter = filter,
                                               .round = round};
            KT_OK(kern_vocab_hist(dev, &args[i]));
        }
        vc_sum_hists(c, ranks);
        for (int i = 0; i < c->ranks; i++)
            KT_OK(kern_vocab_narrow(dev, &args[i]));
    }
}

static inline void vc_choose(kern_dev *dev, const vocab_case *c, vc_rank *ranks, vocab_result *out)
{
    const size_t rows = (size_t)c->rows;
    for (int i = 0; i < c->ranks; i++) {
        const kern_vocab_pick_args args = {.logits = ranks[i].logits,
                                           .sample = ranks[i].sample,
                                           .state = c->filter ? ranks[i].state : NULL,
                                           .pick = ranks[i].pick,
                                           .rows = c->rows,
                                           .shard = ranks[i].shard,
                                           .first_id = ranks[i].first,
                                           .mask_id = c->mask_id};
        KT_OK(kern_vocab_pick(dev, &args));
    }
    kern_buf *picks = vc_gather(dev, ranks, c->ranks, rows * KERN_PICK_WORDS, true);
    kern_buf *token = kt_out_i32(dev, rows), *confidence = kt_out_f32(dev, rows);
    kern_buf *entropy = kt_out_f32(dev, rows);
    const kern_vocab_choose_args args = {.picks = picks,
                                         .norm = ranks[0].norm,
                                         .token = token,
                                         .confidence = confidence,
                                         .entropy = entropy,
                                         .ranks = c->ranks,
                                         .rows = c->rows};
    KT_OK(kern_vocab_choose(dev, &args));
    out->token = kt_take(token, rows);
    out->confidence = kt_take(confidence, rows);
    out->entropy = kt_take(entropy, rows);
    kern_buf_free(entropy);
    kern_buf_free(confidence);
    kern_buf_free(token);
    kern_buf_free(picks);
}

static inline void vc_run(const vocab_case *c, vocab_result *out)
{
    const size_t rows = (size_t)c->rows;
    kern_dev *dev = c->dev ? c->dev : kt_open(c->threads);
    vc_rank ranks[VC_RANKS];
    for (int i = 0; i < c->ranks; i++)
        vc_open_rank(dev, c, i, &ranks[i]);
    vc_norms(dev, c, ranks);
    out->threshold = kt_alloc(rows, sizeof *out->threshold);
    if (c->filter) {
        vc_filter(dev, c, ranks, KERN_FILTER_TOP_K);
        vc_filter(dev, c, ranks, KERN_FILTER_TOP_P);
        int32_t *state = kt_take(ranks[0].state, rows * VC_STATE);
        for (size_t r = 0; r < rows; r++)
            out->threshold[r] = (uint32_t)state[r * VC_STATE];
        rt_free(state);
    }
    vc_choose(dev, c, ranks, out);
    out->norm = kt_take(ranks[0].norm, rows * KERN_NORM_WORDS);
    for (int i = 0; i < c->ranks; i++)
        vc_close_rank(&ranks[i]);
    if (!c->dev)
        kern_dev_close(dev);
}

static inline void vc_free_result(vocab_result *result)
{
    rt_free(result->token);
    rt_free(result->confidence);
    rt_free(result->entropy);
    rt_free(result->norm);
    rt_free(result->threshold);
}

#endif
