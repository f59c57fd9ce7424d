// SPDX-License-Identifier: Apache-2.0
// "model" and "added_tokens" of a tokenizer.json: the vocabulary, the merges and the
// tokens beside them.
#include "runtime/text/tokenizer_int.h"

#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

static rt_status refuse_text(const json_t *model, const char *key, const char *name)
{
    const char *text = "";
    RT_TRY(rt_json_str(model, key, name, false, &text));
    if (*text)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: model: '%s' is '%s'", name, key, text);
    return RT_OK;
}

// *instead: the option by which HF writes something else for a byte without a token; NULL: none.
static rt_status check_options(const json_t *model, const char *name, rt_tokenizer *tok,
                               const char **instead)
{
    static const char *const keys[] = {"type",
                                       "dropout",
                                       "unk_token",
                                       "continuing_subword_prefix",
                                       "end_of_word_suffix",
                                       "fuse_unk",
                                       "byte_fallback",
                                       "ignore_merges",
                                       "vocab",
                                       "merges",
                                       NULL};
    const char *type = "BPE"; // older files do not say
    RT_TRY(rt_json_str(model, "type", name, false, &type));
    if (strcmp(type, "BPE") != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: model '%s'", name, type);
    RT_TRY(rt_tok_only_keys(model, "model", name, keys));
    double dropout = 0;
    RT_TRY(rt_json_real(model, "dropout", name, false, 0, 1, &dropout));
    if (dropout > 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: model: 'dropout' is %g", name, dropout);
    RT_TRY(refuse_text(model, "continuing_subword_prefix", name));
    RT_TRY(refuse_text(model, "end_of_word_suffix", name));
    bool fallback = false;
    RT_TRY(rt_json_bool(model, "byte_fallback", name, &fallback));
    const char *unknown = NULL;
    RT_TRY(rt_json_str(model, "unk_token", name, false, &unknown));
    *instead = fallback ? "byte_fallback" : unknown ? "unk_token" : NULL;
    return rt_json_bool(model, "ignore_merges", name, &tok->ignore_merges);
}

static rt_status check_id(const json_t *value, const char *text, const char *name, size_t *size)
{
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (id < 0 || id > RT_TOK_ID_MAX)
        return RT_FAIL(RT_ERR_FORMAT, "%s: token '%.64s': the id is not in [0, %d]", name, text,
                       RT_TOK_ID_MAX);
    if (strlen(text) > RT_TOK_TEXT_MAX)
        return RT_FAIL(RT_ERR_LIMIT, "%s: token '%.64s...' of %zu bytes, the limit is %d", name,
                       text, strlen(text), RT_TOK_TEXT_MAX);
    if ((size_t)id >= *size)
        *size = (size_t)id + 1;
    return RT_OK;
}

// Highest id + 1 over both lists; checks every id and text on the way.
static rt_status measure(const json_t *vocab, const json_t *added, const char *name, size_t *size)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)vocab, key, value) RT_TRY(check_id(value, key, name, size));
    size_t i;
    json_array_foreach(added, i, value)
    {
        const char *content = NULL;
        RT_TRY(rt_json_str(value, "content", name, true, &content));
        RT_TRY(check_id(json_object_get(value, "id"), content, name, size));
    }
    return RT_OK;
}

static rt_status load_vocab(const json_t *vocab, const char *name, rt_tokenizer *tok)
{
    const char *text;
    json_t *value;
    json_object_foreach((json_t *)vocab, text, value)
    {
        int32_t id = (int32_t)json_integer_value(value);
        if (tok->vocab.entries[id].flags)
            return RT_FAIL(RT_ERR_FORMAT, "%s: token '%.64s': id %d is taken", name, text, id);
        RT_TRY(rt_tok_vocab_put(&tok->vocab, id, text, strlen(text)));
    }
    return RT_OK;
}

static rt_status load_flags(const json_t *item, const char *name, rt_tok_added *token)
{
    RT_TRY(rt_json_bool(item, "special", name, &token->special));
    token->guarded = token->special || rt_tok_is_mask_spelling(token->text);
    token->normalized = !token->special;
    RT_TRY(rt_json_bool(item, "normalized", name, &token->normalized));
    RT_TRY(rt_json_bool(item, "single_word", name, &token->single_word));
    RT_TRY(rt_json_bool(item, "lstrip", name, &token->lstrip));
    return rt_json_bool(item, "rstrip", name, &token->rstrip);
}

// A vocabulary entry of the same text must have the same id, and the other way round.
static rt_status check_against_vocab(const rt_tokenizer *tok, const rt_tok_added *token,
                                     const char *name)
{
    const rt_tok_entry *e = &tok->vocab.entries[token->id];
    if (e->added >= 0)
        return RT_FAIL(RT_ERR_FORMAT, "%s: added token '%.64s': id %d is taken", name, token->text,
                       token->id);
    int32_t known = rt_tok_vocab_text(&tok->vocab, token->text, token->len);
    if (known >= 0 ? known != token->id : e->flags != 0)
        return RT_FAIL(RT_ERR_FORMAT, "%s: added token '%.64s' has id %d, the vocabulary %s", name,
                       token->text, token->id,
                       known >= 0 ? "gives it another" : "gives it to another token");
    return RT_OK;
}

