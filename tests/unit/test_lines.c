// SPDX-License-Identifier: Apache-2.0
// Lines of files, against splitting the whole text at its line ends.
#include "tests/unit/testing.h"

#include "launcher/batch_input.h"
#include "launcher/id_set.h"

#include <fcntl.h>
#include <unistd.h>

enum { MAX = 1000 };

static test_dir dir;

static int make_dir(void **state)
{
    (void)state;
    dir = test_dir_new();
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    test_dir_remove(&dir);
    return 0;
}

// Every line of the file is where it is in the text, and nothing is left out.
static void check_text(const char *text, size_t len)
{
    const char *path = test_write(&dir, "lines", text, len);
    const int fd = open(path, O_RDONLY);
    app_lines *lines;
    app_line line;
    bool more;
    size_t at = 0;
    uint64_t number = 0;
    assert_ok(app_lines_open(fd, path, MAX, &lines));
    for (;;) {
        assert_ok(app_lines_next(lines, &line, &more));
        assert_int_equal(more, at < len);
        if (!more)
            break;
        const char *end = memchr(text + at, '\n', len - at);
        const size_t n = end ? (size_t)(end - (text + at)) : len - at;
        assert_int_equal(line.number, number++);
        assert_int_equal(line.offset, at);
        assert_int_equal(line.len, n);
        assert_int_equal(line.ended, end != NULL);
        assert_int_equal(line.text == NULL, n > MAX);
        if (line.text)
            assert_memory_equal(line.text, text + at, n);
        at += n + (end != NULL);
    }
    app_lines_close(lines);
    close(fd);
}

static void test_small(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "\n", "a", "a\n", "\n\na", "ab\ncd\n\n", "a\r\nb"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        check_text(texts[i], strlen(texts[i]));
    check_text("a\0b\n\0", 5);
}

// Lengths around the limit, many times the size of a chunk, in an order without a pattern.
static void test_large(void **state)
{
    (void)state;
    enum { BYTES = 3 << 20 };
    char *text = malloc(BYTES);
    assert_non_null(text);
    memset(text, 'x', BYTES);
    uint32_t random = 1;
    for (size_t at = 0; at < BYTES;) {
        random = random * 1664525 + 1013904223;
        const uint32_t kind = random >> 30;
        at += kind == 0 ? (random >> 8) % 700000 : kind == 1 ? MAX - 1 + (random >> 8) % 3 : 60;
        if (at < BYTES)
            text[at++] = '\n';
    }
    check_text(text, BYTES);
    free(text);
}

static void test_input(void **state)
{
    (void)state;
    static const char text[] = "{}\n \t\r\n\n[1]\n  x";
    const char *path = test_write_text(&dir, "input", text);
    app_input *in;
    app_line line;
    bool more;
    rt_str again = {0};
    assert_ok(app_input_open(path, MAX, &in));
    assert_int_equal(app_input_lines(in), 5);
    assert_int_equal(app_input_requests(in), 3);
    static const uint64_t numbers[] = {0, 3, 4};
    for (int i = 0; i < 3; i++) {
        assert_ok(app_input_next(in, &line, &more));
        assert_true(more);
        assert_int_equal(line.number, numbers[i]);
        assert_ok(app_input_read(in, line.offset, line.len, &again));
        assert_int_equal(again.len, line.len);
        assert_memory_equal(again.data, line.text, line.len);
    }
    assert_ok(app_input_next(in, &line, &more));
    assert_false(more);
    const uint64_t hash = app_input_hash(in);
    app_input_close(in);
    rt_str_free(&again);

    // Another text, of the same length and the same lines, has another hash.
    test_write_text(&dir, "input", "{}\n \t\r\n\n[2]\n  x");
    assert_ok(app_input_open(path, MAX, &in));
    assert_true(app_input_hash(in) != hash);
    app_input_close(in);
    test_write_text(&dir, "input", text);
    assert_ok(app_input_open(path, MAX, &in));
    assert_true(app_input_hash(in) == hash);
    app_input_close(in);
}

static void test_mark(void **state)
{
    (void)state;
    static const char text[] = "\xEF\xBB\xBF{}\n\xEF\xBB\xBF[]";
    app_input *in;
    app_line line;
    bool more;
    rt_str again = {0};
    assert_ok(app_input_open(test_write_text(&dir, "mark", text), MAX, &in));
    assert_ok(app_input_next(in, &line, &more));
    assert_ok(app_input_read(in, line.offset, line.len, &again));
    assert_string_equal(again.data, "{}");
    assert_memory_equal(line.text, "{}", 2);
    assert_ok(app_input_next(in, &line, &more));
    assert_int_equal(line.offset, 6);
    assert_int_equal(line.len, 5); // a mark elsewhere is none
    rt_str_free(&again);
    app_input_close(in);
}

static void test_refused(void **state)
{
    (void)state;
    app_input *in;
    assert_fails(app_input_open(test_path(&dir, "none"), MAX, &in), RT_ERR_IO, "none",
                 "cannot open");
    assert_fails(app_input_open(dir.path, MAX, &in), RT_ERR_INVALID, dir.path,
                 "not a regular file");
}

// A set of ids, against the plain answer.
static void test_ids(void **state)
{
    (void)state;
    enum { N = 1000 };
    app_id_set *set;
    bool known;
    assert_ok(app_id_set_open(N, &set));
    for (uint64_t i = 0; i < N; i++) { // hashes that fall on one another
        assert_ok(app_id_set_add(set, i << 40, &known));
        assert_false(known);
    }
    for (uint64_t i = 0; i < N; i++) {
        assert_ok(app_id_set_add(set, i << 40, &known));
        assert_true(known);
    }
    assert_fails(app_id_set_add(set, 12345, &known), RT_ERR_INVALID, "app_id_set_add", "most");
    app_id_set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small), cmocka_unit_test(test_large),   cmocka_unit_test(test_input),
        cmocka_unit_test(test_mark),  cmocka_unit_test(test_refused), cmocka_unit_test(test_ids),
    };
    return cmocka_run_group_tests_name("lines", tests, make_dir, remove_dir);
}
