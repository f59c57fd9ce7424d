// SPDX-License-Identifier: Apache-2.0
// .npy in and out, and token id files. The bytes of a written header are compared
// with what numpy.save writes.
#include "tests/unit/testing.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/io/ids.h"
#include "runtime/io/npy.h"

#include <sys/stat.h>
#include <unistd.h>

static const float rows[] = {1, -2.5f, 3e-30f, 4, INFINITY, -0.0f};

static void write_matrix(const char *path)
{
    rt_npy_writer *w;
    assert_ok(rt_npy_create(path, 3, &w));
    assert_ok(rt_npy_append(w, rows, 1));
    assert_ok(rt_npy_append(w, rows, 0));
    assert_ok(rt_npy_append(w, rows + 3, 1));
    assert_ok(rt_npy_finish(w));
}

static void test_round_trip(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    const char *path = test_path(&dir, "a.npy");
    rt_npy array;
    write_matrix(path);
    assert_ok(rt_npy_read(path, &array));
    assert_true(array.type == RT_NPY_F32 && array.dims == 2 && array.count == 6);
    assert_true(array.shape[0] == 2 && array.shape[1] == 3);
    assert_memory_equal(array.f32, rows, sizeof rows);
    rt_npy_free(&array);
    rt_npy_free(&array);
    test_dir_remove(&dir);
}

static void test_header_bytes(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    const char *path = test_path(&dir, "a.npy");
    char wanted[129], *got;
    size_t len;
    snprintf(wanted, sizeof wanted, "%s%-117s\n", "\x93NUMPY\1?v?",
             "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }");
    wanted[7] = wanted[9] = '\0';
    write_matrix(path);
    assert_ok(rt_file_read(path, 1000, &got, &len));
    assert_int_equal(len, 128 + sizeof rows);
    assert_memory_equal(got, wanted, 128);
    rt_free(got);
    test_dir_remove(&dir);
}

static void test_write_errors(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_npy_writer *w = NULL;
    static float big[1 << 16];
    assert_fails(rt_npy_create(dir.path, 3, &w), RT_ERR_IO, dir.path, "cannot create");
    // A full disk: seen when the buffer spills, or at the end.
    assert_ok(rt_npy_create("/dev/full", 1, &w));
    assert_fails(rt_npy_append(w, big, sizeof big / sizeof *big), RT_ERR_IO, "/dev/full",
                 "No space left");
    rt_npy_abandon(w);
    assert_ok(rt_npy_create("/dev/full", 1, &w));
    assert_ok(rt_npy_append(w, big, 1));
    assert_fails(rt_npy_finish(w), RT_ERR_IO, "/dev/full", "No space left");
    rt_npy_abandon(NULL);
    test_dir_remove(&dir);
}

static void assert_count(const char *path, size_t count)
{
    rt_npy array;
    assert_ok(rt_npy_read(path, &array));
    assert_int_equal(array.count, count);
    rt_npy_free(&array);
}

// A file stays what it was until another is complete, and nothing is left beside it.
static void test_replaces(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    const char *path = test_path(&dir, "a.npy"), *part = test_path(&dir, "a.npy.tmp");
    rt_npy_writer *w;
    rt_npy array;
    write_matrix(path);
    assert_ok(rt_npy_create(path, 1, &w));
    assert_ok(rt_npy_append(w, rows, 2));
    assert_true(rt_file_exists(part));
    assert_fails(rt_npy_read(part, &array), RT_ERR_FORMAT, part, "");
    rt_npy_abandon(w);
    assert_false(rt_file_exists(part));
    assert_count(path, 6);
    assert_ok(rt_npy_create(path, 1, &w));
    assert_ok(rt_npy_append(w, rows, 2));
    assert_ok(rt_npy_finish(w));
    assert_false(rt_file_exists(part));
    assert_count(path, 2);
    // A link is followed.
    assert_int_equal(symlink("a.npy", test_path(&dir, "link")), 0);
    write_matrix(test_path(&dir, "link"));
    assert_count(path, 6);
    // A folder has come to stand there meanwhile.
    assert_ok(rt_npy_create(test_path(&dir, "b"), 1, &w));
    assert_int_equal(mkdir(test_path(&dir, "b"), 0700), 0);
    assert_fails(rt_npy_finish(w), RT_ERR_IO, "b: cannot write", "");
    assert_false(rt_file_exists(test_path(&dir, "b.tmp")));
    test_dir_remove(&dir);
}

static const char *write_npy(const test_dir *dir, const char *dict, size_t data_len)
{
    char bytes[512] = "\x93NUMPY\1";
    size_t len = strlen(dict);
    bytes[8] = (char)len;
    memcpy(bytes + 10, dict, len);
    for (size_t i = 0; i < data_len; i += 4)
        bytes[10 + len + i] = (char)(i / 4 + 1);
    return test_write(dir, "h.npy", bytes, 10 + len + data_len);
}

#define DICT(descr, order, shape)                                                                  \
    "{'descr': '" descr "', 'fortran_order': " order ", 'shape': " shape ", } \n"

