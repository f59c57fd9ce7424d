// SPDX-License-Identifier: Apache-2.0
// Strict parsing with positions; typed members with ranges.
#include "tests/unit/testing.h"

#include "runtime/base/json.h"

static json_t *parse(const char *text)
{
    json_t *out = NULL;
    assert_ok(rt_json_parse(text, strlen(text), "f.json", &out));
    return out;
}

static const struct {
    const char *text, *cause;
} malformed[] = {
    {"", "line 1 column 0"},
    {"{", "line 1 column 1"},
    {"{\"a\": 1,\n \"b\": }", "line 2 column 7"},
    {"{\"a\": 1} x", "end of file expected"},
    {"{\"a\": 1, \"a\": 2}", "duplicate"},
    {"{\"a\": NaN}", "invalid token"},
    {"{\"a\": Infinity}", "invalid token"},
    {"{\"a\": 1,}", "line 1 column 9"},
    {"{'a': 1}", "line 1"},
    {"{\"a\": 1e999}", "overflow"},
    {"{\"a\": 99999999999999999999, \"b\": 1e999}", "overflow"},
    {"{\"a\": 99999999999999999999, \"a\": 2}", "duplicate"},
    {"[\"\xff\"]", "unable to decode byte 0xff"},
    {"[\"\\ud800\"]", "line 1"},
    {"[\"a\nb\"]", "line 1"}, // the control character must not reach the message
    {"// c\n{}", "line 1"},
};

static void test_malformed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        json_t *out = NULL;
        const char *text = malformed[i].text;
        assert_fails(rt_json_parse(text, strlen(text), "f.json", &out), RT_ERR_FORMAT,
                     "f.json: line ", malformed[i].cause);
        assert_null(out);
    }
}

static void test_depth(void **state)
{
    (void)state;
    char text[20000];
    json_t *out = NULL;
    memset(text, '[', sizeof text);
    assert_fails(rt_json_parse(text, sizeof text, "f.json", &out), RT_ERR_FORMAT, "f.json",
                 "depth");
}

static void test_accepted(void **state)
{
    (void)state;
    json_t *root = parse(" {\"big\": 9007199254740993, \"nul\": \"a\\u0000b\"}\n ");
    int64_t big = 0;
    const char *text = NULL;
    assert_ok(rt_json_int(root, "big", "f.json", true, 0, INT64_MAX, &big));
    assert_true(big == 9007199254740993);
    assert_int_equal(json_string_length(json_object_get(root, "nul")), 3);
    assert_fails(rt_json_str(root, "nul", "f.json", true, &text), RT_ERR_FORMAT, "f.json: 'nul'",
                 "NUL");
    json_decref(root);
}

// An integer beyond int64_t is a real, and the others of its text stay integers.
static void test_large_integers(void **state)
{
    (void)state;
    json_t *root = parse("{\"max\": 1000000000000000019884624838656, \"low\": -9223372036854775809,"
                         " \"n\": 2560, \"a\": [7, {\"m\": -9007199254740991}, -0],"
                         " \"r\": 0.5, \"edge\": 9007199254740992}");
    const json_t *array = json_object_get(root, "a");
    int64_t i = 0;
    double r = 0;
    assert_ok(rt_json_real(root, "max", "f", true, 0, 1e31, &r));
    assert_true(r == 1e30);
    assert_ok(rt_json_real(root, "r", "f", true, 0, 1, &r));
    assert_true(r == 0.5);
    assert_ok(rt_json_int(root, "n", "f", true, 0, 9999, &i));
    assert_true(i == 2560 && json_integer_value(json_array_get(array, 0)) == 7);
    assert_ok(rt_json_int(json_array_get(array, 1), "m", "f", true, INT64_MIN, 0, &i));
    assert_true(i == -9007199254740991 && json_is_integer(json_array_get(array, 2)));
    assert_fails(rt_json_int(root, "max", "f", true, 0, 9, &i), RT_ERR_FORMAT, "f: 'max' is 1e+30",
                 "outside [0, 9]");
    assert_fails(rt_json_int(root, "low", "f", true, 0, 9, &i), RT_ERR_FORMAT, "f: 'low'",
                 "outside");
    // Whether it is exact is not known.
    assert_fails(rt_json_int(root, "edge", "f", true, 0, INT64_MAX, &i), RT_ERR_FORMAT, "f: 'edge'",
                 "9.0072e+15");
    json_decref(root);
}

