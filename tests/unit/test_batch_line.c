// SPDX-License-Identifier: Apache-2.0
// Lines of a batch: what is read from them, what is refused, and the lines that answer.
#include "tests/unit/testing.h"

#include "launcher/batch_line.h"
#include "launcher/batch_record.h"

static const char MODEL[] = "sdar";

// The request of a body; the caller frees both.
static rt_status make(const char *url, const char *body, app_batch_line *line,
                      app_batch_request *request)
{
    char text[4096];
    const rt_request defaults = rt_request_default();
    snprintf(text, sizeof text,
             "{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/%s\", \"body\": %s}", url,
             body);
    *request = (app_batch_request){0};
    RT_TRY(app_batch_line_open(text, strlen(text), line));
    return app_batch_request_make(line, &defaults, MODEL, request);
}

static void test_chat(void **state)
{
    (void)state;
    app_batch_line line;
    app_batch_request r;
    assert_ok(make("chat/completions",
                   "{\"model\": \"sdar\", \"messages\": [{\"role\": \"developer\", \"content\": "
                   "\"Be brief.\"}, {\"role\": \"user\", \"content\": [{\"type\": \"text\", "
                   "\"text\": \"a\\u0000\"}, {\"type\": \"text\", \"text\": \"b\"}], "
                   "\"name\": \"me\", \"tool_calls\": []}], \"tool_choice\": \"auto\", "
                   "\"response_format\": {\"type\": \"text\"}, "
                   "\"max_completion_tokens\": 7, \"temperature\": 0.5, \"top_p\": 0.25, "
                   "\"top_k\": -1, \"seed\": -1, \"stop\": [\"x\", \"yy\"], \"n\": 1, "
                   "\"stream\": false, \"logprobs\": null, \"user\": \"u\"}",
                   &line, &r));
    assert_string_equal(line.custom_id, "a");
    assert_true(line.chat);
    assert_int_equal(r.request.turns_len, 2);
    assert_string_equal(r.turns[0].role, "system");
    assert_string_equal(r.turns[0].text, "Be brief.");
    assert_string_equal(r.turns[1].role, "user");
    assert_int_equal(r.turns[1].len, 3);
    assert_memory_equal(r.turns[1].text, "a\0b", 3);
    assert_int_equal(r.request.max_tokens, 7);
    assert_true(r.request.temperature == 0.5 && r.request.top_p == 0.25);
    assert_int_equal(r.request.top_k, 0);
    assert_true(r.request.seed == UINT64_MAX);
    assert_int_equal(r.request.stops_len, 2);
    assert_string_equal(r.request.stops[1], "yy");
    app_batch_request_free(&r);
    app_batch_line_close(&line);
}

static void test_text(void **state)
{
    (void)state;
    app_batch_line line;
    app_batch_request r;
    assert_ok(make("completions",
                   "{\"prompt\": [1, 2, 3], \"losa\": {\"strategy\": "
                   "\"entropy_bounded\", \"steps\": 3, \"threshold\": 2.5, \"sub_block\": 4, "
                   "\"ignore_stop\": true, \"parse_special\": true, \"token_ids\": true}}",
                   &line, &r));
    assert_int_equal(r.request.prompt_ids_len, 3);
    assert_int_equal(r.request.prompt_ids[2], 3);
    assert_int_equal(r.request.strategy, RT_STRATEGY_ENTROPY);
    assert_int_equal(r.request.steps, 3);
    assert_true(r.request.threshold == 2.5);
    assert_int_equal(r.request.sub_block, 4);
    assert_true(r.request.ignore_stop_ids && r.request.parse_special && r.token_ids);
    assert_int_equal(r.request.max_tokens, rt_request_default().max_tokens);
    app_batch_request_free(&r);
    app_batch_line_close(&line);

    static const char *const same[] = {"{\"prompt\": \"Hi\", \"stop\": \"x\"}",
                                       "{\"prompt\": [\"Hi\"], \"stop\": [\"x\"]}"};
    for (int i = 0; i < 2; i++) {
        assert_ok(make("completions", same[i], &line, &r));
        assert_int_equal(r.request.prompt_len, 2);
        assert_string_equal(r.request.prompt, "Hi");
        assert_int_equal(r.request.stops_len, 1);
        app_batch_request_free(&r);
        app_batch_line_close(&line);
    }
}

