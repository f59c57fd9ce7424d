// SPDX-License-Identifier: Apache-2.0
// The text of an answer: where it ends (stop strings, stop ids, lengths), and that
// what streams is the same text. On the shipped model.
#include "tests/unit/engine_case.h"

#include "runtime/base/json.h"
#include "runtime/base/log.h"

#include <unistd.h>

#define NEEDLE "models/needle-11m"

typedef struct listener {
    char text[4096];
    char whole[4096];
    size_t ids;
    rt_finish finish;
    int pieces;
} listener;

static void listen_text(void *ctx, rt_session_id id, const char *text, size_t len)
{
    (void)id;
    listener *l = ctx;
    assert_true(strlen(l->text) + len < sizeof l->text);
    strncat(l->text, text, len);
    l->pieces++;
}

static void listen_done(void *ctx, rt_session_id id, const rt_result *r)
{
    (void)id;
    listener *l = ctx;
    snprintf(l->whole, sizeof l->whole, "%s", r->text);
    l->ids = r->ids_len;
    l->finish = r->finish;
}

static listener ask(engine_case *c, rt_request r)
{
    static const char prompt[] = "Document: The code of the harbour in Tarlow is 85454. The river "
                                 "crossed the village.\nQuestion: What is the code of the harbour "
                                 "in Tarlow?";
    listener l = {.finish = RT_FINISH_CANCELLED};
    r.prompt = prompt;
    r.prompt_len = sizeof prompt - 1;
    r.chat = true;
    r.on_text = listen_text;
    r.on_done = listen_done;
    r.ctx = &l;
    rt_session_id id;
    assert_ok(rt_engine_submit(c->root, &r, &id));
    engine_drain(c);
    assert_string_equal(l.text, l.whole);
    return l;
}

// Every piece of the text as a stop: short, of several tokens, across the ends of
// blocks. The answer is what stands before its first place.
static void check_stops(engine_case *c, const rt_request *base, const char *full)
{
    const size_t len = strlen(full);
    for (size_t size = 1; size < 40; size += size < 4 ? 1 : 9) {
        for (size_t at = 0; at + size <= len; at += 1 + len / 12) {
            char stop[64];
            snprintf(stop, sizeof stop, "%.*s", (int)size, full + at);
            const char *const stops[] = {"not in the text", stop};
            rt_request r = *base;
            r.stops = stops;
            r.stops_len = 2;
            const listener l = ask(c, r);
            const size_t want = (size_t)(strstr(full, stop) - full);
            assert_int_equal(l.finish, RT_FINISH_STOP);
            assert_int_equal(strlen(l.whole), want);
            assert_memory_equal(l.whole, full, want);
        }
    }
}

static void test_stop_strings(void **state)
{
    (void)state;
    rt_engine_options o = engine_options(NEEDLE);
    o.context = 256;
    engine_case c;
    engine_open(&c, &o, 1);
    rt_request r = rt_request_default();
    r.max_tokens = 44; // in the middle of a block
    r.ignore_stop_ids = true;
    const listener full = ask(&c, r);
    assert_int_equal(full.finish, RT_FINISH_LENGTH);
    assert_int_equal(full.ids, 44);
    assert_true(full.pieces > 1 && strlen(full.whole) > 40);
    check_stops(&c, &r, full.whole);
    // Stops that never come, but often begin: held back, and given in the end.
    char longer[8];
    snprintf(longer, sizeof longer, "%s!", full.whole + strlen(full.whole) - 3);
    const char *const begun[] = {"e qqqq", " qq", longer};
    r.stops = begun;
    r.stops_len = 3;
    assert_string_equal(ask(&c, r).whole, full.whole);
    engine_close(&c);
}

static void test_stop_ids_and_lengths(void **state)
{
    (void)state;
    rt_engine_options o = engine_options(NEEDLE);
    o.context = 256;
    engine_case c;
    engine_open(&c, &o, 1);
    rt_request r = rt_request_default();
    r.max_tokens = 60;
    const listener stopped = ask(&c, r);
    assert_int_equal(stopped.finish, RT_FINISH_STOP);
    assert_true(stopped.ids < 60);
    for (int n = 1; n <= (int)stopped.ids + 1; n += n == 1 ? 1 : 5) {
        r.max_tokens = n;
        const listener cut = ask(&c, r);
        assert_int_equal(cut.ids, n < (int)stopped.ids ? n : (int)stopped.ids);
        assert_memory_equal(cut.whole, stopped.whole, strlen(cut.whole));
    }
    // All the ids fit, and the stop id after them does not.
    r.max_tokens = (int)stopped.ids;
    assert_int_equal(ask(&c, r).finish, RT_FINISH_LENGTH);
    r.max_tokens++;
    assert_int_equal(ask(&c, r).finish, RT_FINISH_STOP);
    r.ignore_stop_ids = true;
    r.max_tokens = (int)stopped.ids + 10;
    const listener on = ask(&c, r);
    assert_int_equal(on.finish, RT_FINISH_LENGTH);
    assert_int_equal(on.ids, r.max_tokens);
    assert_memory_equal(on.whole, stopped.whole, strlen(stopped.whole));
    engine_close(&c);
}

