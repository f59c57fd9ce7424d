// SPDX-License-Identifier: Apache-2.0
// A tokenizer.json that is broken or beyond what is implemented is refused with its
// name and the cause; a hostile text gives an error or ids, in bounded time.
#include "tests/unit/tokenizer_golden.h"

#include "runtime/base/clock.h"

static json_t *parse_value(const char *text)
{
    json_error_t error;
    json_t *value = json_loads(text, JSON_DECODE_ANY, &error);
    if (!value)
        print_error("%s: %s\n", text, error.text);
    assert_non_null(value);
    return value;
}

typedef struct refusal {
    const char *object; // "" for the root, or "model"
    const char *key, *value;
    rt_status code;
    const char *cause;
} refusal;

static void check_refusals(const refusal *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        json_t *root = golden_needle_json();
        json_t *object = *rows[i].object ? json_object_get(root, rows[i].object) : root;
        if (rows[i].value)
            json_object_set_new(object, rows[i].key, parse_value(rows[i].value));
        else
            json_object_del(object, rows[i].key);
        rt_tokenizer *tok = NULL;
        assert_fails(golden_parse(root, "t.json", &tok), rows[i].code, "t.json: ", rows[i].cause);
        assert_null(tok);
        json_decref(root);
    }
}

#define CHECK(rows) check_refusals((rows), sizeof(rows) / sizeof *(rows))

