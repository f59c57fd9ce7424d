// SPDX-License-Identifier: Apache-2.0
// losa batch: the same results on any number of ranks and after any interruption, none
// twice and none lost. A tiny model that takes token ids answers them at once.
#include "tests/e2e/run.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const double LIMIT = 120.0; // seconds, of any run on a busy machine
static const char MODEL[] = "tests/golden/logits/mha_b4";

enum { REQUESTS = 200, MANY = 20000, KILLS = 20, FAILED = 1, RESUME = 75 };

static char *input;   // REQUESTS lines
static char *many;    // MANY: more than are answered before a signal is heard
static char *wanted;  // what answers them, without the times
static unsigned seed; // of this run, printed when something fails

// ---- input and output ----------------------------------------------------------------------

static void write_request(FILE *file, int i)
{
    fprintf(file,
            "{\"custom_id\": \"r%d\", \"method\": \"POST\", \"url\": \"/v1/completions\", "
            "\"body\": {\"max_tokens\": %d, \"losa\": {\"ignore_stop\": true, \"token_ids\": "
            "true}, \"prompt\": [%d",
            i, 8 + i * 7 % 57, 4 + i % 92);
    for (int k = 0; k < 2 + i * 5 % 37; k++)
        fprintf(file, ", %d", 4 + (i * 31 + k * k * 17) % 92);
    fprintf(file, "]}}\n");
}

// A file that is written line by line.
static FILE *create(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        fail_msg("%s: cannot create", path);
    return file;
}

