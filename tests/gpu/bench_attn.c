// SPDX-License-Identifier: Apache-2.0
// Times attention at the shapes of an SDAR-8B layer: the dense prefix, and a later step
// of the sparse policies, whole and stage by stage.
#include "tests/gpu/bench.h"

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, PAGE = 16, WIDTH = (HEADS + 2 * KV_HEADS) * DIM };
static const float scale = 0.088f;

typedef struct attn_bench {
    kern_batch batch;
    kern_plan plan;
    kern_kept_lists kept;
    kern_kv kv[BENCH_SETS];
    int sets;
    int top, keeps; // pages that a row takes by score, and of its kept list
    kern_buf *qkv, *o, *lse, *out, *score, *cache_o, *cache_lse;
    kern_buf *page_lse; // NULL: nothing is measured
    kern_buf *owned[24];
    int owned_count;
} attn_bench;

static kern_buf *own(attn_bench *b, kern_buf *buf)
{
    assert_true(b->owned_count < (int)KT_COUNT(b->owned));
    return b->owned[b->owned_count++] = buf;
}

// out[i] = base + i / each * step.
static kern_buf *steps(attn_bench *b, int count, int base, int each, int step)
{
    int32_t *values = kt_ints((size_t)count);
    for (int i = 0; i < count; i++)
        values[i] = base + i / each * step;
    kern_buf *buf = own(b, bench_ints(values, (size_t)count));
    rt_free(values);
    return buf;
}

static void open_batch(attn_bench *b, int requests, int block, int prefix, int active)
{
    const int pages = prefix / PAGE, rows = requests * block, tokens = requests * pages;
    int32_t *host = kt_ints((size_t)(tokens > rows ? tokens : rows));
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
    batch->pos = own(b, bench_ints(host, (size_t)rows));
    for (int r = 0; r < rows; r++) // spread over the block
        host[r] = r % block * active % block < active ? KERN_ROW_MASKED : 0;
    batch->row_state = own(b, bench_ints(host, (size_t)rows));
    for (int i = 0; i < tokens; i++) // neighbours apart, as after some traffic
        host[i] = (int32_t)((int64_t)i * 7919 % tokens);
    batch->page_table = own(b, bench_ints(host, (size_t)tokens));
    rt_free(host);
    batch->cache_slot = steps(b, rows, 0, 1, 1);
    batch->row_seg = steps(b, rows, 0, block, 1);
    batch->seg_row0 = steps(b, requests + 1, 0, 1, block);
    batch->seg_kind = steps(b, requests, KERN_SEG_STEP, 1, 0);
    batch->seg_slot = steps(b, requests, 0, 1, 1);
    batch->seg_mass = batch->seg_slot;
    batch->kv_slot = steps(b, rows, -1, 1, 0);
    b->plan = (kern_plan){.lists = 1, .act_cap = block};
    b->plan.act_rows = steps(b, rows, 0, 1, 1);
    b->plan.act_count = steps(b, requests, block, 1, 0);
    b->plan.pages = steps(b, tokens, 0, 1, 0);
    b->plan.page_count = steps(b, requests, -1, 1, 0);
}

// `requests` requests of one block in a later step behind `prefix` tokens.
static attn_bench *open_attn(int requests, int block, int prefix, int active)
{
    attn_bench *b = kt_alloc(1, sizeof *b);
    open_batch(b, requests, block, prefix, active);
    const size_t rows = (size_t)(requests * block), pages = (size_t)(requests * (prefix / PAGE));
    const size_t meta = pages * KV_HEADS * DIM;
    b->sets = bench_sets(4 * meta * PAGE);
    for (int i = 0; i < b->sets; i++)
        b->kv[i] = (kern_kv){bench_random(KERN_BF16, meta * PAGE),
                             bench_random(KERN_BF16, meta * PAGE),
                             bench_bytes(meta, 1, 127), // of either sign
                             bench_bytes(meta, 129, 255),
                             bench_bytes(meta / KERN_BOUND_GROUP, 7, 8),
                             (int)pages,
                             KV_HEADS,
                             DIM};
    b->qkv = own(b, bench_random(KERN_F32, rows * WIDTH));
    b->o = own(b, bench_random(KERN_F32, rows * HEADS * DIM));
    b->lse = own(b, bench_random(KERN_F32, rows * HEADS));
    b->out = own(b, bench_random(KERN_F32, rows * HEADS * DIM));
    b->cache_o = own(b, bench_random(KERN_F32, rows * HEADS * DIM));
    b->cache_lse = own(b, bench_random(KERN_F32, rows * HEADS));
    b->score = own(b, bench_random(KERN_F32, rows * (size_t)(prefix / PAGE)));
    enum { KEPT = 16 };
    b->kept = (kern_kept_lists){steps(b, requests * KEPT, 0, 1, 0), steps(b, requests, KEPT, 1, 0),
                                1, KEPT};
    int32_t kept[KEPT];
    for (int i = 0; i < KEPT; i++)
        kept[i] = i * (prefix / PAGE / KEPT);
    for (int r = 0; r < requests; r++)
        KT_OK(kern_write(b->kept.pages, (size_t)(r * KEPT), kept, KEPT));
    return b;
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
        kern_buf_free(b->kv[i].kstep);
    }
    rt_free(b);
}

