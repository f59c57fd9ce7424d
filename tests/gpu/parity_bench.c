// SPDX-License-Identifier: Apache-2.0
// Times the operations on the GPU at the shapes of an SDAR-8B layer: events around
// runs of calls that rotate over buffers larger than the L2 together; medians.
#include "kernels/cuda/cuda_int.h"
#include "tests/gpu/parity.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, PAGE = 16, HIDDEN = 4096, FFN = 12288 };
enum { CALLS = 8, SAMPLES = 15, L2_BYTES = 200 << 20, WIDTH = (HEADS + 2 * KV_HEADS) * DIM };

// One thing to time: call(ctx, i) enqueues its i-th call.
typedef void bench_fn(void *ctx, int i);

static int compare(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// Microseconds of a call, prefixed to a table line with the bytes it must move.
static double measure(const char *name, double bytes, bench_fn *call, void *ctx)
{
    kern_dev *dev = pt_gpu[PT_BF16];
    struct CUstream_st *stream = kern_cuda_of(dev)->ctx.stream;
    cudaEvent_t begin, end;
    float us[SAMPLES];
    int n = 0;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int s = -3; s < SAMPLES; s++) {
        cudaEventRecord(begin, stream);
        for (int i = 0; i < CALLS; i++)
            call(ctx, n++);
        cudaEventRecord(end, stream);
        cudaEventSynchronize(end);
        float ms;
        cudaEventElapsedTime(&ms, begin, end);
        if (s >= 0)
            us[s] = ms * 1000.0f / CALLS;
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    qsort(us, SAMPLES, sizeof *us, compare);
    const double median = (double)us[SAMPLES / 2];
    printf("%-44s %10.1f us %9.2f MB %8.0f GB/s\n", name, median, bytes * 1e-6,
           bytes / median * 1e-3);
    fflush(stdout);
    return median;
}

// A buffer of random values, by doubling what the first part holds.
static kern_buf *random_buf(kern_dtype dtype, size_t count)
{
    enum { PART = 1 << 20 };
    kern_dev *dev = pt_gpu[PT_BF16];
    kt_rng rng = {count};
    const size_t part = count < PART ? count : PART;
    float *values = kt_random(&rng, part, 1.0f);
    kern_buf *buf;
    KT_OK(kern_buf_new(dev, dtype, count, "bench", &buf));
    KT_OK(kern_upload(&(kern_upload_args){
        .dst = buf, .src = values, .dtype = KERN_F32, .rows = 1, .cols = part, .stride = part}));
    for (size_t have = part; have < count; have *= 2)
        KT_OK(kern_copy(buf, have, buf, 0, count - have < have ? count - have : have));
    rt_free(values);
    return buf;
}

static kern_buf *ints(const int32_t *values, size_t count)
{
    kern_buf *buf;
    KT_OK(kern_buf_new(pt_gpu[PT_BF16], KERN_I32, count, "bench", &buf));
    KT_OK(kern_write(buf, 0, values, count));
    return buf;
}

// ---- attention ---------------------------------------------------------------------

enum { SETS_MAX = 16 };

typedef struct attn_bench {
    kern_batch batch;
    kern_plan plan;
    kern_kv kv[SETS_MAX];
    int sets, rows;
    kern_buf *qkv, *o, *lse, *out, *score, *cache_o, *cache_lse;
    kern_buf *owned[20];
    int owned_count;
} attn_bench;

static kern_buf *own(attn_bench *b, kern_buf *buf)
{
    assert_true(b->owned_count < (int)KT_COUNT(b->owned));
    b->owned[b->owned_count++] = buf;
    return buf;
}

// `requests` requests of one block in a later step, behind `prefix` tokens; `active`
// rows read `listed` pages (0: all).
static void open_attn(attn_bench *b, int requests, int block, int prefix, int active, int listed)
{
    *b = (attn_bench){.rows = requests * block};
    const int pages = prefix / PAGE, rows = b->rows;
    const size_t n = (size_t)rows, tokens = (size_t)requests * (size_t)pages;
    int32_t *host = kt_ints((size_t)(requests + 1) * (size_t)(pages + rows));
    kern_batch *batch = &b->batch;
    *batch = (kern_batch){.rows = rows,
                          .segs = requests,
                          .sparse_rows = rows,
                          .sparse_segs = requests,
                          .scan_segs = requests,
                          .block = block,
                          .page = PAGE,
                          .max_pages = pages};
    for (int r = 0; r < rows; r++)
        host[r] = prefix + r % block;
    batch->pos = own(b, ints(host, n));
    for (int r = 0; r < rows; r++)
        host[r] = r;
    batch->cache_slot = own(b, ints(host, n));
    for (int r = 0; r < rows; r++)
        host[r] = r / block;
    batch->row_seg = own(b, ints(host, n));
    for (int s = 0; s <= requests; s++)
        host[s] = s * block;
    batch->seg_row0 = own(b, ints(host, (size_t)requests + 1));
    for (int s = 0; s < requests; s++)
        host[s] = KERN_SEG_STEP;
    batch->seg_kind = own(b, ints(host, (size_t)requests));
    for (size_t i = 0; i < tokens; i++) // neighbours apart, as after some traffic
        host[i] = (int32_t)(i * 7919 % tokens);
    batch->page_table = own(b, ints(host, tokens));
    b->plan = (kern_plan){.lists = 1, .act_cap = block};
    for (int r = 0; r < rows; r++)
        host[r] = r / block * block + r % block * block / active % block;
    b->plan.act_rows = own(b, ints(host, n));
    for (int s = 0; s < requests; s++)
        host[s] = active;
    b->plan.act_count = own(b, ints(host, (size_t)requests));
    for (int s = 0; s < requests; s++)
        for (int g = 0; g < pages; g++)
            host[s * pages + g] = listed ? g * (pages / listed) % pages : g;
    b->plan.pages = own(b, ints(host, tokens));
    for (int s = 0; s < requests; s++)
        host[s] = listed ? listed : -1;
    b->plan.page_count = own(b, ints(host, (size_t)requests));
    rt_free(host);
    const size_t meta = tokens * KV_HEADS * DIM;
    b->sets = (int)(L2_BYTES / (meta * PAGE * 4)) + 2;
    b->sets = b->sets > SETS_MAX ? SETS_MAX : b->sets;
    for (int i = 0; i < b->sets; i++)
        b->kv[i] = (kern_kv){random_buf(KERN_BF16, meta * PAGE),
                             random_buf(KERN_BF16, meta * PAGE),
                             random_buf(KERN_F32, meta),
                             random_buf(KERN_F32, meta),
                             (int)tokens,
                             KV_HEADS,
                             DIM};
    b->qkv = own(b, random_buf(KERN_F32, n * WIDTH));
    b->o = own(b, random_buf(KERN_F32, n * HEADS * DIM));
    b->lse = own(b, random_buf(KERN_F32, n * HEADS));
    b->out = own(b, random_buf(KERN_F32, n * HEADS * DIM));
    b->cache_o = own(b, random_buf(KERN_F32, n * HEADS * DIM));
    b->cache_lse = own(b, random_buf(KERN_F32, n * HEADS));
    b->score = own(b, random_buf(KERN_F32, n * (size_t)pages));
}

static void close_attn(attn_bench *b)
{
    for (int i = 0; i < b->owned_count; i++)
        kern_buf_free(b->owned[i]);
    for (int i = 0; i < b->sets; i++) {
        kern_buf_free(b->kv[i].k);
        kern_buf_free(b->kv[i].v);
        kern_buf_free(b->kv[i].kmin);
        kern_buf_free(b->kv[i].kmax);
    }
}

static void call_prefix(void *ctx, int i)
{
    attn_bench *b = ctx;
    KT_OK(kern_attn_prefix(pt_gpu[PT_BF16], &(kern_attn_prefix_args){.q = b->qkv,
                                                                     .stride = WIDTH,
                                                                     .kv = b->kv[i % b->sets],
                                                                     .batch = &b->batch,
                                                                     .plan = &b->plan,
                                                                     .heads = HEADS,
                                                                     .scale = 0.088f,
                                                                     .o = b->o,
                                                                     .lse = b->lse}));
}

static void call_score(void *ctx, int i)
{
    attn_bench *b = ctx;
    KT_OK(kern_page_score(pt_gpu[PT_BF16], &(kern_page_score_args){.q = b->qkv,
                                                                   .stride = WIDTH,
                                                                   .kv = b->kv[i % b->sets],
                                                                   .batch = &b->batch,
                                                                   .plan = &b->plan,
                                                                   .heads = HEADS,
                                                                   .scale = 0.088f,
                                                                   .score_lists = 1,
                                                                   .score = b->score}));
}

static void call_select(void *ctx, int i)
{
    (void)i;
    attn_bench *b = ctx;
    kern_page_select_args args = {
        .score = b->score, .batch = &b->batch, .score_lists = 1, .plan = &b->plan};
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        args.choice[kind].top = 16;
    KT_OK(kern_page_select(pt_gpu[PT_BF16], &args));
}

static void call_merge(void *ctx, int i)
{
    (void)i;
    attn_bench *b = ctx;
    KT_OK(kern_attn_merge(pt_gpu[PT_BF16], &(kern_attn_merge_args){.qkv = b->qkv,
                                                                   .batch = &b->batch,
                                                                   .plan = &b->plan,
                                                                   .heads = HEADS,
                                                                   .kv_heads = KV_HEADS,
                                                                   .head_dim = DIM,
                                                                   .scale = 0.088f,
                                                                   .o = b->o,
                                                                   .lse = b->lse,
                                                                   .cache_o = b->cache_o,
                                                                   .cache_lse = b->cache_lse,
                                                                   .out = b->out}));
}

static void bench_dense_attention(int requests, int block, int prefix)
{
    attn_bench b;
    char name[64];
    open_attn(&b, requests, block, prefix, block, 0);
    snprintf(name, sizeof name, "prefix dense, %d x block %d, %dK", requests, block, prefix >> 10);
    const double bytes = 4.0 * requests * prefix * KV_HEADS * DIM;
    measure(name, bytes, call_prefix, &b);
    close_attn(&b);
}

static void bench_sparse_attention(int requests, int prefix)
{
    attn_bench b;
    char name[64];
    enum { ACTIVE = 5, LISTED = 64 };
    open_attn(&b, requests, 16, prefix, ACTIVE, LISTED);
    const double scan = 8.0 * requests * (prefix / PAGE) * KV_HEADS * DIM;
    snprintf(name, sizeof name, "page_score, %d x 5 rows, %dK", requests, prefix >> 10);
    measure(name, scan, call_score, &b);
    snprintf(name, sizeof name, "prefix, %d x 5 rows, 64 pages, %dK", requests, prefix >> 10);
    measure(name, 4.0 * requests * LISTED * PAGE * KV_HEADS * DIM, call_prefix, &b);
    snprintf(name, sizeof name, "page_select, %d x 5 rows, %dK", requests, prefix >> 10);
    measure(name, 4.0 * requests * ACTIVE * (prefix / PAGE), call_select, &b);
    measure("attn_merge", 4.0 * requests * 16 * (WIDTH + 3 * HEADS * DIM), call_merge, &b);
    close_attn(&b);
}

// ---- dense layers and vocabulary ------------------------------------------------------

typedef struct linear_bench {
    kern_buf *x, *y, *w[SETS_MAX];
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
    b.sets = (int)(L2_BYTES / (2 * weights)) + 2;
    b.sets = b.sets > SETS_MAX ? SETS_MAX : b.sets;
    for (int i = 0; i < b.sets; i++)
        b.w[i] = random_buf(KERN_BF16, weights);
    b.x = random_buf(KERN_F32, (size_t)(rows * k));
    b.y = random_buf(KERN_F32, (size_t)rows * (size_t)n);
    measure(name, 2.0 * (double)weights, call_linear, &b);
    for (int i = 0; i < b.sets; i++)
        kern_buf_free(b.w[i]);
    kern_buf_free(b.x);
    kern_buf_free(b.y);
}

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

static void bench_vocab(void)
{
    vocab_bench b = {.rows = 16, .shard = 151936};
    const size_t count = (size_t)b.rows * (size_t)b.shard;
    kern_sample_row sample[16];
    for (int r = 0; r < 16; r++)
        sample[r] = (kern_sample_row){.inv_temperature = 1.0f, .greedy = r < 8, .top_p = 1.0f};
    b.logits = random_buf(KERN_F32, count);
    b.sample = ints((const int32_t *)sample, 16 * KERN_SAMPLE_WORDS);
    b.norm = random_buf(KERN_F32, 16 * KERN_NORM_WORDS);
    b.pick = random_buf(KERN_F32, 16 * KERN_PICK_WORDS);
    measure("vocab_norm, 16 rows", 4.0 * (double)count, call_norm, &b);
    measure("vocab_pick, 16 rows", 4.0 * (double)count, call_pick, &b);
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
        b[i] = random_buf(KERN_F32, i == 2 ? HIDDEN : 16 * HIDDEN);
    measure("rmsnorm with add, 16 rows", 16.0 * 16 * HIDDEN, call_rmsnorm, b);
    for (int i = 0; i < 4; i++)
        kern_buf_free(b[i]);
}

int pt_bench(void)
{
    const int prefixes[] = {4, 16, 32, 64, 128};
    for (int block = 16; block <= 32; block *= 2)
        for (size_t i = 0; i < KT_COUNT(prefixes); i++)
            bench_dense_attention(1, block, prefixes[i] << 10);
    bench_dense_attention(8, 16, 32 << 10);
    bench_dense_attention(1, 512, 16 << 10);
    bench_sparse_attention(1, 32 << 10);
    bench_sparse_attention(1, 128 << 10);
    bench_sparse_attention(8, 32 << 10);
    bench_linear("linear qkv 16 x 6144 x 4096", 16, WIDTH, HIDDEN);
    bench_linear("linear gate+up 16 x 24576 x 4096", 16, 2 * FFN, HIDDEN);
    bench_linear("linear down 16 x 4096 x 12288", 16, HIDDEN, FFN);
    bench_linear("linear head 16 x 151936 x 4096", 16, 151936, HIDDEN);
    bench_linear("linear gate+up 512 x 24576 x 4096", 512, 2 * FFN, HIDDEN);
    bench_rmsnorm();
    bench_vocab();
    return 0;
}
