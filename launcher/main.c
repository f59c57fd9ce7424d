// SPDX-License-Identifier: Apache-2.0
// losa: the table of commands, and what is the same for all of them.
//
// Exit status: 0 done, 1 failed, 2 wrong usage, 128 + N ended by signal N (or the command's own
// status for that). Every rank ends with the same one. Rank 0 alone prints; an error is one line.
#include "launcher/app.h"

#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_SIGNAL = 128 };
#define SIGNAL_SECONDS 2.0 // for an orderly end after a signal

static const app_command *const commands[] = {
    &app_cmd_generate, &app_cmd_batch,    &app_cmd_eval,   &app_cmd_info,
    &app_cmd_logits,   &app_cmd_tokenize, &app_cmd_report, &app_cmd_bench,
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

// Before MPI is up only the environment tells whether another process will speak.
static bool starts_as_first(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank)
        rank = getenv("PMIX_RANK");
    return !rank || atoi(rank) == 0;
}

// After a failure its message is out already: a second line would hide the cause.
static int finish_output(int status)
{
    if ((fflush(stdout) == 0 && !ferror(stdout)) || status != 0)
        return status;
    fprintf(stderr, "losa: standard output: cannot write\n");
    return EXIT_FAILED;
}

// ---- help ------------------------------------------------------------------------

static int print_overview(FILE *to)
{
    fprintf(to, "losa %s: block-diffusion language models over long contexts\n\n", LOSA_VERSION);
    fprintf(to, "usage: losa COMMAND [OPTION...]\n"
                "       mpirun -n RANKS losa COMMAND [OPTION...]\n\ncommands:\n");
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\n'losa COMMAND --help' lists the options of a command.\n");
    return to == stdout ? finish_output(0) : EXIT_USAGE;
}

static int print_help(const app_command *cmd, const void *args)
{
    rt_str text = {0};
    if (app_describe(&cmd->table, args, &text) != RT_OK) {
        rt_str_free(&text);
        fprintf(stderr, "losa: %s\n", rt_last_error());
        return EXIT_FAILED;
    }
    printf("usage: losa %s %s\n\n%s\n\n%s", cmd->name, cmd->usage, cmd->summary,
           text.data ? text.data : "");
    printf("  -h, --help                  this text\n");
    if (cmd->notes)
        printf("\n%s", cmd->notes);
    rt_str_free(&text);
    return finish_output(0);
}

static int usage_error(const char *command)
{
    if (starts_as_first())
        fprintf(stderr, "losa %s: %s (try 'losa %s --help')\n", command, rt_last_error(), command);
    return EXIT_USAGE;
}

// ---- running ---------------------------------------------------------------------

static int exit_status(const app_command *cmd, rt_status status)
{
    if (status == RT_OK)
        return 0;
    if (status == RT_ERR_CANCELLED && app_signal())
        return cmd->ended_status ? cmd->ended_status : EXIT_SIGNAL + app_signal();
    return EXIT_FAILED;
}

static void setup_log(const app_common *common, int rank, int ranks)
{
    rt_log_level level = common->verbose ? RT_LOG_INFO : RT_LOG_WARN;
    if (common->quiet || rank != 0)
        level = RT_LOG_ERROR;
    rt_log_setup(level, rank, ranks);
}

static int run_local(const app_command *cmd, app_common *common)
{
    if (!starts_as_first())
        return 0;
    setup_log(common, 0, 1);
    const rt_status status = cmd->run(NULL, common);
    if (status != RT_OK)
        fprintf(stderr, "losa: %s\n", rt_last_error());
    return finish_output(exit_status(cmd, status));
}

// Waits for all ranks before rank 0 says why it failed. When one is gone, mpirun cuts off
// rank 0's standard input first and ends rank 0 then: what rank 0 finds wrong with its
// input would hide the cause.
static void report_failure(comm *c, bool speak)
{
    char message[1024];
    snprintf(message, sizeof message, "%s", rt_last_error());
    if (comm_ctl_barrier(c) != RT_OK)
        rt_log(RT_LOG_DEBUG, "%s", rt_last_error()); // the broadcast that follows fails too
    if (speak)
        fprintf(stderr, "losa: %s\n", message);
}

// The ranks of lost groups take part in nothing any more.
static void end_without_lost(comm *c, rt_status status, int code)
{
    if (status != RT_OK)
        fprintf(stderr, "losa: %s\n", rt_last_error());
    comm_end(c, finish_output(code));
}

