// SPDX-License-Identifier: Apache-2.0
// `losa bench` with tiny sizes: the columns are there, and the numbers are numbers. How
// large they are is not a matter for tests.
#include "tests/e2e/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double LIMIT = 120.0;

#define LAYER "--device cpu --threads 1 --repeats 2 --heads 4 --kv-heads 2 --head-dim 8 --block 4"

static void split(const char *line, run_args *args)
{
    char copy[512], *save = NULL;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        if (strcmp(word, "%NEEDLE") == 0)
            run_arg(args, "%s", run_source("models/needle-11m"));
        else
            run_arg(args, "%s", word);
    }
}

static run_result bench(int ranks, const char *line)
{
    run_args args = {0};
    run_arg(&args, "bench");
    split(line, &args);
    run_result got = run_ok(ranks, &args, LIMIT);
    run_args_free(&args);
    return got;
}

// Runs with --json; `columns` are the keys of every row, in order, separated by spaces.
// Numbers are finite and not negative; times and sizes are above zero.
static json_t *rows_of(int ranks, const char *line, const char *columns, size_t count)
{
    run_result got = bench(ranks, line);
    json_t *rows = json_loadb(got.out, got.out_len, 0, NULL);
    assert_true(json_is_array(rows));
    assert_int_equal(json_array_size(rows), count);
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        char keys[1024] = "";
        const char *key;
        json_t *value;
        json_object_foreach(row, key, value)
        {
            snprintf(keys + strlen(keys), sizeof keys - strlen(keys), "%s%s", *keys ? " " : "",
                     key);
            if (!json_is_number(value))
                continue;
            const double x = json_number_value(value);
            const bool whole = strstr(key, "_ms") || strcmp(key, "us") == 0 ||
                               strcmp(key, "bytes") == 0 || strcmp(key, "tokens_per_s") == 0;
            if (!isfinite(x) || x < 0 || (whole && x <= 0))
                fail_msg("%s: row %zu: %s is %g", line, i, key, x);
        }
        assert_string_equal(keys, columns);
    }
    run_result_free(&got);
    return rows;
}

#define ATTENTION                                                                                  \
    "prefix batch block policy step active density MB floor_us us of_floor speedup "               \
    "write_us locality_us exchange_us active_us score_us select_us count_us attend_us mass_us"

static void test_attention(void **state)
{
    (void)state;
    json_t *rows = rows_of(0,
                           "attention 64 130 --json --policies dense,losa:16,losa-mix:16+16 "
                           "--masked 2 --batch 2 " LAYER,
                           ATTENTION, 2 * 3 * 3);
    const json_t *dense = json_array_get(rows, 2), *losa = json_array_get(rows, 5);
    const json_t *mix = json_array_get(rows, 8), *last = json_array_get(rows, 17);
    assert_string_equal(run_text(dense, "step"), "later");
    assert_true(json_is_null(run_get(dense, "speedup")) && run_number(losa, "speedup") > 0);
    // 2 requests x 64 tokens x 2 KV heads x 8 channels x K and V in f32.
    assert_true(fabs(run_number(dense, "MB") - 2 * 64 * 2 * 8 * 2 * 4 / 1e6) < 1e-9);
    assert_true(run_number(dense, "active") == 2 * 4 && run_number(losa, "active") == 2 * 2);
    // One rank scores and chooses pages in one operation.
    assert_true(run_number(dense, "select_us") == 0 && run_number(losa, "select_us") > 0);
    assert_true(run_number(losa, "density") < 1 && run_number(mix, "density") < 1);
    assert_true(run_number(json_array_get(rows, 6), "mass_us") > 0);
    assert_int_equal((int)run_number(last, "prefix"), 128); // whole blocks
    json_decref(rows);
}

static void test_attention_ranks(void **state)
{
    (void)state;
    json_t *rows =
        rows_of(2,
                "attention 64 --json --policies losa:topk:2:first=sparse:plan-scope=shared "
                "--masked 2 " LAYER,
                ATTENTION, 3);
    const json_t *later = json_array_get(rows, 2);
    assert_true(run_number(later, "exchange_us") > 0 && run_number(later, "locality_us") > 0);
    assert_true(run_number(json_array_get(rows, 1), "score_us") > 0);
    json_decref(rows);
}

static void test_models(void **state)
{
    (void)state;
    json_t *rows = rows_of(0,
                           "decode 40 --json --model %NEEDLE --policies dense,losa:16 "
                           "--device cpu --blocks 2 --steps 3",
                           "tokens batch block policy forwards_per_block first_ms "
                           "later_ms host_ms block_ms tokens_per_s density_later union_inflation "
                           "exchange_bytes",
                           2);
    assert_true(run_number(json_array_get(rows, 1), "forwards_per_block") == 3);
    json_decref(rows);
    json_decref(rows_of(0, "prefill 70 --json --model %NEEDLE --device cpu --repeats 2",
                        "tokens chunk prefill_ms tokens_per_s TFLOPs", 1));
}