static void batch_args(run_args *args, const char *in, const char *out)
{
    static const char *const words[] = {"batch",       "--keep-order",     "--resume",
                                        "--threads=1", "--max-sessions=4", "--quiet"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        run_arg(args, "%s", words[i]);
    run_arg(args, "--model=%s", run_source("%s", MODEL));
    run_arg(args, "--input=%s", in);
    run_arg(args, "--output=%s", out);
}

// The output with the digits of every "created" taken out.
static char *load_output(const char *path)
{
    static const char key[] = "\"created\":";
    size_t len;
    char *text = run_read(path, &len), *to = text;
    for (const char *from = text; *from;) {
        const bool is_time = strncmp(from, key, sizeof key - 1) == 0;
        const size_t n = is_time ? sizeof key - 1 : 1;
        memmove(to, from, n);
        to += n;
        from += n;
        if (is_time)
            from += strspn(from, "0123456789");
    }
    *to = '\0';
    return text;
}

static void check_output(const char *path)
{
    if (!wanted)
        fail_msg("the undisturbed run failed");
    char *text = load_output(path);
    if (strcmp(text, wanted) != 0)
        fail_msg("%s (seed %u): not the results of the undisturbed run", path, seed);
    free(text);
    if (access(run_temp("%s.journal", strrchr(path, '/') + 1), F_OK) == 0)
        fail_msg("%s: the journal is still there", path);
}

static char *write_requests(const char *name, int count)
{
    char *path = strdup(run_temp("%s", name));
    FILE *file = create(path);
    for (int i = 0; i < count; i++)
        write_request(file, i);
    fclose(file);
    return path;
}

static int prepare(void **state)
{
    (void)state;
    seed = (unsigned)getpid();
    srand(seed);
    input = write_requests("in.jsonl", REQUESTS);
    many = write_requests("many.jsonl", MANY);
    return 0;
}

static run_result run_batch(int ranks, const char *in, const char *out, const char *more)
{
    run_args args = {0};
    batch_args(&args, in, out);
    if (more)
        run_arg(&args, "%s", more);
    const run_job job = {.ranks = ranks, .args = &args, .limit = LIMIT};
    run_result result = run_losa(&job);
    run_args_free(&args);
    if (result.timed_out || result.left)
        fail_msg("timed out: %d, %d left; standard error:\n%s", result.timed_out, result.left,
                 result.err);
    return result;
}

static void run_well(int ranks, const char *in, const char *out, const char *more)
{
    run_result result = run_batch(ranks, in, out, more);
    if (result.status != 0 || result.err_lines != 0)
        fail_msg("on %d ranks: status %d, standard error:\n%s", ranks, result.status, result.err);
    run_result_free(&result);
}

// ---- undisturbed ---------------------------------------------------------------------------

static void test_ranks(void **state)
{
    (void)state;
    char *path = strdup(run_temp("out-0.jsonl"));
    run_well(0, input, path, NULL);
    wanted = load_output(path);
    json_t *records = run_load_lines(path);
    assert_int_equal(json_array_size(records), REQUESTS);
    size_t i;
    json_t *record;
    json_array_foreach(records, i, record)
    {
        char id[32];
        snprintf(id, sizeof id, "r%zu", i);
        assert_string_equal(run_text(record, "custom_id"), id);
        assert_int_equal(run_number(record, "response.status_code"), 200);
        const double tokens = run_number(record, "response.body.usage.completion_tokens");
        assert_int_equal(tokens, 8 + i * 7 % 57);
    }
    json_decref(records);
    free(path);
    path = strdup(run_temp("out-2.jsonl"));
    run_well(2, input, path, NULL);
    check_output(path);
    free(path);
}

// Groups of ranks: data-parallel, and tensor-parallel inside.
static void test_groups(void **state)
{
    (void)state;
    static const int ranks[] = {2, 4, 4}, tp[] = {1, 1, 2};
    for (int i = 0; i < 3; i++) {
        char more[16], *path = strdup(run_temp("groups-%d.jsonl", i));
        snprintf(more, sizeof more, "--tp=%d", tp[i]);
        run_well(ranks[i], input, path, more);
        check_output(path);
        free(path);
    }
}

// A file of its own for every test, whose name no other call overwrites.
static char *output_of(const char *test)
{
    return strdup(run_temp("%s.jsonl", test));
}

// ---- interrupted ---------------------------------------------------------------------------

static int count_lines(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return 0;
    size_t len;
    char *text = run_read(path, &len);
    int lines = 0;
    for (size_t i = 0; i < len; i++)
        lines += text[i] == '\n';
    free(text);
    return lines;
}

typedef struct strike {
    char *journal;
    int signal;
    int at_lines; // strikes when the journal has so many
    int rank;     // of the process; -1: what was started
    bool done;
} strike;

typedef struct outcome {
    int status;
    bool lost; // it said that it lost a group
} outcome;

static void strike_at(void *ctx, const run_live *live)
{
    strike *s = ctx;
    if (s->done || count_lines(s->journal) < s->at_lines)
        return;
    const pid_t pid = s->rank < 0 ? live->child : run_rank(live, s->rank);
    if (pid < 0)
        return;
    usleep((useconds_t)(rand() % 5000));
    kill(pid, s->signal);
    s->done = true;
}

// Strikes once `more` results are in the journal that are not there yet.
static outcome strike_groups(int ranks, int tp, const char *in, const char *out, int signal,
                             int rank, int more)
{
    run_args args = {0};
    strike s = {.signal = signal, .rank = rank};
    s.journal = strdup(run_temp("%s.journal", strrchr(out, '/') + 1));
    s.at_lines = more ? count_lines(s.journal) + more : 0;
    batch_args(&args, in, out);
    run_arg(&args, "--tp=%d", tp);
    const run_job job = {
        .ranks = ranks, .args = &args, .limit = LIMIT, .during = strike_at, .ctx = &s};
    run_result result = run_losa(&job);
    const outcome got = {result.status, strstr(result.err, "its group is lost") != NULL};
    if (result.timed_out || result.left)
        fail_msg("seed %u: timed out: %d, %d left; standard error:\n%s", seed, result.timed_out,
                 result.left, result.err);
    if (ranks > 0 && strstr(result.err, "; to go on:"))
        fail_msg("mpirun is left out: %s", result.err);
    run_result_free(&result);
    run_args_free(&args);
    free(s.journal);
    return got;
}

static int run_struck(int ranks, const char *out, int signal, int rank, int more)
{
    return strike_groups(ranks, ranks ? ranks : 1, input, out, signal, rank, more).status;
}

// What a disk may do to the last bytes when the power goes: some are zeros, and zeros follow.
static void lose_power(const char *journal)
{
    static const char zeros[4096];
    const int fd = open(journal, O_RDWR);
    if (fd < 0)
        return;
    const off_t end = lseek(fd, 0, SEEK_END), least = 1000; // the head is synced at once
    const off_t from = end - rand() % 1500, len = rand() % 1000;
    if (from > least)
        assert_int_equal(pwrite(fd, zeros, (size_t)len, from), len);
    assert_int_equal(pwrite(fd, zeros, sizeof zeros, end), sizeof zeros);
    close(fd);
}

// Killed at start-up, while it reads its journal, and at any number of results; every other
// time the machine goes down too.
static void test_killed(void **state)
{
    (void)state;
    char *out = output_of("killed");
    int struck = 0;
    for (int i = 0; i < KILLS; i++) {
        struck += run_struck(0, out, SIGKILL, -1, rand() % 9) == 128 + SIGKILL;
        if (i % 2)
            lose_power(run_temp("killed.jsonl.journal"));
    }
    assert_in_range(struck, KILLS / 2, KILLS); // a run may end before it is hit
    run_well(0, input, out, NULL);
    check_output(out);
    free(out);
}

// A dead rank ends a job of one group; mpirun says so with its status.
static void test_killed_ranks(void **state)
{
    (void)state;
    char *out = output_of("killed-ranks");
    for (int i = 0; i < 2; i++)
        assert_int_not_equal(run_struck(2, out, SIGKILL, i, 1 + rand() % 20), 0);
    run_well(2, input, out, NULL);
    check_output(out);
    free(out);
}

// The other groups go on: always when a rank is stopped, also one beside rank 0; when one is
// dead, if mpirun lets them.
static void test_lost_groups(void **state)
{
    (void)state;
    char *out = output_of("stopped");
    outcome got = strike_groups(4, 2, input, out, SIGSTOP, 1, 10);
    assert_true(got.lost);
    assert_int_equal(got.status, 0);
    check_output(out);
    free(out);
    out = output_of("recovered");
    setenv("OMPI_MCA_orte_enable_recovery", "1", 1);
    got = strike_groups(4, 1, input, out, SIGKILL, 2, 10);
    unsetenv("OMPI_MCA_orte_enable_recovery");
    assert_true(got.lost);
    check_output(out);
    free(out);
    out = output_of("ended"); // by mpirun, in order
    got = strike_groups(4, 2, input, out, SIGKILL, 3, 10);
    assert_true(got.lost);
    assert_int_not_equal(got.status, 0);
    run_well(2, input, out, "--tp=1"); // fewer ranks go on as well
    check_output(out);
    free(out);
}

// What batch systems send: the status says that there is more to do.
static void test_signals(void **state)
{
    (void)state;
    static const int signals[] = {SIGTERM, SIGUSR1, SIGINT};
    char *out = output_of("signals"), *more = output_of("signals-of-many");
    for (int i = 0; i < 3; i++) {
        assert_int_equal(strike_groups(0, 1, many, more, signals[i], -1, 5).status, RESUME);
        run_struck(0, out, signals[i], -1, 5); // may be done before
    }
    // mpirun passes it on
    assert_int_equal(strike_groups(2, 2, many, more, SIGUSR1, -1, 5).status, RESUME);
    run_well(0, input, out, NULL);
    check_output(out);
    free(more);
    free(out);
}

// A signal that one rank alone got, beside rank 0 or in another group: rank 0 hears of it within
// a second and ends in order.
static void test_lone_signal(void **state)
{
    (void)state;
    char *out = output_of("one-rank");
    assert_int_equal(strike_groups(2, 2, many, out, SIGUSR1, 1, 5).status, RESUME);
    assert_int_equal(strike_groups(4, 2, many, out, SIGTERM, 3, 5).status, RESUME);
    assert_in_range(count_lines(run_temp("one-rank.jsonl.journal")), 10, MANY);
    free(out);
}

// ---- limits --------------------------------------------------------------------------------

static void set_limit(int what, rlim_t value, struct rlimit *before)
{
    assert_int_equal(getrlimit((__rlimit_resource_t)what, before), 0);
    const struct rlimit limit = {value, before->rlim_max};
    assert_int_equal(setrlimit((__rlimit_resource_t)what, &limit), 0);
}

static void check_error(const run_result *result, const char *cause)
{
    if (result->status != FAILED || !strstr(result->err, cause))
        fail_msg("status %d, no '%s' in:\n%s", result->status, cause, result->err);
}

// No file may grow beyond a size: the journal cannot take all results.
static void test_full_disk(void **state)
{
    (void)state;
    struct rlimit before;
    char *out = output_of("full, it's"); // a shell reads that otherwise
    signal(SIGXFSZ, SIG_IGN);            // the write fails instead, also in the program
    set_limit(RLIMIT_FSIZE, 20000, &before);
    run_result result = run_batch(0, input, out, NULL);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    check_error(&result, "full, it's.jsonl.journal: cannot write: File too large");
    assert_non_null(strstr(result.err, "; to go on: "));
    assert_non_null(strstr(result.err, "full, it'\\''s.jsonl'\n"));
    run_result_free(&result);
    assert_in_range(count_lines(run_temp("full, it's.jsonl.journal")), 10, REQUESTS);
    run_well(0, input, out, NULL);
    check_output(out);
    free(out);
}

// A line of 300 MB (a hole in the file) between two good ones never is in memory as a whole:
// the largest process is not much larger than those of the jobs before.
static void test_long_line(void **state)
{
    (void)state;
    struct rusage before, after;
    char *in = strdup(run_temp("long.jsonl")), *out = output_of("long-out");
    FILE *file = create(in);
    write_request(file, 0);
    fseek(file, 300 << 20, SEEK_CUR);
    fputc('\n', file);
    write_request(file, 1);
    fclose(file);
    assert_int_equal(getrusage(RUSAGE_CHILDREN, &before), 0);
    run_well(0, in, out, NULL);
    assert_int_equal(getrusage(RUSAGE_CHILDREN, &after), 0);
    assert_in_range(after.ru_maxrss - before.ru_maxrss, 0, 100 << 10); // KiB
    json_t *records = run_load_lines(out);
    assert_int_equal(json_array_size(records), 3);
    const json_t *bad = json_array_get(records, 1);
    assert_int_equal(run_number(bad, "response.status_code"), 400);
    assert_non_null(
        strstr(run_text(bad, "response.body.error.message"), "line 2: 314572800 bytes, at most"));
    assert_int_equal(run_number(json_array_get(records, 2), "response.status_code"), 200);
    json_decref(records);
    free(in);
    free(out);
}

// ---- bad input -----------------------------------------------------------------------------

#define ENVELOPE(id, body)                                                                         \
    "{\"custom_id\": \"" id                                                                        \
    "\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": " body "}"

