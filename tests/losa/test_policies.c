// SPDX-License-Identifier: Apache-2.0
// Every policy does what its description says: random stories through losa_layer, on one
// rank and on several, against the naive reference. Block lengths 4 to 64, 1 to 8 query
// heads a KV head, pages of 8 to 64 tokens, prefixes that are empty, shorter than a page,
// or end inside one.
#include "tests/losa/reference.h"

enum { ROUNDS = 10 };

static int pick(kt_rng *rng, const int *from, int count)
{
    return from[kt_int(rng, 0, count - 1)];
}

#define PICK(rng, ...)                                                                             \
    pick((rng), (const int[]){__VA_ARGS__}, (int)KT_COUNT(((const int[]){__VA_ARGS__})))

static st_shape random_shape(kt_rng *rng, int round)
{
    static const int blocks[] = {4, 8, 16, 32, 64}, pages[] = {8, 16, 32, 64};
    static const int heads[][2] = {{8, 1}, {8, 2}, {8, 4}, {8, 8}, {4, 4}, {6, 2}, {2, 2}};
    const int h = round % (int)KT_COUNT(heads);
    return (st_shape){.block = blocks[round % 5],
                      .page = pages[round % 4],
                      .heads = heads[h][0],
                      .kv_heads = heads[h][1],
                      .dim = PICK(rng, 8, 16, 20, 32)};
}

// Prefixes: none, less than a page, and up to 300 tokens.
static void random_requests(kt_rng *rng, st_setup *setup)
{
    const int block = setup->shape.block;
    setup->requests = ST_REQUESTS;
    for (int i = 0; i < ST_REQUESTS; i++) {
        const int most = i == 0 ? 300 : i == 1 ? setup->shape.page : 150;
        setup->request[i] = (st_request){.prompt = kt_int(rng, 0, most / block) * block,
                                         .delay = kt_int(rng, 0, 5),
                                         .seed = kt_next(rng)};
    }
}

static void random_rule(kt_rng *rng, losa_config *config)
{
    config->rule = (kern_active_rule)kt_int(rng, KERN_ACTIVE_ALL, KERN_ACTIVE_SHARE);
    config->active_share = kt_uniform(rng, 0.2f, 0.9f);
    config->active_k = kt_int(rng, 1, 6);
}

static st_setup random_setup(const char *policy, int round, kt_rng *rng)
{
    st_setup s = {.shape = random_shape(rng, round), .threads = 1 + round % 2, .steps = 3};
    random_requests(rng, &s);
    s.merged = kt_int(rng, 0, 1);
    s.config = losa_config_default();
    s.config.policy = losa_policy_find(policy);
    s.config.page = s.shape.page;
    s.config.budget = PICK(rng, 1, 2, 3, 5) * s.shape.page - 3;
    s.config.scan_budget = PICK(rng, 1, 3, 4) * s.shape.page;
    s.config.first_budget = round % 4 ? 0 : 2 * s.shape.page;
    s.config.keep = round % 3 == 2 ? 0.3 : 0.0;
    s.config.skip = round % 2 ? 0.3 : 0.7;
    s.config.refresh = PICK(rng, 1, 2, 5);
    s.config.first = (losa_first)(round % 3);
    s.config.commit_scan = round % 3 == 1;
    s.config.dense_layers = kt_int(rng, 0, 3) == 0;
    s.config.scope = kt_int(rng, 0, 1) ? LOSA_SCOPE_SHARED : LOSA_SCOPE_HEAD;
    s.config.locality = kt_int(rng, 0, 1) ? LOSA_LOCALITY_QUERY : LOSA_LOCALITY_HIDDEN;
    s.config.check_plans = true;
    random_rule(rng, &s.config);
    const int heads = s.shape.heads;
    s.ranks = heads % 4 == 0 ? PICK(rng, 1, 2, 4, heads) : PICK(rng, 1, 2);
    if (round == 1) { // lists of two KV heads, each of them on two ranks
        s.config.scope = LOSA_SCOPE_HEAD;
        s.ranks = 4;
    }
    return s;
}

// Almost every choice is clear, so that "either would do" hides nothing.
static void follow(const st_setup *setup, long *choices, long *unclear)
{
    st_story *story = st_begin(setup);
    reference *r = reference_new(story);
    const st_forward *forward;
    while (st_next(story, &forward))
        reference_follow(r, story, forward);
    *choices += reference_choices(r);
    *unclear += reference_unclear(r);
    reference_free(r);
    st_end(story);
}

static void test_policy(void **state)
{
    const char *policy = *state;
    long choices = 0, unclear = 0;
    for (int round = 0; round < ROUNDS; round++) {
        kt_rng rng = {(uint64_t)(round + 1)};
        const st_setup setup = random_setup(policy, round, &rng);
        follow(&setup, &choices, &unclear);
    }
    print_message("           %ld choices, %ld too close to call\n", choices, unclear);
    assert_true(choices > 1000 && unclear * 500 < choices);
}

int main(void)
{
    struct CMUnitTest tests[16] = {{0}};
    const size_t count = losa_policy_count();
    for (size_t i = 0; i < count; i++)
        tests[i] = (struct CMUnitTest){.name = losa_policy_at(i)->name,
                                       .test_func = test_policy,
                                       .initial_state = (void *)losa_policy_at(i)->name};
    return _cmocka_run_group_tests("policies", tests, count, NULL, NULL);
}
