// SPDX-License-Identifier: Apache-2.0
// `losa generate` with several prompts: the answers of solo runs, in the order of the
// prompts, on 1 and 2 ranks; and one bad prompt keeps all from running.
#include "tests/e2e/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPTS = 3, FAILED = 1, USAGE = 2 };
static const double LIMIT = 120.0;

static const char *files[PROMPTS];
static json_t *alone[PROMPTS]; // answers of solo runs

static void common_args(run_args *args)
{
    run_arg(args, "generate");
    run_arg(args, "--model");
    run_arg(args, "%s", run_source("models/needle-11m"));
    run_arg(args, "--chat");
    run_arg(args, "--budget");
    run_arg(args, "128");
}

static void add_files(run_args *args, int first, int count)
{
    for (int i = first; i < first + count; i++) {
        run_arg(args, "--prompt-file");
        run_arg(args, "%s", files[i]);
    }
}

static void option(run_args *args, const char *name, const char *value)
{
    run_arg(args, "%s", name);
    run_arg(args, "%s", value);
}

// A text of JSON Lines.
static json_t *parse_lines(const char *text)
{
    const char *path = run_temp("lines.jsonl");
    run_write(path, text, strlen(text));
    return run_load_lines(path);
}

static int prepare(void **state)
{
    (void)state;
    json_t *documents = run_load_lines(run_source("models/needle-11m/documents.jsonl"));
    for (int i = 0; i < PROMPTS; i++) {
        const json_t *user = run_get(json_array_get(documents, (size_t)i), "user");
        files[i] = strdup(run_temp("question-%d.txt", i));
        run_write(files[i], json_string_value(user), json_string_length(user));
        run_args args = {0};
        common_args(&args);
        add_files(&args, i, 1);
        run_arg(&args, "--json");
        alone[i] = run_json(1, &args, LIMIT);
        assert_null(json_object_get(alone[i], "prompt"));
        run_args_free(&args);
    }
    json_decref(documents);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    for (int i = 0; i < PROMPTS; i++) {
        free((char *)files[i]);
        json_decref(alone[i]);
    }
    return 0;
}

static void check_answers(const json_t *answers)
{
    static const char *const same[] = {"text", "token_ids", "finish_reason", "usage"};
    static const char *const counts[] = {"blocks", "forwards", "steps", "density_later",
                                         "density_total"};
    assert_int_equal(json_array_size(answers), PROMPTS);
    for (size_t i = 0; i < PROMPTS; i++) {
        const json_t *answer = json_array_get(answers, i);
        for (size_t k = 0; k < sizeof same / sizeof same[0]; k++)
            assert_true(json_equal(run_get(answer, same[k]), run_get(alone[i], same[k])));
        const json_t *got = run_get(answer, "stats"), *want = run_get(alone[i], "stats");
        for (size_t k = 0; k < sizeof counts / sizeof counts[0]; k++)
            assert_true(json_equal(run_get(got, counts[k]), run_get(want, counts[k])));
        assert_int_equal(run_number(answer, "prompt.index"), i);
        assert_string_equal(run_text(answer, "prompt.file"), files[i]);
    }
}

static void test_json_lines(void **state)
{
    (void)state;
    static const char *const ways[][4] = {
        {NULL},
        {"--max-sessions", "2", "--prefill-chunk", "100"},
        {"--max-sessions", "3", "--context", "800"}, // two must wait for pages
        {"--max-sessions", "1", NULL},
        {"--kv-memory", "11M", NULL}, // one of 50 pages at a time
    };
    for (int i = 0; i < 5; i++) {
        run_args args = {0};
        common_args(&args);
        add_files(&args, 0, PROMPTS);
        run_arg(&args, "--json");
        for (int k = 0; k < 4 && ways[i][k]; k++)
            run_arg(&args, "%s", ways[i][k]);
        run_result result = run_ok(i < 2 ? 2 - i : 1 + i % 2, &args, LIMIT);
        json_t *answers = parse_lines(result.out);
        check_answers(answers);
        json_decref(answers);
        run_result_free(&result);
        run_args_free(&args);
    }
}

static void test_plain_text(void **state)
{
    (void)state;
    char want[4096];
    int len = 0;
    for (int i = 0; i < PROMPTS; i++)
        len += snprintf(want + len, sizeof want - (size_t)len, "%s==> %s <==\n%s\n", i ? "\n" : "",
                        files[i], run_text(alone[i], "text"));
    for (int ranks = 1; ranks <= 2; ranks++) {
        run_args args = {0};
        common_args(&args);
        add_files(&args, 0, PROMPTS);
        run_result result = run_ok(ranks, &args, LIMIT);
        assert_string_equal(result.out, want);
        assert_int_equal(result.err_lines, 0);
        run_result_free(&result);
        run_args_free(&args);
    }
}

