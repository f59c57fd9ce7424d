// SPDX-License-Identifier: Apache-2.0
// The memory plan against what an engine takes, against the shapes, and at its limits.
#include "runtime/engine/engine_int.h"
#include "tests/unit/engine_case.h"

static const rt_model_config small = {
    .architecture = "SDARForCausalLM",
    .hidden = 32,
    .ffn = 48,
    .layers = 3,
    .heads = 4,
    .kv_heads = 2,
    .head_dim = 16,
    .vocab = 101,
    .max_positions = 640,
    .rms_eps = 1e-6,
    .rope = {.kind = RT_ROPE_PLAIN, .theta = 1e4, .factor = 1},
    .block_length = 4,
    .block_source = "the test",
    .mask_id = 99,
    .mask_source = "the test",
    .top_p = 1,
};

static rt_engine_options options_of(const rt_model_config *config)
{
    rt_engine_options o = rt_engine_options_default();
    o.device = KERN_CPU;
    o.threads = 2;
    o.dummy = config;
    o.max_sessions = 3;
    o.attention.page = 16;
    return o;
}

static void plan_of(const rt_engine_options *options, int rank, int ranks, rt_memory *out)
{
    comm *group[ENGINE_RANKS_MAX];
    assert_ok(comm_open_threads(ranks, 1, group));
    assert_ok(rt_engine_plan(options, group[rank], out));
    for (int r = 0; r < ranks; r++)
        comm_close(group[r]);
}

// ---- the plan is what is taken -----------------------------------------------------

static void check_taken(const rt_engine_options *options, int ranks)
{
    engine_case c;
    rt_memory m;
    size_t sum = 0;
    plan_of(options, 0, ranks, &m);
    engine_open(&c, options, ranks);
    for (int use = 0; use < KERN_USES; use++) {
        const size_t taken = kern_used(c.root->dev, (kern_use)use);
        if (taken != m.bytes[use])
            fail_msg("%s: planned %zu, taken %zu", kern_use_name((kern_use)use), m.bytes[use],
                     taken);
        sum += taken;
    }
    assert_int_equal(m.total, sum);
    assert_int_equal(m.pages, c.root->kv.pages);
    // A run takes nothing more.
    const rt_model_config *model = rt_engine_model(c.root);
    rt_request request = rt_request_default();
    request.prompt_ids = engine_prompt(1, 37, model->vocab - 1);
    request.prompt_ids_len = 37;
    request.max_tokens = 9;
    engine_answer answer = {0};
    engine_submit(&c, &request, &answer);
    (void)engine_drain(&c);
    for (int use = 0; use < KERN_USES; use++)
        assert_int_equal(kern_used(c.root->dev, (kern_use)use), m.bytes[use]);
    engine_free(&answer, 1);
    engine_close(&c);
}

static void test_taken(void **state)
{
    (void)state;
    static const char *const policies[] = {"dense", "losa", "losa-mix", "quest"};
    for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++) {
        rt_engine_options o = options_of(&small);
        for (size_t p = 0; p < losa_policy_count(); p++)
            if (strcmp(losa_policy_at(p)->name, policies[i]) == 0)
                o.attention.policy = losa_policy_at(p);
        o.attention.scope = LOSA_SCOPE_SHARED;
        check_taken(&o, 1);
        o.attention.rule = KERN_ACTIVE_TOPK;
        o.attention.active_k = 2;
        o.attention.scope = LOSA_SCOPE_HEAD;
        o.context = 1000;
        check_taken(&o, 2);
    }
    rt_model_config other = small;
    other.qkv_bias = other.qk_norm = other.shifted = other.tied_head = true;
    const rt_engine_options o = options_of(&other);
    check_taken(&o, 2);
    rt_engine_options probed = options_of(&small);
    probed.probe_every = 1;
    check_taken(&probed, 2);
    rt_engine_options little = options_of(&small);
    little.context = 48;
    check_taken(&little, 2);
    rt_engine_options stored = engine_options("models/needle-11m");
    stored.context = 1000;
    check_taken(&stored, 2);
}

// ---- against the shapes --------------------------------------------------------------

static void test_shapes(void **state)
{
    (void)state;
    rt_engine_options o = options_of(&small);
    size_t weights = 0;
    for (int rank = 0; rank < 2; rank++) {
        rt_memory m;
        plan_of(&o, rank, 2, &m);
        // A session may leave a part of a block and of a page unused.
        assert_int_equal(m.pages, (640 + 3 * (4 + 16) + 15) / 16);
        assert_int_equal(m.session_pages, (640 / 3 + 4 + 16 + 15) / 16);
        const size_t heads = 1, tokens = (size_t)m.pages * 16; // of two KV heads
        assert_int_equal(m.bytes[KERN_USE_KV], 2 * 3 * tokens * heads * 16 * 4);
        assert_int_equal(m.bytes[KERN_USE_METADATA], 2 * 3 * (size_t)m.pages * heads * 16 * 4);
        assert_int_equal(m.bytes[KERN_USE_TABLES], 2 * 640 * 8 * 4);
        assert_int_equal(m.reserve, 0);
        weights += m.bytes[KERN_USE_WEIGHTS];
    }
    // No position is beyond the pages that there are.
    rt_memory little;
    o.context = 64;
    plan_of(&o, 0, 1, &little);
    assert_int_equal(little.pages, (64 + 3 * (4 + 16) + 15) / 16);
    assert_int_equal(little.bytes[KERN_USE_TABLES], 2 * little.pages * 16 * 8 * 4);
    const size_t layer = 32 * (4 + 2 * 2) * 16 + 32 * 4 * 16 + 3 * 32 * 48, norms = 3 * 2 * 32 + 32;
    assert_int_equal(weights, 4 * (3 * layer + 2 * 101 * 32 + 2 * norms)); // norms on both ranks
}

