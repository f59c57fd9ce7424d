// SPDX-License-Identifier: Apache-2.0
// Pictures are well-formed XML, and put their marks where the values are.
#include "tests/unit/testing.h"

#include "launcher/svg.h"

// ---- a strict reader of the XML that pictures use ------------------------------------

enum { DEPTH = 16, NAME = 32 };

static const char *skip_name(const char *at, char *out)
{
    const size_t n = strspn(at, "Babcdefghijklmnopqrstuvwxyz0123456789-");
    assert_in_range(n, 1, NAME - 1);
    memcpy(out, at, n);
    out[n] = '\0';
    return at + n;
}

static const char *skip_entity(const char *at)
{
    static const char *const known[] = {"&lt;", "&gt;", "&amp;", "&quot;"};
    for (int i = 0; i < 4; i++)
        if (strncmp(at, known[i], strlen(known[i])) == 0)
            return at + strlen(known[i]);
    fail_msg("a bare & before '%.20s'", at);
    return at;
}

// name="value" pairs up to the end of the tag; no name twice.
static const char *skip_attributes(const char *at)
{
    char seen[16][NAME];
    int count = 0;
    for (; at[0] == ' ' && at[1] != '/' && at[1] != '>'; at++) {
        assert_in_range(count, 0, 15);
        at = skip_name(at + 1, seen[count]);
        for (int i = 0; i < count; i++)
            assert_string_not_equal(seen[i], seen[count]);
        count++;
        assert_memory_equal(at, "=\"", 2);
        for (at += 2; *at != '"';) {
            assert_true(*at && *at != '<');
            at = *at == '&' ? skip_entity(at) : at + 1;
        }
    }
    return at + strspn(at, " ");
}

static void check_xml(const char *text)
{
    static const char head[] = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    char open[DEPTH][NAME], name[NAME];
    int depth = 0, roots = 0;
    assert_memory_equal(text, head, sizeof head - 1);
    for (const char *at = text + sizeof head - 1; *at;) {
        if (*at != '<') {
            assert_true(depth > 0 || *at == '\n');
            at = *at == '&' ? skip_entity(at) : at + 1;
        } else if (at[1] == '/') {
            at = skip_name(at + 2, name);
            assert_true(depth > 0);
            assert_string_equal(name, open[--depth]);
            assert_true(*at++ == '>');
        } else {
            assert_in_range(depth, 0, DEPTH - 1);
            at = skip_attributes(skip_name(at + 1, open[depth]));
            roots += depth == 0;
            depth += *at == '>';
            at += *at == '/';
            assert_true(*at++ == '>');
        }
    }
    assert_int_equal(depth, 0);
    assert_int_equal(roots, 1);
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
}

// ---- plots -------------------------------------------------------------------------

static rt_str plot(const app_series *series, size_t count)
{
    const app_plot p = {"a < b & \"c\"", "density", "exact", series, count};
    rt_str out = {0};
    assert_ok(app_svg_plot(&p, &out));
    check_xml(out.data);
    return out;
}

// A long name makes the picture wider, a short one does not.
static void test_width(void **state)
{
    (void)state;
    const app_series names[] = {{"losa", NULL, 0},
                                {"losa:256:first=all-sparse:first-budget=512", NULL, 0}};
    rt_str narrow = plot(names, 1), wide = plot(names, 2);
    assert_non_null(strstr(narrow.data, "width=\"760\""));
    assert_non_null(strstr(wide.data, "width=\"834\""));
    rt_str_free(&narrow);
    rt_str_free(&wide);
}

static void test_marks(void **state)
{
    (void)state;
    const app_point points[] = {{0, 0, NAN, NAN}, {1, 1, NAN, NAN}};
    const app_series series = {"losa<128>", points, 2};
    rt_str out = plot(&series, 1);
    // The corners of the axes, and the line between them.
    assert_non_null(strstr(out.data, "<circle cx=\"70.0\" cy=\"380.0\""));
    assert_non_null(strstr(out.data, "<circle cx=\"500.0\" cy=\"40.0\""));
    assert_non_null(strstr(out.data, "x1=\"70.0\" y1=\"380.0\" x2=\"500.0\" y2=\"40.0\""));
    assert_non_null(strstr(out.data, "losa&lt;128&gt;"));
    assert_non_null(strstr(out.data, "a &lt; b &amp; &quot;c&quot;"));
    rt_str_free(&out);
}

static void test_odd_values(void **state)
{
    (void)state;
    static const app_point odd[] = {{NAN, 1, 0, 1},        {0.25, INFINITY, 0, 1},
                                    {0.25, 0.5, 0.4, 0.6}, {0.25, 0.5, NAN, 1},
                                    {-1e6, 1e-9, 0, 0},    {1e6, 1e-9, 0, 1e-8}};
    for (size_t first = 0; first < 6; first++) {
        for (size_t count = 0; count <= 6 - first; count++) {
            const app_series series[] = {{"a", odd + first, count}, {"b", odd, 0}};
            rt_str out = plot(series, 2);
            rt_str_free(&out);
        }
    }
    rt_str out = plot(NULL, 0);
    rt_str_free(&out);
}

static void test_many_series(void **state)
{
    (void)state;
    enum { MANY = 23 };
    app_point points[MANY];
    app_series series[MANY];
    for (int i = 0; i < MANY; i++) {
        points[i] = (app_point){i, 0.5, 0.4, 0.6};
        series[i] = (app_series){"x", &points[i], 1};
    }
    rt_str out = plot(series, MANY);
    rt_str_free(&out);
}

static void test_heat(void **state)
{
    (void)state;
    const double value[] = {0, 0.5, 1, NAN, 2, -1};
    const app_heat heat = {"density", "step", "layer", 2, 3, value};
    rt_str out = {0};
    assert_ok(app_svg_heat(&heat, &out));
    check_xml(out.data);
    assert_non_null(strstr(out.data, "fill=\"#ffffff\""));
    assert_non_null(strstr(out.data, "fill=\"#08306b\""));
    int cells = 0;
    for (const char *at = out.data; (at = strstr(at, "stroke=\"white\"")); at++)
        cells++;
    assert_int_equal(cells, 5); // NaN has none
    rt_str_free(&out);
}

static void test_files(void **state)
{
    (void)state;
    rt_str svg = {0};
    assert_ok(rt_str_puts(&svg, "<svg/>"));
    assert_fails(app_svg_write("/dev/full", &svg), RT_ERR_IO, "/dev/full", "No space");
    assert_fails(app_svg_write("/nowhere/a.svg", &svg), RT_ERR_IO, "/nowhere/a.svg",
                 "No such file");
    rt_str_free(&svg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_width),      cmocka_unit_test(test_marks),
        cmocka_unit_test(test_odd_values), cmocka_unit_test(test_many_series),
        cmocka_unit_test(test_heat),       cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