// Of 104 bytes, two a letter: the message quotes 100, and a letter's first byte behind an x.
#define HALF "éééééééééééééééééééééééééé"
#define ACCENTS HALF HALF

static void test_bad_lines(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        int status;
        const char *cause;
    } cases[] = {
        {ENVELOPE("a", "{\"prompt\": [5, 6]}"), 200, ""},
        {"what is this", 400, "line 3: request: line 1"},
        {"\x01\x02\xff\xfe", 400, "line 5: request"},
        {ENVELOPE("a", "{\"prompt\": [5, 6]}"), 400, "custom_id 'a' was there before"},
        {ENVELOPE("b", "{\"prompt\": [5, 6], \"max_tokens\": 0}"), 400, "max_tokens"},
        {ENVELOPE("c", "{\"prompt\": [5, 6], \"model\": \"other\"}"), 400, "'other' is not here"},
        {ENVELOPE("d", "{\"prompt\": [5, 96]}"), 400, "the vocabulary has 96"},
        {ENVELOPE("e", "{\"prompt\": \"text\"}"), 400, "tokenizer.json: not found"},
        {ENVELOPE("f", "{\"prompt\": [5], \"temperature\": \"hot\"}"), 400, "temperature"},
        {ENVELOPE("cut", "{\"prompt\": [5], \"model\": \"x" ACCENTS "\"}"), 400, "' is not here"},
        {ENVELOPE("g", "7"), 400, "'body' is not an object"},
        {ENVELOPE("g", "{\"prompt\": [5, 6]}"), 400, "custom_id 'g' was there before"},
        {ENVELOPE("h", "{\"prompt\": [5, 6]}"), 200, ""},
    };
    enum { CASES = sizeof cases / sizeof cases[0], TOO_LONG = 128 };
    char *in = strdup(run_temp("bad.jsonl")), *out = output_of("bad-out");
    FILE *file = create(in);
    for (size_t i = 0; i < CASES; i++)
        fprintf(file, "%s\n\n", cases[i].line); // blank lines count as lines
    fprintf(file, "{\"custom_id\": \"long\", \"method\": \"POST\", \"url\": \"/v1/completions\", "
                  "\"body\": {\"prompt\": [5");
    for (int i = 1; i < TOO_LONG; i++)
        fprintf(file, ", 5");
    fprintf(file, "]}}"); // and no line end
    fclose(file);
    run_well(2, in, out, NULL);
    json_t *records = run_load_lines(out);
    assert_int_equal(json_array_size(records), CASES + 1);
    for (size_t i = 0; i < CASES; i++) {
        const json_t *record = json_array_get(records, i);
        assert_int_equal(run_number(record, "response.status_code"), cases[i].status);
        if (cases[i].status != 200 &&
            !strstr(run_text(record, "response.body.error.message"), cases[i].cause))
            fail_msg("'%s' is not in: %s", cases[i].cause,
                     run_text(record, "response.body.error.message"));
    }
    assert_non_null(strstr(run_text(json_array_get(records, CASES), "response.body.error.message"),
                           "128 tokens leave no room"));
    json_decref(records);
    free(in);
    free(out);
}

