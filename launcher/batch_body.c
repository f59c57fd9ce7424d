// SPDX-License-Identifier: Apache-2.0
// The body of a line -> a request of the engine.
#include "launcher/batch_line.h"
#include "launcher/decoding_options.h"

#include "runtime/base/mem.h"

#include <limits.h>
#include <string.h>

static const char NAME[] = "body", MESSAGES[] = "body.messages", OWN[] = "body.losa";

enum { STOPS_MAX = 16 };

// ---- what is refused ---------------------------------------------------------------------

// Keys that ask for what is not there, but for one value each, which asks for nothing.
typedef enum nothing { IS_ONE, IS_ZERO, IS_FALSE, IS_EMPTY, IS_NO_TOOL, IS_TEXT, IS_ANY } nothing;
static const struct {
    const char *key;
    nothing allowed;
} idle_keys[] = {
    {"n", IS_ONE},
    {"best_of", IS_ONE},
    {"presence_penalty", IS_ZERO},
    {"stream", IS_FALSE},
    {"echo", IS_FALSE},
    {"frequency_penalty", IS_ZERO},
    {"logprobs", IS_FALSE},
    {"logit_bias", IS_EMPTY},
    {"tools", IS_EMPTY},
    {"tool_calls", IS_EMPTY},
    {"annotations", IS_EMPTY},
    {"tool_choice", IS_NO_TOOL},
    {"parallel_tool_calls", IS_ANY},
    {"response_format", IS_TEXT},
    {"user", IS_ANY},
    {"metadata", IS_ANY},
    {"store", IS_ANY},
    {"service_tier", IS_ANY},
};

static const char *const chat_keys[] = {
    "model", "messages", "max_tokens", "temperature", "top_p", "max_completion_tokens",
    "top_k", "seed",     "stop",       "losa",        NULL};
static const char *const text_keys[] = {"model", "prompt", "max_tokens", "temperature", "top_p",
                                        "top_k", "seed",   "stop",       "losa",        NULL};
static const char *const message_keys[] = {"role", "content", "name", NULL};
static const char *const part_keys[] = {"type", "text", NULL};
static const char *const own_keys[] = {"strategy",    "steps",         "threshold", "sub_block",
                                       "ignore_stop", "parse_special", "token_ids", NULL};

static bool is_word(const json_t *value, const char *word)
{
    return json_is_string(value) && strcmp(json_string_value(value), word) == 0;
}

static bool asks_nothing(const json_t *value, nothing allowed)
{
    switch (allowed) {
    case IS_ONE:
        return json_is_integer(value) && json_integer_value(value) == 1;
    case IS_ZERO:
        return json_is_number(value) && json_number_value(value) == 0;
    case IS_FALSE:
        return json_is_false(value);
    case IS_EMPTY:
        return json_object_size(value) + json_array_size(value) == 0 &&
               (json_is_object(value) || json_is_array(value));
    case IS_NO_TOOL: // of none
        return is_word(value, "none") || is_word(value, "auto");
    case IS_TEXT:
        return is_word(json_object_get(value, "type"), "text");
    case IS_ANY:
        break;
    }
    return true;
}

static bool is_idle(const char *key, const json_t *value)
{
    for (size_t i = 0; i < sizeof idle_keys / sizeof idle_keys[0]; i++)
        if (strcmp(idle_keys[i].key, key) == 0)
            return asks_nothing(value, idle_keys[i].allowed);
    return false;
}

static rt_status check_keys(const json_t *object, const char *name, const char *const *known)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (!known[i] && !json_is_null(value) && !is_idle(key, value))
            return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: '%.100s' is not supported", name, key);
    }
    return RT_OK;
}

// ---- prompts -----------------------------------------------------------------------------

static rt_status join_parts(const json_t *parts, rt_str *out)
{
    size_t i;
    json_t *part;
    json_array_foreach((json_t *)(uintptr_t)parts, i, part)
    {
        const char *type;
        const json_t *text = json_object_get(part, "text");
        RT_TRY(rt_json_str(part, "type", "body.messages.content", true, &type));
        if (strcmp(type, "text") != 0 || !json_is_string(text))
            return RT_FAIL(RT_ERR_UNSUPPORTED,
                           "body.messages.content: a part of type '%.100s', "
                           "only texts are read",
                           type);
        RT_TRY(check_keys(part, "body.messages.content", part_keys));
        RT_TRY(rt_str_append(out, json_string_value(text), json_string_length(text)));
    }
    return RT_OK;
}

