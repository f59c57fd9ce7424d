// SPDX-License-Identifier: Apache-2.0
// Nothing hangs: a rank of `losa generate` is killed or stopped while it waits for its
// prompt, in prefill, and while it writes; signals reach mpirun or one rank at any moment.
// Every job ends in time, not as if it had succeeded, with one line of its own, and
// leaves no process.
#include "tests/e2e/run.h"

#include "runtime/base/clock.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const double FAULT_LIMIT = 10.0; // seconds from the fault to the end of mpirun
static const double LIMIT = 60.0;       // of a whole job, on a busy machine

typedef enum moment { AT_INPUT, IN_PREFILL, IN_STEPS, AT_ANY_TIME } moment;
static const char *const moment_name[] = {"at input", "in prefill", "in steps", "at any time"};

enum { MPIRUN = -1 };

typedef struct fault {
    int signal, ranks;
    int target; // rank, or MPIRUN
    moment when;
    double delay; // AT_ANY_TIME: seconds after the start
    // What happened.
    double started, struck; // times; 0: not yet
} fault;

// ---- moments ----------------------------------------------------------------------

// A rank's heart beats from when MPI is up.
static bool has_heart(pid_t pid)
{
    char path[384], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    bool found = false;
    for (struct dirent *task = tasks ? readdir(tasks) : NULL; task && !found;
         task = readdir(tasks)) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/comm", (int)pid, task->d_name);
        FILE *file = fopen(path, "r");
        found = file && fgets(name, sizeof name, file) && strcmp(name, "losa-heart\n") == 0;
        if (file)
            fclose(file);
    }
    if (tasks)
        closedir(tasks);
    return found;
}

