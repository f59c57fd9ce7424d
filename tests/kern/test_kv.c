// SPDX-License-Identifier: Apache-2.0
// Writing K and V to pages: where each row lands, the pages' key bounds, and that
// nothing else changes.
#include "tests/kern/kern_testing.h"

typedef struct kv_case {
    int rows, pages, page, heads, kv_heads, head_dim;
    const int32_t *slots;
} kv_case;

enum { K, V, KMIN, KMAX, ARRAYS };

static size_t array_count(const kv_case *c, int which)
{
    const size_t meta = (size_t)(c->pages * c->kv_heads * c->head_dim);
    return which == K || which == V ? meta * (size_t)c->page : meta;
}

static size_t qkv_cols(const kv_case *c)
{
    return (size_t)((c->heads + 2 * c->kv_heads) * c->head_dim);
}

// Writes `rows` rows from `row0` of the case, starting from arrays[].
static void run_kv(int threads, const kv_case *c, const float *qkv, float *arrays[ARRAYS])
{
    kern_dev *dev = kt_open(threads);
    kern_buf *buf[ARRAYS], *x = kt_in_f32(dev, qkv, (size_t)c->rows * qkv_cols(c));
    kern_buf *slots = kt_in_i32(dev, c->slots, (size_t)c->rows);
    for (int i = 0; i < ARRAYS; i++)
        buf[i] = kt_in_f32(dev, arrays[i], array_count(c, i));
    const kern_batch batch = {.rows = c->rows, .block = 4, .page = c->page, .kv_slot = slots};
    const kern_kv_write_args args = {.qkv = x,
                                     .kv = {.k = buf[K],
                                            .v = buf[V],
                                            .kmin = buf[KMIN],
                                            .kmax = buf[KMAX],
                                            .pages = c->pages,
                                            .kv_heads = c->kv_heads,
                                            .head_dim = c->head_dim},
                                     .batch = &batch,
                                     .heads = c->heads};
    KT_OK(kern_kv_write(dev, &args));
    for (int i = 0; i < ARRAYS; i++) {
        rt_free(arrays[i]);
        arrays[i] = kt_take(buf[i], array_count(c, i));
        kern_buf_free(buf[i]);
    }
    kern_buf_free(slots);
    kern_buf_free(x);
    kern_dev_close(dev);
}

static void expect_kv(const kv_case *c, const float *qkv, float *arrays[ARRAYS])
{
    const int dim = c->head_dim, width = (int)qkv_cols(c);
    for (int r = 0; r < c->rows; r++) {
        const int page = c->slots[r] / c->page, offset = c->slots[r] % c->page;
        for (int h = 0; h < c->kv_heads && c->slots[r] >= 0; h++) {
            for (int i = 0; i < dim; i++) {
                const float key = qkv[r * width + (c->heads + h) * dim + i];
                const float value = qkv[r * width + (c->heads + c->kv_heads + h) * dim + i];
                const int at = ((page * c->kv_heads + h) * c->page + offset) * dim + i;
                const int meta = (page * c->kv_heads + h) * dim + i;
                arrays[K][at] = key;
                arrays[V][at] = value;
                arrays[KMIN][meta] = offset ? fminf(arrays[KMIN][meta], key) : key;
                arrays[KMAX][meta] = offset ? fmaxf(arrays[KMAX][meta], key) : key;
            }
        }
    }
}

static void fill_arrays(kt_rng *rng, const kv_case *c, float *arrays[ARRAYS])
{
    for (int i = 0; i < ARRAYS; i++)
        arrays[i] = kt_random(rng, array_count(c, i), 1.0f);
}

static void copy_arrays(const kv_case *c, float *const from[ARRAYS], float *to[ARRAYS])
{
    for (int i = 0; i < ARRAYS; i++) {
        to[i] = kt_floats(array_count(c, i));
        memcpy(to[i], from[i], array_count(c, i) * sizeof **to);
    }
}

static void free_arrays(float *arrays[ARRAYS])
{
    for (int i = 0; i < ARRAYS; i++)
        rt_free(arrays[i]);
}

