// SPDX-License-Identifier: Apache-2.0
// The tokenizer against Hugging Face's, id by id and byte by byte: golden files of
// tools/golden/make_tokenizer_golden.py. LOSA_QWEN3_TOKENIZER is Qwen3's tokenizer.json.
#include "tests/unit/tokenizer_golden.h"

#include <pthread.h>

static rt_tokenizer *qwen3, *needle;

static int open_tokenizers(void **state)
{
    (void)state;
    assert_ok(rt_tokenizer_open(LOSA_QWEN3_TOKENIZER, &qwen3));
    assert_ok(rt_tokenizer_open(golden_path("models/needle-11m/tokenizer.json"), &needle));
    return 0;
}

static int close_tokenizers(void **state)
{
    (void)state;
    rt_tokenizer_close(qwen3);
    rt_tokenizer_close(needle);
    return 0;
}

static bool same_ids(const rt_ids *ids, const json_t *wanted)
{
    if (ids->len != json_array_size(wanted))
        return false;
    for (size_t i = 0; i < ids->len; i++) {
        if (ids->data[i] != json_integer_value(json_array_get(wanted, i)))
            return false;
    }
    return true;
}

static void report(const char *what, const json_t *text, const rt_ids *ids, const json_t *wanted)
{
    char *shown = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    char *right = json_dumps(wanted, JSON_COMPACT);
    print_error("%s: %.600s\nwanted %.600s\ngot   ", what, shown, right);
    for (size_t i = 0; i < ids->len && i < 100; i++)
        print_error(" %d", ids->data[i]);
    print_error("\n");
    free(shown);
    free(right);
}

// Number of modes (special tokens parsed, or as text) whose ids differ.
static int encode_one(const char *what, const rt_tokenizer *tok, const json_t *line)
{
    static const char *const key[] = {[RT_SPECIAL_TEXT] = "ids_text", [RT_SPECIAL_PARSE] = "ids"};
    const json_t *text = json_object_get(line, "text");
    int failures = 0;
    for (int mode = RT_SPECIAL_TEXT; mode <= RT_SPECIAL_PARSE; mode++) {
        rt_ids ids = {0};
        const json_t *wanted = json_object_get(line, key[mode]);
        assert_true(json_is_array(wanted));
        assert_ok(rt_tokenizer_encode(tok, json_string_value(text), json_string_length(text),
                                      (rt_special)mode, &ids));
        if (!same_ids(&ids, wanted)) {
            failures++;
            report(what, text, &ids, wanted);
        }
        rt_ids_free(&ids);
    }
    return failures;
}

static void encode_lines(const char *path, const rt_tokenizer *tok, size_t at_least)
{
    json_t *lines = golden_lines(path), *line;
    size_t i, n = 0;
    int failures = 0;
    json_array_foreach(lines, i, line)
    {
        if (json_object_get(line, "text")) {
            failures += encode_one(path, tok, line);
            n++;
        }
    }
    json_decref(lines);
    assert_true(n >= at_least);
    assert_int_equal(failures, 0);
}

// Decodes in pushes of `step` ids.
static rt_str decode(const rt_tokenizer *tok, bool keep, const json_t *ids, size_t step)
{
    rt_str out = {0};
    rt_detok *d;
    int32_t chunk[64];
    assert_true(step <= 64);
    assert_ok(rt_detok_open(tok, keep, &d));
    for (size_t i = 0; i < json_array_size(ids); i += step) {
        size_t n = 0;
        for (; n < step && i + n < json_array_size(ids); n++)
            chunk[n] = (int32_t)json_integer_value(json_array_get(ids, i + n));
        size_t before = out.len;
        assert_ok(rt_detok_push(d, chunk, n, &out));
        if (before < out.len) // never the middle of a character
            assert_true(((unsigned char)out.data[before] & 0xC0) != 0x80);
    }
    assert_ok(rt_detok_flush(d, &out));
    rt_detok_close(d);
    return out;
}

static void decode_lines(const char *path, const rt_tokenizer *tok)
{
    static const size_t steps[] = {1, 3, 64};
    json_t *lines = golden_lines(path), *line;
    size_t i, n = 0;
    json_array_foreach(lines, i, line)
    {
        const json_t *ids = json_object_get(line, "decode");
        for (int k = 0; ids && k < 6; k++) {
            const json_t *wanted = json_object_get(line, k & 1 ? "keep" : "skip");
            rt_str got = decode(tok, k & 1, ids, steps[k / 2]);
            assert_int_equal(got.len, json_string_length(wanted));
            if (got.len > 0)
                assert_memory_equal(got.data, json_string_value(wanted), got.len);
            rt_str_free(&got);
            n++;
        }
    }
    json_decref(lines);
    assert_true(n > 200);
}

