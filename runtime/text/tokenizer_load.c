// SPDX-License-Identifier: Apache-2.0
// The sections of a tokenizer.json. Whatever would change the ids and is not
// implemented is refused by name. "truncation" and "padding" are settings of a caller
// in HF and are ignored, as transformers does.
#include "runtime/text/tokenizer_int.h"

#include "runtime/base/mem.h"

#include <string.h>

static rt_status load_normalizer(const json_t *item, const char *name, bool nested,
                                 rt_tokenizer *tok)
{
    if (!item || json_is_null(item))
        return RT_OK;
    const char *type = NULL;
    RT_TRY(rt_json_str(item, "type", name, true, &type));
    if (strcmp(type, "NFC") == 0) {
        tok->nfc = true;
        return RT_OK;
    }
    const json_t *list = json_object_get(item, "normalizers");
    if (strcmp(type, "Sequence") != 0 || nested || !json_is_array(list))
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: normalizer '%s'", name, type);
    size_t i;
    json_t *each;
    json_array_foreach(list, i, each) RT_TRY(load_normalizer(each, name, true, tok));
    return RT_OK;
}

// A template that is just the text adds nothing.
static bool template_is_plain(const json_t *item)
{
    const json_t *single = json_object_get(item, "single");
    return json_array_size(single) == 1 &&
           json_object_get(json_array_get(single, 0), "Sequence") != NULL;
}

static rt_status check_post_processor(const json_t *item, const char *name, bool nested)
{
    if (!item || json_is_null(item))
        return RT_OK;
    const char *type = NULL;
    RT_TRY(rt_json_str(item, "type", name, true, &type));
    if (strcmp(type, "ByteLevel") == 0)
        return RT_OK; // trims offsets only
    if (strcmp(type, "TemplateProcessing") == 0 && template_is_plain(item))
        return RT_OK;
    const json_t *list = json_object_get(item, "processors");
    if (strcmp(type, "Sequence") != 0 || nested || !json_is_array(list))
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: post_processor '%s'", name, type);
    size_t i;
    json_t *each;
    json_array_foreach(list, i, each) RT_TRY(check_post_processor(each, name, true));
    return RT_OK;
}

static rt_status check_decoder(const json_t *item, const char *name)
{
    const char *type = NULL;
    if (!item || json_is_null(item))
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: no decoder", name);
    RT_TRY(rt_json_str(item, "type", name, true, &type));
    if (strcmp(type, "ByteLevel") != 0)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: decoder '%s'", name, type);
    return RT_OK;
}

rt_status rt_tok_only_keys(const json_t *obj, const char *where, const char *name,
                           const char *const *keys)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)obj, key, value)
    {
        size_t i = 0;
        while (keys[i] && strcmp(keys[i], key) != 0)
            i++;
        if (!keys[i])
            return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: %s: '%s'", name, where, key);
    }
    return RT_OK;
}

rt_status rt_tok_load(const json_t *root, const char *name, rt_tokenizer *tok)
{
    static const char *const keys[] = {
        "version",       "truncation", "padding", "added_tokens",   "normalizer",
        "pre_tokenizer", "model",      "decoder", "post_processor", NULL};
    if (!json_is_object(root))
        return RT_FAIL(RT_ERR_FORMAT, "%s: not a JSON object", name);
    RT_TRY(rt_tok_only_keys(root, "tokenizer", name, keys));
    tok->name = rt_mem_strdup(name, "tokenizer name");
    if (!tok->name)
        return RT_ERR_NOMEM;
    RT_TRY(load_normalizer(json_object_get(root, "normalizer"), name, false, tok));
    RT_TRY(rt_tok_stages_load(json_object_get(root, "pre_tokenizer"), name, tok));
    RT_TRY(check_post_processor(json_object_get(root, "post_processor"), name, false));
    RT_TRY(check_decoder(json_object_get(root, "decoder"), name));
    RT_TRY(rt_tok_model_load(json_object_get(root, "model"), json_object_get(root, "added_tokens"),
                             name, tok));
    RT_TRY(rt_tok_matcher_init(tok, false, &tok->raw));
    RT_TRY(rt_tok_matcher_init(tok, true, &tok->normalized));
    return rt_tok_bpe_mark_whole(tok);
}
