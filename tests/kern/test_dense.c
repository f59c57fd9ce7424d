// SPDX-License-Identifier: Apache-2.0
// Dense layers against the equations in double precision, over odd shapes, with
// results that must be bitwise equal for 1, 2 and 3 threads and for a row alone.
#include "kernels/cpu/vexp.h"
#include "tests/kern/kern_testing.h"

enum { THREADS = 3 };

static void test_exp_is_accurate(void **state)
{
    (void)state;
    double worst = 0.0;
    for (float x = -87.0f; x < 88.7f; x += 1.37e-4f) {
        const double want = exp((double)x);
        worst = fmax(worst, fabs((double)kern_vexpf(x) - want) / want);
    }
    if (worst > 2e-7)
        fail_msg("relative error %g", worst);
    assert_true(kern_vexpf(-INFINITY) == 0.0f && kern_vexpf(-1e30f) == 0.0f);
    assert_true(kern_vexpf(0.0f) == 1.0f);
    assert_true(isinf(kern_vexpf(INFINITY)) && isinf(kern_vexpf(1e30f)));
    assert_true(isnan(kern_vexpf(NAN)) && isnan(kern_vexpf(-NAN)));
}

// ---- upload ----------------------------------------------------------------------

static void test_upload_converts_slices(void **state)
{
    (void)state;
    // Three rows of stride 4, of which 3 columns are taken.
    const uint16_t bf16[] = {0x3f80, 0xc000, 0x0001, 9, 0x7f80, 0x3eab, 0x8000, 9, 0, 1, 2, 9};
    const uint16_t f16[] = {0x3c00, 0xc000, 0x0001, 9, 0x7c00, 0x3555, 0x8000, 9, 0x7bff, 1, 2, 9};
    const float f32[] = {1.0f, -2.0f, 3.5f, 9, 4, 5, 6, 9, 7, 8, 0.1f, 9};
    const float want_bf16[] = {1.0f,  -2.0f, 0x1p-133f, INFINITY, 0x1.56p-2f,
                               -0.0f, 0.0f,  0x1p-133f, 0x1p-132f};
    const float want_f16[] = {1.0f,  -2.0f,    0x1p-24f, INFINITY, 0x1.554p-2f,
                              -0.0f, 65504.0f, 0x1p-24f, 0x1p-23f};
    const float want_f32[] = {1.0f, -2.0f, 3.5f, 4, 5, 6, 7, 8, 0.1f};
    const struct {
        kern_dtype dtype;
        const void *src;
        const float *want;
    } cases[] = {
        {KERN_BF16, bf16, want_bf16}, {KERN_F16, f16, want_f16}, {KERN_F32, f32, want_f32}};
    kern_dev *dev = kt_open(2);
    for (size_t i = 0; i < KT_COUNT(cases); i++) {
        kern_buf *dst = kt_out_f32(dev, 2 + 9);
        const kern_upload_args args = {.dst = dst,
                                       .first = 2,
                                       .src = cases[i].src,
                                       .dtype = cases[i].dtype,
                                       .rows = 3,
                                       .cols = 3,
                                       .stride = 4};
        KT_OK(kern_upload(&args));
        float *got = kt_take(dst, 2 + 9);
        KT_SAME(got + 2, cases[i].want, 9, kern_dtype_name(cases[i].dtype));
        assert_memory_equal(got, &kt_poison, sizeof kt_poison);
        rt_free(got);
        kern_buf_free(dst);
    }
    kern_dev_close(dev);
}

// ---- linear ------------------------------------------------------------------------

typedef struct linear_case {
    int rows, n, k;
    bool bias;
} linear_case;

static float *run_linear(int threads, const linear_case *c, const float *x, const float *w,
                         const float *bias)
{
    kern_dev *dev = kt_open(threads);
    const size_t rows = (size_t)c->rows, n = (size_t)c->n, k = (size_t)c->k;
    kern_buf *xb = kt_in_f32(dev, x, rows * k), *wb = kt_in_f32(dev, w, n * k);
    kern_buf *bb = kt_in_f32(dev, bias, n), *yb = kt_out_f32(dev, rows * n);
    const kern_linear_args args = {.x = xb,
                                   .w = wb,
                                   .bias = c->bias ? bb : NULL,
                                   .y = yb,
                                   .rows = c->rows,
                                   .n = c->n,
                                   .k = c->k};
    KT_OK(kern_linear(dev, &args));
    float *y = kt_take(yb, rows * n);
    kern_buf_free(xb);
    kern_buf_free(wb);
    kern_buf_free(bb);
    kern_buf_free(yb);
    kern_dev_close(dev);
    return y;
}

