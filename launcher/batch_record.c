// SPDX-License-Identifier: Apache-2.0
#include "launcher/batch_record.h"

#include "runtime/base/hash.h"
#include "runtime/base/json.h"
#include "runtime/base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ID_MAX = 48 };

static void make_id(const app_batch_key *key, const char *prefix, char *out)
{
    const uint64_t hash =
        rt_hash(rt_hash(RT_HASH_START, &key->job, sizeof key->job), &key->line, sizeof key->line);
    snprintf(out, ID_MAX, "%s%016llx", prefix, (unsigned long long)hash);
}

// Takes the reference to `body`, NULL for want of memory.
static rt_status append_record(const app_batch_key *key, int status, json_t *body, rt_str *out)
{
    char id[ID_MAX], request[ID_MAX];
    make_id(key, "batch_req_", id);
    make_id(key, "req_", request);
    json_t *record =
        json_pack("{s:s, s:s?, s:{s:i, s:s, s:o}, s:n}", "id", id, "custom_id", key->custom_id,
                  "response", "status_code", status, "request_id", request, "body", body, "error");
    char *text = record ? json_dumps(record, JSON_COMPACT) : NULL;
    json_decref(record);
    if (!text)
        return RT_FAIL(RT_ERR_NOMEM, "line %llu of output: no memory, or text that is not UTF-8",
                       (unsigned long long)key->line + 1);
    const rt_status done = rt_str_puts(out, text);
    free(text);
    return done;
}

// NULL: not wanted, or no memory.
static json_t *make_ids(const app_batch_key *key, const rt_result *result)
{
    json_t *ids = key->token_ids ? json_array() : NULL;
    for (size_t i = 0; ids && i < result->ids_len; i++)
        json_array_append_new(ids, json_integer(result->ids[i]));
    return ids;
}

static json_t *make_choice(const app_batch_key *key, const rt_result *result)
{
    const char *finish = rt_finish_name(result->finish);
    json_t *text = json_stringn(result->text, result->text_len);
    json_t *ids = make_ids(key, result);
    if (!key->chat)
        return json_pack("{s:i, s:o, s:n, s:s, s:o*}", "index", 0, "text", text, "logprobs",
                         "finish_reason", finish, "token_ids", ids);
    return json_pack("{s:i, s:{s:s, s:o}, s:n, s:s, s:o*}", "index", 0, "message", "role",
                     "assistant", "content", text, "logprobs", "finish_reason", finish, "token_ids",
                     ids);
}

rt_status app_batch_record_answer(const app_batch_key *key, const rt_result *result, rt_str *out)
{
    char id[ID_MAX];
    const int prompt = result->prompt_tokens, completion = result->completion_tokens;
    make_id(key, key->chat ? "chatcmpl-" : "cmpl-", id);
    json_t *body = json_pack("{s:s, s:s, s:I, s:s, s:[o], s:{s:i, s:i, s:i}}", "id", id, "object",
                             key->chat ? "chat.completion" : "text_completion", "created",
                             (json_int_t)time(NULL), "model", key->model, "choices",
                             make_choice(key, result), "usage", "prompt_tokens", prompt,
                             "completion_tokens", completion, "total_tokens", prompt + completion);
    return append_record(key, 200, body, out);
}

rt_status app_batch_record_error(const app_batch_key *key, int status, const char *message,
                                 rt_str *out)
{
    const char *type = status < 500 ? "invalid_request_error" : "server_error";
    rt_str text = {0};
    size_t rest;
    rt_status done = rt_utf8_append(&text, message, strlen(message), &rest);
    if (done == RT_OK)
        done = append_record(key, status,
                             json_pack("{s:{s:s, s:s, s:n, s:n}}", "error", "message", text.data,
                                       "type", type, "param", "code"),
                             out);
    rt_str_free(&text);
    return done;
}

// The mark cannot be in a text: its quotes would be escaped.
bool app_batch_record_is_error(const char *record, size_t len)
{
    static const char mark[] = "\"response\":{\"status_code\":200,";
    return !memmem(record, len, mark, sizeof mark - 1);
}
