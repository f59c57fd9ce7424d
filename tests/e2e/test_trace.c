// SPDX-License-Identifier: Apache-2.0
// Traces of page plans: byte for byte the same on 1, 2 and 4 ranks, with a shared list and
// with one for every head, and on 8, of which two hold copies of a KV head; in agreement with
// the statistics of the run, readable, and refused when damaged.
#include "tests/e2e/run.h"

#include "proto/trace.h"
#include "runtime/base/file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double LIMIT = 120.0; // seconds for a run
enum { COMMIT = 1, STEP = 4 };     // KERN_SEG_*
enum { KV_HEADS = 4 };             // of the model

typedef struct question {
    const char *id, *policy, *scope, *more;
} question;

static json_t *documents;

static const json_t *document(const char *id)
{
    size_t i;
    const json_t *d;
    json_array_foreach(documents, i, d) if (strcmp(run_text(d, "id"), id) == 0) return d;
    fail_msg("no document %s", id);
    return NULL;
}

static void add_words(run_args *args, const question *q, const char *file)
{
    const char *prompt = run_temp("%s.txt", q->id);
    const json_t *user = run_get(document(q->id), "user");
    run_write(prompt, json_string_value(user), json_string_length(user));
    run_arg(args, "generate");
    run_arg(args, "--model=%s", run_source("models/needle-11m"));
    run_arg(args, "--prompt-file=%s", prompt);
    run_arg(args, "--chat");
    run_arg(args, "--json");
    run_arg(args, "--attention=%s", q->policy);
    run_arg(args, "--budget=128");
    run_arg(args, "--page-size=16");
    run_arg(args, "--plan-scope=%s", q->scope);
    run_arg(args, "--trace-plans=%s", file);
    if (q->more)
        run_arg(args, "%s", q->more);
}

static json_t *ask(int ranks, const question *q, const char *file)
{
    run_args args = {0};
    add_words(&args, q, file);
    json_t *got = run_json(ranks, &args, LIMIT);
    run_args_free(&args);
    return got;
}

// What a trace says of its run.
typedef struct summary {
    uint64_t plans, read, prefix, read_steps, prefix_steps, read_later, prefix_later, active_later,
        rows_later;
    uint64_t opened_pages; // pages in reach of the segments that open a block
    size_t lists;          // of every plan
} summary;

static void add_plan(summary *s, const pb_trace *t, const Pb__TracePlan *p)
{
    const uint32_t page = t->head->head->page;
    const bool later = p->kind == STEP;
    s->plans++;
    s->lists = p->n_lists;
    for (size_t l = 0; l < p->n_lists; l++) {
        const uint32_t tokens = pb_trace_tokens(t, p, l), prefix = pb_trace_prefix(t, p);
        s->read += tokens;
        s->prefix += prefix;
        s->read_steps += p->kind != COMMIT ? tokens : 0;
        s->prefix_steps += p->kind != COMMIT ? prefix : 0;
        s->read_later += later ? tokens : 0;
        s->prefix_later += later ? prefix : 0;
    }
    s->active_later += later ? p->n_active : 0;
    s->rows_later += later ? p->rows : 0;
    s->opened_pages += later ? 0 : (p->first + p->rows + page - 1) / page;
}

static summary read_trace(const char *path)
{
    rt_map map;
    pb_trace t;
    summary s = {0};
    if (rt_map_open(path, &map) != RT_OK || pb_trace_open(map.data, map.len, &t) != RT_OK)
        fail_msg("%s: %s", path, rt_last_error());
    for (;;) {
        Pb__TraceEntry *entry;
        if (pb_trace_next(&t, &entry) != RT_OK)
            fail_msg("%s: %s", path, rt_last_error());
        if (!entry)
            break;
        add_plan(&s, &t, entry->plan);
        pb_trace_free(entry);
    }
    pb_trace_close(&t);
    rt_map_close(&map);
    return s;
}

static void equal(const json_t *got, const char *path, double want)
{
    const double value = run_number(got, path); // printed with 9 digits
    if (!(fabs(value - want) <= 1e-8 * fmax(1.0, fabs(want))))
        fail_msg("%s is %.9g, the trace says %.9g", path, value, want);
}

// Every rank counts what its KV heads read; a head that several ranks hold counts for each.
static void check_statistics(const json_t *got, const summary *s, const question *q, int ranks)
{
    const bool shared = strcmp(q->scope, "shared") == 0;
    const int heads = ranks > KV_HEADS ? ranks : KV_HEADS;
    const int readers = shared ? heads : heads / KV_HEADS; // of a list
    assert_int_equal(s->lists, shared ? 1 : KV_HEADS);
    assert_true(s->plans > 0 && s->prefix_later > 0);
    equal(got, "stats.density_later", (double)s->read_later / (double)s->prefix_later);
    equal(got, "stats.density_steps", (double)s->read_steps / (double)s->prefix_steps);
    equal(got, "stats.density_total", (double)s->read / (double)s->prefix);
    equal(got, "stats.active_share", (double)s->active_later / (double)s->rows_later);
    equal(got, "stats.prefix_tokens_read", (double)s->read * readers);
}

static void same_files(const char *a, const char *b)
{
    size_t len_a, len_b;
    char *bytes_a = run_read(a, &len_a), *bytes_b = run_read(b, &len_b);
    if (len_a != len_b || memcmp(bytes_a, bytes_b, len_a) != 0)
        fail_msg("%s and %s differ", a, b);
    free(bytes_a);
    free(bytes_b);
}

