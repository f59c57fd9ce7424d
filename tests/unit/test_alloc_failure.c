// SPDX-License-Identifier: Apache-2.0
// Memory runs out at the n-th allocation, for n = 1, 2, 3, ...: every time an error with
// a message, no crash, and (under a sanitizer) no leak, until n is beyond the last one.
//
// The first allocations fail one by one, later ones in steps that grow by an eighth:
// loading and answering make thousands, most of them in loops over layers and tensors.
#include "tests/unit/testing.h"

#include "runtime/base/mem.h"
#include "runtime/engine/engine.h"
#include "runtime/io/safetensors.h"
#include "runtime/text/tokenizer.h"

enum { GROWTH = 8, LONGEST = 1 << 20 };

static char model_dir[PATH_MAX]; // the shipped model
static char tiny_dir[PATH_MAX];  // a hundredth of it, without a tokenizer

static char *model_file(const char *name)
{
    static char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", model_dir, name);
    return path;
}

typedef rt_status attempt(void);

// Returns how many failures it took until the attempt succeeded; the first `dense`
// allocations are not skipped.
static int fail_in_turn(attempt *run, long dense)
{
    int failures = 0;
    for (long n = 1;; n += n < dense || n < GROWTH ? 1 : n / GROWTH) {
        assert_true(n < LONGEST);
        (void)RT_FAIL(RT_ERR_INTERNAL, "no message"); // must be replaced
        rt_mem_fail_at(n);
        const rt_status status = run();
        rt_mem_fail_at(0);
        if (status == RT_OK)
            return failures;
        if (status != RT_ERR_NOMEM || strncmp(rt_last_error(), "out of memory", 13) != 0)
            fail_msg("allocation %ld: %s: %s", n, rt_status_text(status), rt_last_error());
        failures++;
    }
}

// ---- what is attempted -----------------------------------------------------------

static rt_status open_checkpoint(void)
{
    rt_checkpoint *ckpt = NULL;
    const rt_status status = rt_checkpoint_open(model_dir, &ckpt);
    assert_true((status == RT_OK) == (ckpt != NULL));
    rt_checkpoint_close(ckpt);
    return status;
}

static rt_status load_config(void)
{
    rt_model_config config;
    return rt_config_load(model_dir, NULL, &config);
}

static rt_status encode(void)
{
    static const char text[] = "Gr\xc3\xbc\xc3\x9f Gott, 42  times <|im_end|> and on\n";
    rt_tokenizer *tok = NULL;
    rt_ids ids = {0};
    RT_TRY(rt_tokenizer_open(model_file("tokenizer.json"), &tok));
    const rt_status status =
        rt_tokenizer_encode(tok, text, sizeof text - 1, RT_SPECIAL_PARSE, &ids);
    assert_true((status == RT_OK) == (ids.len > 0));
    rt_ids_free(&ids);
    rt_tokenizer_close(tok);
    return status;
}

static rt_status answer(rt_engine *e, rt_request *request)
{
    request->max_tokens = 8;
    request->stops = (const char *const[]){"zzz"};
    request->stops_len = 1;
    rt_session_id id;
    RT_TRY(rt_engine_submit(e, request, &id));
    for (bool busy = true; busy;)
        RT_TRY(rt_engine_step(e, &busy));
    return RT_OK;
}

static rt_status generate(const char *dir, rt_request *request)
{
    comm *c;
    rt_engine *e = NULL;
    rt_engine_options options = rt_engine_options_default();
    options.model_dir = dir;
    options.threads = 1;
    options.context = 256;
    options.prefill_chunk = 16;
    RT_TRY(comm_open_self(&c));
    rt_status status = rt_engine_open(&options, c, &e);
    assert_true((status == RT_OK) == (e != NULL));
    if (status == RT_OK)
        status = answer(e, request);
    // What closing has to say must not hide what the failure said.
    char message[512];
    snprintf(message, sizeof message, "%s", rt_last_error());
    rt_engine_close(e);
    comm_close(c);
    return status == RT_OK ? RT_OK : RT_FAIL(status, "%s", message);
}

static rt_status generate_text(void)
{
    rt_request request = rt_request_default();
    request.prompt = "The number is 7. What is the number?";
    request.prompt_len = strlen(request.prompt);
    request.chat = true;
    return generate(model_dir, &request);
}

static rt_status generate_ids(void)
{
    int32_t ids[40];
    for (int i = 0; i < 40; i++)
        ids[i] = 10 + i;
    rt_request request = rt_request_default();
    request.prompt_ids = ids;
    request.prompt_ids_len = 40;
    return generate(tiny_dir, &request);
}

// ---- tests -----------------------------------------------------------------------

static void test_checkpoint(void **state)
{
    (void)state;
    assert_true(fail_in_turn(open_checkpoint, 500) > 10);
}

static void test_config(void **state)
{
    (void)state;
    assert_true(fail_in_turn(load_config, 500) >= 1);
}

static void test_tokenizer(void **state)
{
    (void)state;
    assert_true(fail_in_turn(encode, 500) > 10);
}

static void test_generate_ids(void **state)
{
    (void)state;
    assert_true(fail_in_turn(generate_ids, 500) > 100);
}

static void test_generate_text(void **state)
{
    (void)state;
    assert_true(fail_in_turn(generate_text, 50) > 50);
}

int main(void)
{
    const char *source = getenv("LOSA_SOURCE");
    if (!source) {
        fprintf(stderr, "skipped: LOSA_SOURCE is not set\n");
        return 77;
    }
    snprintf(model_dir, sizeof model_dir, "%s/models/needle-11m", source);
    snprintf(tiny_dir, sizeof tiny_dir, "%s/tests/golden/logits/gqa_b4_tied", source);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checkpoint),    cmocka_unit_test(test_config),
        cmocka_unit_test(test_tokenizer),     cmocka_unit_test(test_generate_ids),
        cmocka_unit_test(test_generate_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
