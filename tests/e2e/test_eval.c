// SPDX-License-Identifier: Apache-2.0
// `losa eval` on two ranks: every document through every policy, the answers of `losa
// generate`, files that agree, and a run that was interrupted goes on where it was.
#include "tests/e2e/run.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DOCUMENTS = 3, POLICIES = 2, FAILED = 1, USAGE = 2, INTERRUPTED = 130 };
static const double LIMIT = 120.0;

#define LOSA "losa:128:plan-scope=shared" // exchanges scores

static char *data;

static int prepare(void **state)
{
    (void)state;
    json_t *documents = run_load_lines(run_source("models/needle-11m/documents.jsonl"));
    data = strdup(run_temp("data.jsonl"));
    FILE *file = fopen(data, "w");
    assert_non_null(file);
    for (size_t i = 0; i < DOCUMENTS; i++) { // the first ones have 512 tokens
        json_dumpf(json_array_get(documents, i), file, JSON_COMPACT);
        fputc('\n', file);
    }
    assert_int_equal(fclose(file), 0);
    json_decref(documents);
    return 0;
}

static void eval_args(run_args *args, const char *resume)
{
    run_arg(args, "eval");
    run_arg(args, "--model=%s", run_source("models/needle-11m"));
    run_arg(args, "--data=%s", data);
    run_arg(args, "--policies=dense," LOSA);
    run_arg(args, "--max-sessions=2");
    run_arg(args, "--resume=%s", resume);
}

static const json_t *cell(const json_t *summary, const char *policy, const char *task)
{
    size_t i;
    const json_t *c;
    json_array_foreach(run_get(summary, "cells"), i, c)
    {
        const json_t *t = json_object_get(c, "task");
        const bool same =
            task ? json_is_string(t) && strcmp(json_string_value(t), task) == 0 : json_is_null(t);
        if (same && strcmp(run_text(c, "policy"), policy) == 0)
            return c;
    }
    fail_msg("no cell of %s", policy);
    return NULL;
}

static void check_summary(const json_t *summary)
{
    const json_t *dense = cell(summary, "dense", NULL), *losa = cell(summary, LOSA, NULL);
    assert_int_equal(run_number(dense, "documents"), DOCUMENTS);
    assert_int_equal(run_number(dense, "length"), 512);
    assert_int_equal(run_number(dense, "right"), DOCUMENTS);
    assert_int_equal(run_number(losa, "right"), DOCUMENTS);
    assert_true(run_number(dense, "density_total") == 1 && run_number(dense, "same_text") == 1);
    assert_true(run_number(losa, "density_later") < run_number(losa, "density_steps"));
    assert_true(run_number(losa, "density_total") < 1 && run_number(losa, "reads") < 1);
    assert_true(run_number(losa, "exact_low") < 1 && run_number(losa, "difference_low") < 0);
    assert_true(run_number(losa, "probed_positions") > 0 && run_number(losa, "divergence") > 0);
    assert_true(run_number(losa, "same_choice") > 0.9);
    assert_true(run_number(dense, "exchange_bytes") == 0);
    assert_true(run_number(losa, "exchange_bytes") > 0);
    assert_int_equal(run_number(cell(summary, LOSA, "mk"), "documents"), 1);
}

// What times do not change.
static void check_equal(const json_t *a, const json_t *b)
{
    const json_t *x = run_get(a, "cells"), *y = run_get(b, "cells");
    assert_int_equal(json_array_size(x), json_array_size(y));
    for (size_t i = 0; i < json_array_size(x); i++) {
        json_t *one = json_array_get(x, i), *two = json_array_get(y, i);
        json_object_del(one, "prefill_seconds");
        json_object_del(one, "decode_seconds");
        json_object_del(two, "prefill_seconds");
        json_object_del(two, "decode_seconds");
        assert_true(json_equal(one, two));
    }
}

static void check_plots(const char *folder)
{
    static const char *const names[] = {"accuracy-512.svg", "forwards-512.svg"};
    for (int i = 0; i < 2; i++) {
        char path[1024];
        size_t len;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        char *svg = run_read(path, &len);
        assert_non_null(strstr(svg, LOSA "</text>"));
        assert_non_null(strstr(svg, "</svg>\n"));
        free(svg);
    }
}

static json_t *run_whole(const char *resume, const char *name)
{
    run_args args = {0};
    const char *summary = run_temp("%s.json", name), *plots = run_temp("%s-plots", name);
    eval_args(&args, resume);
    run_arg(&args, "--json=%s", summary);
    run_arg(&args, "--csv=%s", run_temp("%s.csv", name));
    run_arg(&args, "--plots=%s", plots);
    run_result result = run_ok(2, &args, LIMIT);
    assert_int_equal(result.err_lines, 0);
    assert_non_null(strstr(result.out, "3 documents of up to 512 tokens"));
    assert_non_null(strstr(result.out, "\n" LOSA " "));
    run_result_free(&result);
    run_args_free(&args);
    check_plots(plots);
    return run_load(summary);
}

