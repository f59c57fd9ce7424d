// SPDX-License-Identifier: Apache-2.0
// The journal: what was added is there after every kind of end, and nothing else is.
#include "tests/unit/testing.h"

#include "launcher/batch_journal.h"
#include "runtime/base/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LINES = 10 };
static const app_job job = {.model = 1, .input = UINT64_MAX, .options = "dense", .lines = LINES};

static test_dir dir;

static int make_dir(void **state)
{
    (void)state;
    rt_log_setup(RT_LOG_ERROR, 0, 1); // damage is not news here
    dir = test_dir_new();
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    test_dir_remove(&dir);
    return 0;
}

static const char *path(void)
{
    return test_path(&dir, "journal");
}

static app_journal *reopen(bool resume)
{
    app_journal *j;
    assert_ok(app_journal_open(path(), &job, resume, &j));
    return j;
}

static void add(app_journal *j, uint64_t line)
{
    char text[32];
    snprintf(text, sizeof text, "{\"line\":%d}", (int)line);
    assert_ok(app_journal_add(j, line, text, strlen(text)));
}

static void make(const uint64_t *lines, size_t n)
{
    unlink(path());
    app_journal *j = reopen(false);
    for (size_t i = 0; i < n; i++)
        add(j, lines[i]);
    assert_ok(app_journal_sync(j, 0));
    app_journal_close(j);
}

static void assert_holds(const app_journal *j, const char *digits)
{
    for (uint64_t i = 0; i < LINES; i++)
        assert_int_equal(app_journal_has(j, i), strchr(digits, (int)('0' + i)) != NULL);
    assert_int_equal(app_journal_count(j), strlen(digits));
}

static char *load(const char *file, size_t *len)
{
    const int fd = open(file, O_RDONLY);
    assert_true(fd >= 0);
    *len = (size_t)lseek(fd, 0, SEEK_END);
    char *text = calloc(*len + 1, 1);
    assert_int_equal(pread(fd, text, *len, 0), *len);
    close(fd);
    return text;
}

static void test_counts(void **state)
{
    (void)state;
    unlink(path());
    app_journal *j = reopen(true); // nothing to resume is fine
    add(j, 3);
    assert_true(app_journal_has(j, 3));
    assert_int_equal(app_journal_count(j), 0);
    assert_ok(app_journal_sync(j, 3600)); // written, not on the disk yet
    assert_int_equal(app_journal_count(j), 0);
    app_journal_close(j); // as after kill -9
    j = reopen(true);
    assert_holds(j, "3");
    add(j, 3); // once is enough
    add(j, 0);
    assert_ok(app_journal_sync(j, 0));
    assert_holds(j, "30");
    app_journal_close(j);
}

// Records of errors count, also those of earlier runs; a record may quote another one.
static void test_errors(void **state)
{
    (void)state;
    static const char *const records[] = {
        "{\"custom_id\":\"a\",\"response\":{\"status_code\":200,\"body\":{}}}",
        "{\"custom_id\":\"\\\"response\\\":{\\\"status_code\\\":200,\","
        "\"response\":{\"status_code\":400,\"body\":{}}}",
        "{\"custom_id\":null,\"response\":{\"status_code\":500,\"body\":{}}}"};
    unlink(path());
    for (uint64_t i = 0; i < 3; i++) {
        app_journal *j = reopen(true);
        assert_int_equal(app_journal_errors(j), i > 1);
        assert_ok(app_journal_add(j, i, records[i], strlen(records[i])));
        assert_int_equal(app_journal_errors(j), i);
        assert_ok(app_journal_sync(j, 0));
        app_journal_close(j);
    }
}

static void test_output(void **state)
{
    (void)state;
    static const uint64_t lines[] = {7, 2, 9};
    static const char *const wanted[] = {"{\"line\":7}\n{\"line\":2}\n{\"line\":9}\n",
                                         "{\"line\":2}\n{\"line\":7}\n{\"line\":9}\n"};
    const char *output = test_write_text(&dir, "output", "what was there before");
    for (int in_order = 0; in_order < 2; in_order++) {
        size_t len;
        make(lines, 3);
        app_journal *j = reopen(true);
        assert_ok(app_journal_deliver(j, output, in_order));
        char *text = load(output, &len);
        assert_string_equal(text, wanted[in_order]);
        free(text);
        assert_ok(app_journal_remove(j));
        assert_int_equal(access(path(), F_OK), -1);
        app_journal_close(j);
    }
}