static void test_absent(void **state)
{
    (void)state;
    json_t *root = parse("{\"null\": null}");
    int64_t i = 5;
    double r = 0.5;
    bool b = true;
    const char *s = "preset";
    const char *keys[] = {"null", "absent"};
    for (int k = 0; k < 2; k++) {
        assert_ok(rt_json_int(root, keys[k], "f", false, 0, 1, &i));
        assert_ok(rt_json_real(root, keys[k], "f", false, 0, 0.1, &r));
        assert_ok(rt_json_bool(root, keys[k], "f", &b));
        assert_ok(rt_json_str(root, keys[k], "f", false, &s));
        assert_fails(rt_json_int(root, keys[k], "f.json", true, 0, 1, &i), RT_ERR_FORMAT,
                     "f.json: '", "is missing");
        assert_fails(rt_json_str(root, keys[k], "f.json", true, &s), RT_ERR_FORMAT, keys[k],
                     "is missing");
    }
    assert_true(i == 5 && r == 0.5 && b);
    assert_string_equal(s, "preset");
    json_decref(root);
}

static void test_types_and_ranges(void **state)
{
    (void)state;
    json_t *root = parse("{\"i\": 7, \"r\": 2.5, \"b\": false, \"s\": \"x\", \"a\": []}");
    int64_t i = 0;
    double r = 0;
    bool b = true;
    const char *s = NULL;
    assert_ok(rt_json_int(root, "i", "f", true, 7, 7, &i));
    assert_ok(rt_json_real(root, "r", "f", true, 0, 3, &r));
    assert_ok(rt_json_bool(root, "b", "f", &b));
    assert_ok(rt_json_str(root, "s", "f", true, &s));
    assert_true(i == 7 && r == 2.5 && !b);
    assert_string_equal(s, "x");
    assert_ok(rt_json_real(root, "i", "f", true, 0, 10, &r)); // an integer is a number
    assert_true(r == 7);
    assert_fails(rt_json_int(root, "i", "f", true, 8, 9, &i), RT_ERR_FORMAT, "f: 'i' is 7",
                 "outside [8, 9]");
    assert_fails(rt_json_int(root, "i", "f", true, 0, 6, &i), RT_ERR_FORMAT, "'i'", "[0, 6]");
    assert_fails(rt_json_real(root, "r", "f", true, 0, 1, &r), RT_ERR_FORMAT, "f: 'r' is 2.5",
                 "outside [0, 1]");
    assert_fails(rt_json_int(root, "r", "f", true, 0, 9, &i), RT_ERR_FORMAT, "f: 'r'", "a real");
    assert_fails(rt_json_int(root, "s", "f", true, 0, 9, &i), RT_ERR_FORMAT, "f: 's'", "a string");
    assert_fails(rt_json_real(root, "b", "f", true, 0, 9, &r), RT_ERR_FORMAT, "f: 'b'", "boolean");
    assert_fails(rt_json_bool(root, "i", "f", &b), RT_ERR_FORMAT, "f: 'i'", "true or false");
    assert_fails(rt_json_str(root, "a", "f", true, &s), RT_ERR_FORMAT, "f: 'a'", "an array");
    assert_fails(rt_json_int(json_object_get(root, "a"), "k", "f", true, 0, 9, &i), RT_ERR_FORMAT,
                 "f: ", "expected an object that holds 'k'");
    json_decref(root);
}

static void test_load(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    json_t *root;
    const char *path = test_write_text(&dir, "a.json", "{\"k\":\n 1");
    assert_fails(rt_json_load(path, 100, &root), RT_ERR_FORMAT, path, "line 2 column");
    assert_fails(rt_json_load(path, 3, &root), RT_ERR_LIMIT, path, "larger than 3 bytes");
    assert_fails(rt_json_load("/nonexistent.json", 9, &root), RT_ERR_IO, "/nonexistent.json",
                 "No such file");
    test_write_text(&dir, "a.json", "[1]");
    assert_ok(rt_json_load(path, 100, &root));
    json_decref(root);
    test_dir_remove(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_malformed),      cmocka_unit_test(test_depth),
        cmocka_unit_test(test_accepted),       cmocka_unit_test(test_absent),
        cmocka_unit_test(test_load),           cmocka_unit_test(test_types_and_ranges),
        cmocka_unit_test(test_large_integers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
