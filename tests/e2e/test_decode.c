// SPDX-License-Identifier: Apache-2.0
// `losa generate` on the shipped model against the reference answers of
// tests/golden/decode (PyTorch, made by tools/golden): the same token ids, the same
// number of steps, the same share of the prefix read, on 1, 2 and 4 ranks. The
// documents go in as text, so that the chat format and the tokenizer are in it.
#include "tests/e2e/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double LIMIT = 120.0; // seconds; a run takes one or two

static json_t *documents, *records;

static const json_t *find_document(const char *id)
{
    size_t i;
    const json_t *document;
    json_array_foreach(documents, i,
                       document) if (strcmp(run_text(document, "id"), id) == 0) return document;
    fail_msg("no document %s", id);
    return NULL;
}

static const char *prompt_file(const json_t *document)
{
    const json_t *user = run_get(document, "user");
    const char *path = run_temp("%s.txt", run_text(document, "id"));
    run_write(path, json_string_value(user), json_string_length(user));
    return path;
}

static void option(run_args *args, const char *name, const json_t *record, const char *key)
{
    const json_t *value = json_object_get(record, key);
    if (!value)
        return;
    run_arg(args, "--%s", name);
    if (json_is_string(value))
        run_arg(args, "%s", json_string_value(value));
    else
        run_arg(args, "%.9g", json_number_value(value));
}

static void record_args(run_args *args, const json_t *record)
{
    run_arg(args, "generate");
    run_arg(args, "--model");
    run_arg(args, "%s", run_source("models/needle-11m"));
    run_arg(args, "--prompt-file");
    run_arg(args, "%s", prompt_file(find_document(run_text(record, "document"))));
    run_arg(args, "--chat");
    run_arg(args, "--json");
    option(args, "max-tokens", record, "max_tokens");
    option(args, "strategy", record, "strategy");
    option(args, "steps", record, "steps");
    option(args, "threshold", record, "threshold");
    option(args, "attention", record, "attention");
    option(args, "budget", record, "budget");
    option(args, "active", record, "active");
    option(args, "page-size", record, "page_size");
    option(args, "plan-scope", record, "plan_scope");
    option(args, "locality", record, "locality");
}

static int total_steps(const json_t *record)
{
    int sum = 0;
    size_t i;
    const json_t *steps;
    json_array_foreach(json_object_get(record, "forwards_without_commit"), i, steps) sum +=
        (int)json_integer_value(steps);
    return sum;
}

static void check_tokens(const json_t *record, const json_t *got)
{
    const json_t *want = run_get(record, "token_ids"), *ids = run_get(got, "token_ids");
    if (json_equal(want, ids))
        return;
    size_t i = 0;
    while (json_equal(json_array_get(want, i), json_array_get(ids, i)))
        i++;
    fail_msg("token %zu of %zu differs (%zu expected; smallest margin of the reference %g)\n"
             "got:      %s\nexpected: %s",
             i, json_array_size(ids), json_array_size(want), run_number(record, "margin"),
             run_text(got, "text"), run_text(record, "text"));
}

static void check_count(const json_t *got, const char *path, double want)
{
    if (run_number(got, path) != want)
        fail_msg("%s is %g, not %g", path, run_number(got, path), want);
}

static void check_near(const json_t *record, const json_t *got, const char *key)
{
    // A page of nearly the same score may be another one: a few in thousands.
    static const double TOLERANCE = 2e-3;
    char path[64];
    snprintf(path, sizeof path, "stats.%s", key);
    if (json_object_get(record, key) &&
        !(fabs(run_number(got, path) / run_number(record, key) - 1) < TOLERANCE))
        fail_msg("%s is %.6f, not %.6f", path, run_number(got, path), run_number(record, key));
}

static void check_answer(const json_t *record, const json_t *got, int ranks)
{
    const json_t *document = find_document(run_text(record, "document"));
    check_tokens(record, got);
    assert_string_equal(run_text(got, "text"), run_text(record, "text"));
    assert_string_equal(run_text(got, "finish_reason"), run_text(record, "finish"));
    check_count(got, "usage.prompt_tokens",
                (double)json_array_size(run_get(document, "prompt_ids")));
    check_count(got, "usage.completion_tokens",
                (double)json_array_size(run_get(record, "token_ids")));
    check_count(got, "stats.ranks", ranks);
    if (total_steps(record))
        check_count(got, "stats.blocks",
                    (double)json_array_size(run_get(record, "forwards_without_commit")));
    check_near(record, got, "density_later");
    check_near(record, got, "active_share");
    check_near(record, got, "union_inflation");
}

