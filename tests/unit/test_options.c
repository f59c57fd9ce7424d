// SPDX-License-Identifier: Apache-2.0
// The option parser: every type, its ranges, the spellings of an option, the nearest
// name, and what --help says about defaults.
#include "launcher/options.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

typedef struct options_args {
    bool flag;
    int number, choice;
    uint64_t seed;
    double real;
    const char *text;
    app_list list;
    int parsed, tokens;
} options_args;

static const char *choices(size_t i)
{
    static const char *const names[] = {"red", "green"};
    return i < 2 ? names[i] : NULL;
}

static rt_status parse_even(const char *text, void *target)
{
    const int digit = text[0] - '0';
    if (digit % 2 != 0)
        return RT_FAIL(RT_ERR_INVALID, "'%s' is not even", text);
    *(int *)target = digit;
    return RT_OK;
}

#define AT(member) offsetof(options_args, member)
static const app_option rows[] = {
    {"flag", 'f', APP_FLAG, AT(flag), 0, 0, NULL, NULL, "a switch", "First", NULL, NULL},
    {"number", 'n', APP_INT, AT(number), 1, 64, "N", NULL, "a number", NULL, NULL, NULL},
    {"choice", 0, APP_CHOICE, AT(choice), 0, 0, "C", NULL, "a colour", NULL, choices, NULL},
    {"seed", 0, APP_U64, AT(seed), 0, 0, "N", NULL, "a seed", "Second", NULL, NULL},
    {"real", 0, APP_REAL, AT(real), 0, 1, "X", NULL, "a fraction", NULL, NULL, NULL},
    {"text", 't', APP_TEXT, AT(text), 0, 0, "TEXT", "none", "a text", NULL, NULL, NULL},
    {"list", 0, APP_LIST, AT(list), 0, 0, "TEXT", NULL, "texts", NULL, NULL, NULL},
    {"tokens", 0, APP_INT, AT(tokens), 0, INT_MAX, "N", NULL, "many", NULL, NULL, NULL},
    {"parsed", 0, APP_PARSE, AT(parsed), 0, 0, "EVEN", NULL, "even", NULL, NULL, parse_even},
};
static const app_table table = {rows, sizeof rows / sizeof rows[0]};

enum { WORDS_MAX = 8 };

