// SPDX-License-Identifier: Apache-2.0
// Block length and mask token: published checkpoints often leave out both, so the
// next best source is asked in turn, and the one that answered is remembered.
#include "runtime/io/config_int.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

// ---- block length ----------------------------------------------------------

// The NN of "NAME-bNN"; 0 if `name` (of `len` bytes) does not end so.
static int name_suffix(const char *name, size_t len)
{
    size_t first = len;
    int value = 0;
    while (first > 0 && name[first - 1] >= '0' && name[first - 1] <= '9')
        first--;
    if (first == len || len - first > 4 || first < 2 || name[first - 1] != 'b' ||
        name[first - 2] != '-')
        return 0;
    for (size_t i = first; i < len; i++)
        value = value * 10 + (name[i] - '0');
    return value <= RT_CONFIG_MAX_BLOCK ? value : 0;
}

// The last component of path[0, *len), which is then cut off.
static const char *last_component(const char *path, size_t *len, size_t *component_len)
{
    size_t end = *len;
    while (end > 0 && path[end - 1] == '/')
        end--;
    size_t first = end;
    while (first > 0 && path[first - 1] != '/')
        first--;
    *len = first;
    *component_len = end - first;
    return path + first;
}

// The folder's name as given, then with links resolved, then the repository's name
// in a Hugging Face cache: models--ORG--NAME/snapshots/REVISION.
static int folder_suffix(const char *dir)
{
    size_t len = strlen(dir), n;
    char resolved[PATH_MAX];
    const char *name = last_component(dir, &len, &n);
    int block = name_suffix(name, n);
    if (block > 0 || !realpath(dir, resolved))
        return block;
    len = strlen(resolved);
    name = last_component(resolved, &len, &n);
    block = name_suffix(name, n);
    if (block > 0)
        return block;
    name = last_component(resolved, &len, &n);
    if (n != strlen("snapshots") || memcmp(name, "snapshots", n) != 0)
        return 0;
    name = last_component(resolved, &len, &n);
    return name_suffix(name, n);
}

static rt_status block_from_config(const rt_config_source *src, rt_model_config *out)
{
    static const struct {
        const char *key, *source;
    } keys[] = {
        {"block_size", "config.json block_size"},
        {"block_length", "config.json block_length"},
        {"bd_size", "config.json bd_size"},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys && out->block_length == 0; i++) {
        RT_TRY(rt_config_int(src->json, keys[i].key, src->path, false, 1, RT_CONFIG_MAX_BLOCK,
                             &out->block_length));
        out->block_source = keys[i].source;
    }
    return RT_OK;
}

void rt_config_set_block(const rt_architecture *arch, int length, const char *source,
                         rt_model_config *out)
{
    out->block_length = length;
    out->block_source = source;
    // Sub-blocks must tile the block; otherwise it is one piece.
    const bool tiles = arch->sub_block > 0 && length % arch->sub_block == 0;
    out->default_sub_block = tiles ? arch->sub_block : 0;
}

rt_status rt_config_find_block(const rt_config_source *src, int override, rt_model_config *out)
{
    if (override < 0 || override > RT_CONFIG_MAX_BLOCK)
        return RT_FAIL(RT_ERR_INVALID, "block length %d is outside [1, %d]", override,
                       (int)RT_CONFIG_MAX_BLOCK);
    out->block_length = override;
    out->block_source = "the command line";
    if (out->block_length == 0)
        RT_TRY(block_from_config(src, out));
    if (out->block_length == 0) {
        out->block_length = folder_suffix(src->dir);
        out->block_source = "the folder's name";
    }
    if (out->block_length == 0) {
        out->block_length = src->arch->block_length;
        out->block_source = "the architecture's default";
    }
    rt_config_set_block(src->arch, out->block_length, out->block_source, out);
    return RT_OK;
}

// ---- mask token ------------------------------------------------------------

static const char *const mask_spellings[] = {"<|MASK|>", "<MASK>", "|<MASK>|", "<|mask|>"};
enum { SPELLINGS = sizeof mask_spellings / sizeof *mask_spellings };