// The record of a document is what `losa generate` says.
static void check_record(const char *resume)
{
    json_t *records = run_load_lines(resume), *documents = run_load_lines(data);
    const json_t *document = json_array_get(documents, 0);
    const char *path = run_temp("question.txt"), *user = run_text(document, "user");
    run_write(path, user, strlen(user));
    run_args args = {0};
    run_arg(&args, "generate");
    run_arg(&args, "--model=%s", run_source("models/needle-11m"));
    run_arg(&args, "--prompt-file=%s", path);
    run_arg(&args, "--chat");
    run_arg(&args, "--json");
    run_arg(&args, "--budget=128");
    run_arg(&args, "--plan-scope=shared");
    json_t *got = run_json(2, &args, LIMIT);
    run_args_free(&args);
    assert_int_equal(json_array_size(records), 1 + DOCUMENTS * POLICIES);
    int found = 0;
    size_t i;
    const json_t *record;
    json_array_foreach(records, i, record)
    {
        if (i == 0 || strcmp(run_text(record, "document"), run_text(document, "id")) != 0 ||
            strncmp(run_text(record, "policy"), "losa ", 5) != 0)
            continue;
        found++;
        assert_true(json_equal(run_get(record, "token_ids"), run_get(got, "token_ids")));
        assert_true(json_equal(run_get(record, "stats.density_total"),
                               run_get(got, "stats.density_total")));
        assert_true(json_is_true(run_get(record, "right")));
    }
    assert_int_equal(found, 1);
    json_decref(got);
    json_decref(records);
    json_decref(documents);
}

// ---- an interruption --------------------------------------------------------------------

static int count_lines(const char *path)
{
    if (access(path, R_OK) != 0)
        return 0;
    size_t len;
    char *text = run_read(path, &len);
    int lines = 0;
    for (size_t i = 0; i < len; i++)
        lines += text[i] == '\n';
    free(text);
    return lines;
}

// Ctrl-C as soon as one result is in the file.
static void interrupt(void *ctx, const run_live *live)
{
    static bool done;
    const pid_t pid = done ? -1 : run_rank(live, 0);
    if (pid > 0 && count_lines(ctx) >= 2) {
        kill(pid, SIGINT);
        done = true;
    }
}

static void test_resume(void **state)
{
    (void)state;
    char *part = strdup(run_temp("part.jsonl")), *full = strdup(run_temp("full.jsonl"));
    json_t *whole = run_whole(full, "whole");
    check_summary(whole);
    check_record(full);

    run_args args = {0};
    eval_args(&args, part);
    const run_job job = {
        .ranks = 2, .args = &args, .limit = LIMIT, .during = interrupt, .ctx = part};
    run_result result = run_losa(&job);
    assert_int_equal(result.status, INTERRUPTED);
    assert_int_equal(result.left, 0);
    assert_non_null(strstr(result.err, "part.jsonl; the same command goes on"));
    run_result_free(&result);
    run_args_free(&args);
    const int kept = count_lines(part);
    assert_in_range(kept, 2, DOCUMENTS * POLICIES);
    FILE *file = fopen(part, "a"); // and a crash while the next one was written
    fputs("{\"text\":\"It is", file);
    fclose(file);

    args = (run_args){0};
    const char *summary = run_temp("part.json");
    eval_args(&args, part);
    run_arg(&args, "--no-sharing"); // changes what is computed, no result
    run_arg(&args, "--json=%s", summary);
    result = run_ok(2, &args, LIMIT);
    assert_int_equal(result.err_lines, 1);
    assert_non_null(strstr(result.err, "dropped half a line"));
    run_result_free(&result);
    run_args_free(&args);
    json_t *resumed = run_load(summary);
    assert_int_equal(count_lines(part), 1 + DOCUMENTS * POLICIES);
    check_equal(whole, resumed);
    json_decref(whole);
    json_decref(resumed);
    free(part);
    free(full);
}

// ---- what is refused --------------------------------------------------------------------

static void check_refused(run_args *args, int ranks, int status, const char *cause)
{
    const run_job job = {.ranks = ranks, .args = args, .limit = LIMIT};
    run_result result = run_losa(&job);
    assert_int_equal(result.status, status);
    assert_int_equal(result.left, 0);
    assert_int_equal(result.out_len, 0);
    if (!strstr(result.err, cause))
        fail_msg("'%s' is not in: %s", cause, result.err);
    run_result_free(&result);
    run_args_free(args);
}

static void test_refused(void **state)
{
    (void)state;
    run_args args = {0};
    eval_args(&args, run_temp("full.jsonl"));
    run_arg(&args, "--threshold=0.5");
    check_refused(&args, 2, FAILED, "results with other options");

    args = (run_args){0};
    eval_args(&args, run_temp("new.jsonl"));
    run_arg(&args, "--policies=dense,losa:12x");
    check_refused(&args, 1, USAGE, "policy 'losa:12x': --budget: '12x'");

    const char *bad = run_temp("bad.jsonl");
    run_write(bad, "{\"id\": 1}\n", 10);
    args = (run_args){0};
    eval_args(&args, run_temp("new.jsonl"));
    run_arg(&args, "--data=%s", bad);
    check_refused(&args, 2, FAILED, "bad.jsonl:1: 'id'");
}

// Before anything is answered.
static void test_bad_outputs(void **state)
{
    (void)state;
    static const struct {
        const char *option, *cause;
    } cases[] = {{"--json=/no/such/x.json", "/no/such/x.json: cannot write: No such file"},
                 {"--csv=/tmp", "/tmp: is a folder"},
                 {"--plots=/dev/null", "/dev/null: is not a folder"}};
    for (int i = 0; i < 3; i++) {
        run_args args = {0};
        eval_args(&args, run_temp("none.jsonl"));
        run_arg(&args, "%s", cases[i].option);
        check_refused(&args, 0, FAILED, cases[i].cause);
    }
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bad_outputs),
    };
    const int failed = cmocka_run_group_tests_name("eval", tests, prepare, NULL);
    free(data);
    return failed;
}
