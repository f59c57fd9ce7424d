// SPDX-License-Identifier: Apache-2.0
// A policy in one word, and lists of them.
#include "tests/unit/testing.h"

#include "launcher/policy_spec.h"

static losa_config parse(const char *text)
{
    losa_config config;
    assert_ok(app_policy_parse(text, &config));
    return config;
}

static void test_words(void **state)
{
    (void)state;
    losa_config c = parse("dense"), standard = losa_config_default();
    assert_string_equal(c.policy->name, "dense");
    assert_int_equal(c.budget, standard.budget);
    assert_int_equal(c.rule, standard.rule);
    c = parse("quest:64");
    assert_string_equal(c.policy->name, "quest");
    assert_int_equal(c.budget, 64);
    c = parse("losa-mix:256+32:new+3:first=sparse:no-commit-scan");
    assert_int_equal(c.budget, 256);
    assert_int_equal(c.scan_budget, 32);
    assert_int_equal(c.rule, KERN_ACTIVE_NEW_TOPK);
    assert_int_equal(c.active_k, 3);
    assert_true(c.first == LOSA_FIRST_SPARSE);
    assert_false(c.commit_scan);
    c = parse("losa:topk:5:plan-scope=head:locality=hidden:page-size=32:dense-layers=2");
    assert_int_equal(c.budget, standard.budget);
    assert_int_equal(c.rule, KERN_ACTIVE_TOPK);
    assert_int_equal(c.active_k, 5);
    assert_int_equal(c.scope, LOSA_SCOPE_HEAD);
    assert_int_equal(c.locality, LOSA_LOCALITY_HIDDEN);
    assert_int_equal(c.page, 32);
    assert_int_equal(c.dense_layers, 2);
    assert_int_equal(parse("losa:128:active=topk:7").active_k, 7);
    assert_int_equal(parse("losa:128:topk:7:budget=32").budget, 32);
}

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const char *text, *cause;
    } cases[] = {
        {"", "--attention: ''"},
        {"lossa:128", "'lossa' is not one of"},
        {"losa:12x", "--budget: '12x'"},
        {"losa:0", "--budget: '0'"},
        {"losa:128+", "--scan-budget: ''"},
        {"losa:128:256", "active rule '256'"},
        {"losa:128:fast", "active rule 'fast'"},
        {"losa:128:", "active rule ''"},
        {"losa:128:mass:0", "active rule 'mass:0'"},
        {"losa:128:mass:1.5", "active rule 'mass:1.5'"},
        {"sparse-dllm:keep=2", "--keep: '2'"},
        {"losa:128:first=never", "--first: 'never'"},
        {"losa:128:firts=sparse", "did you mean '--first'"},
        {"losa:page-size=24", "page size 24"},
        {"losa:budget", "active rule 'budget'"},
        {"losa:all:all:all:all:all:all:all:all:all:all:all:all:all:all:all:all", "more than 16"},
        {"losa:1234567890123456789012345678901234567890123456789012345678901234", "too long"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        losa_config config;
        char subject[128];
        snprintf(subject, sizeof subject, "policy '%s'", cases[i].text);
        assert_fails(app_policy_parse(cases[i].text, &config), RT_ERR_INVALID, subject,
                     cases[i].cause);
    }
}

static void test_lists(void **state)
{
    (void)state;
    app_policies all = {0};
    assert_ok(app_policies_parse("dense,losa:64,losa:128,losa:128:topk:5", &all));
    assert_int_equal(all.count, 4);
    assert_string_equal(all.items[1].text, "losa:64");
    assert_non_null(strstr(all.items[1].key, "budget=64"));
    assert_non_null(strstr(all.items[3].key, "active=topk:5"));
    assert_string_equal(all.items[1].family, all.items[2].family); // they differ in budget
    assert_string_not_equal(all.items[2].family, all.items[3].family);
    app_policies_free(&all);

    assert_fails(app_policies_parse("losa,dense,losa:256:unsettled", &all), RT_ERR_INVALID,
                 "'losa' and 'losa:256:unsettled'", "the same");
    app_policies_free(&all);
    assert_fails(app_policies_parse("dense,", &all), RT_ERR_INVALID, "policy ''", "not one of");
    app_policies_free(&all);
}

// The text of a rule is what makes it.
static void test_rule_text(void **state)
{
    (void)state;
    static const char *const rules[] = {"all", "unsettled", "topk:5", "new+0", "mass:0.9"};
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        losa_config config = losa_config_default();
        char text[32];
        assert_ok(losa_config_parse_rule(rules[i], &config));
        losa_config_rule_text(&config, text, sizeof text);
        assert_string_equal(text, rules[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_rule_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