static void encode_qwen3(void **state)
{
    (void)state;
    encode_lines("tests/golden/tokenizer/qwen3.jsonl", qwen3, 600);
}

static void encode_needle(void **state)
{
    (void)state;
    encode_lines("tests/golden/tokenizer/needle.jsonl", needle, 350);
}

static void decode_qwen3(void **state)
{
    (void)state;
    decode_lines("tests/golden/tokenizer/qwen3.jsonl", qwen3);
}

static void decode_needle(void **state)
{
    (void)state;
    decode_lines("tests/golden/tokenizer/needle.jsonl", needle);
}

// Other pre-tokenisers, added tokens with flags, spellings of merges.
static void encode_variants(void **state)
{
    (void)state;
    json_t *variants = golden_lines("tests/golden/tokenizer/variants.jsonl"), *variant, *line;
    size_t i, k;
    int failures = 0;
    json_array_foreach(variants, i, variant)
    {
        const char *name = json_string_value(json_object_get(variant, "name"));
        json_t *root = golden_needle_json();
        json_object_update(root, json_object_get(variant, "set"));
        json_t *model = json_object_get(root, "model"), *token;
        json_object_update(model, json_object_get(variant, "model_set"));
        json_array_foreach(json_object_get(variant, "vocab_del"), k, token)
            json_object_del(json_object_get(model, "vocab"), json_string_value(token));
        rt_tokenizer *tok;
        assert_ok(golden_parse(root, name, &tok));
        json_array_foreach(json_object_get(variant, "cases"), k, line) failures +=
            encode_one(name, tok, line);
        rt_tokenizer_close(tok);
        json_decref(root);
    }
    json_decref(variants);
    assert_int_equal(failures, 0);
}

static void look_up(void **state)
{
    (void)state;
    assert_int_equal(rt_tokenizer_size(qwen3), 151669);
    assert_int_equal(rt_tokenizer_id(qwen3, "<|im_end|>"), 151645);
    assert_int_equal(rt_tokenizer_id(qwen3, "<think>"), 151667);
    assert_int_equal(rt_tokenizer_id(qwen3, "Hello"), 9707);
    assert_int_equal(rt_tokenizer_id(qwen3, "<|MASK|>"), -1);
    assert_int_equal(rt_tokenizer_id(qwen3, ""), -1);
    assert_int_equal(rt_tokenizer_id(needle, "<|MASK|>"), 3);
}

static bool holds(const rt_ids *ids, int32_t id)
{
    for (size_t i = 0; i < ids->len; i++) {
        if (ids->data[i] == id)
            return true;
    }
    return false;
}

// SDAR lists its mask as special: false. HF makes an id of it in any text; losa
// does not in user content.
static void mask_in_user_content(void **state)
{
    (void)state;
    static const char text[] = "fill <|MASK|> in";
    json_t *root = golden_needle_json();
    json_t *mask = json_array_get(json_object_get(root, "added_tokens"), 3);
    assert_string_equal(json_string_value(json_object_get(mask, "content")), "<|MASK|>");
    json_object_set_new(mask, "special", json_false());
    rt_tokenizer *tok;
    rt_ids ids = {0};
    assert_ok(golden_parse(root, "sdar", &tok));
    assert_ok(rt_tokenizer_encode(tok, text, sizeof text - 1, RT_SPECIAL_TEXT, &ids));
    assert_false(holds(&ids, 3));
    assert_ok(rt_tokenizer_encode(tok, text, sizeof text - 1, RT_SPECIAL_PARSE, &ids));
    assert_true(holds(&ids, 3));
    rt_ids_free(&ids);
    rt_tokenizer_close(tok);
    json_decref(root);
}