static void test_texts(void **state)
{
    (void)state;
    run_args args = {0};
    common_args(&args);
    option(&args, "--prompt", "One two three");
    option(&args, "-p", "One two three");
    option(&args, "--max-tokens", "5");
    run_result result = run_ok(1, &args, LIMIT);
    const char *second = strstr(result.out, "\n==> prompt 2 <==\n");
    assert_non_null(second);
    assert_memory_equal(result.out, "==> prompt 1 <==\n", 17);
    assert_int_equal(second - result.out - 17, strlen(second) - 18);
    assert_memory_equal(result.out + 17, second + 18, strlen(second + 18));
    run_result_free(&result);
    run_args_free(&args);
}

// The same prompt twice, among others: it is read once, and the answers do not change.
static void test_shared(void **state)
{
    (void)state;
    enum { DOCUMENT = 512 };
    for (int off = 0; off < 2; off++) {
        run_args args = {0};
        common_args(&args);
        add_files(&args, 0, 1);
        add_files(&args, 0, PROMPTS);
        run_arg(&args, "--json");
        if (off)
            run_arg(&args, "--no-sharing");
        run_result result = run_ok(1 + off, &args, LIMIT);
        json_t *answers = parse_lines(result.out);
        const double shared = run_number(json_array_get(answers, 1), "stats.shared_tokens");
        assert_true(off ? shared == 0 : shared >= DOCUMENT);
        for (size_t i = 0; i < PROMPTS; i++)
            assert_true(json_equal(run_get(json_array_get(answers, i + 1), "token_ids"),
                                   run_get(alone[i], "token_ids")));
        json_decref(answers);
        run_result_free(&result);
        run_args_free(&args);
    }
}

// ---- a document ------------------------------------------------------------------------

static json_t *ask(const char *const *words, int count)
{
    run_args args = {0};
    common_args(&args);
    for (int i = 0; i < count; i++)
        run_arg(&args, "%s", words[i]);
    run_arg(&args, "--json");
    run_arg(&args, "--max-tokens");
    run_arg(&args, "4");
    run_result result = run_ok(1, &args, LIMIT);
    json_t *answers = parse_lines(result.out);
    run_result_free(&result);
    run_args_free(&args);
    return answers;
}

// The document, an empty line and the prompt are one text; the document is computed once.
static void test_document(void **state)
{
    (void)state;
    char text[2000] = "", both[2100];
    while (strlen(text) < sizeof text - 30)
        strcat(text, "The calm baker sold a bell. ");
    const char *document = run_temp("document.txt");
    run_write(document, text, strlen(text));
    snprintf(both, sizeof both, "%s\n\nWho?", text);
    json_t *split =
        ask((const char *const[]){"--document", document, "-p", "Who?", "-p", "What?"}, 6);
    json_t *whole = ask((const char *const[]){"-p", both}, 2);
    const json_t *first = json_array_get(split, 0), *second = json_array_get(split, 1);
    static const char *const same[] = {"text", "token_ids"};
    for (size_t k = 0; k < sizeof same / sizeof same[0]; k++)
        assert_true(
            json_equal(run_get(first, same[k]), run_get(json_array_get(whole, 0), same[k])));
    assert_true(run_number(second, "stats.shared_tokens") > 300);
    json_decref(split);
    json_decref(whole);
}

// ---- reports -----------------------------------------------------------------------

static const char *write_stats(const char *policy)
{
    const char *path = run_temp("%s.jsonl", policy);
    run_args args = {0};
    common_args(&args);
    add_files(&args, 0, PROMPTS);
    option(&args, "--attention", policy);
    option(&args, "--stats-file", path);
    run_result result = run_ok(1, &args, LIMIT);
    run_result_free(&result);
    run_args_free(&args);
    return path;
}

// Each answer has its column, and is compared with the one to the same prompt.
static void test_report(void **state)
{
    (void)state;
    const char *first = write_stats("losa"), *second = write_stats("dense");
    json_t *answers = run_load_lines(first);
    check_answers(answers);
    json_decref(answers);
    run_args args = {0};
    run_arg(&args, "report");
    run_arg(&args, "%s", first);
    run_arg(&args, "%s", second);
    run_result result = run_ok(0, &args, LIMIT);
    static const char *const titles[] = {"losa#1", "losa#3", "dense#2"};
    for (int i = 0; i < 3; i++)
        assert_non_null(strstr(result.out, titles[i]));
    char yes[3][4], more[4];
    const char *row = strstr(result.out, "same answer");
    assert_non_null(row);
    assert_int_equal(sscanf(row, "same answer %3s %3s %3s %3s", yes[0], yes[1], yes[2], more), 3);
    for (int i = 0; i < 3; i++)
        assert_string_equal(yes[i], "yes");
    run_result_free(&result);
    run_args_free(&args);
}

