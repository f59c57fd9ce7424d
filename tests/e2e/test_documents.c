// SPDX-License-Identifier: Apache-2.0
// The shipped documents' questions are answered correctly (by the rules of the model's
// CARD.md) with dense and losa on 1, 2 and 4 ranks, and losa reads less of the prefix
// than quest-init at the same budget.
//
// The documents: $LOSA_DOCUMENTS (a .jsonl file), or documents.jsonl of the model or of its
// folder documents/. A line that has no "user" has its text in ID.txt beside it.
// LOSA_E2E_ALL=1 asks the long ones on every number of ranks too.
#include "tests/e2e/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LONG = 4096, WORD = 256 };  // tokens of a prompt, bytes of an accepted value
static const double LIMIT = 240.0; // seconds for a run
static const double ANSWER = 60.0; // seconds that a document of 8K tokens may take on 2 cores

static json_t *documents;

// ---- what is right -----------------------------------------------------------------

static bool equals_any(const json_t *forms, const char *text)
{
    size_t i;
    const json_t *form;
    json_array_foreach(forms, i, form) if (strcmp(text, json_string_value(form)) == 0) return true;
    return false;
}

static bool holds_any(const json_t *forms, const char *text)
{
    size_t i;
    const json_t *form;
    json_array_foreach(forms, i, form) if (strcasestr(text, json_string_value(form))) return true;
    return false;
}

// The prefix, the values in any order between ", " or " and ", and a full stop.
static bool lists_values(const json_t *accept, const char *text)
{
    const char *prefix = run_text(accept, "prefix");
    const json_t *values = run_get(accept, "values");
    const size_t len = strlen(text);
    if (strncmp(text, prefix, strlen(prefix)) != 0 || len == 0 || text[len - 1] != '.')
        return false;
    json_t *open = json_deep_copy(values);
    const char *at = text + strlen(prefix), *end = text + len - 1;
    while (at < end) {
        const char *comma = strstr(at, ", "), *and = strstr(at, " and ");
        const char *stop = comma && (!and || comma < and) ? comma : and;
        stop = stop ? stop : end;
        char word[WORD];
        snprintf(word, sizeof word, "%.*s", (int)(stop - at), at);
        size_t i = 0;
        while (i < json_array_size(open) &&
               strcmp(word, json_string_value(json_array_get(open, i))) != 0)
            i++;
        if (json_array_remove(open, i) != 0)
            break; // not expected, or twice
        at = stop == end ? end : stop + (stop == comma ? 2 : 5);
    }
    const bool right = at == end && json_array_size(open) == 0;
    json_decref(open);
    return right;
}

static bool is_right(const json_t *accept, const char *text)
{
    const json_t *any = json_object_get(accept, "any"), *all = json_object_get(accept, "all");
    if (any)
        return equals_any(any, text);
    if (!all)
        return lists_values(accept, text);
    size_t i;
    const json_t *forms;
    json_array_foreach(all, i, forms) if (!holds_any(forms, text)) return false;
    return true;
}

static void test_rules(void **state)
{
    (void)state;
    json_t *list =
        json_pack("{s:s, s:[s, s, s]}", "prefix", "They are ", "values", "red", "blue", "big red");
    assert_true(is_right(list, "They are blue, big red and red."));
    assert_true(is_right(list, "They are red and blue and big red."));
    assert_false(is_right(list, "They are blue, big red and red"));
    assert_false(is_right(list, "They are blue and red."));
    assert_false(is_right(list, "They are blue, blue and red."));
    assert_false(is_right(list, "They are blue, big red, red and green."));
    json_t *all = json_pack("{s:[[s, s], [s]]}", "all", "a is 1", "1 is a", "b is 2");
    assert_true(is_right(all, "First, A is 1; b is 2."));
    assert_false(is_right(all, "a is 1."));
    json_t *any = json_pack("{s:[s, s]}", "any", "It is 1.", "1 it is.");
    assert_true(is_right(any, "1 it is."));
    assert_false(is_right(any, "It is 1"));
    json_decref(list);
    json_decref(all);
    json_decref(any);
}

// ---- asking -------------------------------------------------------------------------