static double cpu_seconds(pid_t pid)
{
    char path[64], text[1024] = "";
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    const size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *at = strrchr(text, ')'); // fields 14 and 15; the name ends at the second
    if (!at ||
        sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        return 0;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static bool is_moment(const fault *f, const run_live *live)
{
    struct stat out;
    const double past_load = 1.0; // seconds of computing: loading takes a fifth of it
    if (f->when == AT_ANY_TIME)
        return rt_clock_now() - f->started > f->delay;
    for (int r = 0; r < f->ranks; r++) {
        const pid_t pid = run_rank(live, r);
        if (pid < 0 || !has_heart(pid) || (f->when == IN_PREFILL && cpu_seconds(pid) < past_load))
            return false;
    }
    return f->when != IN_STEPS || (fstat(live->out, &out) == 0 && out.st_size > 0);
}

static void strike(void *ctx, const run_live *live)
{
    fault *f = ctx;
    if (f->started == 0)
        f->started = rt_clock_now();
    if (f->struck > 0 || !is_moment(f, live))
        return;
    const pid_t pid = f->target == MPIRUN ? live->child : run_rank(live, f->target);
    if (pid < 0)
        return;
    f->struck = rt_clock_now();
    kill(pid, f->signal);
}

// ---- jobs -------------------------------------------------------------------------

static void fault_args(run_args *args, moment when)
{
    static const char *const words[] = {"generate",  "--quiet", "--threads", "1", "--ignore-stop",
                                        "-n",        "8000",    "--steps",   "4", "-s",
                                        "sequential"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        run_arg(args, "%s", words[i]);
    run_arg(args, "--model");
    run_arg(args, "%s", run_source("models/needle-11m"));
    if (when == IN_STEPS) {
        run_arg(args, "--prompt");
        run_arg(args, "The gate code of the prison");
        return;
    }
    run_arg(args, "--prompt-file");
    run_arg(args, "%s",
            when == AT_INPUT ? "-" : run_source("models/needle-11m/documents/mq-8192-0.txt"));
}

static void describe(const fault *f, const run_result *got)
{
    print_error("signal %d to %s %d of %d, %s (%.2f s after the start): status %d %.1f s after "
                "the signal, %d left, standard error:\n%s\n",
                f->signal, f->target == MPIRUN ? "mpirun" : "rank", f->target, f->ranks,
                moment_name[f->when], f->struck - f->started, got->status,
                rt_clock_now() - f->struck, got->left, got->err);
}

// Runs the job and checks what holds after every fault. The caller frees the result.
static run_result run_fault(fault *f)
{
    run_args args = {0};
    fault_args(&args, f->when);
    const run_job job = {.ranks = f->ranks,
                         .args = &args,
                         .hold_input = f->when == AT_INPUT,
                         .limit = LIMIT,
                         .during = strike,
                         .ctx = f};
    const double start = rt_clock_now();
    run_result got = run_losa(&job);
    const bool in_time = f->struck > 0 && start + got.seconds - f->struck < FAULT_LIMIT;
    if (!in_time || got.timed_out || got.left || got.status == 0 || got.err_lines > 1) {
        describe(f, &got);
        fail();
    }
    run_args_free(&args);
    return got;
}

static void check_rank_fault(int signal, int target, int ranks, moment when)
{
    fault f = {.signal = signal, .target = target, .ranks = ranks, .when = when};
    run_result got = run_fault(&f);
    char line[128];
    snprintf(line, sizeof line, "rank %d: rank %d %s; ", target == 0 ? 1 : 0, target,
             signal == SIGKILL ? "died" : "gave no sign of life for 5 s");
    const char *at = strstr(got.err, line);
    const char *number = at ? strstr(at, " number ") : NULL;
    if (got.err_lines != 1 || !number) {
        describe(&f, &got);
        fail_msg("no line with '%s'", line);
    }
    run_result_free(&got);
}

static void test_killed(void **state)
{
    (void)state;
    check_rank_fault(SIGKILL, 0, 2, AT_INPUT);
    check_rank_fault(SIGKILL, 2, 4, AT_INPUT);
    check_rank_fault(SIGKILL, 0, 4, IN_PREFILL);
    check_rank_fault(SIGKILL, 1, 2, IN_PREFILL);
    check_rank_fault(SIGKILL, 0, 2, IN_STEPS);
    check_rank_fault(SIGKILL, 2, 4, IN_STEPS);
}

static void test_stopped(void **state)
{
    (void)state;
    check_rank_fault(SIGSTOP, 0, 4, AT_INPUT);
    check_rank_fault(SIGSTOP, 1, 2, AT_INPUT);
    check_rank_fault(SIGSTOP, 0, 2, IN_PREFILL);
    check_rank_fault(SIGSTOP, 2, 4, IN_PREFILL);
    check_rank_fault(SIGSTOP, 0, 2, IN_STEPS);
    check_rank_fault(SIGSTOP, 1, 4, IN_STEPS);
}

// Start-up, load, prefill: wherever a time between 0 and 2 seconds hits.
static void test_signals(void **state)
{
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM}, targets[] = {MPIRUN, 0, 1};
    const unsigned seed = (unsigned)getpid();
    srand(seed);
    for (size_t i = 0; i < 5; i++) {
        fault f = {.signal = signals[i % 2],
                   .target = targets[i / 2],
                   .ranks = 2,
                   .when = AT_ANY_TIME,
                   .delay = 2.0 * rand() / RAND_MAX};
        run_result got = run_fault(&f);
        run_result_free(&got);
    }
    fault others[] = {
        {.signal = SIGTERM, .target = 1, .ranks = 2, .when = AT_INPUT},
        {.signal = SIGINT, .target = MPIRUN, .ranks = 2, .when = AT_INPUT},
        {.signal = SIGTERM, .target = 0, .ranks = 2, .when = IN_STEPS},
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        run_result got = run_fault(&others[i]);
        run_result_free(&got);
    }
}

// A rank above 0 that cannot open its model: rank 0 says what the other one found.
static void test_other_rank_fails(void **state)
{
    (void)state;
    static const char *const folders[] = {"models/needle-11m", "models/not-there"};
    run_args args = {0};
    for (int r = 0; r < 2; r++) { // mpirun -n 1 losa ... : -n 1 losa ...
        if (r > 0) {
            run_arg(&args, ":");
            run_arg(&args, "-n");
            run_arg(&args, "1");
            run_arg(&args, "%s", getenv("LOSA_BINARY"));
        }
        run_arg(&args, "generate");
        run_arg(&args, "--prompt");
        run_arg(&args, "The gate code");
        run_arg(&args, "--model");
        run_arg(&args, "%s", run_source("%s", folders[r]));
    }
    const run_job job = {.ranks = 1, .args = &args, .limit = LIMIT};
    run_result got = run_losa(&job);
    if (got.status != 1 || got.left || got.err_lines != 1 || !strstr(got.err, folders[1]))
        fail_msg("status %d, %d left, standard error:\n%s", got.status, got.left, got.err);
    run_result_free(&got);
    run_args_free(&args);
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_other_rank_fails),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_stopped),
        cmocka_unit_test(test_signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