static rt_status read_role(const json_t *message, const char **out)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant"};
    const char *role;
    size_t i = 0;
    RT_TRY(rt_json_str(message, "role", MESSAGES, true, &role));
    while (i < 4 && strcmp(roles[i], role) != 0)
        i++;
    if (i == 4)
        return RT_FAIL(RT_ERR_UNSUPPORTED,
                       "%s: 'role' is '%.100s', known are system, developer, "
                       "user and assistant",
                       MESSAGES, role);
    *out = i == 1 ? roles[0] : roles[i];
    return RT_OK;
}

// Parts are joined in `joined`, to which the turn then points.
static rt_status read_content(const json_t *content, rt_turn *turn, rt_str *joined)
{
    if (json_is_array(content)) {
        RT_TRY(join_parts(content, joined));
        turn->text = joined->data ? joined->data : "";
        turn->len = joined->len;
        return RT_OK;
    }
    if (!json_is_string(content))
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'content' is neither a string nor a list of parts",
                       MESSAGES);
    turn->text = json_string_value(content);
    turn->len = json_string_length(content);
    return RT_OK;
}

static rt_status read_message(const json_t *message, rt_turn *turn, rt_str *joined)
{
    RT_TRY(read_role(message, &turn->role));
    RT_TRY(check_keys(message, MESSAGES, message_keys));
    return read_content(json_object_get(message, "content"), turn, joined);
}

static rt_status read_messages(const json_t *body, app_batch_request *out)
{
    const json_t *messages = json_object_get(body, "messages");
    const size_t n = json_array_size(messages);
    if (n == 0)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'messages' is no list, or empty", NAME);
    RT_TRY(RT_ALLOC(out->turns, n, "messages"));
    RT_TRY(RT_ALLOC(out->texts, n, "messages"));
    out->turns_len = n;
    for (size_t i = 0; i < n; i++)
        RT_TRY(read_message(json_array_get(messages, i), &out->turns[i], &out->texts[i]));
    out->request.turns = out->turns;
    out->request.turns_len = n;
    return RT_OK;
}

static rt_status read_ids(const json_t *prompt, app_batch_request *out)
{
    size_t i;
    json_t *item;
    RT_TRY(RT_ALLOC(out->ids, json_array_size(prompt), "prompt"));
    json_array_foreach((json_t *)(uintptr_t)prompt, i, item)
    {
        const json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX)
            return RT_FAIL(RT_ERR_FORMAT, "%s: 'prompt' holds something else than token ids", NAME);
        out->ids[i] = (int32_t)id;
    }
    out->request.prompt_ids = out->ids;
    out->request.prompt_ids_len = json_array_size(prompt);
    return RT_OK;
}

static rt_status read_prompt(const json_t *body, app_batch_request *out)
{
    const json_t *prompt = json_object_get(body, "prompt");
    if (json_array_size(prompt) == 1 && json_is_string(json_array_get(prompt, 0)))
        prompt = json_array_get(prompt, 0);
    if (json_is_integer(json_array_get(prompt, 0)))
        return read_ids(prompt, out);
    if (!json_is_string(prompt))
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'prompt' is neither one text nor a list of token ids",
                       NAME);
    out->request.prompt = json_string_value(prompt);
    out->request.prompt_len = json_string_length(prompt);
    return RT_OK;
}

// ---- numbers -----------------------------------------------------------------------------

static rt_status read_int(const json_t *object, const char *key, const char *name, int min,
                          int *value)
{
    int64_t wide = *value;
    RT_TRY(rt_json_int(object, key, name, false, min, INT_MAX, &wide));
    *value = (int)wide;
    return RT_OK;
}