// The file to give as the prompt.
static const char *prompt_file(const json_t *document)
{
    const char *id = run_text(document, "id");
    const json_t *user = json_object_get(document, "user");
    if (!user)
        return run_source("models/needle-11m/documents/%s.txt", id);
    const char *path = run_temp("%s.txt", id);
    run_write(path, json_string_value(user), json_string_length(user));
    return path;
}

static json_t *ask(const json_t *document, int ranks, const char *policy, int budget,
                   const char *scope)
{
    run_args args = {0};
    run_arg(&args, "generate");
    run_arg(&args, "--model=%s", run_source("models/needle-11m"));
    run_arg(&args, "--prompt-file=%s", prompt_file(document));
    run_arg(&args, "--chat");
    run_arg(&args, "--json");
    run_arg(&args, "--max-tokens=160");
    run_arg(&args, "--attention=%s", policy);
    run_arg(&args, "--plan-scope=%s", scope);
    if (budget)
        run_arg(&args, "--budget=%d", budget);
    json_t *got = run_json(ranks, &args, LIMIT);
    run_args_free(&args);
    return got;
}

static void check_right(const json_t *document, const json_t *got, int ranks, const char *policy)
{
    const char *id = run_text(document, "id"), *text = run_text(got, "text");
    if (!is_right(run_get(document, "accept"), text))
        fail_msg("%s with %s on %d ranks answers: %s", id, policy, ranks, text);
    if (strcmp(run_text(got, "finish_reason"), "stop") != 0)
        fail_msg("%s with %s on %d ranks does not stop", id, policy, ranks);
    assert_true(run_number(got, "usage.prompt_tokens") == run_number(document, "prompt_tokens"));
    const double seconds =
        run_number(got, "stats.prefill_seconds") + run_number(got, "stats.decode_seconds");
    if (seconds > ANSWER && run_number(document, "prompt_tokens") < 10000 && ranks <= 2)
        fail_msg("%s with %s on %d ranks takes %.1f s", id, policy, ranks, seconds);
}

// Greedy tokens are the same whatever the number of ranks.
static void check_policy(const json_t *document, const char *policy, const int *ranks)
{
    json_t *first = NULL;
    for (int i = 0; i < 3 && ranks[i]; i++) {
        json_t *got = ask(document, ranks[i], policy, 0, "shared");
        check_right(document, got, ranks[i], policy);
        if (!first)
            first = json_incref(got);
        if (!json_equal(run_get(first, "token_ids"), run_get(got, "token_ids")))
            fail_msg("%s with %s: other tokens on %d ranks than on %d", run_text(document, "id"),
                     policy, ranks[i], ranks[0]);
        json_decref(got);
    }
    json_decref(first);
}

// A long document takes its turn: one number of ranks for each policy.
static void test_document(void **state)
{
    static const int all[] = {1, 2, 4}, one[][3] = {{2}, {1}, {4}};
    static int turn;
    const json_t *document = *state;
    const char *every = getenv("LOSA_E2E_ALL");
    const bool is_long = run_number(document, "prompt_tokens") > LONG && !(every && *every);
    check_policy(document, "losa", is_long ? one[turn % 3] : all);
    check_policy(document, "dense", is_long ? one[(turn + 1) % 3] : all);
    turn += is_long;
}

// ---- statistics ----------------------------------------------------------------------

static void test_fields(void **state)
{
    (void)state;
    static const char *const numbers[] = {"usage.prompt_tokens",   "usage.completion_tokens",
                                          "stats.ranks",           "stats.blocks",
                                          "stats.forwards",        "stats.tokens_per_forward",
                                          "stats.steps_per_block", "stats.density_later",
                                          "stats.density_total",   "stats.union_inflation",
                                          "stats.active_share",    "stats.prefix_bytes_read",
                                          "stats.exchange_bytes",  "stats.prefill_seconds",
                                          "stats.decode_seconds",  "stats.prefix_tokens_read"};
    json_t *got = ask(json_array_get(documents, 0), 2, "losa", 128, "shared");
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (!(run_number(got, numbers[i]) >= 0))
            fail_msg("%s is %g", numbers[i], run_number(got, numbers[i]));
    run_text(got, "text");
    run_text(got, "finish_reason");
    assert_true(json_is_array(run_get(got, "token_ids")));
    const double tokens = run_number(got, "usage.completion_tokens");
    assert_true((double)json_array_size(run_get(got, "token_ids")) == tokens);
    assert_true(fabs(run_number(got, "stats.tokens_per_forward") -
                     tokens / run_number(got, "stats.forwards")) < 1e-3);
    assert_true(run_number(got, "stats.prefill_seconds") > 0);
    json_decref(got);
}