static double *expect_linear(const linear_case *c, const float *x, const float *w,
                             const float *bias)
{
    const size_t rows = (size_t)c->rows, n = (size_t)c->n, k = (size_t)c->k;
    double *y = kt_alloc(rows * n, sizeof *y);
    for (size_t r = 0; r < rows; r++) {
        for (size_t o = 0; o < n; o++) {
            double sum = c->bias ? (double)bias[o] : 0.0;
            for (size_t i = 0; i < k; i++)
                sum += (double)x[r * k + i] * (double)w[o * k + i];
            y[r * n + o] = sum;
        }
    }
    return y;
}

// A row computed alone, and the last columns computed alone, have the same bits.
static void check_independence(const linear_case *c, const float *x, const float *w,
                               const float *bias, const float *y)
{
    const size_t n = (size_t)c->n, k = (size_t)c->k;
    for (int r = 0; r < c->rows; r += 1 + c->rows / 3) {
        const linear_case one = {.rows = 1, .n = c->n, .k = c->k, .bias = c->bias};
        float *alone = run_linear(1, &one, x + (size_t)r * k, w, bias);
        KT_SAME(alone, y + (size_t)r * n, n, "row alone");
        rt_free(alone);
    }
    const linear_case last = {.rows = c->rows, .n = 1, .k = c->k, .bias = c->bias};
    float *alone = run_linear(1, &last, x, w + (n - 1) * k, bias + n - 1);
    for (int r = 0; r < c->rows; r++)
        assert_memory_equal(&alone[r], &y[(size_t)r * n + n - 1], sizeof *y);
    rt_free(alone);
}

static void test_linear(void **state)
{
    (void)state;
    const linear_case cases[] = {
        {1, 1, 1, false},    {1, 7, 3, true},      {2, 48, 256, false}, {3, 49, 257, true},
        {8, 97, 64, false},  {9, 6, 300, true},    {16, 96, 512, true}, {17, 31, 1000, false},
        {40, 5, 770, true},  {33, 150, 128, true}, {513, 13, 20, true}, {70, 13, 20001, false},
        {5, 600, 333, true},
    };
    kt_rng rng = {1};
    for (size_t i = 0; i < KT_COUNT(cases); i++) {
        const linear_case *c = &cases[i];
        const size_t rows = (size_t)c->rows, n = (size_t)c->n, k = (size_t)c->k;
        float *x = kt_random(&rng, rows * k, 1.0f), *w = kt_random(&rng, n * k, 1.0f);
        float *bias = kt_random(&rng, n, 1.0f);
        double *want = expect_linear(c, x, w, bias);
        float *first = run_linear(1, c, x, w, bias);
        // Products of size 1: sums of size sqrt(k), errors of size eps sqrt(k).
        KT_NEAR(first, want, rows * n, sqrt((double)k), 2e-6);
        for (int threads = 2; threads <= THREADS; threads++) {
            float *y = run_linear(threads, c, x, w, bias);
            KT_SAME(y, first, rows * n, "threads");
            rt_free(y);
        }
        check_independence(c, x, w, bias, first);
        rt_free(first);
        rt_free(want);
        rt_free(bias);
        rt_free(w);
        rt_free(x);
    }
}

static void test_linear_refuses_too_large_k(void **state)
{
    (void)state;
    const linear_case c = {.rows = 9, .n = 1, .k = 100000};
    kern_dev *dev = kt_open(1);
    kern_buf *x = kt_out_f32(dev, (size_t)c.rows * (size_t)c.k), *w = kt_out_f32(dev, (size_t)c.k);
    kern_buf *y = kt_out_f32(dev, (size_t)c.rows);
    const kern_linear_args args = {.x = x, .w = w, .y = y, .rows = c.rows, .n = c.n, .k = c.k};
    KT_REFUSED(kern_linear(dev, &args), RT_ERR_LIMIT, "kern_linear", "scratch");
    kern_buf_free(y);
    kern_buf_free(w);
    kern_buf_free(x);
    kern_dev_close(dev);
}

// ---- RMSNorm -----------------------------------------------------------------------

typedef struct norm_case {
    int rows, cols;
    bool add, out;
} norm_case;