// The results of the first n bytes that end in a line break, the head aside, as digits.
static void whole_lines(const char *text, size_t n, const uint64_t *lines, size_t count,
                        char *digits)
{
    size_t whole = 0;
    for (size_t i = 0; i < n; i++)
        whole += text[i] == '\n';
    assert_in_range(whole, 0, count + 1);
    for (size_t i = 0; i < count && i + 1 < whole; i++)
        digits[i] = (char)('0' + lines[i]);
}

// The journal holds these, takes another result, and keeps it.
static void check_goes_on(const char *digits)
{
    app_journal *j = reopen(true);
    assert_holds(j, digits);
    add(j, 4);
    assert_ok(app_journal_sync(j, 0));
    app_journal_close(j);
    j = reopen(true);
    assert_true(app_journal_has(j, 4));
    assert_int_equal(app_journal_count(j), strlen(digits) + 1);
    app_journal_close(j);
}

// The file cut at every length: the results that are whole are there, and more can follow.
static void test_cut(void **state)
{
    (void)state;
    static const uint64_t lines[] = {5, 1, 8};
    size_t len;
    make(lines, 3);
    char *text = load(path(), &len);
    for (size_t n = 0; n <= len; n++) {
        char digits[4] = "";
        whole_lines(text, n, lines, 3, digits);
        test_write(&dir, "journal", text, n);
        check_goes_on(digits);
    }
    free(text);
}

// Any byte changed: the results of the other lines stay.
static void test_damaged(void **state)
{
    (void)state;
    static const uint64_t lines[] = {5, 1, 8};
    size_t len, head = 0;
    make(lines, 3);
    char *text = load(path(), &len);
    while (text[head] != '\n')
        head++;
    for (size_t i = head + 1; i < len; i++) {
        int line = 0;
        for (size_t k = head + 1; k < i; k++)
            line += text[k] == '\n';
        text[i] ^= 1;
        test_write(&dir, "journal", text, len);
        text[i] ^= 1;
        app_journal *j = reopen(true);
        const int lost = text[i] == '\n' && line < 2 ? 2 : 1; // two lines became one
        for (int k = 0; k < 3; k++)
            assert_int_equal(app_journal_has(j, lines[k]), k < line || k >= line + lost);
        assert_int_equal(app_journal_count(j), 3 - lost);
        app_journal_close(j);
    }
    free(text);
}

// ---- loss of power ---------------------------------------------------------------------------
//
// Of what was not synced any pages may be zeros, in the middle too, and zeros may follow the
// end. Pages of 16 bytes here, so that lines begin, end and lie within them.

static const uint64_t written[] = {5, 1, 8, 3};
enum { WRITTEN = 4, PAGE = 16 };

// [from, to) of `text` became zeros: results with a byte in there are not there, nor is one
// that follows a line whose end was in there; all can be added again.
static void check_left(const char *text, size_t len, size_t from, size_t to)
{
    char digits[WRITTEN + 1] = "", *left = malloc(len);
    memcpy(left, text, len);
    memset(left + from, 0, to - from);
    test_write(&dir, "journal", left, len);
    size_t begin = strcspn(text, "\n") + 1, count = 0; // behind the head
    for (int i = 0; i < WRITTEN; i++) {
        const size_t end = begin + strcspn(text + begin, "\n") + 1;
        const bool joined = left[begin - 1] == '\0';
        if (!joined && (end <= from || begin >= to))
            digits[count++] = (char)('0' + written[i]);
        begin = end;
    }
    app_journal *j = reopen(true);
    assert_holds(j, digits);
    for (size_t i = 0; i < WRITTEN; i++)
        add(j, written[i]);
    assert_ok(app_journal_sync(j, 0));
    app_journal_close(j);
    j = reopen(true);
    assert_holds(j, "5183");
    app_journal_close(j);
    free(left);
}

static void test_lost_pages(void **state)
{
    (void)state;
    size_t len;
    make(written, WRITTEN);
    char *text = load(path(), &len);
    const size_t head = strcspn(text, "\n") + 1; // was synced before all others
    for (size_t from = head; from < len; from = (from / PAGE + 1) * PAGE)
        for (size_t to = from + 1; to <= len; to++)
            if (to % PAGE == 0 || to == len)
                check_left(text, len, from, to);
    free(text);
}

