// SPDX-License-Identifier: Apache-2.0
// The JSON object of a result and the tables made of it.
#include "launcher/grid.h"
#include "launcher/report.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const int32_t ids[] = {5, 6, 7};

static rt_result sample(const char *text)
{
    return (rt_result){
        .text = text,
        .text_len = strlen(text),
        .ids = ids,
        .ids_len = 3,
        .finish = RT_FINISH_STOP,
        .prompt_tokens = 100,
        .completion_tokens = 3,
        .stats = {.ranks = 2,
                  .forwards = 4,
                  .tokens_per_forward = 0.75,
                  .density_later = NAN,
                  .prefix_bytes_read = 12300000,
                  .exchange_bytes = UINT64_C(1) << 40},
    };
}

static json_int_t integer(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

static void result_object_has_every_field(void **state)
{
    (void)state;
    const rt_result result = sample("a\nb");
    json_t *object;
    assert_int_equal(app_report_result(&result, "stop", &object), RT_OK);
    assert_string_equal(json_string_value(json_object_get(object, "text")), "a\nb");
    assert_string_equal(json_string_value(json_object_get(object, "finish_reason")), "stop");
    assert_int_equal(json_array_size(json_object_get(object, "token_ids")), 3);
    const json_t *usage = json_object_get(object, "usage");
    assert_int_equal(integer(usage, "prompt_tokens"), 100);
    assert_int_equal(integer(usage, "completion_tokens"), 3);
    const json_t *stats = json_object_get(object, "stats");
    static const char *const keys[] = {
        "ranks",           "blocks",         "forwards",          "tokens_per_forward",
        "steps_per_block", "density_later",  "density_total",     "union_inflation",
        "active_share",    "exchange_bytes", "prefix_bytes_read", "prefill_seconds",
        "decode_seconds",
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        assert_non_null(json_object_get(stats, keys[i]));
    assert_true(integer(stats, "exchange_bytes") == INT64_C(1) << 40);
    assert_true(json_is_null(json_object_get(stats, "density_later"))); // no later step
    json_decref(object);
}

static void text_may_hold_nul(void **state)
{
    (void)state;
    rt_result result = sample("ab");
    result.text = "a\0b";
    result.text_len = 3;
    json_t *object;
    assert_int_equal(app_report_result(&result, "stop", &object), RT_OK);
    assert_int_equal(json_string_length(json_object_get(object, "text")), 3);
    json_decref(object);
}

static void table_aligns_columns(void **state)
{
    (void)state;
    static const char *const cells[] = {"", "dense", "l", "forwards", "7", "1234"};
    app_grid t;
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    assert_non_null(to);
    assert_int_equal(app_grid_open(2, 3, &t), RT_OK);
    for (size_t i = 0; i < 6; i++)
        app_grid_set(&t, i / 3, i % 3, "%s", cells[i]);
    assert_int_equal(app_grid_print(&t, to), RT_OK);
    app_grid_close(&t);
    fclose(to);
    assert_string_equal(text, "          dense     l\n"
                              "forwards      7  1234\n");
    free(text);
}

static char *compare(const char *first, const char *second)
{
    const rt_result a = sample(first), b = sample(second);
    json_t *results[2];
    assert_int_equal(app_report_result(&a, "stop", &results[0]), RT_OK);
    assert_int_equal(app_report_result(&b, "stop", &results[1]), RT_OK);
    const char *const titles[] = {"dense", "losa"};
    char *text = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&text, &len);
    assert_non_null(to);
    assert_int_equal(app_report_compare(to, results, titles, 2), RT_OK);
    fclose(to);
    json_decref(results[0]);
    json_decref(results[1]);
    return text;
}

static void comparison_tells_whether_answers_agree(void **state)
{
    (void)state;
    char *same = compare("yes", "yes"), *other = compare("yes", "no");
    assert_non_null(strstr(same, "  yes\n"));
    assert_non_null(strstr(same, "prefix read, MB"));
    assert_non_null(strstr(same, "12.3"));
    assert_non_null(strstr(other, "  no\n"));
    free(same);
    free(other);
}

static void a_full_disk_is_noticed(void **state)
{
    (void)state;
    json_t *value = json_integer(1);
    assert_int_equal(app_report_write(value, "/dev/full"), RT_ERR_IO);
    assert_non_null(strstr(rt_last_error(), "/dev/full"));
    assert_int_equal(app_report_write(value, "/nowhere/x.json"), RT_ERR_IO);
    json_decref(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(result_object_has_every_field),
        cmocka_unit_test(text_may_hold_nul),
        cmocka_unit_test(table_aligns_columns),
        cmocka_unit_test(comparison_tells_whether_answers_agree),
        cmocka_unit_test(a_full_disk_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
