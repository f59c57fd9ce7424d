// SPDX-License-Identifier: Apache-2.0
// Numbers that an embedding program may get wrong: each is refused, by name, before
// anything is computed.
#include "tests/unit/engine_case.h"

static char model_dir[PATH_MAX];

// ---- attention -------------------------------------------------------------------

static void refuse_config(const losa_config *config, const char *subject, const char *cause)
{
    assert_fails(losa_config_check(config), RT_ERR_INVALID, subject, cause);
}

static void test_pages(void **state)
{
    (void)state;
    static const int wrong[] = {INT_MIN, -16, 0, 1, 2, 3, 24, 255, 512, INT_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        losa_config config = losa_config_default();
        config.page = wrong[i];
        refuse_config(&config, "page size", "power of two");
    }
    for (int page = 4; page <= 256; page *= 2) {
        losa_config config = losa_config_default();
        config.page = page;
        assert_ok(losa_config_check(&config));
    }
}

static void test_budgets(void **state)
{
    (void)state;
    static const int wrong[] = {INT_MIN, -1, 0, INT_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        losa_config config = losa_config_default();
        config.budget = wrong[i];
        refuse_config(&config, "budget", "must be 1 to 2147483391 tokens");
        config = losa_config_default();
        config.scan_budget = wrong[i];
        refuse_config(&config, "scan budget", "must be 1 to 2147483391 tokens");
    }
}

static void test_rules(void **state)
{
    (void)state;
    losa_config config = losa_config_default();
    config.rule = KERN_ACTIVE_TOPK;
    config.active_k = 0;
    refuse_config(&config, "active rule", "0 tokens are too few");
    config.rule = KERN_ACTIVE_NEW_TOPK;
    assert_ok(losa_config_check(&config));
    config.active_k = -1;
    refuse_config(&config, "active rule", "-1 tokens are too few");
    config = losa_config_default();
    config.dense_layers = -1;
    refuse_config(&config, "dense layers -1", "must not be negative");
    config.dense_layers = 0;
    config.policy = NULL;
    refuse_config(&config, "attention policy", "none given");
}

static void test_shares(void **state)
{
    (void)state;
    static const double wrong[] = {-0.1, 1.1, NAN, INFINITY};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        losa_config config = losa_config_default();
        config.keep = wrong[i];
        refuse_config(&config, "keep", "must be 0 to 1");
        config = losa_config_default();
        config.skip = wrong[i];
        refuse_config(&config, "skip", "must be 0 to 1");
        config = losa_config_default();
        config.active_share = wrong[i]; // of one rule only
        assert_ok(losa_config_check(&config));
        config.rule = KERN_ACTIVE_SHARE;
        refuse_config(&config, "active share", "must be 0 to 1");
    }
    losa_config config = losa_config_default();
    config.first_budget = -1;
    refuse_config(&config, "first budget -1", "must be 0 to 2147483391 tokens");
    config = losa_config_default();
    config.refresh = -1;
    refuse_config(&config, "refresh -1", "must not be negative");
}

// Which later steps of a block of 16 steps are sparse, by the definitions of the papers:
// SparseD int(16 * 0.2) + 1 dense ones, Sparse-dLLM two, FlashBlock none that reads before
// two tokens were unmasked.
static void test_schedules(void **state)
{
    (void)state;
    losa_config config = losa_config_default();
    for (int step = 1; step < 16; step++)
        for (int unread = 0; unread < 4; unread++) {
            const losa_block block = {step, 16, unread};
            config.policy = losa_policy_find("losa");
            assert_int_equal(losa_step_kind(&config, &block), KERN_SEG_STEP);
            config.policy = losa_policy_find("sparsed");
            assert_int_equal(losa_step_kind(&config, &block),
                             step < 4 ? KERN_SEG_EARLY : KERN_SEG_STEP);
            config.policy = losa_policy_find("sparse-dllm");
            assert_int_equal(losa_step_kind(&config, &block),
                             step < 2 ? KERN_SEG_EARLY : KERN_SEG_STEP);
            config.policy = losa_policy_find("flashblock");
            assert_int_equal(losa_step_kind(&config, &block),
                             unread < 2 ? KERN_SEG_REST : KERN_SEG_STEP);
        }
}

// ---- engine ----------------------------------------------------------------------

static void refuse_engine(const rt_engine_options *options, rt_status code, const char *subject,
                          const char *cause)
{
    comm *c;
    rt_engine *e = NULL;
    assert_ok(comm_open_self(&c));
    assert_fails(rt_engine_open(options, c, &e), code, subject, cause);
    assert_null(e);
    comm_close(c);
}

static rt_engine_options usual(void)
{
    rt_engine_options options = rt_engine_options_default();
    options.model_dir = model_dir;
    options.threads = 1;
    return options;
}

static void test_engine(void **state)
{
    (void)state;
    rt_engine_options options = usual();
    options.model_dir = NULL;
    refuse_engine(&options, RT_ERR_INVALID, "model_dir", "");
    options = usual();
    options.max_sessions = 0;
    refuse_engine(&options, RT_ERR_INVALID, "max sessions 0", "must be 1 to");
    options = usual();
    options.prefill_chunk = 0;
    refuse_engine(&options, RT_ERR_INVALID, "prefill chunk 0", "must be 1 to");
    options = usual();
    options.context = -1;
    refuse_engine(&options, RT_ERR_INVALID, "context -1", "must not be negative");
    options = usual();
    options.context = INT_MAX;
    refuse_engine(&options, RT_ERR_LIMIT, "context 2147483647", "too many tokens");
    options = usual();
    options.attention.page = 24;
    refuse_engine(&options, RT_ERR_INVALID, "page size 24", "power of two");
    options = usual();
    options.block_length = -1;
    refuse_engine(&options, RT_ERR_INVALID, "block length -1", "outside");
    options = usual();
    options.mask_id = 96;
    refuse_engine(&options, RT_ERR_INVALID, "mask id 96", "config.json");
}