static rt_status read_stops(const json_t *body, app_batch_request *out)
{
    const json_t *stop = json_object_get(body, "stop");
    const bool one = json_is_string(stop);
    const size_t n = one ? 1 : json_array_size(stop);
    if (!stop || json_is_null(stop))
        return RT_OK;
    if ((!one && !json_is_array(stop)) || n > STOPS_MAX)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'stop' is neither a string nor a list of up to %d", NAME,
                       STOPS_MAX);
    RT_TRY(RT_ALLOC(out->stops, n, "stop strings"));
    for (size_t i = 0; i < n; i++) {
        const json_t *text = one ? stop : json_array_get(stop, i);
        out->stops[i] = json_string_value(text);
        if (!out->stops[i] || strlen(out->stops[i]) != json_string_length(text))
            return RT_FAIL(RT_ERR_FORMAT, "%s: 'stop' holds something else than texts", NAME);
    }
    out->request.stops = out->stops;
    out->request.stops_len = n;
    return RT_OK;
}

static rt_status read_sampling(const json_t *body, rt_request *r)
{
    int64_t seed = (int64_t)r->seed;
    RT_TRY(read_int(body, "max_tokens", NAME, 1, &r->max_tokens));
    RT_TRY(read_int(body, "max_completion_tokens", NAME, 1, &r->max_tokens));
    RT_TRY(rt_json_real(body, "temperature", NAME, false, 0, 100, &r->temperature));
    RT_TRY(rt_json_real(body, "top_p", NAME, false, 0, 1, &r->top_p));
    RT_TRY(rt_json_int(body, "seed", NAME, false, INT64_MIN, INT64_MAX, &seed));
    r->seed = (uint64_t)seed;
    RT_TRY(read_int(body, "top_k", NAME, -1, &r->top_k));
    if (json_integer_value(json_object_get(body, "top_k")) == -1)
        r->top_k = 0; // off, as others write it
    return RT_OK;
}

static rt_status read_strategy(const json_t *own, rt_request *r)
{
    const char *name = NULL;
    RT_TRY(rt_json_str(own, "strategy", OWN, false, &name));
    for (size_t i = 0; name && app_strategy_choice(i); i++) {
        if (strcmp(app_strategy_choice(i), name) == 0) {
            r->strategy = (rt_strategy)i;
            return RT_OK;
        }
    }
    return name ? RT_FAIL(RT_ERR_FORMAT, "%s: unknown strategy '%.100s'", OWN, name) : RT_OK;
}

static rt_status read_own(const json_t *body, app_batch_request *out)
{
    rt_request *r = &out->request;
    const json_t *own = json_object_get(body, "losa");
    if (!own || json_is_null(own))
        return RT_OK;
    if (!json_is_object(own))
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'losa' is not an object", NAME);
    RT_TRY(check_keys(own, OWN, own_keys));
    RT_TRY(read_strategy(own, r));
    RT_TRY(read_int(own, "steps", OWN, 0, &r->steps));
    RT_TRY(rt_json_real(own, "threshold", OWN, false, 0, 1000, &r->threshold));
    RT_TRY(read_int(own, "sub_block", OWN, 0, &r->sub_block));
    RT_TRY(rt_json_bool(own, "ignore_stop", OWN, &r->ignore_stop_ids));
    RT_TRY(rt_json_bool(own, "parse_special", OWN, &r->parse_special));
    return rt_json_bool(own, "token_ids", OWN, &out->token_ids);
}

static rt_status check_model(const json_t *body, const char *model)
{
    const char *name = NULL;
    RT_TRY(rt_json_str(body, "model", NAME, false, &name));
    if (!name || strcmp(name, model) == 0)
        return RT_OK;
    return RT_FAIL(RT_ERR_INVALID, "%s: the model '%.100s' is not here, this is '%s'", NAME, name,
                   model);
}

rt_status app_batch_request_make(const app_batch_line *line, const rt_request *defaults,
                                 const char *model, app_batch_request *out)
{
    *out = (app_batch_request){.request = *defaults};
    RT_TRY(check_keys(line->body, NAME, line->chat ? chat_keys : text_keys));
    RT_TRY(check_model(line->body, model));
    RT_TRY(line->chat ? read_messages(line->body, out) : read_prompt(line->body, out));
    RT_TRY(read_sampling(line->body, &out->request));
    RT_TRY(read_stops(line->body, out));
    return read_own(line->body, out);
}

void app_batch_request_free(app_batch_request *r)
{
    for (size_t i = 0; r->texts && i < r->turns_len; i++)
        rt_str_free(&r->texts[i]);
    rt_free(r->turns);
    rt_free(r->texts);
    rt_free(r->ids);
    rt_free(r->stops);
    *r = (app_batch_request){0};
}