// The shipped model with <|endoftext|> as its only stop id, in `dir`.
static void link_without_turn_end(const test_dir *dir)
{
    static const char *const files[] = {"model.safetensors", "tokenizer.json"};
    const char *source = getenv("LOSA_SOURCE");
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/" NEEDLE "/%s", source ? source : ".", files[i]);
        assert_int_equal(symlink(path, test_path(dir, files[i])), 0);
    }
    snprintf(path, sizeof path, "%s/" NEEDLE "/config.json", source ? source : ".");
    json_t *config;
    assert_ok(rt_json_load(path, 1 << 20, &config));
    assert_int_equal(json_integer_value(json_object_get(config, "eos_token_id")), 0);
    assert_int_equal(json_dump_file(config, test_path(dir, "config.json"), 0), 0);
    json_decref(config);
}

// SDAR's config.json names <|endoftext|> alone: a chat ends at the end of the turn.
static void test_turn_end(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    link_without_turn_end(&dir);
    rt_engine_options o = engine_options(NEEDLE);
    o.context = 256;
    rt_request r = rt_request_default();
    r.max_tokens = 60;
    engine_case c;
    engine_open(&c, &o, 1);
    const listener want = ask(&c, r);
    assert_int_equal(want.finish, RT_FINISH_STOP);
    engine_close(&c);

    o.model_dir = dir.path;
    engine_open(&c, &o, 1);
    assert_int_equal(rt_engine_model(c.root)->stop_count, 1);
    const listener got = ask(&c, r);
    assert_int_equal(got.finish, RT_FINISH_STOP);
    assert_int_equal(got.ids, want.ids);
    assert_string_equal(got.whole, want.whole);
    r.ignore_stop_ids = true;
    const listener on = ask(&c, r);
    assert_int_equal(on.finish, RT_FINISH_LENGTH);
    assert_int_equal(on.ids, 60);
    engine_close(&c);
    test_dir_remove(&dir);
}

static int prompt_tokens(const engine_case *c, const rt_request *r)
{
    rt_needs needs;
    assert_ok(rt_engine_needs(c->root, r, &needs));
    return needs.prompt_tokens;
}

// A prompt with --chat and the messages of a batch line, by the checkpoint's template.
static void test_chat_template(void **state)
{
    (void)state;
    static const char in_front[] = "<|im_start|>system\nBe good.<|im_end|>\n";
    const rt_turn turns[] = {{"system", "Be brief.", 9}, {"user", "Hi", 2}};
    test_dir dir = test_dir_new();
    link_without_turn_end(&dir);
    rt_engine_options o = engine_options(NEEDLE);
    o.context = 256;
    o.model_dir = dir.path;
    rt_request text = rt_request_default();
    text.max_tokens = 1;
    rt_request chat = text, plain = text;
    text.prompt = chat.prompt = "Hi";
    text.prompt_len = chat.prompt_len = 2;
    chat.chat = true;
    plain.turns = turns + 1, plain.turns_len = 1;
    rt_request full = plain;
    full.turns = turns, full.turns_len = 2;
    engine_case c;
    engine_open(&c, &o, 1);
    const int without = prompt_tokens(&c, &chat), whole = prompt_tokens(&c, &full);
    assert_int_equal(prompt_tokens(&c, &plain), without);
    engine_close(&c);

    test_write_text(&dir, "chat_template.jinja", in_front);
    engine_open(&c, &o, 1);
    rt_request added = text;
    added.prompt = in_front, added.prompt_len = strlen(in_front), added.parse_special = true;
    const int more = prompt_tokens(&c, &added);
    assert_int_equal(prompt_tokens(&c, &chat), without + more);
    assert_int_equal(prompt_tokens(&c, &plain), without + more);
    assert_int_equal(prompt_tokens(&c, &full), whole);
    engine_close(&c);

    test_write_text(&dir, "chat_template.jinja", "[{{ messages[0].content }}]");
    engine_open(&c, &o, 1);
    rt_needs needs;
    assert_fails(rt_engine_needs(c.root, &plain, &needs), RT_ERR_UNSUPPORTED, "chat_template.jinja",
                 "give the prompt as text");
    assert_true(prompt_tokens(&c, &text) > 0);
    engine_close(&c);
    test_dir_remove(&dir);
}

// A cancelled request gives out what it has.
static void test_cancelled_text(void **state)
{
    (void)state;
    rt_engine_options o = engine_options(NEEDLE);
    o.context = 256;
    engine_case c;
    engine_open(&c, &o, 1);
    rt_request r = rt_request_default();
    r.prompt = "One word after the other";
    r.prompt_len = strlen(r.prompt);
    r.strategy = RT_STRATEGY_SEQUENTIAL;
    r.ignore_stop_ids = true;
    engine_answer a = {0};
    engine_submit(&c, &r, &a);
    for (int i = 0; i < 24; i++) {
        bool busy;
        assert_ok(rt_engine_step(c.root, &busy));
        assert_true(busy);
    }
    rt_engine_cancel(c.root, a.id);
    engine_drain(&c);
    assert_int_equal(a.finish, RT_FINISH_CANCELLED);
    assert_true(a.ids_len > 0 && a.text[0]);
    assert_string_equal(a.streamed, a.text);
    engine_close(&c);
    engine_free(&a, 1);
}

int main(void)
{
    rt_log_setup(RT_LOG_ERROR, 0, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_strings),   cmocka_unit_test(test_stop_ids_and_lengths),
        cmocka_unit_test(test_turn_end),       cmocka_unit_test(test_chat_template),
        cmocka_unit_test(test_cancelled_text),
    };
    return cmocka_run_group_tests_name("engine text", tests, NULL, NULL);
}