// A request that all the KV pages of a group cannot hold, beside one that they can: 16 tokens
// and what each of 4 sessions may leave unused, (4 + 8) tokens, make 8 pages.
static void test_few_pages(void **state)
{
    (void)state;
    char *in = strdup(run_temp("pages.jsonl")), *out = output_of("pages-out");
    FILE *file = create(in);
    fprintf(file, "%s\n", ENVELOPE("a", "{\"prompt\": [5, 6], \"max_tokens\": 100}"));
    fprintf(file, "%s\n", ENVELOPE("b", "{\"prompt\": [5, 6], \"max_tokens\": 20}"));
    fclose(file);
    run_well(2, in, out, "--context=16");
    json_t *records = run_load_lines(out);
    assert_int_equal(json_array_size(records), 2);
    const json_t *bad = json_array_get(records, 0);
    assert_int_equal(run_number(bad, "response.status_code"), 400);
    assert_non_null(strstr(run_text(bad, "response.body.error.message"), "needed, there are 8"));
    assert_int_equal(run_number(json_array_get(records, 1), "response.status_code"), 200);
    json_decref(records);
    free(in);
    free(out);
}

// ---- refused -------------------------------------------------------------------------------

static void test_refused(void **state)
{
    (void)state;
    char *out = output_of("refused");
    run_struck(0, out, SIGKILL, -1, 10);
    run_result result = run_batch(0, input, out, "--max-tokens=3");
    check_error(&result, "refused.jsonl.journal: made with other options");
    run_result_free(&result);

    char *other = strdup(run_temp("other.jsonl"));
    FILE *file = create(other);
    write_request(file, 1);
    fclose(file);
    result = run_batch(0, other, out, NULL);
    check_error(&result, "refused.jsonl.journal: of another input");
    run_result_free(&result);
    assert_in_range(count_lines(run_temp("refused.jsonl.journal")), 10, REQUESTS + 1);

    result = run_batch(2, input, "/no/such/folder/out.jsonl", NULL);
    check_error(&result, "/no/such/folder/out.jsonl.journal: cannot open");
    run_result_free(&result);
    result = run_batch(0, input, "/tmp", NULL);
    check_error(&result, "--output /tmp: not a regular file");
    run_result_free(&result);
    result = run_batch(0, "/no/input", out, NULL);
    check_error(&result, "/no/input: cannot open");
    run_result_free(&result);
    result = run_batch(2, input, run_temp("never.jsonl"), "--mask-id=5000"); // of 96
    check_error(&result, "5000");
    assert_null(strstr(result.err, "to go on")); // it would not
    assert_int_not_equal(access(run_temp("never.jsonl.journal"), F_OK), 0);
    run_result_free(&result);
    free(other);
    free(out);
}

