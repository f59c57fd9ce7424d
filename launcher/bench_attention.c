// SPDX-License-Identifier: Apache-2.0
// losa bench attention: one layer of LoSA attention over a random prefix, with its
// locality, exchange, plan, prefix attention and merge; no model.
#include "launcher/bench.h"

#include "losa/attention.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

// A block of one request on this rank, and the layer's pages.
typedef struct layer {
    par_group group;
    par_plan plan;
    losa_state *losa;
    kern_kv kv;
    kern_batch batch;
    kern_buf *ints[9]; // the batch's arrays
    kern_buf *qkv, *x, *out;
    int qkv_cols;
} layer;

static int block_of(const bench_args *args)
{
    return args->block ? args->block : 16;
}

static rt_status fill_normal(kern_dev *dev, kern_buf *buf, uint64_t seed)
{
    const kern_fill_normal_args fill = {
        .dst = buf, .count = kern_buf_count(buf), .seed = seed, .scale = 1.0f};
    return kern_fill_normal(dev, &fill);
}

static rt_status new_buf(const layer *l, kern_dtype dtype, size_t count, kern_buf **out)
{
    return kern_buf_new(l->group.dev, dtype, count, "benchmark", out);
}

static rt_status new_ints(layer *l, int index, const int32_t *values, size_t count)
{
    RT_TRY(new_buf(l, KERN_I32, count, &l->ints[index]));
    return kern_write(l->ints[index], 0, values, count);
}

// Random keys and values, written to the pages a chunk at a time would take as long as
// the measurement: they are filled in place, and each page's min and max lie around them.
static rt_status open_pages(layer *l, const bench_args *args, int pages)
{
    const size_t meta = (size_t)pages * (size_t)l->plan.kv_heads.count * (size_t)args->head_dim;
    const size_t tokens = meta * (size_t)args->attention.config.page;
    l->kv.pages = pages;
    l->kv.kv_heads = l->plan.kv_heads.count;
    l->kv.head_dim = args->head_dim;
    const kern_dtype dtype = kern_dev_kv_dtype(l->group.dev);
    RT_TRY(new_buf(l, dtype, tokens, &l->kv.k));
    RT_TRY(new_buf(l, dtype, tokens, &l->kv.v));
    RT_TRY(new_buf(l, KERN_F32, meta, &l->kv.kmin));
    RT_TRY(new_buf(l, KERN_F32, meta, &l->kv.kmax));
    RT_TRY(fill_normal(l->group.dev, l->kv.k, 1));
    RT_TRY(fill_normal(l->group.dev, l->kv.v, 2));
    RT_TRY(fill_normal(l->group.dev, l->kv.kmin, 3));
    return fill_normal(l->group.dev, l->kv.kmax, 4);
}

// One segment: the block that follows `prefix` tokens. The first `active` rows are
// masked, the others settled.
static rt_status open_batch(layer *l, const bench_args *args, int prefix, int pages)
{
    const int block = block_of(args);
    const size_t rows = (size_t)block;
    int32_t *host;
    RT_TRY(RT_ALLOC(host, rows * 5 + (size_t)pages, "benchmark"));
    int32_t *pos = host, *state = pos + block, *zero = state + block, *none = zero + block;
    int32_t *cache = none + block, *table = cache + block;
    for (int i = 0; i < block; i++) {
        pos[i] = prefix + i;
        state[i] = i < args->active ? KERN_ROW_MASKED : 0;
        none[i] = -1;
        cache[i] = losa_uses_cache(&args->attention.config) ? i : -1;
    }
    for (int i = 0; i < pages; i++)
        table[i] = i;
    const int32_t row0[] = {0, block};
    rt_status status;
    RT_TRY_GOTO(status, new_ints(l, 0, pos, rows), free_host);
    RT_TRY_GOTO(status, new_ints(l, 1, state, rows), free_host);
    RT_TRY_GOTO(status, new_ints(l, 2, zero, rows), free_host);
    RT_TRY_GOTO(status, new_ints(l, 3, row0, 2), free_host);
    RT_TRY_GOTO(status, new_ints(l, 4, zero, 1), free_host);
    RT_TRY_GOTO(status, new_ints(l, 5, zero, 1), free_host);
    RT_TRY_GOTO(status, new_ints(l, 6, table, (size_t)pages), free_host);
    RT_TRY_GOTO(status, new_ints(l, 7, none, rows), free_host);
    RT_TRY_GOTO(status, new_ints(l, 8, cache, rows), free_host);
free_host:
    rt_free(host);
    l->batch = (kern_batch){
        .rows = block,
        .segs = 1,
        .block = block,
        .page = args->attention.config.page,
        .max_pages = pages,
        .ids = l->ints[2],
        .pos = l->ints[0],
        .row_state = l->ints[1],
        .row_seg = l->ints[2],
        .seg_row0 = l->ints[3],
        .seg_kind = l->ints[4],
        .seg_slot = l->ints[2],
        .seg_mass = l->ints[5],
        .page_table = l->ints[6],
        .kv_slot = l->ints[7],
        .cache_slot = l->ints[8],
    };
    return status;
}

