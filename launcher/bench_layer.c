// SPDX-License-Identifier: Apache-2.0
#include "launcher/bench_layer.h"

#include "runtime/base/mem.h"

#include <math.h>
#include <string.h>

// Pages of all layers together: several times the largest cache there is.
static const double spread_bytes[] = {[KERN_CPU] = 256e6, [KERN_CUDA] = 768e6};
enum { LAYERS_MAX = 64, STAGES_MAX = 24 }; // marks of a layer

const char *bench_step_name(bench_step step)
{
    static const char *const names[BENCH_STEPS] = {"open", "first", "later"};
    return names[step];
}

static int pages_of(const bench_layer *l)
{
    return losa_pages_of(&l->config, l->prefix + l->block);
}

static int rows_of(const bench_layer *l)
{
    return 2 * l->block * l->requests;
}

// ---- opening ---------------------------------------------------------------------------

static rt_status open_slot(bench_layer *l, int request)
{
    rt_slot *s = &l->slots[request];
    s->capacity = l->prefix + l->block;
    s->page_count = pages_of(l);
    RT_TRY(RT_ALLOC(s->ids, (size_t)s->capacity, "benchmark"));
    RT_TRY(RT_ALLOC(s->state, (size_t)s->capacity, "benchmark"));
    RT_TRY(RT_ALLOC(s->pages, (size_t)s->page_count, "benchmark"));
    for (int i = 0; i < s->page_count; i++)
        s->pages[i] = request * s->page_count + i;
    return RT_OK;
}

// Random keys and values have the pages' own type and bounds.
static rt_status open_pages(bench_layer *l, const bench_args *args)
{
    const double token = 2.0 * l->plan.kv_heads.count * args->head_dim *
                         (double)kern_dtype_size(kern_dev_kv_dtype(l->group.dev));
    const double layers =
        ceil(spread_bytes[kern_dev_kind(l->group.dev)] / (token * l->prefix * l->requests));
    l->layers = layers < LAYERS_MAX ? (int)layers : LAYERS_MAX;
    const rt_kvcache_shape shape = {
        .layers = l->layers,
        .kv_heads = l->plan.kv_heads.count,
        .head_dim = args->head_dim,
        .pages = l->requests * pages_of(l),
        .page = l->config.page,
    };
    RT_TRY(rt_kvcache_open(l->group.dev, &shape, &l->kv));
    RT_TRY(rt_kvcache_randomize(l->group.dev, &l->kv));
    RT_TRY(RT_ALLOC(l->slots, (size_t)l->requests, "benchmark"));
    for (int r = 0; r < l->requests; r++)
        RT_TRY(open_slot(l, r));
    return RT_OK;
}

static rt_status open_rows(bench_layer *l, int cols, kern_buf **out)
{
    const size_t count = (size_t)rows_of(l) * (size_t)cols;
    RT_TRY(kern_buf_new(l->group.dev, KERN_F32, count, "benchmark", out));
    const kern_fill_normal_args fill = {.dst = *out, .count = count, .seed = 5, .scale = 1.0f};
    return kern_fill_normal(l->group.dev, &fill);
}

static rt_status check_size(const bench_layer *l)
{
    const long long each = (long long)l->prefix + l->block;
    if (each * l->requests > 1 << 30) // pages are numbered by an int
        return RT_FAIL(RT_ERR_LIMIT, "%d requests of %lld tokens: too many", l->requests, each);
    return RT_OK;
}

rt_status bench_layer_open(bench_layer *l, const par_group *group, const bench_args *args,
                           int prefix)
{
    enum { BLOCK = 16 };
    const int ranks = comm_ranks(group->comm), dim = args->head_dim;
    const par_shape shape = {args->heads, args->kv_heads, ranks, ranks};
    *l = (bench_layer){.group = *group, .config = args->policy->config};
    RT_TRY(par_plan_make(&shape, comm_rank(group->comm), ranks, &l->plan));
    l->config.dense_layers = 0; // every layer is one of those measured
    l->block = args->block ? args->block : BLOCK;
    l->requests = args->batch;
    l->active = args->active;
    l->prefix = prefix < l->block ? l->block : prefix / l->block * l->block;
    RT_TRY(check_size(l));
    RT_TRY(open_pages(l, args));
    const losa_limits limits = {
        .layers = l->layers,
        .head_dim = dim,
        .hidden = dim,
        .block = l->block,
        .rows = rows_of(l),
        .segs = 2 * l->requests,
        .max_pages = pages_of(l),
        .sessions = l->requests,
    };
    RT_TRY(losa_open(group, &l->plan, &l->config, &limits, &l->losa));
    RT_TRY(rt_batch_open(group->dev, limits.rows, limits.segs, limits.max_pages, &l->batch));
    RT_TRY(open_rows(l, (l->plan.heads.count + 2 * l->plan.kv_heads.count) * dim, &l->qkv));
    RT_TRY(open_rows(l, dim, &l->x));
    return open_rows(l, l->plan.heads.count * dim, &l->out);
}