static void sections(void **state)
{
    (void)state;
    static const refusal rows[] = {
        {"", "normalizer", "{\"type\":\"NFKC\"}", RT_ERR_UNSUPPORTED, "normalizer 'NFKC'"},
        {"", "normalizer",
         "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\"}]}",
         RT_ERR_UNSUPPORTED, "normalizer 'Lowercase'"},
        {"", "normalizer", "{\"type\":\"Sequence\"}", RT_ERR_UNSUPPORTED, "normalizer 'Sequence'"},
        {"", "normalizer", "{}", RT_ERR_FORMAT, "'type' is missing"},
        {"", "normalizer", "\"NFC\"", RT_ERR_FORMAT, "expected an object"},
        {"", "pre_tokenizer", "null", RT_ERR_UNSUPPORTED, "no pre_tokenizer"},
        {"", "pre_tokenizer", "{\"type\":\"Metaspace\"}", RT_ERR_UNSUPPORTED,
         "pre_tokenizer 'Metaspace'"},
        {"", "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[]}", RT_ERR_UNSUPPORTED,
         "without ByteLevel"},
        {"", "pre_tokenizer", "{\"type\":\"Sequence\"}", RT_ERR_FORMAT,
         "'pretokenizers' is missing"},
        {"", "pre_tokenizer",
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":"
         "\"ByteLevel\"}]}",
         RT_ERR_UNSUPPORTED, "pre_tokenizer 'ByteLevel' after ByteLevel"},
        {"", "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Sequence\"}]}",
         RT_ERR_UNSUPPORTED, "pre_tokenizer 'Sequence'"},
        {"", "pre_tokenizer", "{\"type\":\"ByteLevel\",\"shout\":true}", RT_ERR_UNSUPPORTED,
         "pre_tokenizer ByteLevel: 'shout'"},
        {"", "pre_tokenizer", "{\"type\":\"ByteLevel\",\"use_regex\":1}", RT_ERR_FORMAT,
         "'use_regex' is an integer"},
        {"", "pre_tokenizer",
         "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"MergedWithNext\"}",
         RT_ERR_UNSUPPORTED, "behavior 'MergedWithNext'"},
        {"", "pre_tokenizer", "{\"type\":\"Split\",\"behavior\":\"Isolated\"}", RT_ERR_FORMAT,
         "'Regex'"},
        {"", "pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{},\"behavior\":\"Isolated\"}",
         RT_ERR_FORMAT, "needs Regex or String"},
        {"", "pre_tokenizer",
         "{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},\"behavior\":\"Isolated\"}",
         RT_ERR_UNSUPPORTED, "empty pattern"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{"
         "\"Sequence\":{\"id\":\"A\"}}]}",
         RT_ERR_UNSUPPORTED, "post_processor 'TemplateProcessing'"},
        {"", "post_processor", "{\"type\":\"BertProcessing\"}", RT_ERR_UNSUPPORTED,
         "post_processor 'BertProcessing'"},
        {"", "decoder", "null", RT_ERR_UNSUPPORTED, "no decoder"},
        {"", "decoder", "{\"type\":\"WordPiece\"}", RT_ERR_UNSUPPORTED, "decoder 'WordPiece'"},
        {"", "surprise", "1", RT_ERR_UNSUPPORTED, "tokenizer: 'surprise'"},
        {"", "model", NULL, RT_ERR_FORMAT, "'model' is missing"},
        {"", "added_tokens", "{}", RT_ERR_FORMAT, "'added_tokens' is not an array"},
    };
    CHECK(rows);
}

static void models(void **state)
{
    (void)state;
    static const refusal rows[] = {
        {"model", "type", "\"Unigram\"", RT_ERR_UNSUPPORTED, "model 'Unigram'"},
        {"model", "dropout", "0.1", RT_ERR_UNSUPPORTED, "'dropout' is 0.1"},
        {"model", "continuing_subword_prefix", "\"##\"", RT_ERR_UNSUPPORTED,
         "'continuing_subword_prefix' is '##'"},
        {"model", "end_of_word_suffix", "\"</w>\"", RT_ERR_UNSUPPORTED,
         "'end_of_word_suffix' is '</w>'"},
        {"model", "unk_token", "5", RT_ERR_FORMAT, "'unk_token' is an integer"},
        {"model", "byte_fallback", "\"no\"", RT_ERR_FORMAT, "'byte_fallback' is a string"},
        {"model", "max_input_chars_per_word", "100", RT_ERR_UNSUPPORTED,
         "model: 'max_input_chars_per_word'"},
        {"model", "vocab", NULL, RT_ERR_FORMAT, "'vocab' or 'merges' is missing"},
        {"model", "merges", "{}", RT_ERR_FORMAT, "'vocab' or 'merges' is missing"},
        {"model", "vocab", "{}", RT_ERR_FORMAT, "is not in the vocabulary"},
        {"model", "vocab", "{\"a\":4,\"b\":4}", RT_ERR_FORMAT, "token 'b': id 4 is taken"},
        {"model", "vocab", "{\"a\":-1}", RT_ERR_FORMAT, "token 'a': the id is not in [0, 4194303]"},
        {"model", "vocab", "{\"a\":4194304}", RT_ERR_FORMAT, "token 'a': the id is not in"},
        {"model", "vocab", "{\"a\":\"5\"}", RT_ERR_FORMAT, "token 'a': the id is not in"},
        {"model", "vocab", "{\"a\":1.5}", RT_ERR_FORMAT, "token 'a': the id is not in"},
        {"model", "merges", "[[\"a\",\"b\",\"c\"]]", RT_ERR_FORMAT, "merge 0 is not a pair"},
        {"model", "merges", "[[\"h\",\"e\"],\"the\"]", RT_ERR_FORMAT, "merge 1 is not a pair"},
        {"model", "merges", "[\"a b c\"]", RT_ERR_FORMAT, "merge 0 is not a pair"},
        {"model", "merges", "[[1,2]]", RT_ERR_FORMAT, "merge 0 is not a pair"},
        {"model", "merges", "[null]", RT_ERR_FORMAT, "merge 0 is not a pair"},
        {"model", "merges", "[\"zzz a\"]", RT_ERR_FORMAT,
         "merge 0: 'zzz' is not in the vocabulary"},
        {"model", "merges", "[[\"a\",\"zzz\"]]", RT_ERR_FORMAT,
         "merge 0: 'zzz' is not in the vocabulary"},
        {"model", "merges", "[[\"z\",\"q\"]]", RT_ERR_FORMAT,
         "merge 0: 'zq' is not in the vocabulary"},
        {"model", "merges", "[[\"a\",\"\\u4e00\"]]", RT_ERR_FORMAT, "is not in the vocabulary"},
    };
    CHECK(rows);
}

// Refused where a byte has no token and Hugging Face would write another one instead of it.
static void missing_bytes(void **state)
{
    (void)state;
    static const refusal rows[] = {
        {"model", "unk_token", "\"<|endoftext|>\"", RT_ERR_UNSUPPORTED,
         "'unk_token', and the vocabulary has no token for byte 0xC3"},
        {"model", "byte_fallback", "true", RT_ERR_UNSUPPORTED,
         "'byte_fallback', and the vocabulary has no token for byte 0xC3"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *root = golden_needle_json(), *model = json_object_get(root, "model");
        rt_tokenizer *tok = NULL;
        json_object_set_new(model, rows[i].key, parse_value(rows[i].value));
        assert_ok(golden_parse(root, "t.json", &tok)); // every byte is there
        assert_true(rt_tokenizer_token_bytes(tok) < SIZE_MAX);
        rt_tokenizer_close(tok);
        json_object_del(json_object_get(model, "vocab"), "\u00c3");
        assert_fails(golden_parse(root, "t.json", &tok), rows[i].code, "t.json: ", rows[i].cause);
        json_object_del(model, rows[i].key);
        assert_ok(golden_parse(root, "t.json", &tok));
        assert_true(rt_tokenizer_token_bytes(tok) == SIZE_MAX);
        rt_tokenizer_close(tok);
        json_decref(root);
    }
}

static void added_tokens(void **state)
{
    (void)state;
    static const refusal rows[] = {
        {"", "added_tokens", "[1]", RT_ERR_FORMAT, "'content'"},
        {"", "added_tokens", "[{\"id\":9000}]", RT_ERR_FORMAT, "'content' is missing"},
        {"", "added_tokens", "[{\"content\":\"<x>\"}]", RT_ERR_FORMAT,
         "token '<x>': the id is not in"},
        {"", "added_tokens", "[{\"id\":9000,\"content\":\"<x>\",\"loud\":true}]",
         RT_ERR_UNSUPPORTED, "added token: 'loud'"},
        {"", "added_tokens", "[{\"id\":9000,\"content\":\"<x>\",\"special\":\"yes\"}]",
         RT_ERR_FORMAT, "'special' is a string"},
        {"", "added_tokens",
         "[{\"id\":9000,\"content\":\"<x>\"},{\"id\":9000,\"content\":\"<y>\"}]", RT_ERR_FORMAT,
         "'<y>': id 9000 is taken"},
        {"", "added_tokens", "[{\"id\":9000,\"content\":\"he\"}]", RT_ERR_FORMAT,
         "'he' has id 9000, the vocabulary gives it another"},
        {"", "added_tokens", "[{\"id\":300,\"content\":\"<x>\"}]", RT_ERR_FORMAT,
         "'<x>' has id 300, the vocabulary gives it to another token"},
        // Merges must not make a special token out of user content.
        {"", "added_tokens", "[{\"id\":260,\"content\":\"he\",\"special\":true}]",
         RT_ERR_UNSUPPORTED, "merge 0 makes the special token 'he'"},
        {"", "added_tokens", "[{\"id\":4,\"content\":\"!\",\"special\":true}]", RT_ERR_UNSUPPORTED,
         "the token of byte 0x21 is special"},
    };
    CHECK(rows);
}

// What PCRE2 would accept, and read in another way than Oniguruma.
static void regexes(void **state)
{
    (void)state;
    static const struct {
        const char *regex, *cause;
    } rows[] = {
        {"[\\p{L}&&[^\\p{Han}]]+", "at byte 6: '&&': a class intersection"},
        {"[a&&b]", "'&&': a class intersection"},
        {"[a[bc]]", "at byte 2: '[': a class inside a class"},
        {"[[:alpha:]]", "a class inside a class"},
        {"[]a]", "begins with ']'"},
        {"[^]a]", "begins with ']'"},
        {"[abc", "the class does not end"},
        {"x|\\h+", "at byte 2: '\\h'"},
        {"\\w+", "'\\w'"},
        {"a\\b", "'\\b'"},
        {"[\\b]", "'\\b'"},
        {"\\v", "'\\v'"},
        {"\\R", "'\\R'"},
        {"\\Gx", "'\\G'"},
        {"(a)\\1", "'\\1'"},
        {"\\Qa+\\E", "'\\Q'"},
        {"a\\Kb", "'\\K'"},
        {"\\u0041", "'\\u'"},
        {"\\xE9", "'\\x': a byte that is not ASCII"},
        {"\\x{}", "malformed"},
        {"\\p{Han}", "'\\p{Han}': a property other than a general category"},
        {"\\p{Alphabetic}", "a property other than a general category"},
        {"\\p{L", "a property other than a general category"},
        {"\\p{", "a property other than a general category"},
        {"\\pL+|.", "'\\pL+|.': a property other than a general category in braces"},
        {"\\p", "a property other than a general category"},
        {"\\", "'\\'"},
        {"(?i)a", "'(?i)': this kind of group"},
        {"(?m:a.b)", "'(?m:': this kind of group"},
        {"(?<n>a)", "'(?<n': this kind of group"},
        {"(?~ab)", "'(?~a': this kind of group"},
        {"(*ACCEPT)a", "'(*AC': this kind of group"},
        {"(?#x)a", "'(?#x': this kind of group"},
        {"(?", "'(?': this kind of group"},
        {"a{,3}", "'{,3}': a repeat without a lower bound"},
        {"\\p{N}{1,3}+", "'{1,3}+'"},
        {"a{2}?", "'{2}?'"},
        {"(a", "missing closing parenthesis"},
        {"*a", "quantifier does not follow"},
        {"(?<=a+)b", "lookbehind"},
        {"(?:(?:(?:a{1000}){1000}){1000})", "too large"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *root = golden_needle_json();
        json_object_set_new(root, "pre_tokenizer",
                            json_pack("{s:s, s:{s:s}, s:s}", "type", "Split", "pattern", "Regex",
                                      rows[i].regex, "behavior", "Isolated"));
        rt_tokenizer *tok = NULL;
        assert_fails(golden_parse(root, "t.json", &tok), RT_ERR_UNSUPPORTED,
                     "t.json: regex, at byte ", rows[i].cause);
        json_decref(root);
    }
}

static void not_json(void **state)
{
    (void)state;
    rt_tokenizer *tok = NULL;
    assert_fails(rt_tokenizer_open("/nonexistent/t.json", &tok), RT_ERR_IO, "/nonexistent/t.json",
                 "");
    assert_fails(rt_tokenizer_parse("", 0, "t.json", &tok), RT_ERR_FORMAT, "t.json", "line 1");
    assert_fails(rt_tokenizer_parse("[]", 2, "t.json", &tok), RT_ERR_FORMAT, "t.json",
                 "not a JSON object");
    assert_fails(rt_tokenizer_parse("{}", 2, "t.json", &tok), RT_ERR_UNSUPPORTED, "t.json",
                 "no pre_tokenizer");
    assert_fails(rt_tokenizer_parse("{\"a\":1,\"a\":2}", 13, "t.json", &tok), RT_ERR_FORMAT,
                 "t.json", "duplicate");
    assert_null(tok);
}

static void token_too_long(void **state)
{
    (void)state;
    json_t *root = golden_needle_json();
    static char text[10001];
    memset(text, 'x', sizeof text - 1);
    json_object_set_new(json_object_get(json_object_get(root, "model"), "vocab"), text,
                        json_integer(5000));
    rt_tokenizer *tok;
    assert_fails(golden_parse(root, "t.json", &tok), RT_ERR_LIMIT, "t.json",
                 "of 10000 bytes, the limit is 8192");
    json_decref(root);
}

static rt_tokenizer *open_needle(void)
{
    rt_tokenizer *tok;
    assert_ok(rt_tokenizer_open(golden_path("models/needle-11m/tokenizer.json"), &tok));
    return tok;
}

static void invalid_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text, *at;
    } rows[] = {
        {"\x80", "byte 0"},         {"abc\xFF", "byte 3"},
        {"a\xC0\x80", "byte 1"},    {"\xE0\x80\x80", "byte 0"},
        {"\xED\xA0\x80", "byte 0"}, {"x\xF4\x90\x80\x80", "byte 1"},
        {"\xE4\xBD", "byte 0"},     {"ok \xE4\xBD\xA0 \xF0\x9F\x98", "byte 7"},
        {"\xC3", "byte 0"},         {"\xF8\x88\x80\x80\x80", "byte 0"},
    };
    rt_tokenizer *tok = open_needle();
    rt_ids ids = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_fails(
            rt_tokenizer_encode(tok, rows[i].text, strlen(rows[i].text), RT_SPECIAL_TEXT, &ids),
            RT_ERR_FORMAT, "text: not UTF-8", rows[i].at);
        assert_int_equal(ids.len, 0);
    }
    rt_tokenizer_close(tok);
}