static void test_bad_bodies(void **state)
{
    (void)state;
    static const struct {
        const char *body, *subject, *cause;
    } chats[] =
        {
            {"{}", "messages", "empty"},
            {"{\"messages\": \"x\"}", "messages", "no list"},
            {"{\"messages\": [1]}", "messages", "expected an object"},
            {"{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}", "role", "tool"},
            {"{\"messages\": [{\"role\": \"user\"}]}", "content", "neither"},
            {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\", \"tool_calls\": [1]}]}",
             "tool_calls", "not supported"},
            {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": "
             "\"x\", \"mood\": 1}]}]}",
             "mood", "not supported"},
            {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"response_format\": "
             "{\"type\": \"json_object\"}}",
             "response_format", "not supported"},
            {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tool_choice\": "
             "\"required\"}",
             "tool_choice", "not supported"},
            {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
             "content", "image_url"},
            {"{\"prompt\": \"x\", \"messages\": []}", "prompt", "not supported"},
        },
      texts[] = {
          {"{}", "prompt", "neither"},
          {"{\"prompt\": []}", "prompt", "neither"},
          {"{\"prompt\": [\"a\", \"b\"]}", "prompt", "neither"},
          {"{\"prompt\": [1, -2]}", "prompt", "something else"},
          {"{\"prompt\": [1, 2.5]}", "prompt", "something else"},
          {"{\"prompt\": \"x\", \"max_tokens\": 0}", "max_tokens", "outside [1"},
          {"{\"prompt\": \"x\", \"max_tokens\": \"9\"}", "max_tokens", "a string"},
          {"{\"prompt\": \"x\", \"max_tokens\": 99999999999}", "max_tokens", "outside"},
          {"{\"prompt\": \"x\", \"temperature\": -1}", "temperature", "outside"},
          {"{\"prompt\": \"x\", \"top_p\": 1.5}", "top_p", "outside"},
          {"{\"prompt\": \"x\", \"seed\": 1.5}", "seed", "real"},
          {"{\"prompt\": \"x\", \"stop\": 5}", "stop", "neither"},
          {"{\"prompt\": \"x\", \"stop\": [5]}", "stop", "something else"},
          {"{\"prompt\": \"x\", \"model\": \"gpt\"}", "gpt", "this is 'sdar'"},
          {"{\"prompt\": \"x\", \"n\": 2}", "'n'", "not supported"},
          {"{\"prompt\": \"x\", \"stream\": true}", "stream", "not supported"},
          {"{\"prompt\": \"x\", \"echo\": 1}", "echo", "not supported"},
          {"{\"prompt\": \"x\", \"logit_bias\": {\"1\": 2}}", "logit_bias", "not supported"},
          {"{\"prompt\": \"x\", \"colour\": 1}", "colour", "not supported"},
          {"{\"prompt\": \"x\", \"losa\": 1}", "losa", "not an object"},
          {"{\"prompt\": \"x\", \"losa\": {\"strategy\": \"fast\"}}", "strategy", "fast"},
          {"{\"prompt\": \"x\", \"losa\": {\"stop\": 1}}", "body.losa", "'stop'"},
      };
    app_batch_line line;
    app_batch_request r;
    for (size_t i = 0; i < sizeof chats / sizeof chats[0]; i++) {
        const rt_status status = make("chat/completions", chats[i].body, &line, &r);
        assert_true(status != RT_OK);
        assert_fails(status, status, chats[i].subject, chats[i].cause);
        app_batch_request_free(&r);
        app_batch_line_close(&line);
    }
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const rt_status status = make("completions", texts[i].body, &line, &r);
        assert_true(status != RT_OK);
        assert_fails(status, status, texts[i].subject, texts[i].cause);
        app_batch_request_free(&r);
        app_batch_line_close(&line);
    }
}