static void test_record(void **state)
{
    const json_t *record = *state, *ranks = run_get(record, "ranks");
    run_args args = {0};
    record_args(&args, record);
    for (size_t i = 0; i < json_array_size(ranks); i++) {
        const int n = (int)json_integer_value(json_array_get(ranks, i));
        json_t *got = run_json(n, &args, LIMIT);
        check_answer(record, got, n);
        if (total_steps(record)) // commits ride in the next block's first step
            check_count(got, "stats.forwards", total_steps(record));
        json_decref(got);
    }
    run_args_free(&args);
}

static const json_t *find_record(const char *attention)
{
    size_t i;
    const json_t *record;
    json_array_foreach(records, i,
                       record) if (strcmp(run_text(record, "source"), "policy") == 0 &&
                                   strcmp(run_text(record, "document"), "mq-512-0") == 0 &&
                                   strcmp(run_text(record, "attention"), attention) ==
                                       0) return record;
    fail_msg("no record of %s", attention);
    return NULL;
}

// The same answer, with one forward more for every block but the last.
static void test_separate_commit(void **state)
{
    (void)state;
    static const char *const policies[] = {"dense", "losa"};
    for (int i = 0; i < 2; i++) {
        const json_t *record = find_record(policies[i]);
        run_args args = {0};
        record_args(&args, record);
        run_arg(&args, "--commit");
        run_arg(&args, "separate");
        json_t *got = run_json(i + 1, &args, LIMIT);
        check_answer(record, got, i + 1);
        const size_t blocks = json_array_size(run_get(record, "forwards_without_commit"));
        check_count(got, "stats.forwards", total_steps(record) + (double)blocks - 1);
        json_decref(got);
        run_args_free(&args);
    }
}

// Neither the chunks of the prefill nor threads nor plan checks change the answer.
static void test_other_ways(void **state)
{
    (void)state;
    const json_t *record = find_record("losa");
    static const char *const ways[][4] = {
        {"--prefill-chunk", "64", "--threads", "1"},
        {"--prefill-chunk", "100", "--threads", "3"},
        {"--check-plans", "--prefill-chunk", "4096", NULL},
        {"--context", "700", NULL, NULL},
    };
    for (int i = 0; i < 4; i++) {
        run_args args = {0};
        record_args(&args, record);
        for (int k = 0; k < 4 && ways[i][k]; k++)
            run_arg(&args, "%s", ways[i][k]);
        const int ranks = i % 2 ? 1 : 2;
        json_t *got = run_json(ranks, &args, LIMIT);
        check_answer(record, got, ranks);
        json_decref(got);
        run_args_free(&args);
    }
}

// Text as it streams: the same as the JSON's, and a newline.
static void test_plain_output(void **state)
{
    (void)state;
    const json_t *record = find_record("dense");
    run_args args = {0};
    record_args(&args, record);
    for (int i = 0; i < args.count; i++)
        if (strcmp(args.word[i], "--json") == 0)
            strcpy(args.word[i], "-q");
    run_result result = run_ok(2, &args, LIMIT);
    const char *want = run_text(record, "text");
    assert_int_equal(result.out_len, strlen(want) + 1);
    assert_memory_equal(result.out, want, strlen(want));
    assert_int_equal(result.out[result.out_len - 1], '\n');
    assert_int_equal(result.err_lines, 0);
    run_result_free(&result);
    run_args_free(&args);
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    documents = run_load_lines(run_source("tests/golden/decode/documents.jsonl"));
    records = run_load_lines(run_source("tests/golden/decode/needle.jsonl"));
    const struct CMUnitTest more[] = {
        cmocka_unit_test(test_separate_commit),
        cmocka_unit_test(test_other_ways),
        cmocka_unit_test(test_plain_output),
    };
    const size_t count = json_array_size(records), extra = sizeof more / sizeof more[0];
    struct CMUnitTest *tests = calloc(count + extra, sizeof *tests);
    if (!tests || count == 0)
        return 1;
    for (size_t i = 0; i < count; i++) {
        json_t *record = json_array_get(records, i);
        tests[i].name = json_string_value(json_object_get(record, "id"));
        tests[i].test_func = test_record;
        tests[i].initial_state = record;
    }
    memcpy(tests + count, more, sizeof more);
    const int failed = _cmocka_run_group_tests("decode", tests, count + extra, NULL, NULL);
    free(tests);
    json_decref(records);
    json_decref(documents);
    return failed;
}
