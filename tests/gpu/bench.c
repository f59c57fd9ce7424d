// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/bench.h"

#include "kernels/cuda/cuda_int.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

enum { CALLS = 16, SAMPLES = 15, WARM_UP = 3 };

// tests/gpu/bench_read.cu
int bench_launch_read(struct CUstream_st *stream, const void *from, size_t bytes, float *out);

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct CUstream_st *stream(void)
{
    return kern_cuda_of(pt_gpu[PT_BF16])->ctx.stream;
}

int bench_sets(size_t bytes)
{
    const size_t sets = BENCH_L2_BYTES / bytes + 2;
    return sets > BENCH_SETS ? BENCH_SETS : (int)sets;
}

// The first `part` of `count` elements, again and again.
static void spread(kern_buf *buf, size_t part, size_t count)
{
    for (size_t have = part; have < count; have *= 2)
        KT_OK(kern_copy(buf, have, buf, 0, count - have < have ? count - have : have));
}

enum { PART = 1 << 20 };

kern_buf *bench_bytes(size_t count, int least, int most)
{
    kt_rng rng = {count};
    const size_t part = count < PART ? count : PART;
    uint8_t *values = kt_alloc(part, 1);
    for (size_t i = 0; i < part; i++)
        values[i] = (uint8_t)kt_int(&rng, least, most);
    kern_buf *buf;
    KT_OK(kern_buf_new(pt_gpu[PT_BF16], KERN_U8, count, "bench", &buf));
    KT_OK(kern_write(buf, 0, values, part));
    spread(buf, part, count);
    rt_free(values);
    return buf;
}

kern_buf *bench_random(kern_dtype dtype, size_t count)
{
    kern_dev *dev = pt_gpu[PT_BF16];
    kt_rng rng = {count};
    const size_t part = count < PART ? count : PART;
    float *values = kt_random(&rng, part, 1.0f);
    kern_buf *buf;
    KT_OK(kern_buf_new(dev, dtype, count, "bench", &buf));
    KT_OK(kern_upload(&(kern_upload_args){
        .dst = buf, .src = values, .dtype = KERN_F32, .rows = 1, .cols = part, .stride = part}));
    spread(buf, part, count);
    rt_free(values);
    return buf;
}

kern_buf *bench_ints(const int32_t *values, size_t count)
{
    kern_buf *buf;
    KT_OK(kern_buf_new(pt_gpu[PT_BF16], KERN_I32, count, "bench", &buf));
    KT_OK(kern_write(buf, 0, values, count));
    return buf;
}

// Median over replays of `graph`, of one of its `calls` calls.
static double replay(kern_graph *graph, int calls)
{
    cudaEvent_t begin, end;
    double us[SAMPLES];
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int s = -WARM_UP; s < SAMPLES; s++) {
        float ms;
        cudaEventRecord(begin, stream());
        KT_OK(kern_graph_launch(graph));
        cudaEventRecord(end, stream());
        cudaEventSynchronize(end);
        cudaEventElapsedTime(&ms, begin, end);
        if (s >= 0)
            us[s] = (double)ms * 1000.0 / calls;
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    qsort(us, SAMPLES, sizeof *us, compare);
    return us[SAMPLES / 2];
}

double bench_time(bench_fn *call, void *ctx)
{
    kern_dev *dev = pt_gpu[PT_BF16];
    kern_graph *graph;
    call(ctx, 0); // what happens once only, such as loading code, is not recorded
    KT_OK(kern_sync(dev));
    KT_OK(kern_record_begin(dev));
    for (int i = 0; i < CALLS; i++)
        call(ctx, i);
    KT_OK(kern_record_end(dev, &graph));
    const double us = replay(graph, CALLS);
    kern_graph_free(graph);
    return us;
}

double bench_line(const char *name, double bytes, bench_fn *call, void *ctx)
{
    const double us = bench_time(call, ctx);
    printf("%-44s %10.1f us %9.2f MB %8.0f GB/s\n", name, us, bytes * 1e-6, bytes / us * 1e-3);
    fflush(stdout);
    return us;
}

typedef struct read_bench {
    kern_buf *from, *out;
    size_t bytes;
} read_bench;

static void call_read(void *ctx, int i)
{
    (void)i;
    const read_bench *b = ctx;
    assert_int_equal(
        bench_launch_read(stream(), kern_buf_ptr(b->from), b->bytes, kern_buf_ptr(b->out)), 0);
}

double bench_read_ceiling(void)
{
    const size_t count = (size_t)512 << 20;
    read_bench b = {bench_random(KERN_BF16, count), bench_random(KERN_F32, 1), 2 * count};
    const double us = bench_line("read only", 2.0 * (double)count, call_read, &b);
    kern_buf_free(b.from);
    kern_buf_free(b.out);
    return 2.0 * (double)count / us * 1e6;
}

int bench_run(const char *only)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } tables[] = {{"attention", bench_attention}, {"sparse", bench_sparse}, {"dense", bench_dense}};
    for (size_t i = 0; i < KT_COUNT(tables); i++)
        if (!only || strcmp(only, tables[i].name) == 0)
            tables[i].run();
    return 0;
}