static void test_scheduler(void **state)
{
    (void)state;
    json_t *rows =
        rows_of(0, "scheduler 1 5 --json --device cpu --block 4",
                "requests prompt block admitted_per_step host_us host_us_99 forward_us", 2);
    const json_t *row = json_array_get(rows, 1);
    assert_true(run_number(row, "requests") == 5 && run_number(row, "block") == 4);
    assert_true(run_number(row, "host_us") > 0);
    assert_true(run_number(row, "host_us") <= run_number(row, "host_us_99"));
    assert_true(run_number(row, "admitted_per_step") > 0); // some came, so some went
    json_decref(rows);
}

static void test_comm(void **state)
{
    (void)state;
    static const char columns[] = "op ranks bytes count type us alg_GBs bus_GBs";
    json_t *rows = rows_of(2, "comm 8 64K --json --device cpu --repeats 2", columns, 4);
    const json_t *reduce = json_array_get(rows, 2), *gather = json_array_get(rows, 3);
    assert_true(run_number(reduce, "bytes") == 65536 && run_number(reduce, "count") == 16384);
    assert_true(run_number(gather, "bytes") == 65536 && run_number(gather, "count") == 8192);
    const double alg = run_number(gather, "alg_GBs"), bus = run_number(gather, "bus_GBs");
    assert_true(fabs(bus - alg / 2) < 1e-6 * alg);
    json_decref(rows);
}

// As many cells in every line, and names first.
static void test_csv(void **state)
{
    (void)state;
    run_result got = bench(0, "comm 8 16 --csv --device cpu --repeats 1");
    char *save = NULL;
    int lines = 0;
    for (char *line = strtok_r(got.out, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        int commas = 0;
        for (const char *at = line; *at; at++)
            commas += *at == ',';
        assert_int_equal(commas, 7);
        if (lines++ == 0)
            assert_string_equal(line, "op,ranks,bytes,count,type,us,alg_GBs,bus_GBs");
    }
    assert_int_equal(lines, 1 + 4);
    run_result_free(&got);
}

// Policies that differ in their last word are told apart.
static void test_long_policies(void **state)
{
    (void)state;
    static const char *const forms[] = {"", "--csv"};
    for (size_t i = 0; i < 2; i++) {
        char line[512];
        snprintf(line, sizeof line, "attention 64 %s --policies %s " LAYER, forms[i],
                 "losa:16:page-size=16:first=all-sparse:plan-scope=shared,"
                 "losa:16:page-size=16:first=all-sparse:plan-scope=head");
        run_result got = bench(0, line);
        assert_non_null(strstr(got.out, "losa:16:page-size=16:first=all-sparse:plan-scope=shared"));
        assert_non_null(strstr(got.out, "losa:16:page-size=16:first=all-sparse:plan-scope=head"));
        run_result_free(&got);
    }
}

static void test_usage(void **state)
{
    (void)state;
    static const struct {
        const char *line, *word;
    } bad[] = {
        {"bench", "no benchmark named"},
        {"bench speed 8", "not one of"},
        {"bench attention", "no number of tokens"},
        {"bench attention 12x", "12x"},
        {"bench attention 64 --policies dense,sparse", "sparse"},
        {"bench comm 2", "bytes"},
        {"bench decode 64", "--dummy"},
        {"bench decode 64 --model x --dummy sdar-8b", "exclude"},
        {"bench decode 64 --dummy sdar-9b", "sdar-1.7b"},
        {"bench comm 8 --csv --json", "exclude"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        run_args args = {0};
        split(bad[i].line, &args);
        run_result got = run_losa(&(run_job){.args = &args, .limit = LIMIT});
        if (got.status != 2 || !strstr(got.err, bad[i].word))
            fail_msg("%s: status %d: %s", bad[i].line, got.status, got.err);
        run_args_free(&args);
        run_result_free(&got);
    }
}

// More pages than an int can number.
static void test_too_large(void **state)
{
    (void)state;
    run_args args = {0};
    split("bench attention 256M --batch 64 --policies dense:page-size=4", &args);
    run_result got = run_losa(&(run_job){.args = &args, .limit = LIMIT});
    if (got.status != 1 || !strstr(got.err, "64 requests of 268435472 tokens: too many"))
        fail_msg("status %d: %s", got.status, got.err);
    run_args_free(&args);
    run_result_free(&got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention), cmocka_unit_test(test_attention_ranks),
        cmocka_unit_test(test_models),    cmocka_unit_test(test_scheduler),
        cmocka_unit_test(test_comm),      cmocka_unit_test(test_csv),
        cmocka_unit_test(test_usage),     cmocka_unit_test(test_long_policies),
        cmocka_unit_test(test_too_large),
    };
    const int skip = run_ready();
    return skip ? skip : cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}