void bench_layer_close(bench_layer *l)
{
    losa_close(l->losa);
    rt_batch_close(&l->batch);
    for (int r = 0; l->slots && r < l->requests; r++)
        rt_slot_release(&l->slots[r]);
    rt_free(l->slots);
    rt_kvcache_close(&l->kv);
    kern_buf_free(l->qkv);
    kern_buf_free(l->x);
    kern_buf_free(l->out);
}

// ---- a forward -------------------------------------------------------------------------

// The segments of one step, in the order that the engine gives them.
typedef struct segments {
    Pb__Segment *items;
    const Pb__Segment **order;
    int count;
} segments;

static void add(segments *s, int slot, int kind, int first, int count)
{
    Pb__Segment *segment = &s->items[s->count++];
    pb__segment__init(segment);
    segment->slot = (uint32_t)slot;
    segment->kind = (uint32_t)kind;
    segment->first = (uint32_t)first;
    segment->count = (uint32_t)count;
}

static void add_request(const bench_layer *l, bench_step step, int request, segments *s)
{
    const int block = l->block, start = l->prefix;
    if (step == BENCH_OPEN) {
        add(s, request, KERN_SEG_OPEN, start, block);
    } else if (step == BENCH_LATER) {
        add(s, request, KERN_SEG_STEP, start, block);
    } else if (losa_reading_of(&l->config, KERN_SEG_FIRST).sparse) {
        add(s, request, KERN_SEG_COMMIT, start - block, block);
        add(s, request, KERN_SEG_FIRST, start, block);
    } else {
        add(s, request, KERN_SEG_FIRST, start - block, 2 * block);
    }
}

static void sort(const bench_layer *l, segments *s, rt_batch_args *args)
{
    int placed = 0;
    for (int order = 0; order <= 2; order++)
        for (int i = 0; i < s->count; i++) {
            if (losa_kind_order(&l->config, (int)s->items[i].kind) != order)
                continue;
            s->order[placed++] = &s->items[i];
            args->scan += order == 0;
            args->sparse += order < 2;
        }
}

// In a later step the first `active` tokens of the block are still masks.
static void mask(bench_layer *l, bench_step step)
{
    for (int r = 0; r < l->requests; r++)
        for (int i = 0; i < l->block; i++)
            l->slots[r].state[l->prefix + i] =
                step != BENCH_LATER || i < l->active ? KERN_ROW_MASKED : 0;
}

rt_status bench_layer_prepare(bench_layer *l, bench_step step)
{
    const size_t most = 2 * (size_t)l->requests;
    segments s = {0};
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(s.items, most, "benchmark"), done);
    RT_TRY_GOTO(status, RT_ALLOC(s.order, most, "benchmark"), done);
    for (int r = 0; r < l->requests; r++)
        add_request(l, step, r, &s);
    mask(l, step);
    rt_batch_args args = {
        .segments = s.order,
        .count = s.count,
        .attention = &l->config,
        .slots = l->slots,
        .block = l->block,
        .page = l->config.page,
        .use_cache = losa_uses_cache(&l->config),
        .recorded = kern_can_record(l->group.dev),
    };
    sort(l, &s, &args);
    status = rt_batch_build(&l->batch, &args);
done:
    rt_free(s.items);
    rt_free(s.order);
    return status;
}

static rt_status run_layer(bench_layer *l, int layer)
{
    const losa_layer_args args = {
        .layer = layer,
        .batch = &l->batch.kern,
        .qkv = l->qkv,
        .x = l->x,
        .kv = l->kv.kv[layer],
        .out = l->out,
    };
    return losa_layer(l->losa, &args);
}

rt_status bench_layer_pass(void *layer)
{
    bench_layer *l = layer;
    RT_TRY(losa_begin(l->losa, l->batch.kern.segs));
    for (int i = 0; i < l->layers; i++)
        RT_TRY(run_layer(l, i));
    return RT_OK;
}

