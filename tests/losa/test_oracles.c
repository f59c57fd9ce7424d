// SPDX-License-Identifier: Apache-2.0
// What must hold between policies and between batches, without a reference: a full budget
// is dense attention, all tokens active make losa quest-init, and a request's results
// do not depend on the others of its batch nor on the number of ranks.
#include "tests/losa/story.h"

enum { FULL = 1 << 20 };

// Results of a story: of every forward, layer, and row, found again by request and token.
typedef struct entry {
    int forward, layer, request, token;
    float *out;
} entry;

typedef struct results {
    entry *list;
    int count, cap, width;
} results;

static void keep(results *r, const entry *e, const float *out)
{
    if (r->count == r->cap) {
        r->list =
            rt_mem_grow(r->list, (size_t)r->cap, (size_t)(2 * r->cap), sizeof *r->list, "results");
        assert_non_null(r->list);
        r->cap *= 2;
    }
    r->list[r->count] = *e;
    r->list[r->count].out = kt_floats((size_t)r->width);
    memcpy(r->list[r->count++].out, out, (size_t)r->width * sizeof *out);
}

// Runs a whole story. Forwards are counted from the first one of each request.
static results tell(const st_setup *setup)
{
    const int width = setup->shape.heads * setup->shape.dim;
    results r = {.list = kt_alloc(1024, sizeof(entry)), .cap = 1024, .width = width};
    st_story *story = st_begin(setup);
    const st_forward *f;
    for (int forward = 0; st_next(story, &f); forward++)
        for (int l = 0; l < ST_LAYERS; l++)
            for (int g = 0; g < f->segs; g++)
                for (int i = 0; i < f->seg[g].count; i++) {
                    const int request = f->seg[g].request;
                    const entry e = {forward - setup->request[request].delay, l, request,
                                     f->seg[g].first + i, NULL};
                    keep(&r, &e, f->layer[l].out + (f->row0[g] + i) * width);
                }
    st_end(story);
    return r;
}

static void drop(results *r)
{
    for (int i = 0; i < r->count; i++)
        rt_free(r->list[i].out);
    rt_free(r->list);
}

static const entry *find(const results *r, const entry *like, int request)
{
    for (int i = 0; i < r->count; i++) {
        const entry *e = &r->list[i];
        if (e->forward == like->forward && e->layer == like->layer && e->request == request &&
            e->token == like->token)
            return e;
    }
    fail_msg("no result of forward %d, layer %d, token %d", like->forward, like->layer,
             like->token);
    return NULL;
}

// Every result of `a` is one of `b`'s, whose requests are numbered from `first` on;
// tolerance 0: the same bits.
static void compare(const results *a, const results *b, int first, double tolerance)
{
    double *want = kt_alloc((size_t)a->width, sizeof *want);
    assert_true(a->count > 0);
    for (int i = 0; i < a->count; i++) {
        const entry *e = &a->list[i], *other = find(b, e, e->request + first);
        for (int c = 0; c < a->width; c++)
            want[c] = (double)other->out[c];
        if (tolerance == 0.0)
            KT_SAME(e->out, other->out, (size_t)a->width, "results");
        KT_NEAR(e->out, want, (size_t)a->width, 1.0, tolerance);
    }
    rt_free(want);
}

static st_setup setup_of(const char *policy, int round)
{
    static const st_shape shapes[] = {
        {.block = 4, .page = 8, .heads = 4, .kv_heads = 2, .dim = 16},
        {.block = 16, .page = 16, .heads = 8, .kv_heads = 4, .dim = 20},
        {.block = 32, .page = 64, .heads = 8, .kv_heads = 1, .dim = 16},
    };
    st_setup s = {.shape = shapes[round % 3], .requests = 3, .ranks = 1, .threads = 1, .steps = 2};
    const int block = s.shape.block, prompts[] = {160, 0, 64}, delays[] = {0, 3, 1};
    for (int i = 0; i < s.requests; i++)
        s.request[i] = (st_request){prompts[i] / block * block, delays[i], (uint64_t)(7 + i)};
    s.config = losa_config_default();
    s.config.policy = losa_policy_find(policy);
    s.config.page = s.shape.page;
    s.config.budget = 3 * s.shape.page;
    s.config.scan_budget = 2 * s.shape.page;
    s.config.scope = round % 2 ? LOSA_SCOPE_HEAD : LOSA_SCOPE_SHARED;
    return s;
}