static void test_bad_envelopes(void **state)
{
    (void)state;
    static const struct {
        const char *text, *cause;
        bool has_id;
    } cases[] = {
        {"", "'[' or '{' expected", false},
        {"\xff\xfe{", "unable to decode", false},
        {"[1]", "expected an object", false},
        {"{\"method\": \"POST\"}", "'custom_id' is missing", false},
        {"{\"custom_id\": 7}", "'custom_id' is an integer", false},
        {"{\"custom_id\": \"a\", \"custom_id\": \"b\"}", "duplicate", false},
        {"{\"custom_id\": \"a\"}", "'method' is missing", true},
        {"{\"custom_id\": \"a\", \"method\": \"GET\"}", "must be POST", true},
        {"{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/embeddings\"}",
         "known are /v1/chat/completions", true},
        {"{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/completions\"}",
         "'body' is missing", true},
        {"{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": 1}",
         "not an object", true},
        {"{\"custom_id\": \"a\", \"priority\": 1}", "unknown key 'priority'", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        app_batch_line line;
        const rt_status status = app_batch_line_open(cases[i].text, strlen(cases[i].text), &line);
        assert_fails(status, RT_ERR_FORMAT, "request", cases[i].cause);
        assert_int_equal(line.custom_id != NULL, cases[i].has_id);
        app_batch_line_close(&line);
    }
}

static void test_long_id(void **state)
{
    (void)state;
    enum { MOST = 64 << 10 };
    static char text[MOST + 64] = "{\"custom_id\": \"";
    const size_t start = strlen(text);
    for (int more = 0; more < 2; more++) {
        app_batch_line line;
        memset(text + start, 'a', MOST + 1);
        memcpy(text + start + MOST + more, "\"}", 3);
        assert_fails(app_batch_line_open(text, strlen(text), &line), RT_ERR_FORMAT, "request",
                     more ? "'custom_id' has 65537 bytes, at most 65536" : "'method' is missing");
        assert_int_equal(line.custom_id == NULL, more);
        app_batch_line_close(&line);
    }
}

static double need_of(const char *url, const char *body)
{
    app_batch_line line;
    app_batch_request r;
    make(url, body, &line, &r); // a body may be wrong here
    const double need = app_batch_line_need(&line, 100);
    app_batch_request_free(&r);
    app_batch_line_close(&line);
    return need;
}

static uint64_t prefix_of(char filler, size_t n, char last)
{
    char body[4096] = "{\"prompt\": \"";
    const size_t start = strlen(body);
    memset(body + start, filler, n);
    snprintf(body + start + n, sizeof body - start - n, "%c\"}", last);
    app_batch_line line;
    app_batch_request r;
    assert_ok(make("completions", body, &line, &r));
    const uint64_t prefix = app_batch_line_prefix(&line);
    app_batch_request_free(&r);
    app_batch_line_close(&line);
    return prefix;
}

static void test_outlook(void **state)
{
    (void)state;
    const double text = need_of("completions", "{\"prompt\": \"abcd\", \"max_tokens\": 10}");
    assert_true(text > 10 && text < 11);
    assert_true(need_of("completions", "{\"prompt\": \"abcd\"}") > 100);
    assert_true(need_of("completions", "{\"prompt\": [1, 2], \"max_tokens\": 10}") > 10);
    assert_true(need_of("chat/completions",
                        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], "
                        "\"max_completion_tokens\": 5, \"max_tokens\": 50}") < 6);
    assert_true(need_of("chat/completions", "{\"messages\": 5, \"max_tokens\": -3}") == 100);
    assert_int_equal(prefix_of('a', 100, 'x'), 0);
    assert_true(prefix_of('a', 1500, 'x') != 0);
    assert_true(prefix_of('a', 1500, 'x') == prefix_of('a', 1600, 'y'));
    assert_true(prefix_of('a', 1500, 'x') != prefix_of('b', 1500, 'x'));
}

