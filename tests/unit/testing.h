// SPDX-License-Identifier: Apache-2.0
// What the tests share: temporary folders, files in them, and assertions about
// failed statuses and about arrays of floats. Include it first; it brings cmocka.
#ifndef TESTS_UNIT_TESTING_H
#define TESTS_UNIT_TESTING_H

#include "runtime/base/status.h"

#include <ftw.h>
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// ---- files -----------------------------------------------------------------

typedef struct test_dir {
    char path[PATH_MAX / 2];
} test_dir;

// A fresh folder under $TMPDIR (or /tmp).
static inline test_dir test_dir_new(void)
{
    test_dir dir;
    const char *base = getenv("TMPDIR");
    snprintf(dir.path, sizeof dir.path, "%s/losa-test-XXXXXX", base && *base ? base : "/tmp");
    assert_non_null(mkdtemp(dir.path));
    return dir;
}

static inline int test_remove_one(const char *path, const struct stat *info, int kind,
                                  struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static inline void test_dir_remove(const test_dir *dir)
{
    assert_int_equal(nftw(dir->path, test_remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

// "dir/name"; valid until the thread's fourth call from here.
static inline const char *test_path(const test_dir *dir, const char *name)
{
    static _Thread_local char paths[4][PATH_MAX];
    static _Thread_local unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, PATH_MAX, "%s/%s", dir->path, name);
    return path;
}

// Writes a file of the folder and returns its path (see test_path).
static inline const char *test_write(const test_dir *dir, const char *name, const void *bytes,
                                     size_t len)
{
    const char *path = test_path(dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
    return path;
}

static inline const char *test_write_text(const test_dir *dir, const char *name, const char *text)
{
    return test_write(dir, name, text, strlen(text));
}

// ---- statuses --------------------------------------------------------------

static inline void test_assert_ok(rt_status status, const char *file, int line)
{
    if (status != RT_OK) {
        print_error("%s: %s\n", rt_status_text(status), rt_last_error());
        _fail(file, line);
    }
}

// The status is `code`, and the one-line message holds both `subject` (what is
// wrong: a file, a parameter) and `cause`.
static inline void test_assert_fails(rt_status status, rt_status code, const char *subject,
                                     const char *cause, const char *file, int line)
{
    const char *message = rt_last_error();
    if (status == code && strstr(message, subject) && strstr(message, cause) &&
        !strchr(message, '\n'))
        return;
    print_error("status %d (wanted %d), message: %s\n", status, code,
                status == RT_OK ? "none" : message);
    print_error("wanted in it: '%s' and '%s'\n", subject, cause);
    _fail(file, line);
}

#define assert_ok(status) test_assert_ok((status), __FILE__, __LINE__)
#define assert_fails(status, code, subject, cause)                                                 \
    test_assert_fails((status), (code), (subject), (cause), __FILE__, __LINE__)

// ---- floats ----------------------------------------------------------------

// |actual - expected| <= atol + rtol |expected| everywhere; a NaN matches nothing.
// Reports the largest error and its index.
static inline void test_assert_allclose(const float *actual, const float *expected, size_t n,
                                        double atol, double rtol, const char *file, int line)
{
    size_t bad = 0, worst = 0, first = n;
    double largest = -1;
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)actual[i] - (double)expected[i]);
        if (isnan(error))
            error = INFINITY;
        if (actual[i] == expected[i]) // equal infinities
            error = 0;
        if (error > largest) {
            largest = error;
            worst = i;
        }
        if (error > atol + rtol * fabs((double)expected[i])) {
            bad++;
            first = first < i ? first : i;
        }
    }
    if (bad == 0)
        return;
    print_error("%zu of %zu differ, the first at %zu; largest error %g at %zu: %.9g, expected %.9g "
                "(atol %g, rtol %g)\n",
                bad, n, first, largest, worst, (double)actual[worst], (double)expected[worst], atol,
                rtol);
    _fail(file, line);
}

#define assert_allclose(actual, expected, n, atol, rtol)                                           \
    test_assert_allclose((actual), (expected), (n), (atol), (rtol), __FILE__, __LINE__)

#endif