static char *repeat(const char *unit, size_t times)
{
    size_t len = strlen(unit);
    char *text = malloc(len * times + 1);
    assert_non_null(text);
    for (size_t i = 0; i < times; i++)
        memcpy(text + i * len, unit, len);
    text[len * times] = '\0';
    return text;
}

// A megabyte or so of what each stage likes least. Quadratic work would take minutes.
static void huge_texts(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a",
        "the",
        " ",
        "\n",
        " \n",
        "\t x",
        "<",
        "<|im_",
        "<|im_end|>",
        "\xCC\x81",
        "\xCC\x81\xCC\xA3",
        "'",
        "9",
        "\xF0\x9F\x98\x80",
        "\xE4\xBD\xA0",
        "\xEA\xB0\x80\xE1\x86\xA8",
        "\xE1\xB2\x89",
    };
    rt_tokenizer *tok = open_needle();
    json_t *root = golden_needle_json();
    json_object_set_new(root, "normalizer", parse_value("{\"type\":\"NFC\"}"));
    rt_tokenizer *nfc;
    assert_ok(golden_parse(root, "nfc", &nfc));
    double start = rt_clock_now();
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        char *text = repeat(units[i], 400000);
        rt_ids ids = {0};
        assert_ok(rt_tokenizer_encode(tok, text, strlen(text), RT_SPECIAL_PARSE, &ids));
        assert_ok(rt_tokenizer_encode(nfc, text, strlen(text), RT_SPECIAL_TEXT, &ids));
        assert_true(ids.len > 0);
        rt_ids_free(&ids);
        free(text);
    }
    assert_true(rt_clock_now() - start < 120);
    rt_tokenizer_close(nfc);
    rt_tokenizer_close(tok);
    json_decref(root);
}

