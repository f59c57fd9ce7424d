// SPDX-License-Identifier: Apache-2.0
// Results that outlive a run: what is kept, what a crash leaves, and whose file it is.
#include "tests/unit/testing.h"

#include "launcher/eval_store.h"
#include "runtime/base/log.h"

#include <signal.h>
#include <sys/resource.h>

static const app_setting setting = {.model = 1, .data = 2, .options = "steps=0"};

static app_store *open_store(const char *path, const app_setting *with)
{
    app_store *s;
    assert_ok(app_store_open(path, with, &s));
    return s;
}

static void add(app_store *s, const char *policy, const char *document, int value)
{
    json_t *result = json_pack("{s:i}", "value", value);
    assert_ok(app_store_add(s, policy, document, result));
    json_decref(result);
}

static void has(const app_store *s, const char *policy, const char *document, int value)
{
    const json_t *result = app_store_find(s, policy, document);
    assert_non_null(result);
    assert_int_equal(json_integer_value(json_object_get(result, "value")), value);
}

static size_t read_file(const char *path, char *out, size_t size)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    const size_t n = fread(out, 1, size - 1, file);
    out[n] = '\0';
    fclose(file);
    return n;
}

static void append(const char *path, const char *text)
{
    FILE *file = fopen(path, "ab");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void test_memory(void **state)
{
    (void)state;
    app_store *s = open_store(NULL, &setting);
    add(s, "losa", "a", 1);
    has(s, "losa", "a", 1);
    assert_null(app_store_find(s, "losa", "b"));
    assert_null(app_store_find(s, "dense", "a"));
    app_store_close(s);
}

static void test_resume(void **state)
{
    (void)state;
    const test_dir dir = test_dir_new();
    const char *path = test_path(&dir, "r.jsonl");
    app_store *s = open_store(path, &setting);
    add(s, "losa", "a", 1);
    add(s, "dense", "a", 2);
    app_store_close(s);

    s = open_store(path, &setting);
    has(s, "losa", "a", 1);
    has(s, "dense", "a", 2);
    add(s, "losa", "b", 3);
    app_store_close(s);

    s = open_store(path, &setting);
    has(s, "losa", "b", 3);
    app_store_close(s);
    test_dir_remove(&dir);
}

// Half a line goes, wherever the crash cut it, and the file is whole again.
static void test_half_lines(void **state)
{
    (void)state;
    const test_dir dir = test_dir_new();
    const char *path = test_path(&dir, "r.jsonl");
    char whole[1024];
    app_store *s = open_store(path, &setting);
    add(s, "losa", "a", 1);
    add(s, "losa", "b", 2);
    app_store_close(s);
    const size_t len = read_file(path, whole, sizeof whole);
    const size_t last = len - strlen("{\"value\":2,\"policy\":\"losa\",\"document\":\"b\"}\n");
    assert_memory_equal(whole + last, "{\"value\":2", 10);
    for (size_t cut = 0; cut < len; cut += cut < 16 || cut + 60 > len ? 1 : 11) {
        const char *file = test_write(&dir, "cut.jsonl", whole, cut);
        s = open_store(file, &setting);
        assert_null(app_store_find(s, "losa", "b"));
        assert_true((app_store_find(s, "losa", "a") != NULL) == (cut >= last));
        if (cut < last)
            add(s, "losa", "a", 1);
        add(s, "losa", "b", 2);
        app_store_close(s);
        char again[1024];
        read_file(file, again, sizeof again);
        assert_string_equal(again, whole);
    }
    test_dir_remove(&dir);
}

static void test_foreign_files(void **state)
{
    (void)state;
    const test_dir dir = test_dir_new();
    const char *path = test_path(&dir, "r.jsonl");
    static const app_setting none = {.model = 9, .data = 9, .options = "steps=9"};
    app_store_close(open_store(path, &none)); // without a result it is nobody's
    app_store *s = open_store(path, &setting);
    add(s, "losa", "a", 1);
    app_store_close(s);
    static const struct {
        app_setting setting;
        const char *cause;
    } cases[] = {
        {{.model = 3, .data = 2, .options = "steps=0"}, "another model"},
        {{.model = 1, .data = 3, .options = "steps=0"}, "other documents"},
        {{.model = 1, .data = 2, .options = "steps=4"}, "'steps=0', now 'steps=4'"},
    };
    for (size_t i = 0; i < 3; i++)
        assert_fails(app_store_open(path, &cases[i].setting, &s), RT_ERR_INVALID, path,
                     cases[i].cause);

    // Nor is one that another process has.
    app_store *first = open_store(path, &setting);
    assert_fails(app_store_open(path, &setting, &s), RT_ERR_INVALID, path,
                 "another losa writes to it");
    app_store_close(first);

    // What is not ours stays as it is.
    static const char *const texts[] = {"precious", "{\"id\":\"a\"}\n", "{\"losa_evil\":1}\n"};
    for (size_t i = 0; i < 3; i++) {
        char after[64];
        const char *file = test_write_text(&dir, "other.jsonl", texts[i]);
        assert_fails(app_store_open(file, &setting, &s), RT_ERR_INVALID, file,
                     "not results of losa eval");
        read_file(file, after, sizeof after);
        assert_string_equal(after, texts[i]);
    }
    test_dir_remove(&dir);
}

static void test_bad_lines(void **state)
{
    (void)state;
    const test_dir dir = test_dir_new();
    const char *path = test_path(&dir, "r.jsonl");
    app_store *s = open_store(path, &setting);
    add(s, "losa", "a", 1);
    app_store_close(s);
    append(path, "{\"policy\": \"losa\"}\n");
    char where[PATH_MAX + 8];
    snprintf(where, sizeof where, "%s:3", path);
    assert_fails(app_store_open(path, &setting, &s), RT_ERR_FORMAT, where, "'document'");
    assert_fails(app_store_open("/nowhere/r.jsonl", &setting, &s), RT_ERR_IO, "/nowhere/r.jsonl",
                 "No such file");
    test_dir_remove(&dir);
}

static void test_full_disk(void **state)
{
    (void)state;
    const test_dir dir = test_dir_new();
    const char *path = test_path(&dir, "r.jsonl");
    app_store *s = open_store(path, &setting);
    struct rlimit before, none = {0, 0};
    getrlimit(RLIMIT_FSIZE, &before);
    none.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &none);
    json_t *result = json_object();
    assert_fails(app_store_add(s, "losa", "a", result), RT_ERR_IO, path, "cannot write");
    setrlimit(RLIMIT_FSIZE, &before);
    assert_null(app_store_find(s, "losa", "a"));
    json_decref(result);
    app_store_close(s);
    test_dir_remove(&dir);
}

int main(void)
{
    rt_log_setup(RT_LOG_ERROR, 0, 1); // half lines are warned of
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),     cmocka_unit_test(test_resume),
        cmocka_unit_test(test_half_lines), cmocka_unit_test(test_foreign_files),
        cmocka_unit_test(test_bad_lines),  cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