static void test_shapes(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_npy array;
    assert_ok(rt_npy_read(write_npy(&dir, DICT("<i4", "False", "(3,)"), 12), &array));
    assert_true(array.type == RT_NPY_I32 && array.dims == 1 && array.shape[0] == 3);
    assert_true(array.i32[0] == 1 && array.i32[1] == 2 && array.i32[2] == 3);
    rt_npy_free(&array);
    assert_ok(rt_npy_read(write_npy(&dir, DICT("<i4", "False", "()"), 4), &array));
    assert_true(array.dims == 0 && array.count == 1 && array.i32[0] == 1);
    rt_npy_free(&array);
    assert_ok(rt_npy_read(write_npy(&dir, DICT("<f4", "False", "(2, 0, 3)"), 0), &array));
    assert_true(array.dims == 3 && array.count == 0);
    rt_npy_free(&array);
    test_dir_remove(&dir);
}

static const struct {
    const char *dict;
    size_t data_len;
    const char *cause;
} hostile[] = {
    {DICT("<f8", "False", "(3,)"), 24, "the header is not that"},
    {DICT(">f4", "False", "(3,)"), 12, "the header is not that"},
    {DICT("<f4", "True", "(3,)"), 12, "the header is not that"},
    {DICT("<f4", "False", "(-3,)"), 12, "the header is not that"},
    {DICT("<f4", "False", "(1, 1, 1, 1, 3)"), 12, "the header is not that"},
    {DICT("<f4", "False", "(99999999999999999999,)"), 12, "the header is not that"},
    {DICT("<f4", "False", "(4294967296, 4294967296)"), 0, "the header is not that"},
    {DICT("<f4", "False", "(4611686018427387904,)"), 0, "0 bytes of data"},
    {DICT("<f4", "False", "(3"), 12, "the header is not that"},
    {DICT("<f4", "False", "(3 3)"), 36, "the header is not that"},
    {DICT("<f4", "False", "(3,)") "x", 12, "the header is not that"},
    {"", 12, "the header is not that"},
    {DICT("<f4", "False", "(3,)"), 8, "8 bytes of data, but a shape of 3 elements"},
    {DICT("<f4", "False", "(3,)"), 16, "16 bytes of data, but a shape of 3 elements"},
};

static void test_hostile(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_npy array = {0};
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        const char *path = write_npy(&dir, hostile[i].dict, hostile[i].data_len);
        assert_fails(rt_npy_read(path, &array), RT_ERR_FORMAT, path, hostile[i].cause);
    }
    const char *path = test_write(&dir, "h.npy", "\x93NUMPY\2\0v\0\0\0", 12);
    assert_fails(rt_npy_read(path, &array), RT_ERR_FORMAT, path, "version 1.0");
    test_write(&dir, "h.npy", "\x93NUMPY\1\0v\0{'d", 13);
    assert_fails(rt_npy_read(path, &array), RT_ERR_FORMAT, path, "cut off");
    test_write(&dir, "h.npy", "", 0);
    assert_fails(rt_npy_read(path, &array), RT_ERR_FORMAT, path, "not an .npy file");
    assert_null(array.f32);
    test_dir_remove(&dir);
}

static void test_golden(void **state)
{
    (void)state;
    const char *source = getenv("LOSA_SOURCE");
    char path[PATH_MAX];
    rt_npy array;
    if (!source)
        skip();
    snprintf(path, sizeof path, "%s/tests/golden/logits/bf16/logits.npy", source);
    assert_ok(rt_npy_read(path, &array));
    assert_true(array.dims == 2 && array.shape[0] == 50 && array.shape[1] == 96);
    rt_npy_free(&array);
}

static void test_ids(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    int32_t *ids = NULL;
    size_t n = 9;
    assert_ok(rt_token_ids_load(test_write_text(&dir, "i", " [3, 0, 9]\n"), 10, &ids, &n));
    assert_true(n == 3 && ids[0] == 3 && ids[1] == 0 && ids[2] == 9);
    rt_free(ids);
    assert_ok(rt_token_ids_load(test_write_text(&dir, "i", "[]"), 10, &ids, &n));
    assert_int_equal(n, 0);
    rt_free(ids);
    const struct {
        const char *text, *cause;
    } cases[] = {
        {"", "line 1"},
        {"[1, 2", "line 1"},
        {"{\"ids\": [1]}", "not a JSON array"},
        {"[1, 2.0]", "element 1 is not an integer"},
        {"[\"1\"]", "element 0 is not an integer"},
        {"[1, null]", "element 1 is not an integer"},
        {"[1, 2, 10]", "element 2, token id 10, is outside [0, 10)"},
        {"[-1]", "token id -1"},
        {"[4294967297]", "token id 4294967297"},
    };
    ids = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = test_write_text(&dir, "i", cases[i].text);
        assert_fails(rt_token_ids_load(path, 10, &ids, &n), RT_ERR_FORMAT, path, cases[i].cause);
    }
    assert_null(ids);
    test_dir_remove(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_header_bytes),
        cmocka_unit_test(test_write_errors), cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_hostile),      cmocka_unit_test(test_golden),
        cmocka_unit_test(test_ids),          cmocka_unit_test(test_replaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