// The regex may come with a checkpoint: one that explodes ends in an error.
static void exploding_regex(void **state)
{
    (void)state;
    json_t *root = golden_needle_json();
    json_object_set_new(
        root, "pre_tokenizer",
        parse_value("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
                    "{\"Regex\":\"(?:(a+)+)+X\"},\"behavior\":\"Isolated\"},"
                    "{\"type\":\"ByteLevel\",\"use_regex\":false}]}"));
    rt_tokenizer *tok;
    rt_ids ids = {0};
    char *text = repeat("a", 60);
    text[59] = 'Y';
    char *with_x = repeat("X", 200000); // the match cannot be ruled out by a missing X
    char *both = malloc(200061);
    assert_non_null(both);
    memcpy(both, text, 60);
    memcpy(both + 60, with_x, 200001);
    assert_ok(golden_parse(root, "t.json", &tok));
    assert_fails(rt_tokenizer_encode(tok, both, 200060, RT_SPECIAL_TEXT, &ids), RT_ERR_LIMIT,
                 "t.json: the pre_tokenizer's regex gave up", "limit");
    assert_int_equal(ids.len, 0);
    free(both);
    free(with_x);
    free(text);
    rt_ids_free(&ids);
    rt_tokenizer_close(tok);
    json_decref(root);
}

