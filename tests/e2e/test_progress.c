// SPDX-License-Identifier: Apache-2.0
// What is drawn on a terminal: the loading of weights, the prompt, the answers; cleared before
// the text. On anything else nothing is drawn.
#include "tests/e2e/run.h"

#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SCREEN = 1 << 20, SECONDS = 120 };

// What the program writes to a terminal, which is its standard output and error.
static char *on_terminal(const run_args *args)
{
    char *argv[RUN_MAX_ARGS + 2], *screen = calloc(SCREEN + 1, 1);
    assert_non_null(screen);
    argv[0] = getenv("LOSA_BINARY");
    memcpy(argv + 1, args->word, sizeof args->word);
    int master;
    const pid_t child = forkpty(&master, NULL, NULL, NULL);
    assert_true(child >= 0);
    if (child == 0) {
        alarm(SECONDS); // outlives execv
        execv(argv[0], argv);
        _exit(127);
    }
    for (size_t len = 0; len < SCREEN;) {
        const ssize_t n = read(master, screen + len, SCREEN - len);
        if (n <= 0) // the program is gone
            break;
        len += (size_t)n;
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    close(master);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("status %x: %s", status, screen);
    return screen;
}

static run_args generate(int prompts)
{
    run_args args = {0};
    run_arg(&args, "generate");
    run_arg(&args, "--model=%s", run_source("models/needle-11m"));
    run_arg(&args, "--device=cpu");
    run_arg(&args, "--max-tokens=8");
    for (int i = 0; i < prompts; i++)
        run_arg(&args, "--prompt-file=%s", run_source("models/needle-11m/CARD.md"));
    return args;
}

static void test_one(void **state)
{
    (void)state;
    run_args args = generate(1);
    char *screen = on_terminal(&args);
    const char *loading = strstr(screen, "\r\033[Kloading ["),
               *prefill = strstr(screen, "prefill [");
    assert_non_null(loading);
    assert_non_null(strstr(loading, " MB, "));
    assert_non_null(strstr(loading, "MB/s, "));
    assert_non_null(strstr(loading, "[##############################] 23/23 MB"));
    assert_non_null(prefill);
    assert_true(prefill > loading);
    assert_non_null(strstr(prefill, "tokens/s, 0 s left\r\033[K"));
    free(screen);
    run_arg(&args, "--quiet");
    screen = on_terminal(&args);
    assert_null(strstr(screen, "\033[K"));
    free(screen);
    const run_job job = {.args = &args, .limit = SECONDS};
    args.count--; // not quiet, and not on a terminal
    free(args.word[args.count]);
    args.word[args.count] = NULL;
    run_result result = run_losa(&job);
    assert_int_equal(result.status, 0);
    assert_int_equal(result.err_lines, 0);
    assert_null(strstr(result.out, "\033"));
    run_result_free(&result);
    run_args_free(&args);
}

static void test_several(void **state)
{
    (void)state;
    run_args args = generate(2);
    char *screen = on_terminal(&args);
    assert_non_null(strstr(screen, "answered [##############################] 2/2 prompts"));
    free(screen);
    run_args_free(&args);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),
        cmocka_unit_test(test_several),
    };
    const int skip = run_ready();
    return skip ? skip : cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}