static rt_status open_layer(layer *l, comm *c, const bench_args *args, int prefix)
{
    const int page = args->attention.config.page;
    const int pages = (prefix + page - 1) / page + 1;
    const par_shape shape = {args->heads, args->kv_heads, comm_ranks(c), comm_ranks(c)};
    RT_TRY(par_plan_make(&shape, comm_rank(c), comm_ranks(c), &l->plan));
    l->qkv_cols = (l->plan.heads.count + 2 * l->plan.kv_heads.count) * args->head_dim;
    const losa_limits limits = {
        .layers = 1,
        .head_dim = args->head_dim,
        .hidden = args->head_dim,
        .block = block_of(args),
        .rows = block_of(args),
        .segs = 1,
        .max_pages = pages,
        .sessions = 1,
    };
    RT_TRY(losa_open(&l->group, &l->plan, &args->attention.config, &limits, &l->losa));
    RT_TRY(open_pages(l, args, pages));
    RT_TRY(open_batch(l, args, prefix, pages));
    const size_t rows = (size_t)block_of(args);
    RT_TRY(new_buf(l, KERN_F32, rows * (size_t)l->qkv_cols, &l->qkv));
    RT_TRY(new_buf(l, KERN_F32, rows * (size_t)args->head_dim, &l->x));
    RT_TRY(new_buf(l, KERN_F32, rows * (size_t)(l->plan.heads.count * args->head_dim), &l->out));
    return fill_normal(l->group.dev, l->qkv, 5);
}

static void close_layer(layer *l)
{
    losa_close(l->losa);
    kern_buf *const owned[] = {l->kv.k, l->kv.v, l->kv.kmin, l->kv.kmax, l->qkv, l->x, l->out};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        kern_buf_free(owned[i]);
    for (size_t i = 0; i < sizeof l->ints / sizeof l->ints[0]; i++)
        kern_buf_free(l->ints[i]);
    comm_detach(l->group.comm);
    kern_dev_close(l->group.dev);
}

// One forward of the layer as a segment of this kind; its time and what it read.
static rt_status run_layer(layer *l, const bench_args *args, int kind, double *ms,
                           int64_t counts[KERN_COUNT_N])
{
    const losa_config *config = &args->attention.config;
    const losa_reading reading = losa_reading_of(config, kind);
    const int32_t seg_kind = kind, number = reading.measures ? 0 : -1;
    RT_TRY(kern_write(l->ints[4], 0, &seg_kind, 1));
    RT_TRY(kern_write(l->ints[5], 0, &number, 1));
    l->batch.sparse_segs = reading.sparse ? 1 : 0;
    l->batch.sparse_rows = reading.sparse ? block_of(args) : 0;
    l->batch.scan_segs = reading.choice.top > 0 ? 1 : 0;
    l->batch.mass_segs = reading.measures ? 1 : 0;
    const losa_layer_args layer_args = {
        .layer = 0, .batch = &l->batch, .qkv = l->qkv, .x = l->x, .kv = l->kv, .out = l->out};
    RT_TRY(comm_ctl_barrier(l->group.comm));
    RT_TRY(losa_begin(l->losa, 1));
    const double start = rt_clock_now();
    RT_TRY(losa_layer(l->losa, &layer_args));
    RT_TRY(kern_sync(l->group.dev));
    *ms = 1e3 * (rt_clock_now() - start);
    return kern_read(losa_counts(l->losa), 0, counts, KERN_COUNT_N);
}

static rt_status measure(layer *l, const bench_args *args, int prefix, json_t **out)
{
    double *ms;
    int64_t counts[KERN_COUNT_N];
    RT_TRY(RT_ALLOC(ms, (size_t)args->repeats, "times"));
    rt_status status = RT_OK;
    for (int i = 0; i < args->repeats && status == RT_OK; i++)
        status = run_layer(l, args, KERN_SEG_OPEN, &ms[i], counts);
    const double first = bench_median(ms, (size_t)args->repeats);
    for (int i = 0; i < args->repeats && status == RT_OK; i++)
        status = run_layer(l, args, KERN_SEG_STEP, &ms[i], counts);
    const double later = bench_median(ms, (size_t)args->repeats);
    rt_free(ms);
    RT_TRY(status);
    *out = json_pack("{s:i, s:s, s:i, s:i, s:f, s:f, s:f, s:f}", "prefix", prefix, "attention",
                     args->attention.config.policy->name, "budget", args->attention.config.budget,
                     "active", (int)counts[KERN_COUNT_ACTIVE], "density",
                     (double)counts[KERN_COUNT_READ] / (double)counts[KERN_COUNT_PREFIX],
                     "first_ms", first, "later_ms", later, "speedup", first / later);
    return RT_OK;
}

static rt_status run(comm *c, const bench_args *args, int prefix, json_t **out)
{
    layer l = {0};
    l.group.comm = c;
    rt_status status = comm_agree(c, rt_engine_device(&args->engine, c, &l.group.dev));
    if (status == RT_OK)
        status = comm_attach(c, l.group.dev);
    if (status == RT_OK)
        status = comm_agree(c, open_layer(&l, c, args, prefix));
    if (status == RT_OK)
        status = measure(&l, args, prefix, out);
    close_layer(&l);
    return comm_agree(c, status);
}

const bench bench_attention = {"attention", "one layer over a random prefix of N tokens", false,
                               run};
