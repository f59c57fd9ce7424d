// SPDX-License-Identifier: Apache-2.0
// Status codes have texts; messages are per thread, and may quote the one before.
#include "tests/unit/testing.h"

#include <pthread.h>

static rt_status fails_if(bool condition)
{
    RT_CHECK_ARG(!condition);
    return RT_OK;
}

static rt_status passes_on(bool condition)
{
    RT_TRY(fails_if(condition));
    return RT_OK;
}

static void test_texts(void **state)
{
    (void)state;
    assert_string_equal(rt_status_text(RT_OK), "ok");
#define CHECK(name, value, text)                                                                   \
    assert_int_equal(RT_ERR_##name, value);                                                        \
    assert_string_equal(rt_status_text(RT_ERR_##name), text);
    RT_STATUS_MAP(CHECK)
#undef CHECK
    assert_string_equal(rt_status_text((rt_status)-99), "unknown status");
}

static void test_message(void **state)
{
    (void)state;
    assert_fails(RT_FAIL(RT_ERR_IO, "%s: no %d", "file", 7), RT_ERR_IO, "file", "no 7");
    assert_fails(RT_FAIL(RT_ERR_LIMIT, "again: %s", rt_last_error()), RT_ERR_LIMIT,
                 "again: file: no 7", "");
    assert_non_null(strstr(rt_last_error_where(), "test_status.c:"));
}

static void test_long_message(void **state)
{
    (void)state;
    char text[5000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    (void)RT_FAIL(RT_ERR_IO, "%s", text);
    assert_int_equal(strlen(rt_last_error()), 1023);
}

static void test_passing_on(void **state)
{
    (void)state;
    assert_ok(passes_on(false));
    assert_fails(passes_on(true), RT_ERR_INVALID, "fails_if", "requires !condition");
}

static int fail_count; // its address says "yes"

static void *fail_elsewhere(void *arg)
{
    (void)arg;
    bool was_empty = rt_last_error()[0] == '\0';
    (void)RT_FAIL(RT_ERR_COMM, "other thread");
    return was_empty ? &fail_count : NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t thread;
    void *was_empty;
    (void)RT_FAIL(RT_ERR_IO, "this thread");
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, NULL), 0);
    assert_int_equal(pthread_join(thread, &was_empty), 0);
    assert_non_null(was_empty);
    assert_string_equal(rt_last_error(), "this thread");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),        cmocka_unit_test(test_message),
        cmocka_unit_test(test_long_message), cmocka_unit_test(test_passing_on),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