static void same_stories(const st_setup *a, const st_setup *b, double tolerance)
{
    results ra = tell(a), rb = tell(b);
    assert_int_equal(ra.count, rb.count);
    compare(&ra, &rb, 0, tolerance);
    drop(&ra);
    drop(&rb);
}

// Settled tokens do not move here, so that what they reuse is what they would read. A
// list of all pages is read as the whole prefix is, in the same order: bits agree.
static void a_full_budget_is_dense(void **state)
{
    (void)state;
    for (size_t p = 0; p < losa_policy_count(); p++)
        for (int round = 0; round < 4; round++) {
            st_setup dense = setup_of("dense", round);
            dense.settled = true;
            st_setup sparse = dense;
            sparse.config.policy = losa_policy_at(p);
            sparse.config.budget = sparse.config.scan_budget = FULL;
            sparse.config.refresh = 0; // masked rows that rest would not be as dense
            sparse.config.first = (losa_first)(round % 3);
            same_stories(&sparse, &dense, 0.0);
        }
}

static void losa_with_all_tokens_active_is_quest_init(void **state)
{
    (void)state;
    for (int round = 0; round < 6; round++) {
        st_setup losa = setup_of("losa", round), quest = setup_of("quest-init", round);
        losa.config.rule = KERN_ACTIVE_ALL;
        losa.config.first = quest.config.first = (losa_first)(round % 3);
        same_stories(&losa, &quest, 0.0);
    }
}

static void losa_mass_with_all_tokens_active_is_mage(void **state)
{
    (void)state;
    for (int round = 0; round < 6; round++) {
        st_setup mass = setup_of("losa-mass", round), mage = setup_of("mage", round);
        mass.config.rule = KERN_ACTIVE_ALL;
        mass.merged = mage.merged = round > 2;
        same_stories(&mass, &mage, 0.0);
    }
}

// A sparse first step of quest-init reads what quest's does, after the first block.
static void quest_is_quest_init_once_both_are_sparse(void **state)
{
    (void)state;
    st_setup quest = setup_of("quest", 0), init = setup_of("quest-init", 0);
    quest.requests = init.requests = 1;
    init.config.first = LOSA_FIRST_SPARSE;
    results rq = tell(&quest), ri = tell(&init);
    assert_int_equal(rq.count, ri.count);
    int same = 0, other = 0;
    for (int i = 0; i < rq.count; i++) {
        const bool equal =
            memcmp(rq.list[i].out, ri.list[i].out, (size_t)rq.width * sizeof(float)) == 0;
        const bool open = rq.list[i].forward == 2; // after two prefill chunks
        same += equal;
        other += open && !equal;
        assert_true(open || equal);
    }
    assert_true(same > 0 && other > 0);
    drop(&rq);
    drop(&ri);
}

// Prefill, first steps, later steps and commits of three requests share forwards.
static void a_batch_gives_what_each_request_gets_alone(void **state)
{
    (void)state;
    for (size_t p = 0; p < losa_policy_count(); p++)
        for (int round = 0; round < 4; round++) {
            st_setup all = setup_of(losa_policy_at(p)->name, round);
            all.config.first = (losa_first)(round % 3);
            all.merged = round % 2;
            results together = tell(&all);
            for (int i = 0; i < all.requests; i++) {
                st_setup one = all;
                one.requests = 1;
                one.request[0] = all.request[i];
                one.request[0].delay = 0;
                results alone = tell(&one);
                compare(&alone, &together, i, 0.0);
                drop(&alone);
            }
            drop(&together);
        }
}

// More threads, and ranks where every list is a KV head's own, compute the same bits. With
// shared lists the sums over heads have another order, which chose no other page here.
static void ranks_and_threads_change_nothing(void **state)
{
    (void)state;
    static const int ranks[] = {2, 4, 4, 8};
    for (size_t p = 0; p < losa_policy_count(); p++)
        for (int round = 0; round < 4; round++) {
            st_setup one = setup_of(losa_policy_at(p)->name, round);
            st_setup many = one;
            many.ranks = round == 0 || round == 3 ? ranks[round] / 2 : ranks[round];
            many.threads = 1 + round % 2;
            same_stories(&many, &one, 0.0);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_budget_is_dense),
        cmocka_unit_test(losa_with_all_tokens_active_is_quest_init),
        cmocka_unit_test(losa_mass_with_all_tokens_active_is_mage),
        cmocka_unit_test(quest_is_quest_init_once_both_are_sparse),
        cmocka_unit_test(a_batch_gives_what_each_request_gets_alone),
        cmocka_unit_test(ranks_and_threads_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
