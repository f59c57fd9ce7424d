// SPDX-License-Identifier: Apache-2.0
// What a device counts, and the device that does nothing else.
#include "tests/kern/kern_testing.h"

// Views are part of their owner; shared buffers are the host's.
static void test_use(void **state)
{
    (void)state;
    kern_dev *dev = kt_open(1);
    kern_buf *page, *view, *shared;
    kern_use_for(dev, KERN_USE_KV);
    KT_OK(kern_buf_new(dev, KERN_BF16, 100, "pages", &page));
    KT_OK(kern_buf_view(page, 10, 20, &view));
    KT_OK(kern_buf_new_shared(dev, KERN_I64, 3, "outcome", &shared));
    assert_int_equal(kern_used(dev, KERN_USE_KV), 200);
    assert_int_equal(kern_used(dev, KERN_USE_HOST), 24);
    assert_int_equal(kern_used(dev, KERN_USE_BATCH), 0);
    kern_buf_free(view);
    assert_int_equal(kern_used(dev, KERN_USE_KV), 200);
    kern_buf_free(page);
    kern_buf_free(shared);
    assert_int_equal(kern_used(dev, KERN_USE_KV), 0);
    assert_int_equal(kern_used(dev, KERN_USE_HOST), 0);
    size_t room = 0;
    KT_OK(kern_dev_room(dev, &room));
    assert_true(room > 1 << 20);
    KT_REFUSED(kern_dev_room(dev, NULL), RT_ERR_INVALID, "kern_dev_room", "out");
    kern_dev_close(dev);
}

// More than any machine has is counted, and calls on it do nothing.
static void check_dry(const kern_dev_options *options, kern_dtype weights, kern_dtype pages)
{
    const size_t huge = (size_t)1 << 50;
    kern_dev *dev;
    kern_buf *buf;
    float word = 7;
    KT_OK(kern_dev_open(options, &dev));
    assert_true(kern_dev_is_dry(dev));
    assert_int_equal(kern_dev_kind(dev), options->kind);
    assert_int_equal(kern_dev_weight_dtype(dev, KERN_F16), weights);
    assert_int_equal(kern_dev_kv_dtype(dev), pages);
    kern_use_for(dev, KERN_USE_WEIGHTS);
    KT_OK(kern_buf_new(dev, KERN_F32, huge, "weights", &buf));
    assert_true(kern_used(dev, KERN_USE_WEIGHTS) == 4 * huge);
    KT_OK(kern_write(buf, huge - 1, &word, 1));
    KT_OK(kern_read(buf, huge - 1, &word, 1));
    assert_true(word == 0);
    KT_OK(kern_copy(buf, 0, buf, huge / 2, huge / 2));
    KT_OK(kern_fill_zero(buf, huge));
    const kern_fill_normal_args fill = {.dst = buf, .count = huge, .scale = 1};
    KT_OK(kern_fill_normal(dev, &fill));
    const kern_upload_args upload = {
        .dst = buf, .src = &word, .dtype = KERN_F32, .rows = 1, .cols = huge, .stride = huge};
    KT_OK(kern_upload(&upload));
    KT_OK(kern_sync(dev));
    bool idle = false;
    KT_OK(kern_poll(dev, &idle));
    assert_true(idle);
    kern_buf_free(buf);
    assert_int_equal(kern_used(dev, KERN_USE_WEIGHTS), 0);
    size_t room = 0;
    KT_OK(kern_dev_room(dev, &room));
    assert_true(room == SIZE_MAX);
    kern_dev_close(dev);
}

static void test_dry(void **state)
{
    (void)state;
    const kern_dev_options cpu = {.kind = KERN_CPU, .threads = 3, .dry = true};
    const kern_dev_options cuda = {.kind = KERN_CUDA, .threads = 1, .dry = true};
    kern_dev_options f32 = cuda;
    f32.precision = KERN_PRECISION_F32;
    check_dry(&cpu, KERN_F32, KERN_F32);
    check_dry(&cuda, KERN_F16, KERN_BF16);
    check_dry(&f32, KERN_F32, KERN_F32);
}

// A GPU's buffers take whole pieces of 2 MB, small ones of 512 bytes.
static void test_rounding(void **state)
{
    (void)state;
    const kern_dev_options options = {.kind = KERN_CUDA, .threads = 1, .dry = true};
    kern_dev *dev;
    kern_buf *large, *small, *whole, *shared;
    KT_OK(kern_dev_open(&options, &dev));
    KT_OK(kern_buf_new(dev, KERN_F32, 3 << 18, "3 MB", &large));
    KT_OK(kern_buf_new(dev, KERN_F32, 25, "100 bytes", &small));
    KT_OK(kern_buf_new(dev, KERN_F32, 1 << 20, "4 MB", &whole));
    KT_OK(kern_buf_new_shared(dev, KERN_F32, 25, "of the host", &shared));
    assert_int_equal(kern_used(dev, KERN_USE_ROUNDING), (1 << 20) + 412);
    kern_buf_free(small);
    assert_int_equal(kern_used(dev, KERN_USE_ROUNDING), 1 << 20);
    kern_buf_free(large);
    kern_buf_free(whole);
    kern_buf_free(shared);
    assert_int_equal(kern_used(dev, KERN_USE_ROUNDING), 0);
    kern_dev_close(dev);
}

