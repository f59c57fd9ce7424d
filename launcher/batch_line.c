// SPDX-License-Identifier: Apache-2.0
// The envelope of a line. batch_body.c reads what is in it.
#include "launcher/batch_line.h"

#include "runtime/base/hash.h"

#include <string.h>

static const char NAME[] = "request";

enum { ID_BYTES_MAX = 64 << 10 }; // its record, where it may take 6 times as many, is to be a line

static rt_status check_keys(const json_t *object, const char *const *known)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (!known[i])
            return RT_FAIL(RT_ERR_FORMAT, "%s: unknown key '%.100s'", NAME, key);
    }
    return RT_OK;
}

static rt_status read_custom_id(app_batch_line *line)
{
    const char *id;
    RT_TRY(rt_json_str(line->root, "custom_id", NAME, true, &id));
    if (strlen(id) > ID_BYTES_MAX)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'custom_id' has %zu bytes, at most %d are taken", NAME,
                       strlen(id), ID_BYTES_MAX);
    line->custom_id = id;
    return RT_OK;
}

static rt_status read_url(app_batch_line *line)
{
    const char *method, *url;
    RT_TRY(rt_json_str(line->root, "method", NAME, true, &method));
    if (strcmp(method, "POST") != 0)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'method' is '%.100s', must be POST", NAME, method);
    RT_TRY(rt_json_str(line->root, "url", NAME, true, &url));
    line->chat = strcmp(url, "/v1/chat/completions") == 0;
    if (!line->chat && strcmp(url, "/v1/completions") != 0)
        return RT_FAIL(RT_ERR_FORMAT,
                       "%s: 'url' is '%.100s', known are /v1/chat/completions and /v1/completions",
                       NAME, url);
    return RT_OK;
}

rt_status app_batch_line_open(const char *text, size_t len, app_batch_line *out)
{
    static const char *const keys[] = {"custom_id", "method", "url", "body", NULL};
    *out = (app_batch_line){0};
    RT_TRY(rt_json_parse(text, len, NAME, &out->root));
    RT_TRY(read_custom_id(out));
    RT_TRY(check_keys(out->root, keys));
    RT_TRY(read_url(out));
    out->body = json_object_get(out->root, "body");
    if (!json_is_object(out->body))
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'body' is %s", NAME,
                       out->body ? "not an object" : "missing");
    return RT_OK;
}

void app_batch_line_close(app_batch_line *line)
{
    json_decref(line->root);
    *line = (app_batch_line){0};
}

// ---- what rank 0 wants to know ------------------------------------------------------------

// Calls `take` for the texts of the prompt in their order, until it returns false.
typedef bool take_fn(void *ctx, const void *bytes, size_t n);

static bool walk_content(const json_t *content, take_fn *take, void *ctx)
{
    size_t i;
    json_t *part;
    if (json_is_string(content))
        return take(ctx, json_string_value(content), json_string_length(content));
    json_array_foreach((json_t *)(uintptr_t)content, i, part)
    {
        const json_t *text = json_object_get(part, "text");
        if (json_is_string(text) && !take(ctx, json_string_value(text), json_string_length(text)))
            return false;
    }
    return true;
}

static void walk_ids(const json_t *ids, take_fn *take, void *ctx)
{
    size_t i;
    json_t *id;
    json_array_foreach((json_t *)(uintptr_t)ids, i, id)
    {
        const json_int_t value = json_integer_value(id);
        if (!take(ctx, &value, sizeof value))
            return;
    }
}

static void walk_prompt(const app_batch_line *line, take_fn *take, void *ctx)
{
    const json_t *messages = json_object_get(line->body, "messages");
    const json_t *prompt = json_object_get(line->body, "prompt");
    size_t i;
    json_t *message;
    if (!line->chat && json_is_integer(json_array_get(prompt, 0)))
        walk_ids(prompt, take, ctx);
    else if (!line->chat)
        walk_content(prompt, take, ctx);
    json_array_foreach((json_t *)(uintptr_t)(line->chat ? messages : NULL), i, message)
    {
        if (!walk_content(json_object_get(message, "content"), take, ctx))
            return;
    }
}

static bool add_length(void *ctx, const void *bytes, size_t n)
{
    (void)bytes;
    *(size_t *)ctx += n;
    return true;
}

// A token is about 4 bytes, an id counts as 8; and a forward reads a few hundred of them
// while it denoises.
double app_batch_line_need(const app_batch_line *line, int max_tokens)
{
    static const double BYTES_A_FORWARD = 1024;
    static const char *const limits[] = {"max_completion_tokens", "max_tokens"};
    size_t bytes = 0;
    json_int_t tokens = 0;
    for (size_t i = 0; i < 2 && tokens <= 0; i++)
        tokens = json_integer_value(json_object_get(line->body, limits[i]));
    walk_prompt(line, add_length, &bytes);
    return (double)bytes / BYTES_A_FORWARD + (double)(tokens > 0 ? tokens : max_tokens);
}

typedef struct beginning {
    uint64_t hash;
    size_t left; // bytes still to take
} beginning;

static bool add_hash(void *ctx, const void *bytes, size_t n)
{
    beginning *b = ctx;
    const size_t most = n < b->left ? n : b->left;
    b->hash = rt_hash(b->hash, bytes, most);
    b->left -= most;
    return b->left > 0;
}

uint64_t app_batch_line_prefix(const app_batch_line *line)
{
    enum { PREFIX_BYTES = 1024 };
    beginning b = {RT_HASH_START, PREFIX_BYTES};
    walk_prompt(line, add_hash, &b);
    return b.left == 0 ? b.hash : 0;
}