rt_status bench_layer_read(const bench_layer *l, bench_read *out)
{
    const int segs = l->batch.kern.segs;
    int64_t *counts;
    RT_TRY(RT_ALLOC(counts, (size_t)segs * KERN_COUNT_N, "counters"));
    const rt_status status =
        kern_read(losa_counts(l->losa), 0, counts, (size_t)segs * KERN_COUNT_N);
    *out = (bench_read){0};
    for (int i = 0; i < segs * KERN_COUNT_N; i++)
        out->counts[i % KERN_COUNT_N] += counts[i];
    rt_free(counts);
    for (int i = 0; i < KERN_COUNT_N; i++)
        out->counts[i] /= l->layers;
    // Counters are sums over lists: one of all heads, or one per head.
    const kern_kv *kv = &l->kv.kv[0];
    const double heads = l->config.scope == LOSA_SCOPE_SHARED ? kv->kv_heads : 1;
    const double value = (double)kern_dtype_size(kern_buf_dtype(kv->k));
    const double bound = (double)kern_dtype_size(kern_buf_dtype(kv->kmin));
    out->bytes = 2 * heads * kv->head_dim *
                 (value * (double)out->counts[KERN_COUNT_READ] +
                  bound * (double)out->counts[KERN_COUNT_SCANNED]);
    return status;
}

// ---- stages ----------------------------------------------------------------------------

// Marks of one forward. The first two of a layer stand together: what they measure is
// the cost of a mark.
enum { START = LOSA_STAGES, EMPTY };
typedef struct marks {
    bench_layer *layer;
    kern_timer *timer;
    int count, stage[LAYERS_MAX * STAGES_MAX];
} marks;

static rt_status add_mark(marks *m, int stage)
{
    m->stage[m->count] = stage;
    return kern_timer_mark(m->timer, m->count++);
}

static rt_status mark_stage(void *ctx, losa_stage stage)
{
    return add_mark(ctx, (int)stage);
}

static rt_status run_marked(void *ctx)
{
    marks *m = ctx;
    m->count = 0;
    RT_TRY(losa_begin(m->layer->losa, m->layer->batch.kern.segs));
    for (int i = 0; i < m->layer->layers; i++) {
        RT_TRY(add_mark(m, START));
        RT_TRY(add_mark(m, EMPTY));
        RT_TRY(run_layer(m->layer, i));
    }
    return RT_OK;
}

// Milliseconds of each stage over the layers of the last forward, less the marks' own.
static rt_status sum_stages(const marks *m, double ms[LOSA_STAGES + 2])
{
    memset(ms, 0, (LOSA_STAGES + 2) * sizeof *ms);
    int calls[LOSA_STAGES + 2] = {0};
    for (int i = 1; i < m->count; i++) {
        double elapsed;
        RT_TRY(kern_timer_read(m->timer, i - 1, i, &elapsed));
        ms[m->stage[i]] += elapsed;
        calls[m->stage[i]]++;
    }
    const double empty = ms[EMPTY] / calls[EMPTY];
    for (int i = 0; i < LOSA_STAGES; i++)
        ms[i] = ms[i] > calls[i] * empty ? ms[i] - calls[i] * empty : 0;
    return RT_OK;
}

static rt_status record(marks *m, kern_graph **out)
{
    kern_dev *dev = m->layer->group.dev;
    RT_TRY(kern_record_begin(dev));
    const rt_status status = run_marked(m);
    if (status != RT_OK) {
        (void)kern_record_end(dev, NULL);
        return status;
    }
    return kern_record_end(dev, out);
}

static rt_status repeat_stages(marks *m, kern_graph *graph, int repeats, double *all)
{
    for (int i = -1; i < repeats; i++) { // the first warms up
        double ms[LOSA_STAGES + 2];
        RT_TRY(comm_ctl_barrier(m->layer->group.comm));
        RT_TRY(graph ? kern_graph_launch(graph) : run_marked(m));
        RT_TRY(sum_stages(m, ms));
        for (int s = 0; s < LOSA_STAGES && i >= 0; s++)
            all[s * repeats + i] = ms[s] / m->layer->layers;
    }
    return RT_OK;
}

rt_status bench_layer_stages(bench_layer *l, bool recorded, int repeats, double ms[LOSA_STAGES])
{
    marks *m = NULL;
    double *all = NULL;
    kern_graph *graph = NULL;
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(m, 1, "marks"), done);
    RT_TRY_GOTO(status, RT_ALLOC(all, (size_t)repeats * LOSA_STAGES, "times"), done);
    m->layer = l;
    RT_TRY_GOTO(status, kern_timer_new(l->group.dev, l->layers * STAGES_MAX, &m->timer), done);
    losa_mark_stages(l->losa, mark_stage, m);
    if (recorded)
        RT_TRY_GOTO(status, record(m, &graph), done);
    RT_TRY_GOTO(status, repeat_stages(m, graph, repeats, all), done);
    for (int s = 0; s < LOSA_STAGES; s++)
        ms[s] = bench_median(all + (ptrdiff_t)s * repeats, (size_t)repeats);
done:
    losa_mark_stages(l->losa, NULL, NULL);
    kern_graph_free(graph);
    kern_timer_free(m ? m->timer : NULL);
    rt_free(all);
    rt_free(m);
    return status;
}