// A dry CPU device has the workspace that a real one has.
static void test_workspace(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        const kern_dev_options options = {.kind = KERN_CPU, .threads = threads, .dry = true};
        kern_dev *dry, *dev = kt_open(threads);
        KT_OK(kern_dev_open(&options, &dry));
        for (int use = 0; use < KERN_USES; use++)
            assert_int_equal(kern_used(dry, (kern_use)use), kern_used(dev, (kern_use)use));
        assert_true(kern_used(dev, KERN_USE_WORKSPACE) >= (size_t)threads << 20);
        kern_dev_close(dry);
        kern_dev_close(dev);
    }
}

// A device's workspace has room for a segment's page bounds, however many.
static void test_plans(void **state)
{
    (void)state;
    const kern_dev_options options = {.kind = KERN_CUDA, .threads = 1, .dry = true};
    kern_plan_limits limits = {
        .act_cap = 32, .heads = 32, .lists = 8, .head_dim = 128, .max_pages = 1 << 12};
    kern_dev *dev;
    KT_OK(kern_dev_open(&options, &dev));
    const size_t own = kern_used(dev, KERN_USE_WORKSPACE);
    KT_OK(kern_reserve_plans(dev, &limits));
    assert_int_equal(kern_used(dev, KERN_USE_WORKSPACE), own);
    limits.max_pages = 1 << 17;
    KT_OK(kern_reserve_plans(dev, &limits));
    const size_t bounds = sizeof(float) * 32 * 32 << 17, grown = kern_used(dev, KERN_USE_WORKSPACE);
    assert_true(grown > bounds && grown < bounds + bounds / 4);
    limits.max_pages = 1 << 12;
    KT_OK(kern_reserve_plans(dev, &limits));
    assert_int_equal(kern_used(dev, KERN_USE_WORKSPACE), grown);
    limits.act_cap = 129;
    limits.max_pages = (1 << 18) + 1;
    KT_REFUSED(kern_reserve_plans(dev, &limits), RT_ERR_LIMIT, "page plan", "262145 pages");
    limits.max_pages = 1 << 18;
    KT_REFUSED(kern_reserve_plans(dev, &limits), RT_ERR_LIMIT, "page plan", "GB of bounds");
    limits.act_cap = 0; // nothing is scored
    KT_OK(kern_reserve_plans(dev, &limits));
    assert_int_equal(kern_used(dev, KERN_USE_WORKSPACE), grown);
    limits.head_dim = 257;
    KT_REFUSED(kern_reserve_plans(dev, &limits), RT_ERR_UNSUPPORTED, "head_dim", "257");
    limits.heads = 0;
    KT_REFUSED(kern_reserve_plans(dev, &limits), RT_ERR_INVALID, "kern_reserve_plans", "heads");
    kern_dev_close(dev);
}

// So has that of each thread of the CPU, which may know no limit.
static void test_cpu_plans(void **state)
{
    (void)state;
    enum { THREADS = 3, PAGES = (1 << 18) + 1 };
    const kern_dev_options options = {.kind = KERN_CPU, .threads = THREADS, .dry = true};
    kern_plan_limits limits = {
        .act_cap = 32, .heads = 32, .lists = 8, .head_dim = 128, .max_pages = 1 << 12};
    kern_dev *dry, *dev = kt_open(THREADS);
    KT_OK(kern_dev_open(&options, &dry));
    const size_t own = kern_used(dev, KERN_USE_WORKSPACE);
    KT_OK(kern_reserve_plans(dev, &limits));
    assert_int_equal(kern_used(dev, KERN_USE_WORKSPACE), own);
    limits.max_pages = PAGES;
    KT_OK(kern_reserve_plans(dev, &limits));
    KT_OK(kern_reserve_plans(dry, &limits));
    assert_true(kern_used(dev, KERN_USE_WORKSPACE) >= THREADS * PAGES * 8 * sizeof(float));
    assert_int_equal(kern_used(dry, KERN_USE_WORKSPACE), kern_used(dev, KERN_USE_WORKSPACE));
    kern_dev_close(dry);
    kern_dev_close(dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_use),      cmocka_unit_test(test_dry),
        cmocka_unit_test(test_rounding), cmocka_unit_test(test_workspace),
        cmocka_unit_test(test_plans),    cmocka_unit_test(test_cpu_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