// ---- stages ------------------------------------------------------------------------

static void call_active(void *ctx, int i)
{
    (void)i;
    attn_bench *b = ctx;
    KT_OK(kern_active(pt_gpu[PT_BF16], &(kern_active_args){.batch = &b->batch,
                                                           .delta = b->lse,
                                                           .rule = KERN_ACTIVE_UNSETTLED,
                                                           .plan = &b->plan}));
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
                                                                   .scale = scale,
                                                                   .score_lists = 1,
                                                                   .score = b->score}));
}

static void call_select(void *ctx, int i)
{
    (void)i;
    attn_bench *b = ctx;
    kern_page_select_args args = {.score = b->score,
                                  .batch = &b->batch,
                                  .score_lists = 1,
                                  .kept = &b->kept,
                                  .plan = &b->plan};
    for (int kind = 0; kind < KERN_SEG_KINDS; kind++)
        args.choice[kind] = (kern_page_choice){b->top, b->keeps > 0, 0};
    KT_OK(kern_page_select(pt_gpu[PT_BF16], &args));
}

static void call_attn(void *ctx, int i)
{
    attn_bench *b = ctx;
    KT_OK(kern_attn(pt_gpu[PT_BF16], &(kern_attn_args){.qkv = b->qkv,
                                                       .kv = b->kv[i % b->sets],
                                                       .batch = &b->batch,
                                                       .plan = &b->plan,
                                                       .heads = HEADS,
                                                       .scale = scale,
                                                       .o = b->o,
                                                       .lse = b->lse,
                                                       .page_lse = b->page_lse,
                                                       .cache_o = b->cache_o,
                                                       .cache_lse = b->cache_lse,
                                                       .out = b->out}));
}

static void call_mass(void *ctx, int i)
{
    attn_bench *b = ctx;
    call_attn(ctx, i);
    KT_OK(kern_page_mass(pt_gpu[PT_BF16], &(kern_page_mass_args){.page_lse = b->page_lse,
                                                                 .lse = b->lse,
                                                                 .batch = &b->batch,
                                                                 .plan = &b->plan,
                                                                 .heads = HEADS,
                                                                 .kv_heads = KV_HEADS,
                                                                 .score_lists = 1,
                                                                 .mass = b->score}));
}

// Attention of one layer in a later step.
static void call_step(void *ctx, int i)
{
    attn_bench *b = ctx;
    call_active(b, i);
    if (b->top > 0)
        call_score(b, i);
    if (b->top > 0 || b->keeps > 0)
        call_select(b, i);
    call_attn(b, i);
}

// ---- tables ------------------------------------------------------------------------

static void dense_line(int requests, int block, int prefix, double ceiling)
{
    attn_bench *b = open_attn(requests, block, prefix, block);
    const double bytes = 4.0 * requests * prefix * KV_HEADS * DIM;
    const double us = bench_time(call_attn, b), floor = bytes / ceiling * 1e6;
    printf("dense, %d x block %-4d %4dK %10.1f us  floor %6.1f  %5.1f %%", requests, block,
           prefix >> 10, us, floor, 100.0 * floor / us);
    b->batch.mass_segs = requests;
    b->page_lse =
        own(b, bench_random(KERN_F32, (size_t)b->batch.rows * HEADS * (size_t)b->batch.max_pages));
    printf("  with page sums %.1f", bench_time(call_attn, b));
    printf(", and mass %.1f\n", bench_time(call_mass, b));
    fflush(stdout);
    close_attn(b);
}

