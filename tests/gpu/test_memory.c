// SPDX-License-Identifier: Apache-2.0
// The memory plan against what is gone from a GPU: after opening, and after a run that has
// recorded as many forwards as are kept.
#include "runtime/engine/engine_int.h"
#include "tests/unit/engine_case.h"

static const double MEGA = 1e6;

typedef struct shape_case {
    const char *model;
    const char *policy;
    int sessions, context;
    kern_precision precision;
} shape_case;

static const shape_case CASES[] = {
    {"sdar-1.7b", "losa", 8, 40000, KERN_PRECISION_AUTO},
    {"sdar-1.7b", "losa-mix", 3, 10000, KERN_PRECISION_F32},
    {"sdar-8b", "losa", 16, 100000, KERN_PRECISION_AUTO},
};

static rt_model_config published(const char *name)
{
    size_t i = 0;
    rt_model_config config;
    const rt_config_overrides block = {.block_length = 16, .mask_id = -1};
    while (strcmp(rt_config_published_name(i), name) != 0)
        i++;
    assert_ok(rt_config_published(i, &block, &config));
    return config;
}

static size_t room_of(kern_dev *dev)
{
    size_t room;
    assert_ok(kern_sync(dev));
    assert_ok(kern_dev_room(dev, &room));
    return room;
}

// Free memory with nothing but the driver's context.
static size_t room_alone(void)
{
    const kern_dev_options options = {.kind = KERN_CUDA, .threads = 1};
    kern_dev *dev;
    assert_ok(kern_dev_open(&options, &dev));
    const size_t room = room_of(dev) + kern_used(dev, KERN_USE_WORKSPACE);
    kern_dev_close(dev);
    return room;
}

// Requests of all lengths that leave and come: forwards of many shapes.
static void run_requests(engine_case *c, int sessions)
{
    enum { REQUESTS = 64 };
    engine_answer answers[REQUESTS] = {{0}};
    const int vocab = rt_engine_model(c->root)->mask_id;
    for (int i = 0; i < REQUESTS; i++) {
        rt_request r = rt_request_default();
        const int prompt = 40 + 97 * i % (c->options.context / sessions - 200);
        r.prompt_ids = engine_prompt((uint32_t)i, prompt, vocab);
        r.prompt_ids_len = (size_t)prompt;
        r.max_tokens = 16 + 11 * i % 80;
        r.strategy = RT_STRATEGY_STATIC;
        r.steps = 3 + i % 5;
        r.temperature = i % 3 ? 1.0 : 0.0;
        r.top_k = i % 4 ? 0 : 20;
        r.ignore_stop_ids = true;
        engine_submit(c, &r, &answers[i]);
    }
    (void)engine_drain(c);
    engine_free(answers, REQUESTS);
}

static void check_case(const shape_case *s)
{
    const rt_model_config config = published(s->model);
    rt_engine_options o = rt_engine_options_default();
    rt_memory m;
    engine_case c;
    comm *self;
    o.dummy = &config;
    o.precision = s->precision;
    o.attention.policy = losa_policy_find(s->policy);
    o.max_sessions = s->sessions;
    o.context = s->context;
    o.skip_prefill = true;
    assert_ok(comm_open_self(&self));
    assert_ok(rt_engine_plan(&o, self, &m));
    comm_close(self);
    const size_t alone = room_alone();
    engine_open(&c, &o, 1);
    for (int use = 0; use < KERN_USES; use++)
        assert_int_equal(kern_used(c.root->dev, (kern_use)use), m.bytes[use]);
    const double planned = (double)(m.total - m.reserve);
    const size_t opened = room_of(c.root->dev);
    const double taken = (double)alone - (double)opened;
    run_requests(&c, s->sessions);
    const double more = (double)opened - (double)room_of(c.root->dev);
    print_message("           %s %s: planned %.1f MB, taken %.1f MB, reserve %.1f MB, then taken "
                  "%.1f MB\n",
                  s->model, s->policy, planned / MEGA, taken / MEGA, (double)m.reserve / MEGA,
                  more / MEGA);
    engine_close(&c);
    assert_true(taken + more <= (double)m.total);
}

static void test_plan(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++)
        check_case(&CASES[i]);
}

// What is left when nothing is said: the card is full but for the reserve, and a run fits.
static void test_left(void **state)
{
    (void)state;
    rt_model_config config = published("sdar-1.7b");
    config.max_positions = 1 << 19;
    rt_engine_options o = rt_engine_options_default();
    engine_case c;
    o.dummy = &config;
    o.max_sessions = 16;
    o.skip_prefill = true;
    engine_open(&c, &o, 1);
    c.options.context = 16 * 2000; // of the prompts
    const double left = (double)room_of(c.root->dev);
    print_message("           %d pages of %d tokens, %.1f MB left\n", c.root->kv.pages,
                  c.root->kv.page, left / MEGA);
    assert_true(left < 2e9);
    run_requests(&c, 16);
    engine_close(&c);
}

int main(void)
{
    if (kern_device_count(KERN_CUDA) == 0) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