static void write_program(const char *name, const char *text)
{
    run_write(run_temp("%s", name), text, strlen(text));
    assert_int_equal(chmod(run_temp("%s", name), 0700), 0);
}

// Two groups of one rank, each with a folder of its own: the second one's weights are others.
static void test_other_checkpoint(void **state)
{
    (void)state;
    static const char script[] = "#!/bin/sh\ncd '%s'/$OMPI_COMM_WORLD_RANK && exec '%s' \"$@\"\n";
    static const char *const words[] = {"batch", "-q", "-mm", "--tp=1"};
    char *const binary = strdup(getenv("LOSA_BINARY")), *out = output_of("other-weights");
    char text[4096];
    for (int rank = 0; rank < 2; rank++) {
        size_t len;
        char *weights = run_read(run_source("%s/model.safetensors", MODEL), &len);
        mkdir(run_temp("%d", rank), 0700);
        mkdir(run_temp("%d/m", rank), 0700);
        assert_int_equal(
            symlink(run_source("%s/config.json", MODEL), run_temp("%d/m/config.json", rank)), 0);
        weights[len - 1] = (char)(weights[len - 1] ^ rank);
        run_write(run_temp("%d/m/model.safetensors", rank), weights, len);
        free(weights);
    }
    snprintf(text, sizeof text, script, run_temp("."), binary);
    write_program("moved", text);
    setenv("LOSA_BINARY", run_temp("moved"), 1);
    run_args args = {0};
    for (int i = 0; i < 4; i++)
        run_arg(&args, "%s", words[i]);
    run_arg(&args, "-i%s", input);
    run_arg(&args, "-o%s", out);
    const run_job job = {.ranks = 2, .args = &args, .limit = LIMIT};
    run_result result = run_losa(&job);
    check_error(&result, "rank 1 has another checkpoint than rank 0");
    assert_int_not_equal(access(run_temp("other-weights.jsonl.journal"), F_OK), 0);
    run_result_free(&result);
    run_args_free(&args);
    setenv("LOSA_BINARY", binary, 1);
    free(out);
    free(binary);
}

