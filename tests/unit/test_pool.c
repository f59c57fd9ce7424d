// SPDX-License-Identifier: Apache-2.0
// Every item runs exactly once, on a thread number in range, whether the workers
// spin, sleep or outnumber the items. Run it under ThreadSanitizer too.
#include "tests/unit/testing.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/pool.h"

#include <pthread.h>

enum { MAX_ITEMS = 1000 };

static const int thread_counts[] = {1, 2, 3, 8};
enum { COUNTS = sizeof thread_counts / sizeof *thread_counts };

typedef struct work {
    int threads;
    int runs[MAX_ITEMS]; // plain on purpose: a second run of an item would be a race
    int out_of_range[MAX_ITEMS];
} work;

static void count_run(void *ctx, size_t item, int thread)
{
    work *w = ctx;
    w->runs[item]++;
    w->out_of_range[item] |= thread < 0 || thread >= w->threads;
}

static void check_run(rt_pool *pool, size_t items)
{
    work w = {.threads = rt_pool_threads(pool)};
    rt_pool_run(pool, items, count_run, &w);
    for (size_t i = 0; i < MAX_ITEMS; i++) {
        assert_int_equal(w.runs[i], i < items ? 1 : 0);
        assert_int_equal(w.out_of_range[i], 0);
    }
}

static void test_each_item_once(void **state)
{
    (void)state;
    const size_t items[] = {0, 1, 2, 3, 7, 8, 9, MAX_ITEMS};
    for (int t = 0; t < COUNTS; t++) {
        rt_pool *pool;
        assert_ok(rt_pool_open(thread_counts[t], &pool));
        assert_int_equal(rt_pool_threads(pool), thread_counts[t]);
        for (size_t i = 0; i < sizeof items / sizeof *items; i++)
            check_run(pool, items[i]);
        rt_pool_close(pool);
    }
}

static void test_sleeping_workers(void **state)
{
    (void)state;
    rt_pool *pool;
    assert_ok(rt_pool_open(4, &pool));
    for (int i = 0; i < 20; i++) {
        rt_clock_sleep(i % 2 ? 0.002 : 40e-6); // longer than the spin, and about as long
        check_run(pool, 50);
    }
    rt_pool_close(pool);
}

static void test_many_short_runs(void **state)
{
    (void)state;
    rt_pool *pool;
    work w = {.threads = 3};
    assert_ok(rt_pool_open(3, &pool));
    for (int run = 0; run < 5000; run++)
        rt_pool_run(pool, 5, count_run, &w);
    for (int i = 0; i < 5; i++)
        assert_int_equal(w.runs[i], 5000);
    rt_pool_close(pool);
}

static void test_open_and_close(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        rt_pool *pool;
        assert_ok(rt_pool_open(3, &pool));
        rt_pool_close(pool);
    }
    rt_pool_close(NULL);
}

static void *run_own_pool(void *arg)
{
    (void)arg;
    test_many_short_runs(NULL);
    return NULL;
}

static void test_two_pools_at_once(void **state)
{
    (void)state;
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, run_own_pool, NULL), 0);
    test_many_short_runs(NULL);
    assert_int_equal(pthread_join(other, NULL), 0);
}

static void test_refused(void **state)
{
    (void)state;
    rt_pool *pool = NULL;
    assert_fails(rt_pool_open(0, &pool), RT_ERR_INVALID, "rt_pool_open", "threads >= 1");
    assert_fails(rt_pool_open(-3, &pool), RT_ERR_INVALID, "rt_pool_open", "threads >= 1");
    assert_fails(rt_pool_open(1 << 20, &pool), RT_ERR_INVALID, "rt_pool_open", "threads <=");
    for (int n = 1; n <= 2; n++) {
        rt_mem_fail_at(n);
        assert_fails(rt_pool_open(2, &pool), RT_ERR_NOMEM, "thread pool", "out of memory");
    }
    rt_mem_fail_at(0);
    assert_null(pool);
    assert_true(rt_pool_cores() >= 1);
}

static void test_clock(void **state)
{
    (void)state;
    double start = rt_clock_now();
    rt_clock_sleep(0.005);
    rt_clock_sleep(0);
    rt_clock_sleep(-1);
    rt_clock_sleep(NAN);
    double passed = rt_clock_now() - start;
    assert_true(passed >= 0.005 && passed < 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_item_once),
        cmocka_unit_test(test_sleeping_workers),
        cmocka_unit_test(test_many_short_runs),
        cmocka_unit_test(test_open_and_close),
        cmocka_unit_test(test_two_pools_at_once),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
