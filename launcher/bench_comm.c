// SPDX-License-Identifier: Apache-2.0
// losa bench comm: all-reduce and all-gather between the ranks, in the columns of NCCL's
// tests. Bytes are those of the whole result; bus bandwidth is what a link carries
// whatever the number of ranks: 2 (n - 1) / n or (n - 1) / n of them.
#include "launcher/bench.h"

enum { CALLS = 20 }; // of a pass: the marks are far apart then

typedef struct exchange {
    comm *comm;
    kern_buf *mine, *all;
    size_t count;
    bool gather;
} exchange;

static rt_status run_calls(void *ctx)
{
    const exchange *x = ctx;
    for (int i = 0; i < CALLS; i++)
        RT_TRY(x->gather ? comm_allgather(x->comm, COMM_CHECK, x->mine, x->count, x->all)
                         : comm_allreduce(x->comm, COMM_CHECK, x->mine, x->count, COMM_SUM));
    return RT_OK;
}

static rt_status measure(const bench_args *args, kern_dev *dev, exchange *x, json_t *rows)
{
    const double ranks = comm_ranks(x->comm),
                 bytes = 4.0 * (double)x->count * (x->gather ? ranks : 1);
    double ms;
    RT_TRY(bench_time(x->comm, dev, kern_can_record(dev), args->repeats, run_calls, x, &ms));
    const double us = 1e3 * ms / CALLS, speed = bytes / us / 1e3; // GB/s
    const double bus = speed * (x->gather ? 1 : 2) * (ranks - 1) / ranks;
    if (!rows)
        return RT_OK;
    return bench_add(rows, json_pack("{s:s, s:i, s:I, s:I, s:s, s:f, s:f, s:f}", "op",
                                     x->gather ? "all-gather" : "all-reduce", "ranks", (int)ranks,
                                     "bytes", (json_int_t)bytes, "count", (json_int_t)x->count,
                                     "type", "f32", "us", us, "alg_GBs", speed, "bus_GBs", bus));
}

static rt_status run_both(const bench_args *args, kern_dev *dev, exchange *x, int64_t bytes,
                          json_t *rows)
{
    const int64_t ranks = comm_ranks(x->comm);
    x->count = (size_t)(bytes / 4);
    RT_TRY(measure(args, dev, x, rows));
    x->gather = true;
    x->count = (size_t)(bytes / 4 / ranks > 0 ? bytes / 4 / ranks : 1);
    return measure(args, dev, x, rows);
}

static rt_status open_buffers(kern_dev *dev, exchange *x, int64_t bytes)
{
    const size_t count = (size_t)(bytes / 4 > 0 ? bytes / 4 : 1);
    RT_TRY(kern_buf_new(dev, KERN_F32, count, "benchmark", &x->mine));
    return kern_buf_new(dev, KERN_F32, count + (size_t)comm_ranks(x->comm), "benchmark", &x->all);
}

static rt_status run(comm *c, const bench_args *args, int64_t bytes, json_t *rows)
{
    exchange x = {.comm = c};
    kern_dev *dev = NULL;
    rt_status status = rt_engine_device(&args->engine, c, &dev);
    if (status == RT_OK)
        status = comm_attach(c, dev);
    if (status == RT_OK)
        status = comm_agree(c, open_buffers(dev, &x, bytes));
    if (status == RT_OK)
        status = run_both(args, dev, &x, bytes, rows);
    kern_buf_free(x.mine);
    kern_buf_free(x.all);
    comm_detach(c);
    kern_dev_close(dev);
    return comm_agree(c, status);
}

static const int64_t sizes[] = {8,       32,      128,     512,     2048,    8192, 32768,
                                1 << 17, 1 << 19, 1 << 21, 1 << 23, 1 << 25, 0};

const bench bench_comm = {
    .name = "comm",
    .summary = "all-reduce and all-gather of N bytes between the ranks",
    .unit = "bytes",
    .least = 4,
    .most = 1 << 30,
    .sizes = sizes,
    .run = run,
};
