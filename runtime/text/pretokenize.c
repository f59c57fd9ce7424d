// SPDX-License-Identifier: Apache-2.0
// The pre-tokeniser: stages that cut a text into pieces, each stage working on the
// pieces of the one before; the last pieces are the words that merges work on.
// Regexes see the text through rt_tok_proxy (`shadow`), byte for byte in step with
// the real one.
#include "runtime/text/tokenizer_int.h"

#include <string.h>
#include <utf8proc.h>

static const char gpt2_regex[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                                 "|\\s+(?!\\S)|\\s+";

static rt_status compile(const char *pattern, const char *name, rt_tok_stage *stage)
{
    uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK | PCRE2_LITERAL;
    if (!stage->literal) {
        options = PCRE2_UTF | PCRE2_NO_UTF_CHECK | PCRE2_UCP | PCRE2_MULTILINE;
        RT_TRY(rt_tok_regex_check(pattern, name));
    }
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return RT_FAIL(RT_ERR_NOMEM, "out of memory: regex");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int error;
    PCRE2_SIZE at;
    stage->code =
        pcre2_compile((PCRE2_SPTR)pattern, strlen(pattern), options, &error, &at, context);
    pcre2_compile_context_free(context);
    if (!stage->code) {
        char text[160];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: regex, at byte %zu: %s", name, (size_t)at, text);
    }
    stage->jit = pcre2_jit_compile(stage->code, PCRE2_JIT_COMPLETE) == 0;
    return RT_OK;
}

static rt_status load_split(const json_t *item, const char *name, rt_tok_stage *stage)
{
    static const char *const keys[] = {"type", "pattern", "behavior", "invert", NULL};
    RT_TRY(rt_tok_only_keys(item, "pre_tokenizer Split", name, keys));
    const char *behavior = NULL, *regex = NULL, *string = NULL;
    RT_TRY(rt_json_str(item, "behavior", name, true, &behavior));
    RT_TRY(rt_json_bool(item, "invert", name, &stage->invert));
    if (strcmp(behavior, "Removed") == 0)
        stage->removed = true;
    else if (strcmp(behavior, "Isolated") != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: pre_tokenizer Split: behavior '%s'", name,
                       behavior);
    const json_t *pattern = json_object_get(item, "pattern");
    RT_TRY(rt_json_str(pattern, "Regex", name, false, &regex));
    RT_TRY(rt_json_str(pattern, "String", name, false, &string));
    if (!regex == !string)
        return RT_FAIL(RT_ERR_FORMAT, "%s: pre_tokenizer Split: 'pattern' needs Regex or String",
                       name);
    if (string && !*string)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: pre_tokenizer Split: empty pattern", name);
    stage->literal = string != NULL;
    return compile(regex ? regex : string, name, stage);
}

static rt_status load_byte_level(const json_t *item, const char *name, rt_tok_stage *stage)
{
    static const char *const keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                       NULL};
    RT_TRY(rt_tok_only_keys(item, "pre_tokenizer ByteLevel", name, keys));
    bool use_regex = true, trim;
    RT_TRY(rt_json_bool(item, "add_prefix_space", name, &stage->prefix_space));
    RT_TRY(rt_json_bool(item, "use_regex", name, &use_regex));
    RT_TRY(rt_json_bool(item, "trim_offsets", name, &trim)); // offsets are not given out
    return use_regex ? compile(gpt2_regex, name, stage) : RT_OK;
}