// Rows of several blocks of a request, all of which read everything.
static attn_bench *open_blocks(int rows, int block, int prefix)
{
    attn_bench *b = open_attn(1, rows, prefix + rows, rows);
    b->batch.block = block;
    b->batch.pos = steps(b, rows, prefix, 1, 1);
    b->batch.sparse_segs = b->batch.sparse_rows = b->batch.scan_segs = 0;
    return b;
}

// A chunk of a prompt, in blocks of 16: products count, not bytes.
static void prefill_line(int rows, int prefix)
{
    attn_bench *b = open_blocks(rows, 16, prefix);
    const double products = 4.0 * rows * HEADS * (prefix + 0.5 * rows) * DIM;
    const double us = bench_time(call_attn, b);
    printf("prefill, %d rows behind %dK %24.1f us  %6.1f TFLOP/s\n", rows, prefix >> 10, us,
           products / us * 1e-6);
    close_attn(b);
}

// A first step with the commit of the block before it.
static void first_line(int block, int prefix)
{
    attn_bench *b = open_blocks(2 * block, block, prefix);
    printf("first step, block %d %dK %33.1f us\n", block, prefix >> 10, bench_time(call_attn, b));
    close_attn(b);
}

void bench_attention(void)
{
    const int prefixes[] = {4, 16, 32, 64, 128};
    const double ceiling = bench_read_ceiling();
    for (int block = 16; block <= 32; block *= 2)
        for (size_t i = 0; i < KT_COUNT(prefixes); i++)
            dense_line(1, block, prefixes[i] << 10, ceiling);
    dense_line(8, 16, 32 << 10, ceiling);
    dense_line(8, 32, 32 << 10, ceiling);
    first_line(16, 64 << 10);
    first_line(32, 64 << 10);
    prefill_line(512, 16 << 10);
    prefill_line(2048, 16 << 10);
}

typedef struct sparse_policy {
    const char *name;
    int top, keeps; // pages
} sparse_policy;

static double stage(attn_bench *b, bench_fn *call)
{
    for (int i = 0; i < 2; i++) // leaves a plan that the stage can use
        call_step(b, i);
    return bench_time(call, b);
}

static void policy_line(attn_bench *b, const sparse_policy *policy, double dense)
{
    b->top = policy->top;
    b->keeps = policy->keeps;
    b->batch.scan_segs = policy->top ? b->batch.sparse_segs : 0;
    const double step = bench_time(call_step, b);
    printf("  %-16s %7.1f us %5.1f x  score %5.1f  select %5.1f  attend %5.1f", policy->name, step,
           dense / step, policy->top ? stage(b, call_score) : 0.0, stage(b, call_select),
           stage(b, call_attn));
    int32_t count;
    KT_OK(kern_read(b->plan.page_count, 0, &count, 1));
    printf("  pages %d\n", count);
    fflush(stdout);
}

static void sparse_table(int requests, int block, int prefix, int active)
{
    static const sparse_policy policies[] = {{"losa 256", 16, 0},
                                             {"losa-mix 256+64", 4, 16},
                                             {"losa-mass 256", 0, 16},
                                             {"losa 1024", 64, 0}};
    attn_bench *b = open_attn(requests, block, prefix, active);
    b->batch.sparse_segs = b->batch.sparse_rows = b->batch.scan_segs = 0;
    const double dense = bench_time(call_step, b);
    printf("step, %d x block %d, %d active, %dK: dense %.1f us, active set %.1f\n", requests, block,
           active, prefix >> 10, dense, bench_time(call_active, b));
    b->batch.sparse_segs = requests;
    b->batch.sparse_rows = b->batch.rows;
    for (size_t i = 0; i < KT_COUNT(policies); i++)
        policy_line(b, &policies[i], dense);
    close_attn(b);
}

void bench_sparse(void)
{
    sparse_table(1, 16, 32 << 10, 5);
    sparse_table(1, 16, 64 << 10, 5);
    sparse_table(1, 16, 128 << 10, 5);
    sparse_table(8, 16, 32 << 10, 5);
    sparse_table(1, 32, 32 << 10, 10);
    sparse_table(1, 32, 128 << 10, 10);
}