// Parses the words up to NULL.
static rt_status parse(options_args *args, app_list *rest, bool *help, const char *const *words)
{
    char *argv[WORDS_MAX];
    int argc = 0;
    for (; words[argc]; argc++)
        argv[argc] = (char *)(uintptr_t)words[argc];
    return app_parse(&table, argc, argv, args, rest, help);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void accepts_every_type(void **state)
{
    (void)state;
    options_args args = {0};
    bool help;
    assert_int_equal(parse(&args, NULL, &help, WORDS("--flag", "--number", "64", "--real=0.25")),
                     RT_OK);
    assert_int_equal(parse(&args, NULL, &help,
                           WORDS("--choice=green", "--seed", "18446744073709551615", "--text", "-x",
                                 "--parsed", "4")),
                     RT_OK);
    assert_false(help);
    assert_true(args.flag);
    assert_int_equal(args.number, 64);
    assert_true(args.real == 0.25);
    assert_int_equal(args.choice, 1);
    assert_true(args.seed == UINT64_MAX);
    assert_string_equal(args.text, "-x");
    assert_int_equal(args.parsed, 4);
}

static void counts_may_end_in_a_unit(void **state)
{
    (void)state;
    options_args args = {0};
    bool help;
    assert_int_equal(parse(&args, NULL, &help, WORDS("--tokens", "128K")), RT_OK);
    assert_int_equal(args.tokens, 131072);
    assert_int_equal(parse(&args, NULL, &help, WORDS("--tokens", "1M")), RT_OK);
    assert_int_equal(args.tokens, 1048576);
    const char *const bad[] = {
        "2G", "1.5K", "K", "-1K", "4KX", "99999999999K", "9223372036854775807K"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(parse(&args, NULL, &help, WORDS("--tokens", bad[i])), RT_ERR_INVALID);
}

static void accepts_every_spelling(void **state)
{
    (void)state;
    options_args args = {0};
    app_list rest = {0};
    bool help;
    assert_int_equal(parse(&args, NULL, &help, WORDS("-n5", "-f", "-t", "a b")), RT_OK);
    assert_int_equal(args.number, 5);
    assert_true(args.flag);
    assert_string_equal(args.text, "a b");
    assert_int_equal(parse(&args, NULL, &help, WORDS("-n", "6", "--text=")), RT_OK);
    assert_int_equal(args.number, 6);
    assert_string_equal(args.text, "");
    assert_int_equal(parse(&args, &rest, &help, WORDS("one", "-", "--", "--flag")), RT_OK);
    assert_int_equal(rest.len, 3);
    assert_string_equal(rest.items[1], "-");
    assert_string_equal(rest.items[2], "--flag");
    app_free_list(&rest);
}

static void collects_lists(void **state)
{
    (void)state;
    options_args args = {0};
    bool help;
    assert_int_equal(parse(&args, NULL, &help, WORDS("--list", "a", "--list=b=c", "--list", "")),
                     RT_OK);
    assert_int_equal(args.list.len, 3);
    assert_string_equal(args.list.items[1], "b=c");
    app_free_args(&table, &args);
    assert_int_equal(args.list.len, 0);
}

static void refuses_bad_words(void **state)
{
    (void)state;
    static const struct {
        const char *words[3];
        const char *message;
    } cases[] = {
        {{"--number", "0"}, "--number: '0' is not a whole number from 1 to 64"},
        {{"--number", "65"}, "--number: '65' is not a whole number from 1 to 64"},
        {{"--number", "4x"}, "--number: '4x' is not a whole number from 1 to 64"},
        {{"--number", ""}, "--number: '' is not a whole number from 1 to 64"},
        {{"--number=99999999999999999999"},
         "--number: '99999999999999999999' is not a whole number from 1 to 64"},
        {{"--real", "1.5"}, "--real: '1.5' is not a number from 0 to 1"},
        {{"--real", "nan"}, "--real: 'nan' is not a number from 0 to 1"},
        {{"--seed", "-1"}, "--seed: '-1' is not a whole number from 0 to 18446744073709551615"},
        {{"--choice", "blue"}, "--choice: 'blue' is not one of: red, green"},
        {{"--parsed", "3"}, "--parsed: '3' is not even"},
        {{"--flag=yes"}, "--flag takes no value, got 'yes'"},
        {{"--number"}, "--number needs a value: N"},
        {{"word"}, "unexpected argument 'word'"},
        {{"--nubmer", "3"}, "unknown option '--nubmer'; did you mean '--number'?"},
        {{"--num=3"}, "unknown option '--num=3'; did you mean '--number'?"},
        {{"-number"}, "--number: 'umber' is not a whole number from 1 to 64"},
        {{"-x"}, "unknown option '-x'"},
        {{"--hepl"}, "unknown option '--hepl'; did you mean '--help'?"},
        {{"--something-else"}, "unknown option '--something-else'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        options_args args = {0};
        bool help;
        assert_int_equal(parse(&args, NULL, &help, cases[i].words), RT_ERR_INVALID);
        assert_string_equal(rt_last_error(), cases[i].message);
    }
}

static void help_ends_parsing(void **state)
{
    (void)state;
    options_args args = {0};
    bool help;
    assert_int_equal(parse(&args, NULL, &help, WORDS("-h", "--unknown")), RT_OK);
    assert_true(help);
    assert_int_equal(parse(&args, NULL, &help, WORDS("--flag", "--help")), RT_OK);
    assert_true(help);
}

static void help_shows_defaults(void **state)
{
    (void)state;
    const options_args args = {.number = 7, .choice = 1, .real = 0.5, .seed = 3};
    rt_str out = {0};
    assert_int_equal(app_describe(&table, &args, &out), RT_OK);
    static const char *const lines[] = {
        "First:\n  -f, --flag                  a switch\n",
        "  -n, --number N              a number [7]\n",
        "      --choice C              a colour: red, green [green]\n",
        "\nSecond:\n      --seed N                a seed [3]\n",
        "      --real X                a fraction [0.5]\n",
        "  -t, --text TEXT             a text [none]\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        if (!strstr(out.data, lines[i]))
            fail_msg("no line '%s' in:\n%s", lines[i], out.data);
    rt_str_free(&out);
}

static void finds_the_nearest_name(void **state)
{
    (void)state;
    static const char *const names[] = {"generate", "info", "logits", "tokenize"};
    static const struct {
        const char *text, *nearest;
    } cases[] = {
        {"generat", "generate"}, {"genreate", "generate"},
        {"logist", "logits"},    {"tok", "tokenize"},
        {"inof", "info"},        {"x", NULL},
        {"frobnicate", NULL},    {"", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *near = app_nearest(cases[i].text, names, 4);
        if (!cases[i].nearest)
            assert_null(near);
        else
            assert_string_equal(near ? near : "", cases[i].nearest);
    }
}

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"1234", 1234},
                {"4K", 4096},
                {"512M", 512 << 20},
                {"4G", 4ULL << 30},
                {"2T", 2ULL << 40},
                {"1GiB", 1 << 30},
                {"1MB", 1 << 20},
                {"18446744073709551615", UINT64_MAX}};
    static const char *const bad[] = {"",
                                      "-1",
                                      " 1",
                                      "G",
                                      "4g",
                                      "4GG",
                                      "4.5G",
                                      "1 G",
                                      "4Gi",
                                      "18446744073709551616",
                                      "17179869184G"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        bytes = 7;
        assert_int_equal(app_parse_bytes(good[i].text, &bytes), RT_OK);
        assert_true(bytes == good[i].bytes);
    }
    bytes = 7;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(app_parse_bytes(bad[i], &bytes), RT_ERR_INVALID);
        assert_non_null(strstr(rt_last_error(), "number of bytes"));
    }
    assert_int_equal(bytes, 7);
}

static void names_the_first_difference(void **state)
{
    (void)state;
    static const struct {
        const char *was, *now, *words;
    } cases[] = {
        {"ranks=2 steps=0 seed=1", "ranks=1 steps=0 seed=2", "'ranks=2', now 'ranks=1'"},
        {"ranks=2 steps=0 seed=1", "ranks=2 steps=0 seed=2", "'seed=1', now 'seed=2'"},
        {"a=1 steps=1", "a=1 steps=16", "'steps=1', now 'steps=16'"},
        {"", "a=1", "'', now 'a=1'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char words[64];
        app_first_difference(cases[i].was, cases[i].now, words, sizeof words);
        assert_string_equal(words, cases[i].words);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(accepts_every_type),
        cmocka_unit_test(counts_may_end_in_a_unit),
        cmocka_unit_test(accepts_every_spelling),
        cmocka_unit_test(collects_lists),
        cmocka_unit_test(refuses_bad_words),
        cmocka_unit_test(help_ends_parsing),
        cmocka_unit_test(help_shows_defaults),
        cmocka_unit_test(finds_the_nearest_name),
        cmocka_unit_test(names_the_first_difference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