// ---- ranks ------------------------------------------------------------------------

// Both say the same.
static void refuse_ranks(const rt_engine_options *first, const rt_engine_options *second,
                         const char *message)
{
    engine_refusal got[2];
    engine_refuse(first, second, got);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(got[r].status, RT_ERR_INVALID);
        assert_string_equal(got[r].message, message);
    }
}

static void copy(const char *from, const char *to, long spoiled)
{
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in && out);
    for (int byte; (byte = fgetc(in)) != EOF;)
        fputc(byte ^ (ftell(in) == spoiled), out);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

static void test_ranks_differ(void **state)
{
    (void)state;
    static const char *const files[] = {"config.json", "generation_config.json", "ids.json",
                                        "model.safetensors"};
    const char *other_options = "rank 1 has other options than rank 0: compare their command lines";
    const rt_engine_options options = usual();
    rt_engine_options other = usual();
    other.attention.keep = 0.5;
    refuse_ranks(&options, &other, other_options);
    other = usual();
    other.attention.policy = losa_policy_find("quest");
    refuse_ranks(&options, &other, other_options);
    other = usual();
    other.mask_id = 5;
    refuse_ranks(
        &options, &other,
        "rank 1 has another model than rank 0: compare config.json, block length and mask id");
    // One bit of a weight.
    const test_dir dir = test_dir_new();
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[PATH_MAX + 32];
        snprintf(path, sizeof path, "%s/%s", model_dir, files[i]);
        copy(path, test_path(&dir, files[i]), i == 3 ? 9000 : 0);
    }
    other = usual();
    other.model_dir = dir.path;
    refuse_ranks(&options, &other,
                 "rank 1 has other weights than rank 0: compare the files of their folders");
    test_dir_remove(&dir);
}

// ---- requests ---------------------------------------------------------------------

static void refuse_request(rt_engine *e, const rt_request *request, rt_status code,
                           const char *cause)
{
    rt_session_id id = 0;
    assert_fails(rt_engine_submit(e, request, &id), code, cause, "");
    assert_int_equal(id, 0);
}

// A refused request leaves the engine as it was: the next one is answered.
static void test_requests(void **state)
{
    (void)state;
    comm *c;
    rt_engine *e;
    const rt_engine_options options = usual();
    static int32_t ids[129] = {5};
    rt_request good = rt_request_default(), bad;
    good.prompt_ids = ids;
    good.prompt_ids_len = 9;
    good.max_tokens = 4;
    assert_ok(comm_open_self(&c));
    assert_ok(rt_engine_open(&options, c, &e));
    bad = good, bad.prompt_ids_len = 0;
    refuse_request(e, &bad, RT_ERR_INVALID, "prompt: empty");
    bad = good, bad.prompt_ids_len = 128;
    refuse_request(e, &bad, RT_ERR_LIMIT, "128 tokens leave no room");
    bad = good, bad.prompt_ids = NULL, bad.prompt = "a", bad.prompt_len = 1;
    refuse_request(e, &bad, RT_ERR_IO, "tokenizer.json: not found");
    bad = good, bad.max_tokens = 0;
    refuse_request(e, &bad, RT_ERR_INVALID, "max tokens 0");
    bad = good, bad.steps = -1;
    refuse_request(e, &bad, RT_ERR_INVALID, "steps -1");
    bad = good, bad.threshold = NAN;
    refuse_request(e, &bad, RT_ERR_INVALID, "threshold nan");
    bad = good, bad.threshold = 1.5;
    refuse_request(e, &bad, RT_ERR_INVALID, "a confidence is at most 1");
    bad = good, bad.temperature = INFINITY;
    refuse_request(e, &bad, RT_ERR_INVALID, "temperature");
    bad = good, bad.top_p = 1.5;
    refuse_request(e, &bad, RT_ERR_INVALID, "top-p 1.5");
    bad = good, bad.stops = (const char *const[]){"x", ""}, bad.stops_len = 2;
    refuse_request(e, &bad, RT_ERR_INVALID, "stop string: empty");
    ids[3] = 96;
    refuse_request(e, &good, RT_ERR_INVALID, "token 3 is 96, the vocabulary has 96");
    ids[3] = -1;
    refuse_request(e, &good, RT_ERR_INVALID, "token 3 is -1");
    ids[3] = 5;
    rt_session_id id;
    assert_ok(rt_engine_submit(e, &good, &id));
    for (bool busy = true; busy;)
        assert_ok(rt_engine_step(e, &busy));
    rt_engine_close(e);
    comm_close(c);
}

int main(void)
{
    const char *source = getenv("LOSA_SOURCE");
    if (!source) {
        fprintf(stderr, "skipped: LOSA_SOURCE is not set\n");
        return 77;
    }
    snprintf(model_dir, sizeof model_dir, "%s/tests/golden/logits/gqa_b4_tied", source);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages),     cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_rules),     cmocka_unit_test(test_shares),
        cmocka_unit_test(test_schedules), cmocka_unit_test(test_engine),
        cmocka_unit_test(test_requests),  cmocka_unit_test(test_ranks_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