// On a GPU weights are kept as stored, pages in bf16, and something is left for the driver.
static void test_cuda(void **state)
{
    (void)state;
    rt_engine_options o = options_of(&small);
    rt_memory cpu, cuda;
    o.context = 640;
    plan_of(&o, 0, 1, &cpu);
    o.device = KERN_CUDA;
    plan_of(&o, 0, 1, &cuda);
    assert_int_equal(cuda.pages, cpu.pages);
    assert_int_equal(2 * cuda.bytes[KERN_USE_KV], cpu.bytes[KERN_USE_KV]);
    assert_int_equal(cuda.bytes[KERN_USE_METADATA], cpu.bytes[KERN_USE_METADATA]); // head_dim 16
    assert_true(cuda.bytes[KERN_USE_WEIGHTS] < cpu.bytes[KERN_USE_WEIGHTS]);
    size_t sum = cuda.reserve;
    for (int use = 0; use < KERN_USES; use++)
        sum += use == KERN_USE_HOST ? 0 : cuda.bytes[use];
    assert_true(cuda.reserve > 0 && cuda.bytes[KERN_USE_HOST] > 0);
    assert_int_equal(cuda.total, sum);
    // Two GPUs share two buffers of 128 x 8192 floats for the part of each.
    rt_memory half;
    plan_of(&o, 0, 2, &half);
    assert_in_range(half.bytes[KERN_USE_WORKSPACE] - cuda.bytes[KERN_USE_WORKSPACE], 16 << 20,
                    17 << 20);
    o.no_graph = true;
    rt_memory without;
    plan_of(&o, 0, 1, &without);
    assert_true(without.reserve < cuda.reserve);
}

// A GPU's workspace holds the page bounds of a segment: of a million tokens in pages of 8, of 32
// heads and the 16 rows of a block, 2^28 bytes. Who scans no pages needs none.
static void test_long_plans(void **state)
{
    (void)state;
    rt_model_config far = small;
    far.heads = 32;
    far.block_length = 16;
    far.max_positions = 1 << 20;
    rt_engine_options o = options_of(&far);
    o.device = KERN_CUDA;
    o.max_sessions = 1;
    o.attention.page = 8;
    o.context = 1 << 12;
    rt_memory little, large, dense;
    plan_of(&o, 0, 1, &little);
    o.context = 1 << 20;
    plan_of(&o, 0, 1, &large);
    assert_in_range(large.bytes[KERN_USE_WORKSPACE], 1 << 28, 3 << 27);
    assert_true(little.bytes[KERN_USE_WORKSPACE] < 1 << 28);
    o.attention.policy = losa_policy_at(0);
    assert_string_equal(o.attention.policy->name, "dense");
    plan_of(&o, 0, 1, &dense);
    assert_int_equal(dense.bytes[KERN_USE_WORKSPACE], little.bytes[KERN_USE_WORKSPACE]);
}

// ---- limits ----------------------------------------------------------------------------

static size_t kv_of(const rt_memory *m)
{
    return m->bytes[KERN_USE_KV] + m->bytes[KERN_USE_METADATA];
}

// As many pages as the bytes hold, and not one less; no more than the sessions can use.
static void test_kv_memory(void **state)
{
    (void)state;
    static const uint64_t limits[] = {13056, 13057, 100000, 1000000, 1 << 24};
    rt_engine_options o = options_of(&small);
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        rt_memory m;
        o.kv_memory = limits[i];
        plan_of(&o, 0, 1, &m);
        const size_t page = kv_of(&m) / (size_t)m.pages;
        const int most = (3 * 640 + 3 * 20 + 15) / 16;
        const int held = (int)(limits[i] / page);
        assert_int_equal(page, 2 * 3 * 2 * 16 * 4 * 17);
        assert_int_equal(m.pages, held < most ? held : most);
        if (m.pages < 3) // too few for the request
            continue;
        check_taken(&o, 1);
        check_taken(&o, 2);
    }
    o.kv_memory = 13055;
    comm *c;
    rt_engine *e;
    assert_ok(comm_open_self(&c));
    assert_fails(rt_engine_open(&o, c, &e), RT_ERR_LIMIT, "KV memory of 13055 bytes",
                 "takes 13056");
    comm_close(c);
}