static const char *content_of(const json_t *token)
{
    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

static rt_status decimal_id(const char *text, const char *path, int64_t *out)
{
    char *end;
    long long id = strtoll(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0')
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'added_tokens_decoder' has the key '%s', not an id",
                       path, text);
    *out = id;
    return RT_OK;
}

// tokenizer_config.json: {"added_tokens_decoder": {"151669": {"content": ...}}}
static rt_status find_in_decoder(const json_t *obj, const char *path, const char *token,
                                 int64_t *id)
{
    const char *key;
    json_t *value;
    json_t *decoder = json_object_get(obj, "added_tokens_decoder");
    json_object_foreach(decoder, key, value)
    {
        const char *content = content_of(value);
        if (content && strcmp(content, token) == 0)
            return decimal_id(key, path, id);
    }
    return RT_OK;
}

// tokenizer.json: {"added_tokens": [{"id": 151669, "content": ...}]}
static rt_status find_in_added(const json_t *obj, const char *path, const char *token, int64_t *id)
{
    const json_t *added = json_object_get(obj, "added_tokens");
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *item = json_array_get(added, i);
        const char *content = json_is_object(item) ? content_of(item) : NULL;
        if (content && strcmp(content, token) == 0)
            return rt_json_int(item, "id", path, true, 0, RT_CONFIG_MAX_VOCAB, id);
    }
    return RT_OK;
}

typedef rt_status finder(const json_t *obj, const char *path, const char *token, int64_t *id);

// The token by its own name, or by any known spelling of a mask token.
static rt_status find_spelled(const json_t *obj, const char *path, finder *find, const char *token,
                              int64_t *id)
{
    if (token)
        RT_TRY(find(obj, path, token, id));
    for (int i = 0; i < SPELLINGS && *id < 0; i++)
        RT_TRY(find(obj, path, mask_spellings[i], id));
    return RT_OK;
}

// The name of the mask token, if tokenizer_config.json has one; caller frees.
static rt_status read_mask_name(const json_t *obj, const char *path, char **out)
{
    const json_t *token = json_object_get(obj, "mask_token");
    if (!token || json_is_null(token))
        return RT_OK;
    const char *content = content_of(token);
    if (!content)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'mask_token' is neither a string nor has 'content'",
                       path);
    *out = rt_mem_strdup(content, "mask token");
    return *out ? RT_OK : RT_ERR_NOMEM;
}

static rt_status ask_tokenizer_config(const char *dir, char **token, int64_t *id)
{
    char path[PATH_MAX];
    json_t *json;
    RT_TRY(rt_config_load_optional(dir, "tokenizer_config.json", path, sizeof path, &json));
    if (!json)
        return RT_OK;
    rt_status status = read_mask_name(json, path, token);
    if (status == RT_OK)
        status = find_spelled(json, path, find_in_decoder, *token, id);
    json_decref(json);
    return status;
}

static rt_status ask_tokenizer(const char *dir, const char *token, int64_t *id)
{
    char path[PATH_MAX];
    json_t *json;
    RT_TRY(rt_config_load_optional(dir, "tokenizer.json", path, sizeof path, &json));
    if (!json)
        return RT_OK;
    rt_status status = find_spelled(json, path, find_in_added, token, id);
    json_decref(json);
    return status;
}

static rt_status mask_from_tokenizer(const rt_config_source *src, int64_t *id)
{
    char *token = NULL;
    rt_status status = ask_tokenizer_config(src->dir, &token, id);
    if (status == RT_OK && *id < 0)
        status = ask_tokenizer(src->dir, token, id);
    if (status == RT_OK && *id < 0 && token)
        status = RT_FAIL(RT_ERR_FORMAT,
                         "%s: the mask token '%s' of tokenizer_config.json is not an added token",
                         src->dir, token);
    rt_free(token);
    return status;
}

// Takes `id` as the mask if the model can have it.
static void set_mask(int64_t id, const char *source, rt_model_config *out)
{
    out->mask_outside = id < 0 || id >= out->vocab;
    if (out->mask_outside)
        return;
    out->mask_id = (int)id;
    out->mask_source = source;
}

rt_status rt_config_find_mask(const rt_config_source *src, int override, rt_model_config *out)
{
    static const int64_t absent = INT64_MIN;
    int64_t id = absent, of_tokenizer = -1;
    out->mask_id = -1;
    out->mask_source = "nowhere";
    if (override < -1 || override >= out->vocab)
        return RT_FAIL(RT_ERR_INVALID, "mask id %d is outside [0, %d), the vocabulary of %s",
                       override, out->vocab, src->path);
    if (override < 0)
        RT_TRY(rt_json_int(src->json, "mask_token_id", src->path, false, absent, INT64_MAX, &id));
    if (override < 0 && id == absent)
        RT_TRY(mask_from_tokenizer(src, &of_tokenizer));
    if (override >= 0)
        set_mask(override, "the command line", out);
    else if (id != absent)
        set_mask(id, "config.json mask_token_id", out);
    else if (of_tokenizer >= 0)
        set_mask(of_tokenizer, "the tokenizer's mask token", out);
    else if (src->arch->mask_id >= 0 && src->arch->mask_id < out->vocab)
        set_mask(src->arch->mask_id, "the architecture's default", out);
    return RT_OK;
}
