// SPDX-License-Identifier: Apache-2.0
// Statistics, filters, sampling over shards, and unmasking: tokens must be equal.
#include "tests/gpu/parity.h"
#include "tests/kern/vocab_case.h"

static kern_sample_row sample_of(kt_rng *rng, int row)
{
    const int kind = row % 5;
    return (kern_sample_row){.inv_temperature = kind ? kt_uniform(rng, 0.5f, 2.0f) : 1.0f,
                             .greedy = kind == 0,
                             .top_k = kind == 2 || kind == 4 ? kt_int(rng, 1, 60) : 0,
                             .top_p = kind >= 3 ? kt_uniform(rng, 0.3f, 0.98f) : 1.0f,
                             .seed_lo = (uint32_t)kt_next(rng),
                             .seed_hi = (uint32_t)kt_next(rng),
                             .position = (uint32_t)row,
                             .step = 3};
}

static void check_vocab(kt_rng *rng, int rows, int vocab, int ranks, bool filter)
{
    float *logits = kt_random(rng, (size_t)(rows * vocab), 3.0f);
    for (int i = 0; i < rows * vocab; i += 1009)
        logits[i] = i % 2 ? NAN : -INFINITY;
    kern_sample_row *sample = kt_alloc((size_t)rows, sizeof *sample);
    for (int r = 0; r < rows; r++) {
        sample[r] = sample_of(rng, r);
        logits[r * vocab + vocab / 2] = logits[r * vocab + vocab / 3] = 12.0f; // a tie on top
    }
    vocab_case c = {.rows = rows,
                    .vocab = vocab,
                    .mask_id = vocab - 1,
                    .logits = logits,
                    .sample = sample,
                    .ranks = ranks,
                    .filter = filter};
    for (int i = 0; i <= ranks; i++)
        c.cuts[i] = (int)((long long)vocab * i / ranks);
    vocab_result cpu, gpu;
    c.dev = pt_cpu;
    vc_run(&c, &cpu);
    c.dev = pt_gpu[PT_BF16];
    vc_run(&c, &gpu);
    const size_t n = (size_t)rows;
    pt_near("norm", cpu.norm, gpu.norm, n * KERN_NORM_WORDS, 1e-3, pt_tolerance);
    pt_same("threshold", (int32_t *)cpu.threshold, (int32_t *)gpu.threshold, filter ? n : 0);
    pt_same("token", cpu.token, gpu.token, n);
    pt_near("confidence", cpu.confidence, gpu.confidence, n, 1e-3, pt_tolerance);
    pt_near("entropy", cpu.entropy, gpu.entropy, n, 1e-2, pt_tolerance);
    vc_free_result(&cpu);
    vc_free_result(&gpu);
    rt_free(logits);
    rt_free(sample);
}

void pt_test_vocab(void **state)
{
    (void)state;
    kt_rng rng = {30};
    for (int filter = 0; filter < 2; filter++) {
        check_vocab(&rng, 1, 5, 1, filter);
        check_vocab(&rng, 20, 1000, 1, filter);
        check_vocab(&rng, 7, 4099, 3, filter);
        check_vocab(&rng, 16, 151936, 2, filter);
    }
}

typedef struct unmask_in {
    kern_unmask_window windows[4];
    int32_t token[256], ids[256], state[256];
    float confidence[256], entropy[256];
} unmask_in;

static void fill_unmask(kt_rng *rng, unmask_in *in)
{
    for (int i = 0; i < 256; i++) {
        in->token[i] = kt_int(rng, 0, 999);
        in->ids[i] = -5;
        in->state[i] = kt_int(rng, 0, 3);
        in->confidence[i] = (float)kt_int(rng, 0, 20) / 20.0f; // ties
        in->entropy[i] = i % 50 == 7 ? NAN : (float)kt_int(rng, 0, 20) / 8.0f;
    }
    for (int w = 0; w < 4; w++)
        in->windows[w] = (kern_unmask_window){.first = 60 * w + 2,
                                              .row0 = 50 * w,
                                              .count = kt_int(rng, 1, 50),
                                              .rule = kt_int(rng, 0, 3),
                                              .quota = kt_int(rng, 1, 12),
                                              .sub_block = kt_int(rng, 0, 1) * kt_int(rng, 0, 9),
                                              .threshold = kt_uniform(rng, 0.0f, 1.5f)};
}

static void run_unmask(kern_dev *dev, const unmask_in *in, int32_t *ids, int32_t *state)
{
    kern_buf *windows = kt_in_i32(dev, (const int32_t *)in->windows, 4 * KERN_UNMASK_WORDS);
    kern_buf *token = kt_in_i32(dev, in->token, 256);
    kern_buf *confidence = kt_in_f32(dev, in->confidence, 256);
    kern_buf *entropy = kt_in_f32(dev, in->entropy, 256);
    kern_buf *id = kt_in_i32(dev, in->ids, 256), *st = kt_in_i32(dev, in->state, 256);
    KT_OK(kern_unmask(dev, &(kern_unmask_args){windows, token, confidence, entropy, id, st, 4}));
    KT_OK(kern_read(id, 0, ids, 256));
    KT_OK(kern_read(st, 0, state, 256));
    kern_buf *const bufs[] = {windows, token, confidence, entropy, id, st};
    for (size_t i = 0; i < KT_COUNT(bufs); i++)
        kern_buf_free(bufs[i]);
}

void pt_test_unmask(void **state)
{
    (void)state;
    kt_rng rng = {31};
    unmask_in *in = kt_alloc(1, sizeof *in);
    for (int trial = 0; trial < 100; trial++) {
        fill_unmask(&rng, in);
        int32_t ids[2][256], states[2][256];
        run_unmask(pt_cpu, in, ids[0], states[0]);
        run_unmask(pt_gpu[PT_BF16], in, ids[1], states[1]);
        pt_same("ids", ids[0], ids[1], 256);
        pt_same("state", states[0], states[1], 256);
    }
    rt_free(in);
}