static void check_case(kt_rng *rng, const kv_case *c)
{
    float *qkv = kt_random(rng, (size_t)c->rows * qkv_cols(c), 1.0f);
    float *start[ARRAYS], *want[ARRAYS];
    fill_arrays(rng, c, start);
    copy_arrays(c, start, want);
    expect_kv(c, qkv, want);
    for (int threads = 1; threads <= 3; threads++) {
        float *got[ARRAYS];
        copy_arrays(c, start, got);
        run_kv(threads, c, qkv, got);
        for (int i = 0; i < ARRAYS; i++)
            KT_SAME(got[i], want[i], array_count(c, i), "pages");
        free_arrays(got);
    }
    free_arrays(want);
    free_arrays(start);
    rt_free(qkv);
}

static void test_rows_land_in_their_slots(void **state)
{
    (void)state;
    // A page from its start, a page continued (offset 1 on), rows not to be written,
    // and pages out of order.
    const int32_t mixed[] = {-1, 12, 13, 14, 15, 5, 6, -1, 7, 0, 1};
    const int32_t none[] = {-1, -1};
    const int32_t single[] = {3};
    const kv_case cases[] = {
        {11, 4, 4, 4, 2, 5, mixed}, {11, 16, 1, 1, 1, 2, mixed},  {11, 2, 8, 6, 3, 64, mixed},
        {2, 1, 16, 2, 2, 4, none},  {1, 1, 4, 8, 8, 128, single},
    };
    kt_rng rng = {1};
    for (size_t i = 0; i < KT_COUNT(cases); i++)
        check_case(&rng, &cases[i]);
}

static void test_many_rows(void **state)
{
    (void)state;
    enum { ROWS = 300 };
    int32_t slots[ROWS];
    for (int r = 0; r < ROWS; r++)
        slots[r] = (r / 16 * 7 % 19) * 16 + r % 16; // 19 pages in scattered order
    const kv_case c = {ROWS, 19, 16, 4, 2, 32, slots};
    kt_rng rng = {2};
    check_case(&rng, &c);
}

// A page written over two calls has the bounds of one; a page taken again forgets.
static void test_bounds_span_calls_and_restart(void **state)
{
    (void)state;
    const int32_t slots[] = {0, 1, 2, 3};
    const kv_case all = {4, 1, 4, 1, 1, 3, slots};
    const kv_case head = {2, 1, 4, 1, 1, 3, slots}, tail = {2, 1, 4, 1, 1, 3, slots + 2};
    kt_rng rng = {3};
    float *old = kt_random(&rng, 4 * qkv_cols(&all), 100.0f);
    float *qkv = kt_random(&rng, 4 * qkv_cols(&all), 1.0f);
    float *once[ARRAYS], *twice[ARRAYS];
    fill_arrays(&rng, &all, once);
    copy_arrays(&all, once, twice);
    run_kv(1, &all, qkv, once);
    run_kv(1, &all, old, twice);
    run_kv(1, &head, qkv, twice);
    run_kv(1, &tail, qkv + 2 * qkv_cols(&all), twice);
    for (int i = 0; i < ARRAYS; i++)
        KT_SAME(twice[i], once[i], array_count(&all, i), "page");
    free_arrays(twice);
    free_arrays(once);
    rt_free(qkv);
    rt_free(old);
}

static void test_slot_outside_the_pages_is_refused(void **state)
{
    (void)state;
    kern_dev *dev = kt_open(1);
    kern_buf *k = kt_out_f32(dev, 16), *v = kt_out_f32(dev, 16), *meta = kt_out_f32(dev, 8);
    kern_buf *x = kt_out_f32(dev, 12), *slots = kt_out_i32(dev, 2);
    const kern_batch batch = {.rows = 2, .block = 4, .page = 2, .kv_slot = slots};
    const kern_kv_write_args args = {
        .qkv = x,
        .kv =
            {.k = k, .v = v, .kmin = meta, .kmax = meta, .pages = 4, .kv_heads = 1, .head_dim = 2},
        .batch = &batch,
        .heads = 1};
    const int32_t bad[][2] = {{0, 8}, {-2, 0}};
    for (size_t i = 0; i < KT_COUNT(bad); i++) {
        KT_OK(kern_write(slots, 0, bad[i], 2));
        KT_REFUSED(kern_kv_write(dev, &args), RT_ERR_INVALID, "kern_kv_write", "kv_slot");
        float *untouched = kt_take(k, 0);
        rt_free(untouched);
    }
    kern_buf *const owned[] = {k, v, meta, x, slots};
    for (size_t i = 0; i < KT_COUNT(owned); i++)
        kern_buf_free(owned[i]);
    kern_dev_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_land_in_their_slots),
        cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_bounds_span_calls_and_restart),
        cmocka_unit_test(test_slot_outside_the_pages_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