// Progress of a job that is not on a terminal, and its numbers for Prometheus.
static void test_status(void **state)
{
    (void)state;
    char *out = output_of("status"), *metrics = strdup(run_temp("losa.prom"));
    run_args args = {0};
    run_arg(&args, "batch");
    run_arg(&args, "--model=%s", run_source("%s", MODEL));
    run_arg(&args, "-i%s", input);
    run_arg(&args, "-o%s", out);
    run_arg(&args, "--metrics-file=%s", metrics);
    run_result result = run_ok(0, &args, LIMIT);
    assert_int_equal(result.err_lines, 1);
    assert_non_null(strstr(result.err, "losa: 200 of 200 done, "));
    run_result_free(&result);
    run_args_free(&args);
    size_t len;
    char *text = run_read(metrics, &len);
    assert_non_null(strstr(text, "# TYPE losa_batch_requests_done gauge\n"
                                 "losa_batch_requests_done 200\n"));
    assert_non_null(strstr(text, "\nlosa_batch_completion_tokens_total 7"));
    free(text);
    assert_int_equal(count_lines(out), REQUESTS); // in any order
    free(metrics);
    free(out);
}

// The exit status of the script for Slurm; *requeued: it asked for another start. Its stamp
// goes in the end.
static int run_slurm(const char *out, bool *requeued)
{
    char command[4096];
    snprintf(command, sizeof command,
             "PATH=%s:$PATH LOSA_LAUNCH=mpirun SLURM_JOB_ID=1 SLURM_JOB_NODELIST=here bash %s "
             "model in %s > %s 2>&1",
             run_temp("bin"), run_source("launcher/slurm/losa-batch.sbatch"), out,
             run_temp("slurm.log"));
    unlink(run_temp("requeued"));
    const int status = system(command);
    assert_true(WIFEXITED(status));
    snprintf(command, sizeof command, "! ls %s.stamp.* 2> /dev/null", out);
    assert_int_equal(system(command), 0);
    *requeued = access(run_temp("requeued"), F_OK) == 0;
    return WEXITSTATUS(status);
}