static void run_rmsnorm(int threads, const norm_case *c, const float *const in[3], float *got[2])
{
    kern_dev *dev = kt_open(threads);
    const size_t cols = (size_t)c->cols, count = (size_t)c->rows * cols;
    kern_buf *x = kt_in_f32(dev, in[0], count), *add = kt_in_f32(dev, in[1], count);
    kern_buf *weight = kt_in_f32(dev, in[2], cols), *out = kt_out_f32(dev, count);
    const kern_rmsnorm_args args = {.x = x,
                                    .add = c->add ? add : NULL,
                                    .weight = c->out ? weight : NULL,
                                    .out = c->out ? out : NULL,
                                    .rows = c->rows,
                                    .cols = c->cols,
                                    .eps = 1e-6f};
    KT_OK(kern_rmsnorm(dev, &args));
    got[0] = kt_take(x, count);
    got[1] = kt_take(out, count);
    kern_buf_free(x);
    kern_buf_free(add);
    kern_buf_free(weight);
    kern_buf_free(out);
    kern_dev_close(dev);
}

static void expect_rmsnorm(const norm_case *c, const float *const in[3], double *x, double *out)
{
    const size_t cols = (size_t)c->cols;
    for (size_t r = 0; r < (size_t)c->rows; r++) {
        double squares = 0.0;
        for (size_t i = r * cols; i < (r + 1) * cols; i++) {
            // The sum is stored in f32, and it is that which is normalised.
            x[i] = c->add ? (double)(in[0][i] + in[1][i]) : (double)in[0][i];
            squares += x[i] * x[i];
        }
        const double rms = sqrt(squares / (double)cols + 1e-6);
        for (size_t i = 0; i < cols; i++)
            out[r * cols + i] = x[r * cols + i] / rms * (double)in[2][i];
    }
}

static void test_rmsnorm(void **state)
{
    (void)state;
    const norm_case cases[] = {{1, 1, false, true},    {3, 15, true, true},  {4, 16, true, false},
                               {16, 1023, true, true}, {2, 33, false, true}, {70, 512, true, true}};
    kt_rng rng = {2};
    for (size_t i = 0; i < KT_COUNT(cases); i++) {
        const norm_case *c = &cases[i];
        const size_t count = (size_t)c->rows * (size_t)c->cols;
        float *in[3] = {kt_random(&rng, count, 3.0f), kt_random(&rng, count, 1.0f),
                        kt_random(&rng, (size_t)c->cols, 1.0f)};
        const float *const inputs[3] = {in[0], in[1], in[2]};
        double *x = kt_alloc(count, sizeof *x), *out = kt_alloc(count, sizeof *out);
        expect_rmsnorm(c, inputs, x, out);
        float *first[2], *again[2];
        run_rmsnorm(1, c, inputs, first);
        KT_NEAR(first[0], x, count, 1e-30, 0.0);
        if (c->out)
            KT_NEAR(first[1], out, count, 1e-6, 1e-6); // sum of squares, root, two products
        else
            assert_memory_equal(first[1], &kt_poison, sizeof kt_poison);
        for (int threads = 2; threads <= THREADS; threads++) {
            run_rmsnorm(threads, c, inputs, again);
            KT_SAME(again[0], first[0], count, "threads");
            KT_SAME(again[1], first[1], count, "threads");
            rt_free(again[0]);
            rt_free(again[1]);
        }
        rt_free(first[0]);
        rt_free(first[1]);
        rt_free(x);
        rt_free(out);
        for (int j = 0; j < 3; j++)
            rt_free(in[j]);
    }
}

// ---- head norms and rotary embedding ---------------------------------------------------

typedef struct rope_case {
    int rows, heads, kv_heads, head_dim;
    bool norm;
} rope_case;

enum { MAX_POS = 50 };

static size_t rope_width(const rope_case *c)
{
    return (size_t)((c->heads + 2 * c->kv_heads) * c->head_dim);
}

static void fill_rotary(int half, float *cosine, float *sine)
{
    for (int p = 0; p < MAX_POS; p++) {
        for (int i = 0; i < half; i++) {
            const double angle = p * pow(10000.0, -(double)i / half);
            cosine[p * half + i] = (float)cos(angle);
            sine[p * half + i] = (float)sin(angle);
        }
    }
}

