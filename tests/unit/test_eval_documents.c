// SPDX-License-Identifier: Apache-2.0
// Reading documents, and the summary of results on them.
#include "tests/unit/testing.h"

#include "launcher/eval_report.h"
#include <unistd.h>

static rt_tokenizer *tokenizer;

static rt_status read_text(const char *text, const char *lengths, app_documents *out)
{
    const test_dir dir = test_dir_new();
    const app_encoding encoding = {tokenizer, true, NULL};
    app_lengths bounds = {0};
    if (lengths)
        assert_ok(app_lengths_parse(lengths, &bounds));
    const char *path = test_write_text(&dir, "docs.jsonl", text);
    const rt_status status = app_documents_read(path, &encoding, &bounds, out);
    test_dir_remove(&dir);
    return status;
}

// ---- documents ------------------------------------------------------------------------

static void test_forms(void **state)
{
    (void)state;
    app_documents docs;
    assert_ok(read_text(
        "\xEF\xBB\xBF{\"id\": \"a\", \"task\": \"mk\", \"user\": \"one two\", \"accept\": "
        "{\"any\": [\"x\"]}}\n"
        "\n \r\n"
        "{\"_id\": \"b\", \"dataset\": \"qa\", \"context\": \"one\", \"input\": "
        "\"two\", \"answers\": [\"x\", \"y\"], \"length\": 7}\n"
        "{\"user\": \"one\", \"accept\": {\"contains\": [\"x\"]}}", // no newline
        NULL, &docs));
    assert_int_equal(docs.count, 3);
    static const char *const ids[] = {"a", "b", "line 5"}, *const tasks[] = {"mk", "qa", "all"};
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(docs.items[i].id, ids[i]);
        assert_string_equal(docs.items[i].task, tasks[i]);
        assert_true(docs.items[i].prompt.len > 5); // with the turn's markers
        assert_int_equal(docs.items[i].length,
                         app_lengths_class(&(app_lengths){.count = 0}, docs.items[i].prompt.len));
    }
    const json_t *answers = json_object_get(docs.items[1].accept, "contains");
    assert_int_equal(json_array_size(answers), 2);
    app_documents_free(&docs);
}

