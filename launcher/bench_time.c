// SPDX-License-Identifier: Apache-2.0
// Measuring on a device: medians of repeated passes, and the speed of its memory.
#include "launcher/bench.h"

#include "runtime/base/mem.h"

double bench_median(double *values, size_t n)
{
    for (size_t i = 1; i < n; i++) // few values: insertion sort
        for (size_t j = i; j > 0 && values[j] < values[j - 1]; j--) {
            const double swap = values[j];
            values[j] = values[j - 1];
            values[j - 1] = swap;
        }
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

typedef struct timed {
    kern_timer *timer;
    bench_pass *pass;
    void *ctx;
} timed;

static rt_status run_timed(const timed *t)
{
    RT_TRY(kern_timer_mark(t->timer, 0));
    RT_TRY(t->pass(t->ctx));
    return kern_timer_mark(t->timer, 1);
}

static rt_status record(kern_dev *dev, const timed *t, kern_graph **out)
{
    RT_TRY(kern_record_begin(dev));
    const rt_status status = run_timed(t);
    if (status != RT_OK) {
        (void)kern_record_end(dev, NULL);
        return status;
    }
    return kern_record_end(dev, out);
}

// The first repetition warms up and is not counted.
static rt_status repeat(comm *c, kern_dev *dev, kern_graph *graph, const timed *t, int repeats,
                        double *ms)
{
    for (int i = -1; i < repeats; i++) {
        RT_TRY(kern_sync(dev));
        RT_TRY(comm_ctl_barrier(c));
        RT_TRY(graph ? kern_graph_launch(graph) : run_timed(t));
        double elapsed;
        RT_TRY(kern_timer_read(t->timer, 0, 1, &elapsed));
        if (i >= 0)
            ms[i] = elapsed;
    }
    return RT_OK;
}

rt_status bench_time(comm *c, kern_dev *dev, bool recorded, int repeats, bench_pass *pass,
                     void *ctx, double *out)
{
    timed t = {.pass = pass, .ctx = ctx};
    kern_graph *graph = NULL;
    double *ms;
    rt_status status;
    RT_TRY(RT_ALLOC(ms, (size_t)repeats, "times"));
    RT_TRY_GOTO(status, kern_timer_new(dev, 2, &t.timer), free_times);
    RT_TRY_GOTO(status, pass(ctx), free_timer);
    if (recorded)
        RT_TRY_GOTO(status, record(dev, &t, &graph), free_timer);
    RT_TRY_GOTO(status, repeat(c, dev, graph, &t, repeats, ms), free_graph);
    *out = bench_median(ms, (size_t)repeats);
free_graph:
    kern_graph_free(graph);
free_timer:
    kern_timer_free(t.timer);
free_times:
    rt_free(ms);
    return status;
}

// ---- the speed of memory ----------------------------------------------------------------

typedef struct reading {
    kern_dev *dev;
    kern_xor_words_args args;
} reading;

static rt_status read_once(void *ctx)
{
    reading *r = ctx;
    return kern_xor_words(r->dev, &r->args);
}

// Larger than any cache; written, since memory that never was may not be there.
static rt_status open_reading(kern_dev *dev, reading *r, kern_buf **src)
{
    const size_t words = kern_dev_kind(dev) == KERN_CPU ? (size_t)64 << 20 : (size_t)512 << 20;
    r->dev = dev;
    r->args.words = words;
    RT_TRY(kern_buf_new(dev, KERN_I32, words, "memory to read", src));
    RT_TRY(kern_buf_new(dev, KERN_I32, 1, "memory to read", &r->args.out));
    r->args.src = *src;
    return kern_fill_zero(*src, words);
}

static rt_status measure_reading(comm *c, kern_dev *dev, int repeats, double *out)
{
    reading r = {0};
    kern_buf *src = NULL;
    double ms;
    rt_status status = comm_agree(c, open_reading(dev, &r, &src));
    if (status == RT_OK)
        status = bench_time(c, dev, kern_can_record(dev), repeats, read_once, &r, &ms);
    if (status == RT_OK)
        *out = (double)r.args.words * 4 / (ms * 1e-3);
    kern_buf_free(src);
    kern_buf_free(r.args.out);
    return status;
}

rt_status bench_ceiling(comm *c, const bench_args *args, double *out)
{
    kern_dev *dev = NULL;
    rt_status status = rt_engine_device(&args->engine, c, &dev);
    if (status == RT_OK)
        status = measure_reading(c, dev, args->repeats, out);
    kern_dev_close(dev);
    return comm_agree(c, status);
}