// What no machine has is refused before it is taken, on every rank, with the numbers.
static void test_refused(void **state)
{
    (void)state;
    rt_model_config huge = small;
    huge.layers = 10000;
    huge.hidden = huge.ffn = 65536;
    const rt_engine_options o = options_of(&huge);
    engine_refusal got[2];
    engine_refuse(&o, &o, got);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(got[r].status, RT_ERR_LIMIT);
        assert_non_null(strstr(got[r].message, "GB needed on this rank, the host has for each"));
        assert_non_null(strstr(got[r].message, "(weights 2"));
    }
}

// ---- requests that are known before -------------------------------------------------------

static rt_request ids_of(int prompt, int max_tokens)
{
    rt_request r = rt_request_default();
    r.prompt_ids = engine_prompt(5, prompt, small.vocab - 1);
    r.prompt_ids_len = (size_t)prompt;
    r.max_tokens = max_tokens;
    return r;
}

static void test_context_for(void **state)
{
    (void)state;
    const rt_request requests[] = {ids_of(10, 7), ids_of(100, 20), ids_of(50, 1), ids_of(99, 4)};
    rt_engine_options o = options_of(&small);
    int context = 0;
    size_t refused = 0;
    o.max_sessions = 2;
    assert_ok(rt_engine_context_for(&o, requests, 4, &context, &refused));
    assert_int_equal(context, 120 + 103);
    o.max_sessions = 9;
    assert_ok(rt_engine_context_for(&o, requests, 4, &context, &refused));
    assert_int_equal(context, 17 + 120 + 51 + 103);
    const rt_request longest[] = {ids_of(600, 41), ids_of(639, 1)};
    assert_ok(rt_engine_context_for(&o, longest, 2, &context, &refused));
    assert_int_equal(context, 640 + 640);
    assert_int_equal(refused, 2);
    const rt_request long_one = ids_of(640, 1);
    assert_fails(rt_engine_context_for(&o, &long_one, 1, &context, &refused), RT_ERR_LIMIT,
                 "640 tokens leave no room", "");
    assert_int_equal(refused, 0);
    // With just as many, all run at once: in no step does one of them wait.
    rt_engine_options just = o;
    just.max_sessions = 4;
    just.no_sharing = true;
    assert_ok(rt_engine_context_for(&just, requests, 4, &just.context, &refused));
    engine_case c;
    engine_answer answers[4] = {{0}};
    engine_open(&c, &just, 1);
    for (int i = 0; i < 4; i++)
        engine_submit(&c, &requests[i], &answers[i]);
    bool busy = true;
    assert_ok(rt_engine_step(c.root, &busy));
    const rt_room room = rt_engine_room(c.root);
    assert_int_equal(room.slots_used, 4);
    assert_true(room.pages - room.pages_used < 4 * 3);
    (void)engine_drain(&c);
    engine_free(answers, 4);
    engine_close(&c);
}

// Text counts in tokens, with the turns of a chat; what is hopelessly long is refused.
static void test_context_of_text(void **state)
{
    (void)state;
    rt_engine_options o = engine_options("models/needle-11m");
    rt_request r = rt_request_default();
    int plain = 0, chat = 0, all = 0;
    size_t refused = 9;
    r.prompt = "Where is the key?";
    r.prompt_len = strlen(r.prompt);
    r.max_tokens = 10;
    assert_ok(rt_engine_context_for(&o, &r, 1, &plain, &refused));
    r.chat = true;
    assert_ok(rt_engine_context_for(&o, &r, 1, &chat, &refused));
    assert_true(plain > 11 && plain <= 10 + 17);
    assert_true(chat >= plain + 6);
    const size_t bytes = 1 << 20;
    char *text = malloc(bytes);
    assert_non_null(text);
    memset(text, 'a', bytes);
    r.prompt = text;
    r.prompt_len = bytes;
    const rt_request both[] = {ids_of(10, 7), r};
    assert_fails(rt_engine_context_for(&o, both, 2, &all, &refused), RT_ERR_LIMIT, "1048576 bytes",
                 "context of 32768");
    assert_int_equal(refused, 1);
    free(text);
    o = engine_options("tests/golden/logits/gqa_b4_tied"); // has no tokenizer
    r.prompt_len = 0;
    assert_fails(rt_engine_context_for(&o, &r, 1, &all, &refused), RT_ERR_IO, "tokenizer.json",
                 "not found");
    assert_int_equal(refused, 0);
}

int main(void)
{
    if (!getenv("LOSA_SOURCE")) {
        fprintf(stderr, "skipped: LOSA_SOURCE is not set\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken),       cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_cuda),        cmocka_unit_test(test_long_plans),
        cmocka_unit_test(test_kv_memory),   cmocka_unit_test(test_refused),
        cmocka_unit_test(test_context_for), cmocka_unit_test(test_context_of_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
