// SPDX-License-Identifier: Apache-2.0
// The public face of the tokenizer: open, close, look-ups, encode.
#include "runtime/text/tokenizer_int.h"

#include "runtime/base/mem.h"

#include <string.h>

enum {
    FILE_MAX = 256 << 20,
    JIT_STACK_FIRST = 32 << 10,
    JIT_STACK_MAX = 1 << 20,
    HEAP_LIMIT_KIB = 64 << 10, // of an interpreted match
    MATCH_LIMIT = 10000000,
};

static rt_status build(json_t *root, const char *name, rt_tokenizer **out)
{
    rt_tokenizer *tok;
    rt_status status = RT_ALLOC(tok, 1, "tokenizer");
    if (status == RT_OK) {
        status = rt_tok_load(root, name, tok);
        if (status == RT_OK)
            *out = tok;
        else
            rt_tokenizer_close(tok);
    }
    json_decref(root);
    return status;
}

rt_status rt_tokenizer_open(const char *path, rt_tokenizer **out)
{
    RT_CHECK_ARG(path && out);
    json_t *root;
    RT_TRY(rt_json_load(path, FILE_MAX, &root));
    return build(root, path, out);
}

rt_status rt_tokenizer_parse(const char *json, size_t len, const char *name, rt_tokenizer **out)
{
    RT_CHECK_ARG(json && name && out);
    json_t *root;
    RT_TRY(rt_json_parse(json, len, name, &root));
    return build(root, name, out);
}

void rt_tokenizer_close(rt_tokenizer *tok)
{
    if (!tok)
        return;
    rt_tok_stages_free(tok);
    rt_tok_matcher_free(&tok->raw);
    rt_tok_matcher_free(&tok->normalized);
    for (size_t i = 0; i < tok->n_added; i++)
        rt_free(tok->added[i].text);
    rt_free(tok->added);
    rt_free(tok->merges.slots);
    rt_tok_vocab_free(&tok->vocab);
    rt_free(tok->name);
    rt_free(tok);
}

int rt_tokenizer_size(const rt_tokenizer *tok)
{
    return (int)tok->vocab.size;
}

int rt_tokenizer_id(const rt_tokenizer *tok, const char *text)
{
    size_t len = strlen(text);
    for (size_t i = 0; i < tok->n_added; i++) {
        if (tok->added[i].len == len && memcmp(tok->added[i].text, text, len) == 0)
            return tok->added[i].id;
    }
    return rt_tok_vocab_text(&tok->vocab, text, len);
}

size_t rt_tokenizer_token_bytes(const rt_tokenizer *tok)
{
    enum { NFC_SHRINKS = 3 }; // the Kelvin sign becomes a K, three jamo a syllable
    size_t most = 1;
    if (tok->drops)
        return SIZE_MAX;
    for (size_t i = 0; i < tok->n_stages; i++)
        if (tok->stages[i].removed)
            return SIZE_MAX;
    for (size_t i = 0; i < tok->vocab.size; i++)
        if (tok->vocab.entries[i].len > most)
            most = tok->vocab.entries[i].len;
    for (size_t i = 0; i < tok->n_added; i++) {
        if (tok->added[i].lstrip || tok->added[i].rstrip)
            return SIZE_MAX;
        if (tok->added[i].len > most)
            most = tok->added[i].len;
    }
    return tok->nfc ? NFC_SHRINKS * most : most;
}

// Checks the UTF-8 of the whole text, and whether rt_tok_proxy has work in it.
static rt_status scan_text(const char *text, size_t len, bool *proxies)
{
    for (size_t at = 0; at < len;) {
        int32_t cp;
        size_t n = rt_utf8_next(text + at, len - at, &cp);
        if (cp < 0)
            return RT_FAIL(RT_ERR_FORMAT, "text: not UTF-8 at byte %zu", at);
        if (rt_tok_proxy(cp) != cp)
            *proxies = true;
        at += n;
    }
    return RT_OK;
}

static rt_status encoder_open(rt_tok_encoder *enc)
{
    enc->match = pcre2_match_data_create(1, NULL);
    enc->limits = pcre2_match_context_create(NULL);
    enc->stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_MAX, NULL);
    if (!enc->match || !enc->limits || !enc->stack)
        return RT_FAIL(RT_ERR_NOMEM, "out of memory: regex matcher");
    pcre2_set_match_limit(enc->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(enc->limits, HEAP_LIMIT_KIB);
    pcre2_jit_stack_assign(enc->limits, NULL, enc->stack);
    return RT_OK;
}

static void encoder_close(rt_tok_encoder *enc)
{
    pcre2_match_data_free(enc->match);
    pcre2_match_context_free(enc->limits);
    pcre2_jit_stack_free(enc->stack);
    rt_tok_symbols_free(&enc->symbols);
    rt_free(enc->nfc.cps);
    rt_str_free(&enc->normal);
    rt_str_free(&enc->shadow);
}

// A stretch without raw added tokens.
static rt_status encode_raw(rt_tok_encoder *enc, const char *text, size_t len)
{
    if (enc->tok->nfc) {
        enc->normal.len = 0;
        RT_TRY(rt_tok_nfc(&enc->nfc, text, len, &enc->normal));
        text = enc->normal.data;
        len = enc->normal.len;
    }
    return rt_tok_added_split(enc, &enc->tok->normalized, text, len, rt_tok_pretokenize);
}

rt_status rt_tokenizer_encode(const rt_tokenizer *tok, const char *text, size_t len,
                              rt_special special, rt_ids *out)
{
    RT_CHECK_ARG(tok && (text || len == 0) && out);
    rt_tok_encoder enc = {.tok = tok, .special = special, .out = out};
    RT_TRY(scan_text(text, len, &enc.proxies));
    size_t before = out->len;
    rt_status status = encoder_open(&enc);
    if (status == RT_OK)
        status = rt_tok_added_split(&enc, &tok->raw, text, len, encode_raw);
    if (status != RT_OK)
        out->len = before;
    encoder_close(&enc);
    return status;
}
