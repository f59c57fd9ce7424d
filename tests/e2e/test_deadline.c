// SPDX-License-Identifier: Apache-2.0
// A rank that hangs, stops, dies or leaves: the whole job ends with a non-zero
// status and leaves no process behind, within a second of the deadline or of the
// heart's verdict.
#include "runtime/base/clock.h"
#include "runtime/base/str.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

static const double DEADLINE = 1.0;
// Starting three processes and mpirun's own end, on a busy machine.
static const double SLACK = 10.0;
static const double SILENCE = 5.0; // after which a stopped rank is noticed

typedef struct job {
    rt_str out; // standard output and error of all ranks
    int status; // exit status of mpirun
    double seconds;
} job;

static job run(const char *what, const char *operation)
{
    char command[4096];
    // A second limit from outside, so that a hang fails here and not in ctest.
    snprintf(command, sizeof command, "timeout 60 %s -n 3 %s %s %s %g 2>&1", LOSA_MPIEXEC,
             LOSA_HELPER, what, operation, DEADLINE);
    job j = {.status = -1};
    double start = rt_clock_now();
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    char line[2048];
    while (fgets(line, sizeof line, pipe))
        assert_int_equal(rt_str_puts(&j.out, line), RT_OK);
    int status = pclose(pipe);
    assert_true(WIFEXITED(status));
    j.status = WEXITSTATUS(status);
    j.seconds = rt_clock_now() - start;
    return j;
}

static int occurrences(const job *j, const char *text)
{
    int n = 0;
    for (const char *p = strstr(j->out.data, text); p; p = strstr(p + 1, text))
        n++;
    return n;
}

// Not a zombie either: those wait for their parent, which may be slow.
static bool is_running(long pid)
{
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    const char *name_end = strrchr(text, ')');
    return name_end && strncmp(name_end, ") Z", 3) != 0 && strncmp(name_end, ") X", 3) != 0;
}

static void assert_nobody_left(const job *j)
{
    int ranks = 0;
    for (const char *p = strstr(j->out.data, "pid "); p; p = strstr(p + 1, "pid ")) {
        long pid = strtol(p + 4, NULL, 10);
        for (int i = 0; i < 50 && is_running(pid); i++)
            rt_clock_sleep(0.1);
        if (is_running(pid))
            fail_msg("process %ld is left:\n%s", pid, j->out.data);
        ranks++;
    }
    assert_int_equal(ranks, 3);
}

static void assert_waited(const job *j)
{
    int ranks = 0;
    for (const char *p = strstr(j->out.data, "waited "); p; p = strstr(p + 1, "waited ")) {
        double seconds = strtod(p + 7, NULL);
        assert_true(seconds >= DEADLINE && seconds <= DEADLINE + 1.0);
        ranks++;
    }
    assert_int_equal(ranks, 2);
}

// Runs the job and checks its end; `text` must appear on both other ranks.
static void check(const char *what, const char *operation, const char *text)
{
    job j = run(what, operation);
    if (j.status == 0 || j.status == 124)
        fail_msg("%s %s: mpirun ended with %d:\n%s", what, operation, j.status, j.out.data);
    if (j.seconds > DEADLINE + SLACK)
        fail_msg("%s %s took %.1f s", what, operation, j.seconds);
    for (int rank = 0; text && rank < 3; rank += 2) {
        static const char *const kinds[] = {"error", "again"};
        for (size_t k = 0; k < 2; k++) {
            char line[256];
            snprintf(line, sizeof line, "%s: rank %d: %s number 3: no answer within %g s\n",
                     kinds[k], rank, text, DEADLINE);
            if (occurrences(&j, line) != 1)
                fail_msg("%s %s: no line '%s' in:\n%s", what, operation, line, j.out.data);
        }
    }
    if (text)
        assert_waited(&j);
    assert_nobody_left(&j);
    rt_str_free(&j.out);
}

static void test_absent(void **state)
{
    (void)state;
    check("sleep", "allreduce", "all-reduce of scores");
    check("sleep", "allgather", "all-gather of vocab");
    check("sleep", "barrier", "barrier");
}

// Where one waits for what another decides, a live rank may be late.
static void test_late(void **state)
{
    (void)state;
    static const char *const operations[] = {"bcast", "agree"};
    for (int i = 0; i < 2; i++) {
        job j = run("late", operations[i]);
        if (occurrences(&j, "error: none\n") != 3 || occurrences(&j, "again: none\n") != 3)
            fail_msg("%s:\n%s", operations[i], j.out.data);
        assert_nobody_left(&j);
        rt_str_free(&j.out);
    }
}

static void test_absent_from_close(void **state)
{
    (void)state;
    job j = run("sleep", "close");
    assert_true(j.status != 0 && j.status != 124);
    assert_true(j.seconds <= DEADLINE + SLACK);
    assert_true(occurrences(&j, ": close number 3: no answer within 1 s\n") >= 1);
    assert_nobody_left(&j);
    rt_str_free(&j.out);
}

// Goodbyes are answered, also those that came before the own one.
static void test_close_late(void **state)
{
    (void)state;
    job j = run("linger", "close");
    if (j.status != 0 || occurrences(&j, " error ") != 0)
        fail_msg("status %d:\n%s", j.status, j.out.data);
    assert_true(j.seconds < SLACK);
    assert_nobody_left(&j);
    rt_str_free(&j.out);
}

static void test_stopped(void **state)
{
    (void)state;
    check("stop", "allreduce", "all-reduce of scores");
}

// The rank that watches says who, and in which operation it is itself; once.
static void check_watched(const char *what, const char *operation, const char *line)
{
    job j = run(what, operation);
    if (j.status == 0 || j.status == 124 || occurrences(&j, line) != 1 ||
        occurrences(&j, " error ") != 1)
        fail_msg("%s %s: status %d, no line '%s' in:\n%s", what, operation, j.status, line,
                 j.out.data);
    assert_true(j.seconds < SLACK + SILENCE);
    assert_nobody_left(&j);
    rt_str_free(&j.out);
}

static void test_watched(void **state)
{
    (void)state;
    check_watched("stop", "bcast",
                  "rank 0: rank 1 gave no sign of life for 5 s; broadcast number 3\n");
    check_watched("kill", "bcast", "rank 0: rank 1 died; broadcast number 3\n");
    check_watched("exit", "agree", "rank 0: rank 1 died; agreement number 3\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_absent),  cmocka_unit_test(test_absent_from_close),
        cmocka_unit_test(test_late),    cmocka_unit_test(test_close_late),
        cmocka_unit_test(test_stopped), cmocka_unit_test(test_watched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