static void test_ranks(void **state)
{
    (void)state;
    static const struct {
        question q;
        int most;
    } runs[] = {{{"vt-512-1", "losa", "shared", NULL}, 4},
                {{"vt-512-1", "losa-mix", "head", NULL}, 4},
                {{"mk-512-0", "losa", "head", "--active=topk:5"}, 8},
                {{"vt-2048-1", "losa-mix", "shared", "--first=sparse"}, 4}};
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++)
        for (int ranks = 1; ranks <= runs[i].most; ranks *= 2) {
            const char *file = run_temp("%zu-%d.trace", i, ranks);
            json_t *got = ask(ranks, &runs[i].q, file);
            const summary s = read_trace(file);
            check_statistics(got, &s, &runs[i].q, ranks);
            same_files(run_temp("%zu-1.trace", i), file);
            json_decref(got);
        }
}

// losa-mass exchanges the mass of the pages in first steps, and nothing else: a float a
// page and layer from each rank.
static void test_exchange_of_mass(void **state)
{
    (void)state;
    const char *file = run_temp("mass.trace");
    const question q = {"mk-512-0", "losa-mass", "shared", NULL};
    json_t *got = ask(2, &q, file);
    const summary s = read_trace(file);
    check_statistics(got, &s, &q, 2);
    equal(got, "stats.exchange_bytes", 2.0 * 4.0 * (double)s.opened_pages);
    json_decref(got);
}

static run_result info(const char *file)
{
    run_args args = {0};
    run_arg(&args, "info");
    run_arg(&args, "--trace=%s", file);
    const run_job job = {.args = &args, .limit = LIMIT};
    const run_result result = run_losa(&job);
    run_args_free(&args);
    return result;
}

static void refused(const char *file, const char *what)
{
    run_result r = info(file);
    if (r.status == 0 || r.err_lines != 1 || !strstr(r.err, what) || !strstr(r.err, file))
        fail_msg("status %d; standard error does not say \"%s\":\n%s", r.status, what, r.err);
    run_result_free(&r);
}

// A cell for every layer and step; first steps of losa are dense.
static void check_plot(const char *file)
{
    const char *plot = run_temp("plot.svg");
    run_args args = {0};
    run_arg(&args, "info");
    run_arg(&args, "--trace=%s", file);
    run_arg(&args, "--plot=%s", plot);
    run_result r = run_ok(0, &args, LIMIT);
    assert_int_equal(r.out_len, 0);
    size_t len, dense = 0, sparse = 0;
    char *svg = run_read(plot, &len);
    for (const char *at = svg; (at = strstr(at, ">1.00</text>")); at++)
        dense++;
    for (const char *at = svg; (at = strstr(at, ">0.")); at++)
        sparse++;
    assert_int_equal(dense, 6);
    assert_true(sparse > 0 && sparse % 6 == 0);
    free(svg);
    run_result_free(&r);
    run_args_free(&args);
}

static void test_info(void **state)
{
    (void)state;
    char *file = strdup(run_temp("info.trace"));
    json_t *got = ask(2, &(question){"mk-512-0", "losa", "head", NULL}, file);
    json_decref(got);
    const summary s = read_trace(file);
    run_result r = info(file);
    assert_int_equal(r.status, 0);
    uint64_t lines = 0;
    for (size_t i = 0; i < r.out_len; i++)
        lines += r.out[i] == '\n';
    assert_true(lines == s.plans + 2); // and what was traced, and how many there are
    assert_non_null(strstr(r.out, "request 1, block 0, step 0, layer 0, open at 512: "
                                  "active 0-15 (16 of 16); pages all 32; all 32; all 32; "
                                  "all 32\n"));
    assert_non_null(strstr(r.out, "request 1, block 0, step 1, layer 5, step at 512: active "));
    run_result_free(&r);
    check_plot(file);

    size_t len;
    char *bytes = run_read(file, &len), *bad = strdup(run_temp("bad.trace"));
    run_write(bad, bytes, len - 1);
    refused(bad, "frame");
    run_write(bad, bytes, 200);
    refused(bad, "frame");
    run_write(bad, "", 0);
    refused(bad, "not a trace of page plans");
    bytes[len / 2] ^= 0x55;
    run_write(bad, bytes, len);
    refused(bad, bad);
    refused(run_source("models/needle-11m/config.json"), "not a trace of page plans");
    refused(run_temp("none.trace"), "No such file");
    free(bytes);
    free(bad);
    free(file);
}

// One message, on every number of ranks; a full disk is seen at the end.
static void test_unwritable(void **state)
{
    (void)state;
    static const char *const files[] = {"/dev/full", "/nonexistent/x.trace"};
    for (int ranks = 0; ranks <= 2; ranks += 2)
        for (int i = 0; i < 2; i++) {
            run_args args = {0};
            add_words(&args, &(question){"mk-512-0", "losa", "head", NULL}, files[i]);
            const run_job job = {.ranks = ranks, .args = &args, .limit = LIMIT};
            run_result r = run_losa(&job);
            if (r.status == 0 || r.timed_out || r.left || r.err_lines != 1 ||
                !strstr(r.err, files[i]))
                fail_msg("%s on %d ranks: status %d, %d left, standard error:\n%s", files[i], ranks,
                         r.status, r.left, r.err);
            run_result_free(&r);
            run_args_free(&args);
        }
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    documents = run_load_lines(run_source("models/needle-11m/documents.jsonl"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_exchange_of_mass),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_unwritable),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(documents);
    return failed;
}