static float *run_rope(int threads, const rope_case *c, const float *qkv, const int32_t *pos,
                       const float *weights)
{
    kern_dev *dev = kt_open(threads);
    const size_t rows = (size_t)c->rows, dim = (size_t)c->head_dim, half = dim / 2;
    float *cosine = kt_floats(MAX_POS * half), *sine = kt_floats(MAX_POS * half);
    fill_rotary(c->head_dim / 2, cosine, sine);
    kern_buf *x = kt_in_f32(dev, qkv, rows * rope_width(c)), *p = kt_in_i32(dev, pos, rows);
    kern_buf *qn = kt_in_f32(dev, weights, dim), *kn = kt_in_f32(dev, weights + dim, dim);
    kern_buf *cb = kt_in_f32(dev, cosine, MAX_POS * half);
    kern_buf *sb = kt_in_f32(dev, sine, MAX_POS * half);
    const kern_qk_rope_args args = {.qkv = x,
                                    .q_norm = c->norm ? qn : NULL,
                                    .k_norm = c->norm ? kn : NULL,
                                    .pos = p,
                                    .cos = cb,
                                    .sin = sb,
                                    .rows = c->rows,
                                    .heads = c->heads,
                                    .kv_heads = c->kv_heads,
                                    .head_dim = c->head_dim,
                                    .max_pos = MAX_POS,
                                    .eps = 1e-6f};
    KT_OK(kern_qk_rope(dev, &args));
    float *got = kt_take(x, rows * rope_width(c));
    kern_buf *const owned[] = {x, p, qn, kn, cb, sb};
    for (size_t i = 0; i < KT_COUNT(owned); i++)
        kern_buf_free(owned[i]);
    rt_free(cosine);
    rt_free(sine);
    kern_dev_close(dev);
    return got;
}

// Rotation of channel pairs (i, i + d/2) by p theta^(-2i/d), as complex numbers.
static double *expect_rope(const rope_case *c, const float *qkv, const int32_t *pos,
                           const float *weights)
{
    const int dim = c->head_dim, half = dim / 2, width = (int)rope_width(c);
    double *out = kt_alloc((size_t)(c->rows * width), sizeof *out);
    for (int i = 0; i < c->rows * width; i++)
        out[i] = (double)qkv[i];
    for (int r = 0; r < c->rows; r++) {
        for (int h = 0; h < c->heads + c->kv_heads; h++) {
            double *x = out + r * width + h * dim, squares = 0.0;
            const float *weight = weights + (h < c->heads ? 0 : dim);
            for (int i = 0; i < dim; i++)
                squares += x[i] * x[i];
            for (int i = 0; i < dim && c->norm; i++)
                x[i] *= (double)weight[i] / sqrt(squares / dim + 1e-6);
            for (int i = 0; i < half; i++) {
                const double angle = pos[r] * pow(10000.0, -(double)i / half);
                const double a = x[i], b = x[i + half];
                x[i] = a * cos(angle) - b * sin(angle);
                x[i + half] = a * sin(angle) + b * cos(angle);
            }
        }
    }
    return out;
}

static void test_qk_rope(void **state)
{
    (void)state;
    const rope_case cases[] = {
        {1, 1, 1, 2, false}, {5, 4, 2, 10, true}, {33, 6, 2, 64, true}, {70, 3, 3, 128, false}};
    kt_rng rng = {3};
    for (size_t i = 0; i < KT_COUNT(cases); i++) {
        const rope_case *c = &cases[i];
        const size_t count = (size_t)c->rows * rope_width(c);
        float *qkv = kt_random(&rng, count, 1.0f);
        float *weights = kt_random(&rng, 2 * (size_t)c->head_dim, 1.0f);
        int32_t *pos = kt_ints((size_t)c->rows);
        for (int r = 0; r < c->rows; r++)
            pos[r] = kt_int(&rng, 0, MAX_POS - 1);
        double *want = expect_rope(c, qkv, pos, weights);
        float *first = run_rope(1, c, qkv, pos, weights);
        KT_NEAR(first, want, count, 1.0, 2e-6); // tables in f32: 1e-7 each, cancellation of two
        for (int threads = 2; threads <= THREADS; threads++) {
            float *again = run_rope(threads, c, qkv, pos, weights);
            KT_SAME(again, first, count, "threads");
            rt_free(again);
        }
        rt_free(first);
        rt_free(want);
        rt_free(pos);
        rt_free(weights);
        rt_free(qkv);
    }
}

// ---- elementwise -----------------------------------------------------------------------

static float *run_swiglu(int threads, int rows, int cols, const float *gate_up)
{
    kern_dev *dev = kt_open(threads);
    const size_t count = (size_t)rows * (size_t)cols;
    kern_buf *in = kt_in_f32(dev, gate_up, 2 * count), *out = kt_out_f32(dev, count);
    const kern_swiglu_args args = {.gate_up = in, .out = out, .rows = rows, .cols = cols};
    KT_OK(kern_swiglu(dev, &args));
    float *got = kt_take(out, count);
    kern_buf_free(in);
    kern_buf_free(out);
    kern_dev_close(dev);
    return got;
}