static void test_lengths(void **state)
{
    (void)state;
    app_lengths l = {0};
    assert_int_equal(app_lengths_class(&l, 512), 512);
    assert_int_equal(app_lengths_class(&l, 513), 1024);
    assert_ok(app_lengths_parse("512,16000", &l));
    assert_int_equal(app_lengths_class(&l, 1), 512);
    assert_int_equal(app_lengths_class(&l, 513), 16000);
    assert_int_equal(app_lengths_class(&l, 16001), 0);
    static const char *const bad[] = {"", ",", "512,", "512,x", "512,512", "2048,512", "0", "-1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_fails(app_lengths_parse(bad[i], &l), RT_ERR_INVALID, bad[i], "ascending");

    app_documents docs;
    static const char two[] =
        "{\"id\": \"s\", \"user\": \"a\", \"accept\": {\"any\": [\"x\"]}}\n"
        "{\"id\": \"l\", \"user\": \"1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9\", "
        "\"accept\": {\"any\": [\"x\"]}}\n";
    assert_ok(read_text(two, "30", &docs));
    assert_int_equal(docs.count, 1);
    assert_int_equal(docs.left_out, 1);
    const uint64_t hash = docs.hash;
    app_documents_free(&docs);
    assert_ok(read_text(two, NULL, &docs));
    assert_true(docs.hash == hash); // of the file
    app_documents_free(&docs);
    assert_fails(read_text(two, "3", &docs), RT_ERR_FORMAT, "docs.jsonl", "of these lengths");
    app_documents_free(&docs);
}

// A bad line has its message on standard error, with its number once.
static void test_bad_lines(void **state)
{
    (void)state;
    static const struct {
        const char *line, *cause;
    } cases[] = {
        {"{\"id\": \"x\"", "docs.jsonl:2: line 1"},
        {"[]", "docs.jsonl:2: not an object"},
        {"{\"accept\": {\"any\": [\"x\"]}}", "docs.jsonl:2: 'context' is missing"},
        {"{\"user\": 1, \"accept\": {\"any\": [\"x\"]}}", "docs.jsonl:2: 'user'"},
        {"{\"context\": \"a\", \"input\": 3, \"answers\": [\"x\"]}", "docs.jsonl:2: 'input'"},
        {"{\"user\": \"a\"}", "docs.jsonl:2: 'accept'"},
        {"{\"user\": \"a\", \"accept\": {\"ny\": [\"x\"]}}", "docs.jsonl:2: 'accept'"},
        {"{\"user\": \"a\", \"id\": \"first\", \"accept\": {\"any\": [\"x\"]}}", "there already"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[512], said[2048];
        snprintf(text, sizeof text,
                 "{\"id\": \"first\", \"user\": \"a\", \"accept\": {\"any\": [\"x\"]}}\n%s\n",
                 cases[i].line);
        FILE *log = tmpfile();
        const int saved = dup(STDERR_FILENO);
        dup2(fileno(log), STDERR_FILENO);
        app_documents docs;
        const rt_status status = read_text(text, NULL, &docs);
        dup2(saved, STDERR_FILENO);
        close(saved);
        rewind(log);
        said[fread(said, 1, sizeof said - 1, log)] = '\0';
        fclose(log);
        assert_fails(status, RT_ERR_FORMAT, "docs.jsonl", "1 bad lines of 2");
        if (!strstr(said, cases[i].cause))
            fail_msg("'%s' is not in: %s", cases[i].cause, said);
        assert_null(strstr(strstr(said, "docs.jsonl:2") + 1, "docs.jsonl:2"));
        app_documents_free(&docs);
    }
}

// ---- summary --------------------------------------------------------------------------

typedef struct row {
    const char *policy, *document, *text;
    bool right;
    double density_later;
    int forwards, blocks;
    int probed;
} row;

static void add(app_store *s, const app_policies *policies, const row *r)
{
    const app_policy *p = policies->items;
    while (strcmp(p->text, r->policy) != 0)
        p++;
    json_t *result =
        json_pack("{s:s, s:[i,i,i], s:b, s:{s:i}, s:{s:i,s:i,s:i,s:f,s:f,s:f,s:f,s:f,s:i,s:i}, "
                  "s:{s:i,s:f,s:i}}",
                  "text", r->text, "token_ids", 1, 2, r->text[0], "right", r->right, "usage",
                  "completion_tokens", 8, "stats", "blocks", r->blocks, "steps", r->forwards,
                  "forwards", r->forwards, "density_later", r->density_later, "density_steps", 0.5,
                  "density_total", 0.5, "active_share", 0.5, "union_inflation", 1.5,
                  "prefix_bytes_read", 1000 * r->forwards, "exchange_bytes", 10, "probe",
                  "positions", r->probed, "divergence", 0.25 * r->probed, "same", r->probed / 2);
    assert_non_null(result);
    assert_ok(app_store_add(s, p->key, r->document, result));
    json_decref(result);
}

static const app_cell *find(const app_summary *s, int length, const char *task, size_t policy)
{
    for (size_t i = 0; i < s->count; i++) {
        const app_cell *c = &s->cells[i];
        const bool same = task ? c->task && strcmp(c->task, task) == 0 : !c->task;
        if (c->length == length && same && c->policy == policy)
            return c;
    }
    fail_msg("no cell of length %d, task %s, policy %zu", length, task ? task : "all", policy);
    return NULL;
}

static void is(const app_cell *cell, app_column column, double want)
{
    const double got = cell->value[column];
    if (!(fabs(got - want) < 1e-9) && !(isnan(got) && isnan(want)))
        fail_msg("%s is %g, not %g", app_columns[column].key, got, want);
}

static char one[] = "one", two[] = "two", three[] = "three", mk[] = "mk", vt[] = "vt";
static app_document documents[] = {{.id = one, .task = mk, .length = 512},
                                   {.id = two, .task = vt, .length = 512},
                                   {.id = three, .task = vt, .length = 2048}};

static void fill(app_store **store, app_policies *policies)
{
    static const row rows[] = {
        {"dense", "one", "a", true, 1, 4, 2, 0},      {"dense", "two", "b", false, 1, 2, 2, 0},
        {"dense", "three", "c", true, 1, 6, 2, 0},    {"losa", "one", "a", true, 0.2, 4, 2, 8},
        {"losa", "two", "x", true, 1, 2, 2, 0}, // every block in one step: no later density
        {"losa", "three", "y", false, 0.4, 12, 2, 4},
    };
    *policies = (app_policies){0};
    assert_ok(app_policies_parse("losa,dense", policies));
    assert_ok(app_store_open(NULL, &(app_setting){0}, store));
    for (size_t i = 0; i < 6; i++)
        add(*store, policies, &rows[i]);
}

static void test_summary(void **state)
{
    (void)state;
    const app_documents docs = {.items = documents, .count = 3};
    app_policies policies;
    app_store *store;
    app_summary s;
    fill(&store, &policies);
    assert_ok(app_summary_make(&docs, &policies, store, &s));
    const app_cell *all = find(&s, 0, NULL, 0);
    is(all, APP_DOCUMENTS, 3);
    is(all, APP_RIGHT, 2);
    is(all, APP_EXACT, 2.0 / 3);
    is(all, APP_WON, 1);
    is(all, APP_LOST, 1);
    is(all, APP_DIFFERENCE, 0);
    assert_true(all->value[APP_DIFFERENCE_LOW] < 0 && all->value[APP_DIFFERENCE_HIGH] > 0);
    is(all, APP_SAME_TEXT, 1.0 / 3);
    is(all, APP_SAME_TOKENS, (1 + 2.0 / 3 + 2.0 / 3) / 3);
    is(all, APP_DENSITY_LATER, 0.3);
    is(all, APP_READS, 18.0 / 12);
    is(all, APP_PROBED, 12);
    is(all, APP_DIVERGENCE, 0.25);
    is(all, APP_SAME_CHOICE, 0.5);
    is(find(&s, 0, NULL, 1), APP_DIVERGENCE, NAN);
    is(all, APP_FORWARDS, 6);
    is(all, APP_FORWARDS_TO_DENSE, 1.5);
    is(all, APP_TOKENS_PER_FORWARD, 24.0 / 18);
    is(all, APP_F1, NAN);
    is(find(&s, 512, NULL, 0), APP_EXACT, 1);
    is(find(&s, 512, NULL, 1), APP_EXACT, 0.5);
    is(find(&s, 0, "vt", 0), APP_DOCUMENTS, 2);
    is(find(&s, 2048, "vt", 0), APP_LOST, 1);
    is(find(&s, 0, NULL, 1), APP_READS, 1);
    is(find(&s, 0, NULL, 1), APP_LOST, NAN);    // dense against itself
    assert_int_equal(s.count, 2 * (3 + 3 + 2)); // (2048, mk) has no document
    app_summary_free(&s);
    app_policies_free(&policies);
    app_store_close(store);
}

static void test_without_dense(void **state)
{
    (void)state;
    const app_documents docs = {.items = documents, .count = 2};
    app_policies policies, alone = {0};
    app_store *store;
    app_summary s;
    fill(&store, &policies);
    assert_ok(app_policies_parse("losa", &alone));
    assert_ok(app_summary_make(&docs, &alone, store, &s));
    is(find(&s, 512, NULL, 0), APP_WON, NAN);
    is(find(&s, 512, NULL, 0), APP_READS, NAN);
    is(find(&s, 512, NULL, 0), APP_EXACT, 1);
    app_summary_free(&s);
    app_policies_free(&alone);
    assert_ok(app_policies_parse("quest", &alone));
    assert_fails(app_summary_make(&docs, &alone, store, &s), RT_ERR_INTERNAL, "one", "no result");
    app_policies_free(&alone);
    app_policies_free(&policies);
    app_store_close(store);
}

static void test_files(void **state)
{
    (void)state;
    const app_documents docs = {.items = documents, .count = 3};
    const test_dir dir = test_dir_new();
    app_policies policies;
    app_store *store;
    app_summary s;
    char line[1024];
    fill(&store, &policies);
    assert_ok(app_summary_make(&docs, &policies, store, &s));
    const app_setting setting = {.options = "steps=0"};
    assert_fails(app_eval_write_csv("/dev/full", &s, &policies), RT_ERR_IO, "/dev/full",
                 "No space");
    assert_fails(app_eval_write_json("/dev/full", &s, &policies, &setting), RT_ERR_IO, "/dev/full",
                 "No space");
    assert_fails(app_eval_write_plots("/nowhere/plots", &s, &policies), RT_ERR_IO, "/nowhere/plots",
                 "No such file");
    const char *csv = test_path(&dir, "s.csv");
    assert_ok(app_eval_write_csv(csv, &s, &policies));
    FILE *file = fopen(csv, "r");
    size_t lines = 0, commas = 0;
    while (fgets(line, sizeof line, file)) {
        size_t n = 0;
        for (const char *at = line; *at; at++)
            n += *at == ',';
        assert_true(lines == 0 || n == commas);
        commas = n;
        lines++;
    }
    fclose(file);
    assert_int_equal(lines, s.count + 1);
    assert_int_equal(commas, APP_COLUMNS + 2);
    app_summary_free(&s);
    app_policies_free(&policies);
    app_store_close(store);
    test_dir_remove(&dir);
}

int main(void)
{
    const char *source = getenv("LOSA_SOURCE");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/models/needle-11m/tokenizer.json", source ? source : ".");
    if (rt_tokenizer_open(path, &tokenizer) != RT_OK) {
        fprintf(stderr, "%s\n", rt_last_error());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),     cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_bad_lines), cmocka_unit_test(test_summary),
        cmocka_unit_test(test_files),     cmocka_unit_test(test_without_dense),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rt_tokenizer_close(tokenizer);
    return failed;
}