// One pre-tokeniser or, one level deep, a Sequence of them. ByteLevel comes last: it
// is what turns text into bytes.
static rt_status load_item(const json_t *item, const char *name, bool nested, bool *bytes,
                           rt_tokenizer *tok)
{
    const char *type = NULL;
    RT_TRY(rt_json_str(item, "type", name, true, &type));
    if (strcmp(type, "Sequence") == 0 && !nested) {
        static const char *const keys[] = {"type", "pretokenizers", NULL};
        RT_TRY(rt_tok_only_keys(item, "pre_tokenizer Sequence", name, keys));
        const json_t *list = json_object_get(item, "pretokenizers");
        if (!json_is_array(list))
            return RT_FAIL(RT_ERR_FORMAT, "%s: pre_tokenizer Sequence: 'pretokenizers' is missing",
                           name);
        size_t i;
        json_t *each;
        json_array_foreach(list, i, each) RT_TRY(load_item(each, name, true, bytes, tok));
        return RT_OK;
    }
    if (tok->n_stages == RT_TOK_STAGES_MAX)
        return RT_FAIL(RT_ERR_LIMIT, "%s: more than %d pre-tokenizers", name, RT_TOK_STAGES_MAX);
    if (*bytes)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: pre_tokenizer '%s' after ByteLevel", name, type);
    rt_tok_stage *stage = &tok->stages[tok->n_stages++];
    if (strcmp(type, "Split") == 0)
        return load_split(item, name, stage);
    if (strcmp(type, "ByteLevel") != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: pre_tokenizer '%s'", name, type);
    *bytes = true;
    return load_byte_level(item, name, stage);
}

rt_status rt_tok_stages_load(const json_t *pre, const char *name, rt_tokenizer *tok)
{
    bool bytes = false;
    if (!json_is_object(pre))
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: no pre_tokenizer", name);
    RT_TRY(load_item(pre, name, false, &bytes, tok));
    if (!bytes)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: pre_tokenizer without ByteLevel", name);
    return RT_OK;
}

void rt_tok_stages_free(rt_tokenizer *tok)
{
    for (size_t i = 0; i < tok->n_stages; i++)
        pcre2_code_free(tok->stages[i].code);
    tok->n_stages = 0;
}

// The next match at or after `from`: RT_OK with *found, [*start, *end).
static rt_status next_match(rt_tok_encoder *enc, const rt_tok_stage *stage, const char *text,
                            size_t len, size_t from, bool *found, size_t *start, size_t *end)
{
    int n;
    if (stage->jit)
        n = pcre2_jit_match(stage->code, (PCRE2_SPTR)text, len, from, 0, enc->match, enc->limits);
    else
        n = pcre2_match(stage->code, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK, enc->match,
                        enc->limits);
    *found = n >= 0;
    if (n == PCRE2_ERROR_NOMATCH)
        return RT_OK;
    if (n < 0) {
        char message[160];
        pcre2_get_error_message(n, (PCRE2_UCHAR *)message, sizeof message);
        return RT_FAIL(n == PCRE2_ERROR_NOMEMORY ? RT_ERR_NOMEM : RT_ERR_LIMIT,
                       "%s: the pre_tokenizer's regex gave up: %s", enc->tok->name, message);
    }
    const PCRE2_SIZE *pair = pcre2_get_ovector_pointer(enc->match);
    *start = pair[0];
    *end = pair[1];
    return RT_OK;
}

static size_t char_len(const char *text, size_t left)
{
    int32_t cp;
    return rt_utf8_next(text, left, &cp);
}

static rt_status run_stage(rt_tok_encoder *enc, size_t nth, const char *text, const char *shadow,
                           size_t len);

static rt_status piece(rt_tok_encoder *enc, size_t nth, const char *text, const char *shadow,
                       size_t start, size_t end, bool is_match)
{
    const rt_tok_stage *stage = &enc->tok->stages[nth];
    if (start == end || (stage->removed && is_match != stage->invert))
        return RT_OK;
    return run_stage(enc, nth + 1, text + start, shadow + start, end - start);
}

static rt_status split(rt_tok_encoder *enc, size_t nth, const char *text, const char *shadow,
                       size_t len)
{
    const rt_tok_stage *stage = &enc->tok->stages[nth];
    const char *subject = stage->literal ? text : shadow;
    size_t done = 0, from = 0, last_end = SIZE_MAX;
    while (from <= len) {
        bool found;
        size_t start, end;
        RT_TRY(next_match(enc, stage, subject, len, from, &found, &start, &end));
        if (!found)
            break;
        if (start == end && end == last_end) { // an empty match right after a match
            if (from == len)
                break;
            from += char_len(text + from, len - from);
            continue;
        }
        RT_TRY(piece(enc, nth, text, shadow, done, start, false));
        RT_TRY(piece(enc, nth, text, shadow, start, end, true));
        done = from = last_end = end;
    }
    return piece(enc, nth, text, shadow, done, len, false);
}

static rt_status with_space(rt_tok_encoder *enc, size_t nth, const char *text, const char *shadow,
                            size_t len)
{
    rt_str both = {0}; // text and shadow, each with its space
    rt_status status = rt_str_append(&both, " ", 1);
    if (status == RT_OK)
        status = rt_str_append(&both, text, len);
    if (status == RT_OK && text != shadow)
        status = rt_str_append(&both, " ", 1);
    if (status == RT_OK && text != shadow)
        status = rt_str_append(&both, shadow, len);
    if (status == RT_OK) {
        const char *shade = both.data + (text != shadow ? len + 1 : 0);
        status = enc->tok->stages[nth].code ? split(enc, nth, both.data, shade, len + 1)
                                            : run_stage(enc, nth + 1, both.data, shade, len + 1);
    }
    rt_str_free(&both);
    return status;
}

static rt_status run_stage(rt_tok_encoder *enc, size_t nth, const char *text, const char *shadow,
                           size_t len)
{
    if (nth == enc->tok->n_stages)
        return rt_tok_bpe(enc->tok, &enc->symbols, text, len, enc->out);
    const rt_tok_stage *stage = &enc->tok->stages[nth];
    if (stage->prefix_space && text[0] != ' ')
        return with_space(enc, nth, text, shadow, len);
    if (!stage->code)
        return run_stage(enc, nth + 1, text, shadow, len);
    return split(enc, nth, text, shadow, len);
}

rt_status rt_tok_pretokenize(rt_tok_encoder *enc, const char *text, size_t len)
{
    if (len == 0)
        return RT_OK;
    if (!enc->proxies)
        return run_stage(enc, 0, text, text, len);
    enc->shadow.len = 0;
    RT_TRY(rt_str_append(&enc->shadow, text, len));
    for (size_t i = 0; i < len;) {
        int32_t cp;
        size_t n = rt_utf8_next(text + i, len - i, &cp);
        int32_t proxy = rt_tok_proxy(cp);
        if (proxy != cp)
            utf8proc_encode_char(proxy, (utf8proc_uint8_t *)enc->shadow.data + i);
        i += n;
    }
    return run_stage(enc, 0, text, enc->shadow.data, len);
}
