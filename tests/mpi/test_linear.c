// SPDX-License-Identifier: Apache-2.0
// Shards of a linear and of an embedding on all ranks against the whole matrix
// on one.
#include "parallel/linear.h"
#include "parallel/plan.h"
#include "runtime/base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// K, N and VOCAB: K and N divide over 1, 2, 3 and 4 ranks, VOCAB leaves a short end.
enum { ROWS = 5, K = 96, N = 48, VOCAB = 101 };

static par_group group;

static float value(uint64_t key, size_t i)
{
    const uint32_t counter[4] = {(uint32_t)i, 0, 0, 0};
    return 2.0F * rt_uniform_open(rt_philox4x32(key, counter).v[0]) - 1.0F;
}

static void fill(uint64_t key, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = value(key, i);
}

static kern_buf *new_buf(kern_dtype dtype, size_t count)
{
    kern_buf *buf = NULL;
    assert_int_equal(kern_buf_new(group.dev, dtype, count, "test", &buf), RT_OK);
    return buf;
}

// A device matrix [rows, cols] from a part of a host matrix with `stride` columns.
static kern_buf *slice(kern_dtype dtype, const float *src, size_t rows, size_t cols, size_t stride)
{
    kern_buf *buf = new_buf(dtype, rows * cols);
    kern_upload_args args = {
        .dst = buf, .src = src, .dtype = KERN_F32, .rows = rows, .cols = cols, .stride = stride};
    assert_int_equal(kern_upload(&args), RT_OK);
    return buf;
}

static void reference(const float *x, const float *w, double *y)
{
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += (double)x[r * K + k] * (double)w[n * K + k];
            y[r * N + n] = sum;
        }
}

// |terms| < 1 and about K roundings of sums below K, generously.
static const double TOLERANCE = K * 0x1p-22;

static void check_normed(const kern_buf *out, const double *want)
{
    float normed[ROWS * N];
    assert_int_equal(kern_read(out, 0, normed, ROWS * N), RT_OK);
    for (int r = 0; r < ROWS; r++) {
        double squares = 0;
        for (int i = 0; i < N; i++)
            squares += want[r * N + i] * want[r * N + i];
        for (int i = 0; i < N; i++)
            assert_true(fabs((double)normed[r * N + i] - want[r * N + i] / sqrt(squares / N)) <=
                        TOLERANCE);
    }
}

static void test_row(void **state)
{
    (void)state;
    float x[ROWS * K], w[N * K], y[ROWS * N], ones[N];
    double want[ROWS * N];
    fill(1, x, ROWS * K);
    fill(2, w, N * K);
    reference(x, w, want);
    for (int i = 0; i < N; i++)
        ones[i] = 1.0f;

    int k = K / comm_ranks(group.comm), first = k * comm_rank(group.comm);
    kern_dtype weight = kern_dev_weight_dtype(group.dev, KERN_F32);
    kern_linear_args args = {.x = slice(KERN_F32, x + first, ROWS, (size_t)k, K),
                             .w = slice(weight, w + first, N, (size_t)k, K),
                             .y = new_buf(KERN_F32, ROWS * N),
                             .rows = ROWS,
                             .n = N,
                             .k = k};
    const kern_rmsnorm_args norm = {.x = new_buf(KERN_F32, ROWS * N), // zeros
                                    .add = args.y,
                                    .weight = slice(KERN_F32, ones, 1, N, N),
                                    .out = new_buf(weight, ROWS * N),
                                    .rows = ROWS,
                                    .cols = N};
    uint64_t calls = comm_count(group.comm, COMM_HIDDEN).calls;
    assert_int_equal(par_linear_row(&group, &args, &norm), RT_OK);
    assert_int_equal(comm_count(group.comm, COMM_HIDDEN).calls - calls, 1);
    assert_int_equal(kern_read(norm.x, 0, y, ROWS * N), RT_OK);
    for (int i = 0; i < ROWS * N; i++)
        assert_true(fabs((double)y[i] - want[i]) <= TOLERANCE);
    check_normed(norm.out, want);

    // Complete and the same on every rank, to the bit.
    float *all = malloc(sizeof y * (size_t)comm_ranks(group.comm));
    assert_non_null(all);
    assert_int_equal(comm_ctl_allgather(group.comm, y, sizeof y, all), RT_OK);
    for (int r = 0; r < comm_ranks(group.comm); r++)
        assert_memory_equal(all + (ptrdiff_t)r * ROWS * N, y, sizeof y);
    free(all);

    args.bias = args.x; // would be added once per rank
    assert_int_equal(par_linear_row(&group, &args, &norm), RT_ERR_INVALID);
    kern_buf_free(norm.x);
    kern_buf_free((kern_buf *)norm.weight);
    kern_buf_free(norm.out);
    kern_buf_free((kern_buf *)args.x);
    kern_buf_free((kern_buf *)args.w);
    kern_buf_free(args.y);
}

static void test_embed(void **state)
{
    (void)state;
    float table[VOCAB * K], out[VOCAB * K];
    fill(4, table, VOCAB * K);
    par_shape shape = {.heads = 12, .kv_heads = 12, .ffn = K, .vocab = VOCAB};
    par_plan plan;
    assert_int_equal(par_plan_make(&shape, comm_rank(group.comm), comm_ranks(group.comm), &plan),
                     RT_OK);

    int32_t ids[VOCAB]; // every row of the vocabulary, in another order
    for (int i = 0; i < VOCAB; i++)
        ids[i] = (i * 37 + 5) % VOCAB;
    kern_buf *ids_buf = new_buf(KERN_I32, VOCAB);
    assert_int_equal(kern_write(ids_buf, 0, ids, VOCAB), RT_OK);
    kern_embed_args args = {.table = slice(kern_dev_weight_dtype(group.dev, KERN_F32),
                                           table + (ptrdiff_t)plan.vocab.first * K,
                                           (size_t)plan.vocab.count, K, K),
                            .ids = ids_buf,
                            .out = new_buf(KERN_F32, VOCAB * K),
                            .rows = VOCAB,
                            .cols = K,
                            .first_id = plan.vocab.first,
                            .shard_rows = plan.vocab.count};
    assert_int_equal(par_embed(&group, &args), RT_OK);
    assert_int_equal(kern_read(args.out, 0, out, VOCAB * K), RT_OK);
    for (int i = 0; i < VOCAB; i++)
        for (int c = 0; c < K; c++)
            assert_true(out[i * K + c] == table[ids[i] * K + c]);
    kern_buf_free((kern_buf *)args.table);
    kern_buf_free(ids_buf);
    kern_buf_free(args.out);
}

static int open_group(void **state)
{
    (void)state;
    kern_dev_options options = {.kind = KERN_CPU, .threads = 1};
    return kern_dev_open(&options, &group.dev) || comm_open_world(30.0, &group.comm);
}

static int close_group(void **state)
{
    (void)state;
    comm_close(group.comm);
    kern_dev_close(group.dev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row),
        cmocka_unit_test(test_embed),
    };
    return cmocka_run_group_tests(tests, open_group, close_group);
}