// Every allocation that fails gives RT_ERR_NOMEM, nothing leaks, `out` is as before.
static void out_of_memory(void **state)
{
    (void)state;
    json_t *root = golden_needle_json();
    rt_status status = RT_ERR_NOMEM;
    for (long n = 1; status != RT_OK; n++) {
        rt_tokenizer *tok = NULL;
        rt_mem_fail_at(n);
        status = golden_parse(root, "t.json", &tok);
        rt_mem_fail_at(0);
        assert_true(status == RT_OK || status == RT_ERR_NOMEM);
        rt_tokenizer_close(tok);
    }
    json_object_set_new(root, "normalizer", parse_value("{\"type\":\"NFC\"}"));
    rt_tokenizer *tok;
    assert_ok(golden_parse(root, "nfc", &tok));
    char *text = repeat(
        "Be\xCC\x81 zzqjxkvwzzqjxkvwzzqjxkvwzzqjxkvwzzqjxkvwzzqjxkvw \xE1\xB2\x89<|im_end|>", 30);
    status = RT_ERR_NOMEM;
    for (long n = 1; status != RT_OK; n++) {
        rt_ids ids = {0};
        assert_ok(rt_ids_append(&ids, (int32_t[]){7}, 1));
        rt_mem_fail_at(n);
        status = rt_tokenizer_encode(tok, text, strlen(text), RT_SPECIAL_PARSE, &ids);
        rt_mem_fail_at(0);
        assert_true(status == RT_OK ? ids.len > 1 : status == RT_ERR_NOMEM && ids.len == 1);
        rt_ids_free(&ids);
    }
    free(text);
    rt_tokenizer_close(tok);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sections),       cmocka_unit_test(models),
        cmocka_unit_test(missing_bytes),  cmocka_unit_test(added_tokens),
        cmocka_unit_test(regexes),        cmocka_unit_test(not_json),
        cmocka_unit_test(token_too_long), cmocka_unit_test(invalid_utf8),
        cmocka_unit_test(huge_texts),     cmocka_unit_test(exploding_regex),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