static void within(const char *what, double value, double low, double high)
{
    if (!(value > low && value < high))
        fail_msg("%s is %g, not between %g and %g", what, value, low, high);
}

// Over all short documents, at budget 128: of what a later step could read, since a policy may
// take other steps.
static void test_reads_less(void **state)
{
    (void)state;
    double losa_sum = 0, quest_sum = 0;
    size_t i;
    const json_t *document;
    json_array_foreach(documents, i, document)
    {
        if (run_number(document, "prompt_tokens") > LONG)
            continue;
        json_t *losa = ask(document, 2, "losa", 128, "shared");
        json_t *quest = ask(document, 2, "quest-init", 128, "shared");
        if (run_number(losa, "stats.steps_per_block") > 1) {
            within("losa's density", run_number(losa, "stats.density_later"), 0, 1);
            within("losa's total density", run_number(losa, "stats.density_total"), 0, 1);
            within("quest-init's density", run_number(quest, "stats.density_later"), 0, 1);
            within("losa's active share", run_number(losa, "stats.active_share"), 0, 1.000001);
            within("losa's union inflation", run_number(losa, "stats.union_inflation"), 0.999, 100);
            assert_true(run_number(quest, "stats.active_share") == 1);
            assert_true(run_number(losa, "stats.exchange_bytes") > 0);
            losa_sum += run_number(losa, "stats.density_later");
            quest_sum += run_number(quest, "stats.density_later");
        }
        json_decref(losa);
        json_decref(quest);
    }
    print_message("           sum of densities: losa %.4f, quest-init %.4f\n", losa_sum, quest_sum);
    assert_true(losa_sum > 0 && losa_sum < quest_sum);
}

// One list per KV head and an active set that all ranks know: nothing to exchange.
static void test_exchange(void **state)
{
    (void)state;
    const json_t *document = json_array_get(documents, 0);
    json_t *head = ask(document, 2, "losa", 128, "head");
    json_t *dense = ask(document, 2, "dense", 128, "shared");
    json_t *alone = ask(document, 1, "losa", 128, "shared");
    assert_true(run_number(head, "stats.exchange_bytes") == 0);
    assert_true(run_number(dense, "stats.exchange_bytes") == 0);
    assert_true(run_number(alone, "stats.exchange_bytes") == 0);
    assert_true(run_number(dense, "stats.density_total") == 1);
    json_decref(head);
    json_decref(dense);
    json_decref(alone);
}

static const char *documents_file(void)
{
    static const char *const places[] = {"models/needle-11m/documents.jsonl",
                                         "models/needle-11m/documents/documents.jsonl"};
    const char *given = getenv("LOSA_DOCUMENTS");
    if (given && *given)
        return given;
    for (int i = 0; i < 2; i++)
        if (access(run_source("%s", places[i]), R_OK) == 0)
            return run_source("%s", places[i]);
    fprintf(stderr, "neither %s nor %s is there\n", places[0], places[1]);
    return NULL;
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    const char *file = documents_file();
    if (!file)
        return 1;
    documents = run_load_lines(file);
    const struct CMUnitTest more[] = {
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_reads_less),
        cmocka_unit_test(test_exchange),
    };
    const size_t count = json_array_size(documents), extra = sizeof more / sizeof more[0];
    struct CMUnitTest *tests = calloc(count + extra, sizeof *tests);
    if (!tests || count == 0)
        return 1;
    memcpy(tests, more, sizeof more);
    for (size_t i = 0; i < count; i++) {
        json_t *document = json_array_get(documents, i);
        tests[extra + i].name = json_string_value(json_object_get(document, "id"));
        tests[extra + i].test_func = test_document;
        tests[extra + i].initial_state = document;
    }
    const int failed = _cmocka_run_group_tests("documents", tests, count + extra, NULL, NULL);
    free(tests);
    json_decref(documents);
    return failed;
}
