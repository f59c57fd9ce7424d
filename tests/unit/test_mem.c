// SPDX-License-Identifier: Apache-2.0
// Allocations are aligned and zero, small and large; overflow, and the failure a
// test asks for, become messages.
#include "tests/unit/testing.h"

#include "runtime/base/mem.h"
#include "runtime/base/pool.h"
#include "runtime/base/str.h"

#include <stdatomic.h>

static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, (1 << 20) - 1, 1 << 20, (5 << 20) + 3};

static void test_zero_and_aligned(void **state)
{
    (void)state;
    for (int round = 0; round < 3; round++) { // later rounds get used memory back
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            unsigned char *p = rt_mem_alloc(sizes[i], 1, "test");
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 64, 0);
            for (size_t b = 0; b < sizes[i]; b++)
                assert_int_equal(p[b], 0);
            memset(p, 0xff, sizes[i]);
            rt_free(p);
        }
    }
    rt_free(NULL);
}

static void test_grow(void **state)
{
    (void)state;
    int *p = rt_mem_grow(NULL, 0, 3, sizeof *p, "test");
    assert_non_null(p);
    for (int i = 0; i < 3; i++)
        p[i] = i + 1;
    p = rt_mem_grow(p, 3, 1 << 20, sizeof *p, "test");
    assert_non_null(p);
    assert_true(p[0] == 1 && p[1] == 2 && p[2] == 3);
    for (int i = 3; i < 1 << 20; i++)
        assert_int_equal(p[i], 0);
    p = rt_mem_grow(p, 1 << 20, 2, sizeof *p, "test");
    assert_true(p[0] == 1 && p[1] == 2);
    rt_free(p);
}

static void test_refused(void **state)
{
    (void)state;
    const struct {
        size_t count, size;
    } cases[] = {{SIZE_MAX, 2}, {SIZE_MAX / 2, 3}, {SIZE_MAX, 1}, {(size_t)PTRDIFF_MAX, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_null(rt_mem_alloc(cases[i].count, cases[i].size, "huge"));
        assert_non_null(strstr(rt_last_error(), "out of memory: huge: "));
    }
}

static void test_failing_allocation(void **state)
{
    (void)state;
    char *p, *q;
    rt_mem_fail_at(2);
    assert_ok(RT_ALLOC(p, 3, "first"));
    assert_fails(RT_ALLOC(q, 5, "second"), RT_ERR_NOMEM, "second", "5 bytes");
    assert_ok(RT_ALLOC(q, 3, "third"));
    rt_mem_fail_at(1);
    assert_null(rt_mem_grow(p, 3, 9, 1, "grown")); // and `p` is still ours
    p[2] = 'x';
    rt_free(p);
    rt_free(q);
    rt_mem_fail_at(1);
    rt_mem_fail_at(0);
    p = rt_mem_strdup("text", "copy");
    assert_string_equal(p, "text");
    rt_free(p);
}

static void count_failures(void *ctx, size_t item, int thread)
{
    (void)item, (void)thread;
    void *p = rt_mem_alloc(1, 1, "threads");
    if (!p)
        atomic_fetch_add((atomic_int *)ctx, 1);
    rt_free(p);
}

static void test_one_failure_over_threads(void **state)
{
    (void)state;
    rt_pool *pool;
    atomic_int failures = 0;
    assert_ok(rt_pool_open(4, &pool));
    rt_mem_fail_at(500);
    rt_pool_run(pool, 2000, count_failures, &failures);
    rt_pool_close(pool);
    assert_int_equal(failures, 1);
}

static void test_strings(void **state)
{
    (void)state;
    rt_str s = {0};
    assert_ok(rt_str_append(&s, NULL, 0));
    assert_string_equal(s.data, "");
    assert_ok(rt_str_puts(&s, "abc"));
    assert_ok(rt_str_append(&s, "d\0e", 3));
    assert_int_equal(s.len, 6);
    assert_memory_equal(s.data, "abcd\0e", 7);
    for (int i = 0; i < 1000; i++)
        assert_ok(rt_str_printf(&s, "%03d,", i));
    assert_int_equal(s.len, 6 + 4000);
    assert_string_equal(s.data + s.len - 8, "998,999,");
    assert_fails(rt_str_append(&s, "x", SIZE_MAX - 10), RT_ERR_NOMEM, "string", "out of memory");
    rt_mem_fail_at(1);
    assert_fails(rt_str_printf(&s, "%5000d", 1), RT_ERR_NOMEM, "string", "out of memory");
    assert_string_equal(s.data + s.len - 4, "999,");
    rt_str_free(&s);
    assert_true(s.data == NULL && s.len == 0 && s.cap == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_and_aligned),
        cmocka_unit_test(test_grow),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_failing_allocation),
        cmocka_unit_test(test_one_failure_over_threads),
        cmocka_unit_test(test_strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
