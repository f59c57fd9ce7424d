// SPDX-License-Identifier: Apache-2.0
// Whole-file input: empty, large, piped, limited, and what is not a file.
#include "tests/unit/testing.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

static void check_read(const char *path, size_t max, const char *bytes, size_t n)
{
    char *out;
    size_t len;
    assert_ok(rt_file_read(path, max, &out, &len));
    assert_int_equal(len, n);
    assert_memory_equal(out, bytes, n);
    assert_int_equal(out[len], '\0');
    rt_free(out);
}

static void test_read(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    static char big[300000];
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)(i * 7);
    check_read(test_write(&dir, "empty", "", 0), 0, "", 0);
    check_read(test_write(&dir, "nul", "a\0b", 3), 3, "a\0b", 3);
    check_read(test_write(&dir, "big", big, sizeof big), sizeof big, big, sizeof big);
    check_read(test_path(&dir, "big"), SIZE_MAX / 8, big, sizeof big);
    test_dir_remove(&dir);
}

static void test_refused(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    char *out = NULL;
    size_t len = 0;
    rt_map map = {0};
    const char *path = test_write(&dir, "f", "abcd", 4);
    assert_fails(rt_file_read(path, 3, &out, &len), RT_ERR_LIMIT, path, "larger than 3 bytes");
    assert_fails(rt_file_read(path, 0, &out, &len), RT_ERR_LIMIT, path, "larger than 0 bytes");
    assert_fails(rt_file_read(dir.path, 9, &out, &len), RT_ERR_IO, dir.path, "is a folder");
    assert_fails(rt_map_open(dir.path, &map), RT_ERR_IO, dir.path, "is a folder");
    const char *missing = test_path(&dir, "missing");
    assert_fails(rt_file_read(missing, 9, &out, &len), RT_ERR_IO, missing, "No such file");
    assert_fails(rt_map_open(missing, &map), RT_ERR_IO, missing, "No such file");
    assert_fails(rt_map_open("/dev/null", &map), RT_ERR_IO, "/dev/null", "not a regular file");
    rt_mem_fail_at(1);
    assert_fails(rt_file_read(path, 9, &out, &len), RT_ERR_NOMEM, path, "out of memory");
    assert_null(out);
    assert_false(rt_file_exists(missing));
    assert_true(rt_file_exists(path));
    test_dir_remove(&dir);
}

static void test_map(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_map map;
    assert_ok(rt_map_open(test_write(&dir, "f", "abcd", 4), &map));
    assert_int_equal(map.len, 4);
    assert_memory_equal(map.data, "abcd", 4);
    rt_map_close(&map);
    rt_map_close(&map);
    assert_ok(rt_map_open(test_write(&dir, "empty", "", 0), &map));
    assert_true(map.data == NULL && map.len == 0);
    rt_map_close(&map);
    test_dir_remove(&dir);
}

enum { PIPED = 200000 }; // more than a pipe holds, and than the first buffer

static void *feed(void *arg)
{
    int fd = *(int *)arg;
    char chunk[1000];
    memset(chunk, 'p', sizeof chunk);
    for (size_t sent = 0; sent < PIPED; sent += sizeof chunk) {
        if (write(fd, chunk, sizeof chunk) != (ssize_t)sizeof chunk)
            break;
    }
    close(fd);
    return NULL;
}

// Standard input is replaced by a pipe that another thread fills.
static void test_standard_input(void **state)
{
    (void)state;
    int ends[2], saved = dup(STDIN_FILENO);
    pthread_t feeder;
    char *out;
    size_t len;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(dup2(ends[0], STDIN_FILENO), STDIN_FILENO);
    close(ends[0]);
    assert_int_equal(pthread_create(&feeder, NULL, feed, &ends[1]), 0);
    rt_status status = rt_file_read("-", 1 << 20, &out, &len);
    pthread_join(feeder, NULL);
    if (saved >= 0)
        dup2(saved, STDIN_FILENO);
    assert_ok(status);
    assert_int_equal(len, PIPED);
    assert_true(out[0] == 'p' && out[PIPED - 1] == 'p');
    rt_free(out);
}

static void test_join(void **state)
{
    (void)state;
    char path[8];
    assert_ok(rt_path_join("ab", "cd", path, sizeof path));
    assert_string_equal(path, "ab/cd");
    assert_ok(rt_path_join("ab/", "cd", path, sizeof path));
    assert_string_equal(path, "ab/cd");
    assert_ok(rt_path_join("", "cd", path, sizeof path));
    assert_string_equal(path, "cd");
    assert_ok(rt_path_join("abc", "def", path, sizeof path));
    assert_fails(rt_path_join("abc", "defg", path, sizeof path), RT_ERR_LIMIT, "abc/defg",
                 "too long");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_map),  cmocka_unit_test(test_standard_input),
        cmocka_unit_test(test_join),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