// ---- records -------------------------------------------------------------------------------

static json_t *parse(rt_str *text)
{
    json_t *value;
    assert_null(memchr(text->data, '\n', text->len));
    assert_ok(rt_json_parse(text->data, text->len, "record", &value));
    rt_str_free(text);
    return value;
}

static const json_t *at(const json_t *value, const char *key)
{
    const json_t *found = json_is_array(value) ? json_array_get(value, 0) : value;
    found = json_object_get(found, key);
    assert_non_null(found);
    return found;
}

static void test_records(void **state)
{
    (void)state;
    static const int32_t ids[] = {4, 5};
    const rt_result result = {.text = "a\n\"\0b",
                              .text_len = 5,
                              .ids = ids,
                              .ids_len = 2,
                              .finish = RT_FINISH_LENGTH,
                              .prompt_tokens = 3,
                              .completion_tokens = 2};
    app_batch_key key = {1, 2, "id\n", MODEL, true, true};
    rt_str text = {0};
    assert_ok(app_batch_record_answer(&key, &result, &text));
    json_t *record = parse(&text);
    const json_t *body = at(at(record, "response"), "body");
    const json_t *choice = at(body, "choices");
    assert_string_equal(json_string_value(at(record, "custom_id")), "id\n");
    assert_true(json_is_null(at(record, "error")));
    assert_int_equal(json_integer_value(at(at(record, "response"), "status_code")), 200);
    assert_string_equal(json_string_value(at(body, "object")), "chat.completion");
    assert_int_equal(json_integer_value(at(at(body, "usage"), "total_tokens")), 5);
    assert_int_equal(json_string_length(at(at(choice, "message"), "content")), 5);
    assert_string_equal(json_string_value(at(choice, "finish_reason")), "length");
    assert_int_equal(json_array_size(at(choice, "token_ids")), 2);

    // The same request has the same ids, another one has others.
    assert_ok(app_batch_record_error(&key, 400, "too \"long\"", &text));
    json_t *error = parse(&text);
    assert_true(json_equal(at(error, "id"), at(record, "id")));
    assert_string_equal(
        json_string_value(at(at(at(at(error, "response"), "body"), "error"), "message")),
        "too \"long\"");
    json_decref(error);
    assert_ok(app_batch_record_error(&key, 400, "'\xC3\xA9\xC3' is not here", &text));
    error = parse(&text);
    assert_string_equal(
        json_string_value(at(at(at(at(error, "response"), "body"), "error"), "message")),
        "'\xC3\xA9\xEF\xBF\xBD' is not here");
    json_decref(error);
    key = (app_batch_key){1, 3, NULL, MODEL, false, false};
    assert_ok(app_batch_record_answer(&key, &result, &text));
    json_t *other = parse(&text);
    assert_true(json_is_null(at(other, "custom_id")));
    assert_false(json_equal(at(other, "id"), at(record, "id")));
    choice = at(at(at(other, "response"), "body"), "choices");
    assert_int_equal(json_string_length(at(choice, "text")), 5);
    assert_null(json_object_get(json_array_get(choice, 0), "token_ids"));
    json_decref(other);
    json_decref(record);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat),       cmocka_unit_test(test_text),
        cmocka_unit_test(test_bad_bodies), cmocka_unit_test(test_bad_envelopes),
        cmocka_unit_test(test_long_id),    cmocka_unit_test(test_outlook),
        cmocka_unit_test(test_records),
    };
    return cmocka_run_group_tests_name("batch_line", tests, NULL, NULL);
}