// ---- what is refused ------------------------------------------------------------------

typedef struct bad_prompt {
    const char *name; // of the file; NULL: there is none
    const char *bytes;
    size_t repeat;
    const char *cause;
} bad_prompt;

static void check_refused(const run_args *args, int ranks, int status, const char *subject,
                          const char *cause)
{
    const run_job job = {.ranks = ranks, .args = args, .limit = LIMIT};
    run_result result = run_losa(&job);
    assert_int_equal(result.status, status);
    assert_int_equal(result.out_len, 0);
    assert_int_equal(result.left, 0);
    assert_int_equal(result.err_lines, 1);
    assert_non_null(strstr(result.err, subject));
    assert_non_null(strstr(result.err, cause));
    run_result_free(&result);
}

// The heading of a long name is cut between characters; blank lines are passed over, and a bad line
// is named.
static void test_report_of_odd_files(void **state)
{
    (void)state;
    static const char line[] = "{\"stats\": {\"ranks\": 1}, \"text\": \"a\"}\n";
    char text[3 * sizeof line];
    const char *path = run_temp("aar\xc3\xa9sum\xc3\xa9-r\xc3\xa9sum\xc3\xa9-r\xc3\xa9sum\xc3\xa9-"
                                "r\xc3\xa9sum\xc3\xa9.jsonl");
    const int len = snprintf(text, sizeof text, "%s\n%s", line, line);
    run_write(path, text, (size_t)len);
    run_args args = {0};
    run_arg(&args, "report");
    run_arg(&args, "%s", path);
    run_result result = run_ok(0, &args, LIMIT);
    assert_non_null(strstr(result.out, "  sum\xc3\xa9-r\xc3\xa9sum\xc3\xa9-r\xc3\xa9sum\xc3\xa9-"
                                       "r\xc3\xa9sum\xc3\xa9#2"));
    run_result_free(&result);
    run_write(path, "{}\n}\n", 5);
    check_refused(&args, 0, FAILED, ".jsonl:2: ", "expected");
    run_args_free(&args);
}

static void test_bad_document(void **state)
{
    (void)state;
    static const char *const list[][3] = {{"latin1.txt", "caf\xe9", "not UTF-8 at byte 3"},
                                          {"good.txt", "text", "prompt is empty"}};
    for (int i = 0; i < 2; i++) {
        const char *path = run_temp("%s", list[i][0]);
        run_write(path, list[i][1], strlen(list[i][1]));
        run_args args = {0};
        common_args(&args);
        option(&args, "--document", path);
        option(&args, "-p", i ? "" : "Who?");
        check_refused(&args, 0, FAILED, i ? "--prompt" : "latin1.txt", list[i][2]);
        run_args_free(&args);
    }
}

static void test_one_bad_prompt(void **state)
{
    (void)state;
    static const bad_prompt list[] = {
        {"absent.txt", NULL, 0, "No such file"},
        {"latin1.txt", "caf\xe9", 1, "UTF-8"},
        {"long.txt", "word and word ", 15000, "beyond the model's context"},
    };
    for (int i = 0; i < 3; i++) {
        const char *path = run_temp("%s", list[i].name);
        const size_t len = list[i].bytes ? strlen(list[i].bytes) : 0;
        char *text = calloc(list[i].repeat * len + 1, 1);
        assert_non_null(text);
        for (size_t k = 0; k < list[i].repeat; k++)
            memcpy(text + k * len, list[i].bytes, len);
        if (len)
            run_write(path, text, list[i].repeat * len);
        free(text);
        run_args args = {0};
        common_args(&args);
        add_files(&args, 0, 2);
        option(&args, "--prompt-file", path);
        add_files(&args, 2, 1);
        check_refused(&args, 1 + i % 2, FAILED, list[i].name, list[i].cause);
        run_args_free(&args);
    }
}

static void test_standard_input_once(void **state)
{
    (void)state;
    run_args args = {0};
    common_args(&args);
    option(&args, "--prompt-file", "-");
    option(&args, "--prompt-file", "-");
    check_refused(&args, 0, USAGE, "--prompt-file", "only once");
    run_args_free(&args);
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_lines),
        cmocka_unit_test(test_plain_text),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_document),
        cmocka_unit_test(test_report),
        cmocka_unit_test(test_report_of_odd_files),
        cmocka_unit_test(test_bad_document),
        cmocka_unit_test(test_one_bad_prompt),
        cmocka_unit_test(test_standard_input_once),
    };
    return cmocka_run_group_tests_name("generate many", tests, prepare, forget);
}
