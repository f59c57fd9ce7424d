// SPDX-License-Identifier: Apache-2.0
// The shipped documents' questions are answered correctly (by the rules of the model's
// CARD.md) with dense and losa on 1, 2 and 4 ranks, and losa reads less of the prefix
// than quest-init at the same budget.
#include "tests/e2e/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { LONG = 4096, WORD = 256 }; // tokens of a prompt, bytes of an accepted value
static const double LIMIT = 60.0; // seconds; what a document of 8K tokens may take on 2 cores

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

static json_t *ask(const json_t *document, int ranks, const char *policy, int budget,
                   const char *scope)
{
    const json_t *user = run_get(document, "user");
    const char *file = run_temp("%s.txt", run_text(document, "id"));
    run_write(file, json_string_value(user), json_string_length(user));
    run_args args = {0};
    run_arg(&args, "generate");
    run_arg(&args, "--model=%s", run_source("models/needle-11m"));
    run_arg(&args, "--prompt-file=%s", file);
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
}

// Greedy tokens are the same whatever the number of ranks.
static void check_policy(const json_t *document, const char *policy)
{
    json_t *first = NULL;
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        json_t *got = ask(document, ranks, policy, 0, "shared");
        check_right(document, got, ranks, policy);
        if (!first)
            first = json_incref(got);
        if (!json_equal(run_get(first, "token_ids"), run_get(got, "token_ids")))
            fail_msg("%s with %s: other tokens on %d ranks than on 1", run_text(document, "id"),
                     policy, ranks);
        json_decref(got);
    }
    json_decref(first);
}

static void test_document(void **state)
{
    const json_t *document = *state;
    check_policy(document, "losa");
    check_policy(document, "dense");
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

// Over all short documents, at budget 128.
static void test_reads_less(void **state)
{
    (void)state;
    double losa_sum = 0, quest_sum = 0, losa_bytes = 0, quest_bytes = 0;
    size_t i;
    const json_t *document;
    json_array_foreach(documents, i, document)
    {
        if (run_number(document, "prompt_tokens") > LONG)
            continue;
        json_t *losa = ask(document, 2, "losa", 128, "shared");
        json_t *quest = ask(document, 2, "quest-init", 128, "shared");
        losa_sum += run_number(losa, "stats.prefix_tokens_read");
        quest_sum += run_number(quest, "stats.prefix_tokens_read");
        losa_bytes += run_number(losa, "stats.prefix_bytes_read");
        quest_bytes += run_number(quest, "stats.prefix_bytes_read");
        if (run_number(losa, "stats.steps_per_block") > 1) {
            within("losa's density", run_number(losa, "stats.density_later"), 0, 1);
            within("losa's total density", run_number(losa, "stats.density_total"), 0, 1);
            within("quest-init's density", run_number(quest, "stats.density_later"), 0, 1);
            within("losa's active share", run_number(losa, "stats.active_share"), 0, 1.000001);
            within("losa's union inflation", run_number(losa, "stats.union_inflation"), 0.999, 100);
            assert_true(run_number(quest, "stats.active_share") == 1);
            assert_true(run_number(losa, "stats.exchange_bytes") > 0);
        }
        json_decref(losa);
        json_decref(quest);
    }
    print_message("           prefix tokens read: losa %.0f, quest-init %.0f\n", losa_sum,
                  quest_sum);
    assert_true(losa_sum > 0 && losa_sum < quest_sum);
    assert_true(losa_bytes > 0 && losa_bytes < quest_bytes);
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

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    documents = run_load_lines(run_source("models/needle-11m/documents.jsonl"));
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