static rt_status load_added(const json_t *list, const char *name, rt_tokenizer *tok)
{
    static const char *const keys[] = {"id",     "content",    "single_word", "lstrip",
                                       "rstrip", "normalized", "special",     NULL};
    RT_TRY(RT_ALLOC(tok->added, json_array_size(list), "added tokens"));
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        RT_TRY(rt_tok_only_keys(item, "added token", name, keys));
        const char *content = json_string_value(json_object_get(item, "content"));
        if (!*content)
            continue; // HF passes over it
        rt_tok_added *token = &tok->added[tok->n_added];
        token->text = rt_mem_strdup(content, "added token");
        if (!token->text)
            return RT_ERR_NOMEM;
        tok->n_added++;
        token->len = strlen(content);
        token->id = (int32_t)json_integer_value(json_object_get(item, "id"));
        RT_TRY(load_flags(item, name, token));
        RT_TRY(check_against_vocab(tok, token, name));
        tok->vocab.entries[token->id].added = (int32_t)tok->n_added - 1;
        if (token->guarded)
            tok->vocab.entries[token->id].flags |= RT_TOK_SPECIAL;
    }
    return RT_OK;
}

// A merge is "left right" or ["left", "right"]. *skip for the line "#version ...".
static rt_status read_merge(const json_t *item, size_t rank, const char *name, const char *part[2],
                            size_t len[2], bool *skip)
{
    *skip = false;
    if (json_is_string(item)) {
        part[0] = json_string_value(item);
        const char *space = strchr(part[0], ' ');
        *skip = strncmp(part[0], "#version", 8) == 0;
        if (*skip)
            return RT_OK;
        if (space && !strchr(space + 1, ' ')) {
            len[0] = (size_t)(space - part[0]);
            part[1] = space + 1;
            len[1] = strlen(part[1]);
            return RT_OK;
        }
    }
    if (json_is_array(item) && json_array_size(item) == 2) {
        for (size_t i = 0; i < 2; i++) {
            part[i] = json_string_value(json_array_get(item, i));
            len[i] = json_string_length(json_array_get(item, i));
        }
        if (part[0] && part[1])
            return RT_OK;
    }
    return RT_FAIL(RT_ERR_FORMAT, "%s: merge %zu is not a pair of tokens", name, rank);
}

static rt_status load_merge(const json_t *item, size_t rank, const char *name, rt_tokenizer *tok)
{
    const char *part[2];
    size_t len[2];
    bool skip;
    RT_TRY(read_merge(item, rank, name, part, len, &skip));
    if (skip)
        return RT_OK;
    char text[2 * RT_TOK_TEXT_MAX];
    if (len[0] > RT_TOK_TEXT_MAX || len[1] > RT_TOK_TEXT_MAX)
        return RT_FAIL(RT_ERR_LIMIT, "%s: merge %zu is too long", name, rank);
    memcpy(text, part[0], len[0]);
    memcpy(text + len[0], part[1], len[1]);
    int32_t left = rt_tok_vocab_text(&tok->vocab, part[0], len[0]);
    int32_t right = rt_tok_vocab_text(&tok->vocab, part[1], len[1]);
    int32_t both = rt_tok_vocab_text(&tok->vocab, text, len[0] + len[1]);
    if (left < 0 || right < 0 || both < 0) {
        size_t shown = left < 0 ? len[0] : right < 0 ? len[1] : len[0] + len[1];
        return RT_FAIL(RT_ERR_FORMAT, "%s: merge %zu: '%.*s' is not in the vocabulary", name, rank,
                       (int)(shown < 64 ? shown : 64), right < 0 && left >= 0 ? part[1] : text);
    }
    if (tok->vocab.entries[both].flags & RT_TOK_SPECIAL)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: merge %zu makes the special token '%.*s'", name,
                       rank, (int)(len[0] + len[1]), text);
    rt_tok_merges_put(&tok->merges, left, right, (uint32_t)rank, both);
    return RT_OK;
}

// A byte of UTF-8 without a token is left out, as in HF; what HF writes `instead` of it, if
// something, is not there, nor needed where every byte has a token.
static rt_status load_bytes(const char *name, const char *instead, rt_tokenizer *tok)
{
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        int32_t id = rt_tok_vocab_bytes(&tok->vocab, &byte, 1);
        bool in_utf8 = b != 0xC0 && b != 0xC1 && b < 0xF5;
        tok->drops |= id < 0 && in_utf8;
        if (id < 0 && in_utf8 && instead)
            return RT_FAIL(RT_ERR_UNSUPPORTED,
                           "%s: model: '%s', and the vocabulary has no token for byte 0x%02X", name,
                           instead, (unsigned)b);
        if (id >= 0 && (tok->vocab.entries[id].flags & RT_TOK_SPECIAL))
            return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: the token of byte 0x%02X is special", name,
                           (unsigned)b);
        tok->byte_id[b] = id;
    }
    return RT_OK;
}

rt_status rt_tok_model_load(const json_t *model, const json_t *added, const char *name,
                            rt_tokenizer *tok)
{
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *merges = json_object_get(model, "merges");
    if (!json_is_object(model))
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'model' is missing", name);
    const char *instead = NULL;
    RT_TRY(check_options(model, name, tok, &instead));
    if (!json_is_object(vocab) || !json_is_array(merges))
        return RT_FAIL(RT_ERR_FORMAT, "%s: model: 'vocab' or 'merges' is missing", name);
    if (added && !json_is_array(added) && !json_is_null(added))
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'added_tokens' is not an array", name);
    size_t size = 0, i;
    json_t *item;
    RT_TRY(measure(vocab, added, name, &size));
    RT_TRY(rt_tok_vocab_init(&tok->vocab, size, json_object_size(vocab)));
    RT_TRY(load_vocab(vocab, name, tok));
    RT_TRY(load_added(added, name, tok));
    RT_TRY(load_bytes(name, instead, tok));
    RT_TRY(rt_tok_merges_init(&tok->merges, json_array_size(merges)));
    json_array_foreach(merges, i, item) RT_TRY(load_merge(item, i, name, tok));
    return RT_OK;
}
