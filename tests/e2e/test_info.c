// SPDX-License-Identifier: Apache-2.0
// losa info: the memory plan as text and as JSON, of checkpoints and of published shapes,
// on machines without the device that it is for.
#include "tests/e2e/run.h"

#include <stdlib.h>
#include <string.h>

static run_result info(const char *const *words)
{
    run_args args = {0};
    run_arg(&args, "info");
    for (int i = 0; words[i]; i++)
        run_arg(&args, "%s", words[i]);
    run_result result = run_ok(0, &args, 60);
    run_args_free(&args);
    return result;
}

static json_t *info_json(const char *const *words)
{
    run_result result = info(words);
    json_t *object = json_loads(result.out, 0, NULL);
    assert_non_null(object);
    run_result_free(&result);
    return object;
}

static double sum_of(const json_t *object, const char *shard_key)
{
    double sum = 0;
    size_t i;
    json_t *shard;
    json_array_foreach(run_get(object, "shards"), i, shard)
    {
        sum += run_number(shard, shard_key);
    }
    return sum;
}

// SDAR-8B has 8.19 billion weights in bf16, most of them split; a token of KV is 36 layers x
// 8 heads x 128 channels x K and V, a page's bounds a byte each and one for 16 of them.
static void test_published(void **state)
{
    (void)state;
    const char *const words[] = {"--dummy", "sdar-8b",     "--device", "cuda", "--ranks",
                                 "2",       "--json",      "--batch",  "3",    "--context",
                                 "10000",   "--kv-memory", "4G",       NULL};
    json_t *object = info_json(words);
    assert_int_equal(json_array_size(run_get(object, "shards")), 2);
    const double weights = sum_of(object, "memory.weights");
    assert_true(weights > 2 * 8.19e9 && weights < 2 * 8.2e9);
    const json_t *first = json_array_get(run_get(object, "shards"), 0);
    const double page = 8 * 2.0 * 36 * 4 * 128 * 2 + 36.0 * 4 * (2 * 128 + 128 / 16);
    assert_true(run_number(first, "kv.page_bytes") == page);
    const int pages = (3 * (10000 + 4 + 8) + 7) / 8, held = (int)(4294967296.0 / page);
    assert_int_equal(run_number(first, "kv.pages"), pages);
    assert_int_equal(run_number(first, "kv.fit_tokens"), held * 8);
    assert_int_equal(run_number(first, "kv.fit_sessions"), held / ((10000 + 4 + 8 + 7) / 8));
    assert_string_equal(run_text(object, "device"), "cuda");
    assert_string_equal(run_text(object, "default_device"), "cpu"); // the tests hide GPUs
    assert_int_equal(run_number(object, "sessions"), 3);
    assert_null(json_object_get(object, "files"));
    json_decref(object);
}

// All sixteen that there can be, of the largest vocabulary.
static void test_stop_ids(void **state)
{
    (void)state;
    enum { VOCAB = 1 << 24, STOPS = 16 };
    const run_shape shape = {.vocab = VOCAB, .heads = 1, .head_dim = 2};
    char ids[256] = "", more[512], row[512];
    size_t used = 0;
    for (int i = 0; i < STOPS; i++)
        used += (size_t)snprintf(ids + used, sizeof ids - used, "%s%d", i ? ", " : "",
                                 VOCAB - STOPS + i);
    snprintf(more, sizeof more, "\"eos_token_id\": [%s]", ids);
    run_zero_model("stops", &shape, more);
    char *model = strdup(run_temp("stops"));
    assert_non_null(model);
    const char *const words[] = {"--model", model, NULL};
    run_result text = info(words);
    snprintf(row, sizeof row, "stop ids              %s\n", ids);
    assert_non_null(strstr(text.out, row));
    run_result_free(&text);
    free(model);
}

static void test_checkpoint(void **state)
{
    (void)state;
    char *model = strdup(run_source("models/needle-11m"));
    assert_non_null(model);
    const char *const words[] = {"--model", model, "--ranks", "4", NULL};
    run_result text = info(words);
    static const char *const parts[] = {"device                cpu (default here: cpu, 0 GPUs)",
                                        "page metadata", "1 session of 32768 tokens",
                                        "KV pages: 4099 of 8 tokens"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        assert_non_null(strstr(text.out, parts[i]));
    run_result_free(&text);
    const char *const as_json[] = {"--model", model, "--ranks", "4", "--json", NULL};
    json_t *object = info_json(as_json);
    const double stored = run_number(object, "files.tensor_bytes");
    const double weights = sum_of(object, "memory.weights");
    assert_true(weights > 2 * stored && weights < 2.02 * stored); // f32, norms on every rank
    assert_int_equal(run_number(object, "model.block_length"), 16);
    json_decref(object);
    free(model);
}

// A plan may be for more than the model takes, as of a checkpoint still to come, and says so.
static void test_beyond(void **state)
{
    (void)state;
    static const char note[] = "More than the model takes: its context is 32768 tokens.";
    const char *const longer[] = {"--dummy", "sdar-8b", "--context", "100000", NULL};
    run_result text = info(longer);
    assert_non_null(strstr(text.out, note));
    run_result_free(&text);
    const char *const most[] = {"--dummy", "sdar-8b", "--context", "32768", NULL};
    text = info(most);
    assert_null(strstr(text.out, note));
    run_result_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_checkpoint),
        cmocka_unit_test(test_stop_ids),
        cmocka_unit_test(test_beyond),
    };
    const int skip = run_ready();
    return skip ? skip : cmocka_run_group_tests_name("info", tests, NULL, NULL);
}