// The file keeps its length, or more, and not its bytes: from any byte on they are zeros.
static void test_zeros_at_end(void **state)
{
    (void)state;
    enum { MORE = 5000 };
    size_t len;
    make(written, WRITTEN);
    char *text = load(path(), &len);
    for (size_t n = 0; n <= len; n++) {
        char *left = calloc(len + MORE, 1), digits[WRITTEN + 1] = "";
        memcpy(left, text, n);
        test_write(&dir, "journal", left, len + (n % 2 ? MORE : 0));
        whole_lines(text, n, written, WRITTEN, digits);
        check_goes_on(digits);
        free(left);
    }
    free(text);
}

// A journal without a result is any job's, also one with a damaged line or half a one.
static void test_empty(void **state)
{
    (void)state;
    app_journal *j;
    app_job other = job;
    other.options = "sparse";
    make(NULL, 0);
    static const char *const more[] = {"", "5 0123 {}\n", "5 01"};
    for (int i = 0; i < 3; i++) {
        FILE *file = fopen(path(), "a");
        fputs(more[i], file);
        fclose(file);
        other.model = (uint64_t)i;
        assert_ok(app_journal_open(path(), &other, false, &j));
        assert_int_equal(app_journal_count(j), 0);
        app_journal_close(j);
    }
    assert_ok(app_journal_open(path(), &other, false, &j)); // the head is the last one's
    add(j, 4);
    assert_ok(app_journal_sync(j, 0));
    app_journal_close(j);
    assert_ok(app_journal_open(path(), &other, true, &j));
    assert_holds(j, "4");
    app_journal_close(j);
    assert_fails(app_journal_open(path(), &job, true, &j), RT_ERR_INVALID, path(),
                 "of another model");
}

static void test_refused(void **state)
{
    (void)state;
    static const uint64_t lines[] = {5};
    app_journal *j, *second;
    make(lines, 1);
    assert_fails(app_journal_open(path(), &job, false, &j), RT_ERR_INVALID, path(),
                 "holds 1 results of an earlier run: --resume");
    app_job other = job;
    other.model++;
    assert_fails(app_journal_open(path(), &other, true, &j), RT_ERR_INVALID, path(),
                 "of another model");
    other = job;
    other.input--;
    assert_fails(app_journal_open(path(), &other, true, &j), RT_ERR_INVALID, path(),
                 "of another input");
    other = job;
    other.options = "sparse";
    assert_fails(app_journal_open(path(), &other, true, &j), RT_ERR_INVALID, path(),
                 "made with other options: 'dense', now 'sparse'");
    j = reopen(true);
    assert_fails(app_journal_open(path(), &job, true, &second), RT_ERR_INVALID, path(),
                 "another losa writes to it");
    assert_fails(app_journal_add(j, LINES, "x", 1), RT_ERR_INVALID, "app_journal_add", "lines");
    app_journal_close(j);

    test_write(&dir, "journal", "\0\0notes", 7);
    assert_fails(app_journal_open(path(), &job, true, &j), RT_ERR_INVALID, path(),
                 "not a journal of losa batch");
    test_write_text(&dir, "journal", "my notes, not yours");
    assert_fails(app_journal_open(path(), &job, true, &j), RT_ERR_INVALID, path(),
                 "not a journal of losa batch");
    assert_fails(app_journal_open(test_path(&dir, "no/folder"), &job, true, &j), RT_ERR_IO,
                 "no/folder", "cannot open");
}

// /dev/full takes nothing: the failure is seen, and the output of before stays.
static void test_full(void **state)
{
    (void)state;
    static const uint64_t lines[] = {5};
    size_t len;
    if (access("/dev/full", W_OK) != 0)
        skip();
    make(lines, 1);
    const char *output = test_write_text(&dir, "output", "before");
    assert_int_equal(symlink("/dev/full", test_path(&dir, "output.tmp")), 0);
    app_journal *j = reopen(true);
    assert_fails(app_journal_deliver(j, output, true), RT_ERR_IO, "output.tmp", "No space left");
    app_journal_close(j);
    char *text = load(output, &len);
    assert_string_equal(text, "before");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),       cmocka_unit_test(test_errors),
        cmocka_unit_test(test_output),       cmocka_unit_test(test_cut),
        cmocka_unit_test(test_damaged),      cmocka_unit_test(test_lost_pages),
        cmocka_unit_test(test_zeros_at_end), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_full),         cmocka_unit_test(test_empty),
    };
    return cmocka_run_group_tests_name("batch_journal", tests, make_dir, remove_dir);
}
