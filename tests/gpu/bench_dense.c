// SPDX-License-Identifier: Apache-2.0
// Times the linears, norms and vocabulary operations at the shapes of an SDAR-8B layer.
#include "tests/gpu/bench.h"

enum { HIDDEN = 4096, FFN = 12288, WIDTH = 6144 };

typedef struct linear_bench {
    kern_buf *x, *y, *w[BENCH_SETS];
    int sets, rows, n, k;
} linear_bench;

static void call_linear(void *ctx, int i)
{
    linear_bench *b = ctx;
    KT_OK(kern_linear(
        pt_gpu[PT_BF16],
        &(kern_linear_args){
            .x = b->x, .w = b->w[i % b->sets], .y = b->y, .rows = b->rows, .n = b->n, .k = b->k}));
}

static void bench_linear(const char *name, int rows, int n, int k)
{
    linear_bench b = {.rows = rows, .n = n, .k = k};
    const size_t weights = (size_t)n * (size_t)k;
    char line[80];
    snprintf(line, sizeof line, "linear %s %d x %d x %d", name, rows, n, k);
    b.sets = bench_sets(2 * weights);
    for (int i = 0; i < b.sets; i++)
        b.w[i] = bench_random(KERN_BF16, weights);
    b.x = bench_random(KERN_BF16, (size_t)(rows * k));
    b.y = bench_random(KERN_F32, (size_t)rows * (size_t)n);
    const double us = bench_line(line, 2.0 * (double)weights, call_linear, &b);
    if (rows > 64)
        printf("%-44s %10.1f TFLOP/s\n", "", 2e-6 * rows * (double)weights / us);
    for (int i = 0; i < b.sets; i++)
        kern_buf_free(b.w[i]);
    kern_buf_free(b.x);
    kern_buf_free(b.y);
}

static void bench_linears(void)
{
    static const struct {
        const char *name;
        int n, k;
    } shapes[] = {{"qkv", WIDTH, HIDDEN},
                  {"o", HIDDEN, HIDDEN},
                  {"gate+up", 2 * FFN, HIDDEN},
                  {"down", HIDDEN, FFN},
                  {"head", 151936, HIDDEN}};
    static const int rows[] = {16, 32, 64, 128, 512, 2048, 4096};
    for (size_t r = 0; r < KT_COUNT(rows); r++)
        for (size_t i = 0; i < KT_COUNT(shapes) - (rows[r] > 64); i++)
            bench_linear(shapes[i].name, rows[r], shapes[i].n, shapes[i].k);
    bench_linear("square", 8192, 8192, 8192);
}

enum { VOCAB_ROWS_MAX = 512 };

typedef struct vocab_bench {
    kern_buf *logits, *sample, *norm, *pick;
    int rows, shard;
} vocab_bench;

static void call_norm(void *ctx, int i)
{
    (void)i;
    vocab_bench *b = ctx;
    KT_OK(kern_vocab_norm(pt_gpu[PT_BF16], &(kern_vocab_norm_args){b->logits, b->sample, b->norm,
                                                                   b->rows, b->shard}));
}

static void call_pick(void *ctx, int i)
{
    (void)i;
    vocab_bench *b = ctx;
    KT_OK(kern_vocab_pick(pt_gpu[PT_BF16],
                          &(kern_vocab_pick_args){b->logits, b->sample, NULL, b->pick, b->rows,
                                                  b->shard, 0, 151935}));
}

static void bench_vocab(int rows)
{
    vocab_bench b = {.rows = rows, .shard = 151936};
    const size_t count = (size_t)b.rows * (size_t)b.shard;
    kern_sample_row sample[VOCAB_ROWS_MAX];
    char name[32];
    for (int r = 0; r < rows; r++)
        sample[r] = (kern_sample_row){.inv_temperature = 1.0f, .greedy = true, .top_p = 1.0f};
    b.logits = bench_random(KERN_F32, count);
    b.sample = bench_ints((const int32_t *)sample, (size_t)rows * KERN_SAMPLE_WORDS);
    b.norm = bench_random(KERN_F32, (size_t)rows * KERN_NORM_WORDS);
    b.pick = bench_random(KERN_F32, (size_t)rows * KERN_PICK_WORDS);
    snprintf(name, sizeof name, "vocab_norm, %d rows", rows);
    bench_line(name, 4.0 * (double)count, call_norm, &b);
    snprintf(name, sizeof name, "vocab_pick, %d rows", rows);
    bench_line(name, 4.0 * (double)count, call_pick, &b);
    kern_buf_free(b.logits);
    kern_buf_free(b.sample);
    kern_buf_free(b.norm);
    kern_buf_free(b.pick);
}

static void call_rmsnorm(void *ctx, int i)
{
    (void)i;
    kern_buf *const *b = ctx;
    KT_OK(kern_rmsnorm(pt_gpu[PT_BF16],
                       &(kern_rmsnorm_args){b[0], b[1], b[2], b[3], 16, HIDDEN, 1e-6f}));
}

static void bench_rmsnorm(void)
{
    kern_buf *b[4];
    for (int i = 0; i < 4; i++)
        b[i] = bench_random(KERN_F32, i == 2 ? HIDDEN : 16 * HIDDEN);
    bench_line("rmsnorm with add, 16 rows", 16.0 * 16 * HIDDEN, call_rmsnorm, b);
    for (int i = 0; i < 4; i++)
        kern_buf_free(b[i]);
}

void bench_dense(void)
{
    bench_linears();
    bench_rmsnorm();
    bench_vocab(16);
    bench_vocab(VOCAB_ROWS_MAX);
}