// With an mpirun that ends with 0 whatever happened, as it does where lost ranks are no end.
static void test_slurm(void **state)
{
    (void)state;
    static const char find[] = "#!/bin/sh\nwhile [ \"$1\" != --output ]; do shift; done\n";
    static const struct {
        const char *does;
        int status;
        bool requeued;
    } cases[] = {
        {"exit 0", FAILED, false}, // a mistake: nothing was written
        {"echo head > \"$2\".journal", FAILED, false},
        {"echo head > \"$2\".journal; echo result >> \"$2\".journal", RESUME, true},
        {"exit 0", FAILED, false}, // a full disk: no more results than before
        {"trap '' USR1; kill -USR1 $PPID; sleep 0.1", RESUME, true},
        {"exit 2", 2, false},
        {"sleep 0.1; rm \"$2\".journal; cp \"$2\".stamp.* \"$2\"", 0, false}, // done
    };
    char *out = output_of("slurm"), program[512];
    assert_int_equal(mkdir(run_temp("bin"), 0700), 0);
    snprintf(program, sizeof program, "#!/bin/sh\ntouch '%s'\n", run_temp("requeued"));
    write_program("bin/scontrol", program);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool requeued;
        snprintf(program, sizeof program, "%s%s\n", find, cases[i].does);
        write_program("bin/mpirun", program);
        const int status = run_slurm(out, &requeued);
        if (status != cases[i].status || requeued != cases[i].requeued)
            fail_msg("'%s': status %d, requeued: %d", cases[i].does, status, requeued);
    }
    free(out);
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_lost_groups),
        cmocka_unit_test(test_killed_ranks),
        cmocka_unit_test(test_signals),
        cmocka_unit_test(test_lone_signal),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_long_line),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_few_pages),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_status),
        cmocka_unit_test(test_slurm),
        cmocka_unit_test(test_other_checkpoint),
    };
    const int failed = cmocka_run_group_tests_name("batch", tests, prepare, NULL);
    free(input);
    free(many);
    free(wanted);
    return failed;
}