// An added token that the vocabulary has too is written as the vocabulary's: a space, not the
// letter that stands for it there.
static void added_twice(void **state)
{
    (void)state;
    static const char text[] = "see a cat";
    json_t *root = golden_needle_json();
    const char *content = "\304\240a"; // U+0120, a
    const json_t *id =
        json_object_get(json_object_get(json_object_get(root, "model"), "vocab"), content);
    assert_non_null(id);
    json_array_append_new(json_object_get(root, "added_tokens"),
                          json_pack("{s:I, s:s, s:b}", "id", json_integer_value(id), "content",
                                    content, "special", 0));
    rt_tokenizer *tok;
    rt_ids ids = {0};
    assert_ok(golden_parse(root, "twice", &tok));
    assert_ok(rt_tokenizer_encode(tok, text, sizeof text - 1, RT_SPECIAL_TEXT, &ids));
    rt_str out = {0};
    rt_detok *d;
    assert_ok(rt_detok_open(tok, false, &d));
    assert_ok(rt_detok_push(d, ids.data, ids.len, &out));
    assert_ok(rt_detok_flush(d, &out));
    assert_string_equal(out.data, text);
    rt_detok_close(d);
    rt_str_free(&out);
    rt_ids_free(&ids);
    rt_tokenizer_close(tok);
    json_decref(root);
}

static void encode_appends(void **state)
{
    (void)state;
    rt_ids ids = {0};
    assert_ok(rt_tokenizer_encode(qwen3, "Hello", 5, RT_SPECIAL_TEXT, &ids));
    assert_ok(rt_tokenizer_encode(qwen3, "Hello", 5, RT_SPECIAL_TEXT, &ids));
    assert_ok(rt_tokenizer_encode(qwen3, NULL, 0, RT_SPECIAL_TEXT, &ids));
    assert_int_equal(ids.len, 2);
    assert_int_equal(ids.data[0], ids.data[1]);
    rt_ids_free(&ids);
}

// Byte by byte, U+1F600 appears with its last byte; what never ends is U+FFFD.
static void hold_back(void **state)
{
    (void)state;
    static const char *const bytes[] = {"ð", "Ł", "ĺ", "Ģ"}; // f0 9f 98 80 as spelled in the file
    rt_detok *d;
    rt_str out = {0};
    assert_ok(rt_detok_open(needle, true, &d));
    for (int i = 0; i < 4; i++) {
        int32_t id = rt_tokenizer_id(needle, bytes[i]);
        assert_true(id >= 0);
        assert_ok(rt_detok_push(d, &id, 1, &out));
        assert_int_equal(out.len, i < 3 ? 0 : 4);
    }
    assert_string_equal(out.data, "\xF0\x9F\x98\x80");
    int32_t lead[] = {rt_tokenizer_id(needle, "ð"), rt_tokenizer_id(needle, "Ł"), -1, 1 << 30};
    assert_ok(rt_detok_push(d, lead, 4, &out));
    assert_int_equal(out.len, 4);
    assert_ok(rt_detok_flush(d, &out));
    assert_string_equal(out.data, "\xF0\x9F\x98\x80\xEF\xBF\xBD");
    assert_ok(rt_detok_flush(d, &out));
    assert_int_equal(out.len, 7);
    rt_str_free(&out);
    rt_detok_close(d);
}

static void *encode_often(void *failed)
{
    static const char text[] =
        "Don't panic: caf\x65\xCC\x81, 42 \xE4\xBD\xA0\xE5\xA5\xBD <|im_end|>";
    rt_ids first = {0};
    *(bool *)failed = rt_tokenizer_encode(qwen3, text, sizeof text - 1, RT_SPECIAL_PARSE, &first);
    for (int i = 0; i < 50; i++) {
        rt_ids ids = {0};
        if (rt_tokenizer_encode(qwen3, text, sizeof text - 1, RT_SPECIAL_PARSE, &ids) != RT_OK ||
            ids.len != first.len || memcmp(ids.data, first.data, ids.len * sizeof *ids.data) != 0)
            *(bool *)failed = true;
        rt_ids_free(&ids);
    }
    rt_ids_free(&first);
    return NULL;
}

static void share_between_threads(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    pthread_t thread[THREADS];
    bool failed[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, encode_often, &failed[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(thread[i], NULL), 0);
        assert_false(failed[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encode_qwen3),          cmocka_unit_test(encode_needle),
        cmocka_unit_test(encode_variants),       cmocka_unit_test(decode_qwen3),
        cmocka_unit_test(decode_needle),         cmocka_unit_test(look_up),
        cmocka_unit_test(mask_in_user_content),  cmocka_unit_test(added_twice),
        cmocka_unit_test(encode_appends),        cmocka_unit_test(hold_back),
        cmocka_unit_test(share_between_threads),
    };
    return cmocka_run_group_tests(tests, open_tokenizers, close_tokenizers);
}