static int run_ranks(const app_command *cmd, app_common *common)
{
    comm *c;
    app_hold_signals(); // mpirun may hang when a rank ends while MPI starts
    if (comm_open_world(common->timeout, &c) != RT_OK) {
        fprintf(stderr, "losa: %s\n", rt_last_error());
        return EXIT_FAILED;
    }
    const bool first = comm_rank(c) == 0;
    setup_log(common, comm_rank(c), comm_ranks(c));
    if (comm_ranks(c) > 1) { // mpirun asks every rank to end; rank 0 does it in order
        app_catch_signals();
        comm_watch_signal(c, app_signal, SIGNAL_SECONDS);
    }
    app_release_signals();
    const rt_status status = cmd->run(c, common);
    int code = exit_status(cmd, status);
    if (comm_has_lost(c))
        end_without_lost(c, status, code);
    report_failure(c, first && status != RT_OK && status != RT_ERR_CANCELLED);
    if (first)
        code = finish_output(code);
    // Only rank 0 knows whether its output and a signal made a difference.
    if (comm_ctl_bcast(c, 0, &code, sizeof code) != RT_OK) {
        if (status == RT_OK)
            fprintf(stderr, "losa: %s\n", rt_last_error());
        comm_abort(c); // broken: closing it could wait for ranks that are gone
        code = code ? code : EXIT_FAILED;
    }
    comm_close(c);
    return code;
}

static void fill_defaults(const app_command *cmd, app_common *common)
{
    memset(common, 0, cmd->args_size);
    cmd->defaults(common);
}

static int run_command(const app_command *cmd, int argc, char *const *argv)
{
    app_common *common = rt_mem_alloc(1, cmd->args_size, "arguments");
    if (!common) {
        fprintf(stderr, "losa: %s\n", rt_last_error());
        return EXIT_FAILED;
    }
    fill_defaults(cmd, common);
    app_list *operands = cmd->operands ? &common->operands : NULL;
    bool help;
    int code;
    rt_status status = app_parse(&cmd->table, argc, argv, common, operands, &help);
    if (status == RT_OK && !help && common->verbose && common->quiet)
        status = RT_FAIL(RT_ERR_INVALID, "--verbose and --quiet exclude each other");
    if (status == RT_OK && !help && cmd->check)
        status = cmd->check(common);
    if (status != RT_OK) {
        code = usage_error(cmd->name);
    } else if (help) {
        app_free_args(&cmd->table, common); // show the defaults, not what was parsed
        fill_defaults(cmd, common);
        code = starts_as_first() ? print_help(cmd, common) : 0;
    } else {
        code = cmd->local ? run_local(cmd, common) : run_ranks(cmd, common);
    }
    app_free_args(&cmd->table, common);
    app_free_list(&common->operands);
    rt_free(common);
    return code;
}

// ---- words -----------------------------------------------------------------------

static const app_command *find_command(const char *name)
{
    const char *names[COMMANDS + 1];
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
        names[i] = commands[i]->name;
    }
    names[COMMANDS] = "help";
    const char *near = app_nearest(name, names, COMMANDS + 1);
    if (starts_as_first() && near)
        fprintf(stderr, "losa: unknown command '%s'; did you mean '%s'?\n", name, near);
    else if (starts_as_first())
        fprintf(stderr, "losa: unknown command '%s' (try 'losa --help')\n", name);
    return NULL;
}

static int help_command(int argc, char **argv)
{
    if (argc < 3)
        return starts_as_first() ? print_overview(stdout) : 0;
    const app_command *cmd = find_command(argv[2]);
    static char *const help[] = {"--help"};
    return cmd ? run_command(cmd, 1, help) : EXIT_USAGE;
}

// Where standard files are closed, what is opened first would take their numbers, and messages
// and answers would be written into it. To read-only files writing fails, as to closed ones.
static void keep_standard_files(void)
{
    int fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = open("/dev/null", O_RDONLY);
    if (fd >= 0)
        close(fd);
}

int main(int argc, char **argv)
{
    keep_standard_files();
    signal(SIGPIPE, SIG_IGN); // a closed pipe is a write error, with a message
    const char *word = argc > 1 ? argv[1] : "";
    if (!*word)
        return starts_as_first() ? print_overview(stderr) : EXIT_USAGE;
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        if (starts_as_first())
            printf("losa %s\n", LOSA_VERSION);
        return finish_output(0);
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
        return starts_as_first() ? print_overview(stdout) : 0;
    if (strcmp(word, "help") == 0)
        return help_command(argc, argv);
    const app_command *cmd = find_command(word);
    return cmd ? run_command(cmd, argc - 2, argv + 2) : EXIT_USAGE;
}
