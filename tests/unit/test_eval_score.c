// SPDX-License-Identifier: Apache-2.0
// What counts as a right answer, and the intervals around shares of them.
#include "tests/unit/testing.h"

#include "launcher/eval_score.h"
#include "launcher/interval.h"

// ---- rules --------------------------------------------------------------------------

static json_t *rule(const char *text)
{
    json_t *accept;
    assert_ok(rt_json_parse(text, strlen(text), "rule", &accept));
    return accept;
}

static app_score score(const char *accept, const char *answer)
{
    json_t *object = rule(accept);
    app_score got = {.f1 = -1};
    assert_ok(app_accept_check(object, "rule"));
    assert_ok(app_score_answer(object, answer, &got));
    json_decref(object);
    return got;
}

static void test_rules(void **state)
{
    (void)state;
    static const char any[] = "{\"any\": [\"It is 1.\", \"1 it is.\"]}";
    static const char all[] = "{\"all\": [[\"a is 1\", \"1 is a\"], [\"b is 2\"]]}";
    static const char list[] =
        "{\"prefix\": \"They are \", \"values\": [\"red\", \"blue\", \"big red\"]}";
    static const char holds[] = "{\"contains\": [\"Paris\", \"Lyon\"]}";
    static const struct {
        const char *accept, *answer;
        bool right;
    } cases[] = {
        {any, "1 it is.", true},
        {any, " It is 1.\n", true}, // white space around does not count
        {any, "It is 1", false},
        {any, "it is 1.", false},
        {any, "", false},
        {all, "First, A is 1; b is 2.", true},
        {all, "b is 2 and 1 IS A", true},
        {all, "a is 1.", false},
        {list, "They are blue, big red and red.", true},
        {list, "They are red and blue and big red.", true},
        {list, "They are blue, big red and red", false},
        {list, "They are blue and red.", false},
        {list, "They are blue, blue and red.", false},
        {list, "They are blue, big red, red and green.", false},
        {list, "They are blue, big red and red and .", false},
        {list, "They are .", false},
        {list, "They are ", false},
        {list, "Those are blue, big red and red.", false},
        {holds, "I think it is in paris, France.", true},
        {holds, "Marseille", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (score(cases[i].accept, cases[i].answer).right != cases[i].right)
            fail_msg("'%s' by %s is not %d", cases[i].answer, cases[i].accept, cases[i].right);
}

static void test_bad_rules(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "{}",
        "{\"any\": []}",
        "{\"any\": \"text\"}",
        "{\"any\": [1]}",
        "{\"any\": [\"a\\u0000b\"]}",
        "{\"all\": [\"a\"]}",
        "{\"all\": [[]]}",
        "{\"prefix\": \"a\"}",
        "{\"prefix\": 1, \"values\": [\"a\"]}",
        "{\"any\": [\"a\"], \"all\": [[\"a\"]]}",
        "{\"any\": [\"a\"], \"prefix\": \"a\"}",
        "[]",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *accept = rule(bad[i]);
        assert_fails(app_accept_check(accept, "docs.jsonl:3"), RT_ERR_FORMAT, "docs.jsonl:3",
                     "'accept'");
        json_decref(accept);
    }
    assert_fails(app_accept_check(NULL, "docs.jsonl:3"), RT_ERR_FORMAT, "docs.jsonl:3", "'accept'");
}

static void test_f1(void **state)
{
    (void)state;
    static const struct {
        const char *answer, *truth;
        double f1;
    } cases[] = {
        {"The cat sat.", "a cat sat", 1},  // articles, case and punctuation
        {"cat", "the black cat", 2.0 / 3}, // 1 of 1 and 1 of 2
        {"cat cat", "cat dog", 0.5},       // a word counts as often as both have it
        {"one two three", "two three four five", 4.0 / 7},
        {"dog", "cat", 0},
        {"", "cat", 0},
        {"the", "the", 0}, // no word is left
        {"  it's   fine ", "its fine", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double f1;
        assert_ok(app_token_f1(cases[i].answer, cases[i].truth, &f1));
        if (fabs(f1 - cases[i].f1) > 1e-12)
            fail_msg("'%s' against '%s' is %g", cases[i].answer, cases[i].truth, f1);
    }
    assert_true(score("{\"any\": [\"a red fox\", \"brown\"]}", "red").f1 == 2.0 / 3);
    assert_true(isnan(score("{\"all\": [[\"a\"]]}", "a").f1));
}

// ---- intervals ----------------------------------------------------------------------

static void near(double got, double want)
{
    if (!(fabs(got - want) < 5e-5))
        fail_msg("%g is not %g", got, want);
}

// Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
static void test_share(void **state)
{
    (void)state;
    app_interval i = app_interval_share(81, 263);
    near(i.low, 0.2553);
    near(i.high, 0.3662);
    i = app_interval_share(15, 148);
    near(i.low, 0.0624);
    near(i.high, 0.1605);
    i = app_interval_share(0, 20);
    near(i.low, 0);
    near(i.high, 0.1611);
    i = app_interval_share(1, 29);
    near(i.low, 0.0061);
    near(i.high, 0.1718);
    assert_true(app_interval_share(20, 20).high <= 1);
    assert_true(isnan(app_interval_share(0, 0).low));
}

// The likeliest share of losses under a difference d, by search over the multinomial
// likelihood of (won, lost, neither), and with it the score statistic.
static double statistic(double won, double lost, double n, double d)
{
    double low = fmax(0, -d), high = (1 - d) / 2;
    const double third = 1.0 / 3;
    for (int i = 0; i < 200; i++) {
        double q[2] = {low + (high - low) * third, high - (high - low) * third}, l[2];
        for (int k = 0; k < 2; k++)
            l[k] =
                won * log(q[k] + d) + lost * log(q[k]) + (n - won - lost) * log(1 - 2 * q[k] - d);
        if (l[0] < l[1])
            low = q[0];
        else
            high = q[1];
    }
    const double q = (low + high) / 2;
    return (won - lost - n * d) / sqrt(n * (2 * q + d - d * d));
}

static void test_paired(void **state)
{
    (void)state;
    static const size_t cases[][3] = {{3, 17, 170}, {2, 5, 40}, {12, 1, 60}, {1, 1, 10}};
    for (size_t i = 0; i < 4; i++) {
        const size_t *c = cases[i];
        const double w = (double)c[0], l = (double)c[1], n = (double)c[2];
        const app_interval got = app_interval_paired(c[0], c[1], c[2]);
        assert_true(got.low < (w - l) / n && (w - l) / n < got.high);
        near(statistic(w, l, n, got.low), 1.959964);
        near(statistic(w, l, n, got.high), -1.959964);
        const app_interval turned = app_interval_paired(c[1], c[0], c[2]);
        near(turned.low, -got.high);
        near(turned.high, -got.low);
    }
    const double z2 = 1.959964 * 1.959964;
    const app_interval none = app_interval_paired(0, 0, 100);
    near(none.low, -z2 / (100 + z2));
    near(none.high, z2 / (100 + z2));
    near(app_interval_paired(0, 5, 5).low, -1);
    assert_true(isnan(app_interval_paired(0, 0, 0).high));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules), cmocka_unit_test(test_bad_rules), cmocka_unit_test(test_f1),
        cmocka_unit_test(test_share), cmocka_unit_test(test_paired),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