static void test_swiglu(void **state)
{
    (void)state;
    const int shapes[][2] = {{1, 1}, {3, 7}, {16, 129}, {40, 600}};
    kt_rng rng = {4};
    for (size_t i = 0; i < KT_COUNT(shapes); i++) {
        const int rows = shapes[i][0], cols = shapes[i][1];
        const size_t count = (size_t)rows * (size_t)cols;
        float *x = kt_random(&rng, 2 * count, 20.0f);
        double *want = kt_alloc(count, sizeof *want);
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < cols; c++) {
                const double gate = (double)x[2 * r * cols + c];
                const double up = (double)x[2 * r * cols + cols + c];
                want[r * cols + c] = gate / (1.0 + exp(-gate)) * up;
            }
        }
        float *first = run_swiglu(1, rows, cols, x);
        KT_NEAR(first, want, count, 1e-30, 6e-7); // exp 2e-7, then four roundings
        for (int threads = 2; threads <= THREADS; threads++) {
            float *again = run_swiglu(threads, rows, cols, x);
            KT_SAME(again, first, count, "threads");
            rt_free(again);
        }
        rt_free(first);
        rt_free(want);
        rt_free(x);
    }
}

static void test_embed_zeroes_rows_of_other_shards(void **state)
{
    (void)state;
    enum { ROWS = 6, COLS = 5, SHARD = 3, FIRST = 10 };
    const int32_t ids[ROWS] = {9, 10, 12, 13, 11, INT32_MIN};
    kt_rng rng = {5};
    kern_dev *dev = kt_open(2);
    float *table = kt_random(&rng, SHARD * COLS, 1.0f);
    kern_buf *t = kt_in_f32(dev, table, SHARD * COLS), *i = kt_in_i32(dev, ids, ROWS);
    kern_buf *out = kt_out_f32(dev, ROWS * COLS);
    const kern_embed_args args = {.table = t,
                                  .ids = i,
                                  .out = out,
                                  .rows = ROWS,
                                  .cols = COLS,
                                  .first_id = FIRST,
                                  .shard_rows = SHARD};
    KT_OK(kern_embed(dev, &args));
    float *got = kt_take(out, ROWS * COLS);
    const float zeros[COLS] = {0};
    for (int r = 0; r < ROWS; r++) {
        const bool here = ids[r] >= FIRST && ids[r] < FIRST + SHARD;
        KT_SAME(got + r * COLS, here ? table + (ids[r] - FIRST) * COLS : zeros, COLS, "row");
    }
    rt_free(got);
    rt_free(table);
    kern_buf_free(out);
    kern_buf_free(i);
    kern_buf_free(t);
    kern_dev_close(dev);
}

static void test_gather_rows(void **state)
{
    (void)state;
    enum { HELD = 4, COLS = 3, ROWS = 5 };
    const int32_t index[ROWS] = {3, 0, 0, 2, 1};
    float x[HELD * COLS];
    for (int i = 0; i < HELD * COLS; i++)
        x[i] = (float)i;
    kern_dev *dev = kt_open(2);
    kern_buf *xb = NULL; // without a guard: its size is the number of rows
    KT_OK(kern_buf_new(dev, KERN_F32, HELD * COLS, "x", &xb));
    KT_OK(kern_write(xb, 0, x, HELD * COLS));
    kern_buf *ib = kt_in_i32(dev, index, ROWS), *out = kt_out_f32(dev, ROWS * COLS);
    const kern_gather_rows_args args = {
        .x = xb, .index = ib, .out = out, .rows = ROWS, .cols = COLS};
    KT_OK(kern_gather_rows(dev, &args));
    float *got = kt_take(out, ROWS * COLS);
    for (int r = 0; r < ROWS; r++)
        KT_SAME(got + r * COLS, x + index[r] * COLS, COLS, "row");
    rt_free(got);
    KT_OK(kern_write(ib, 3, &(int32_t){HELD}, 1));
    KT_REFUSED(kern_gather_rows(dev, &args), RT_ERR_INVALID, "kern_gather_rows", "index[3]");
    KT_OK(kern_write(ib, 3, &(int32_t){-1}, 1));
    KT_REFUSED(kern_gather_rows(dev, &args), RT_ERR_INVALID, "kern_gather_rows", "index[3]");
    kern_buf_free(out);
    kern_buf_free(ib);
    kern_buf_free(xb);
    kern_dev_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_is_accurate),
        cmocka_unit_test(test_upload_converts_slices),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_linear_refuses_too_large_k),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_qk_rope),
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_embed_zeroes_rows_of_other_shards),
        cmocka_unit_test(test_gather_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
