// SPDX-License-Identifier: Apache-2.0
// Step commands that are well formed and still wrong: a rank refuses what does not fit its
// slots, before anything is computed.
#include "tests/unit/engine_case.h"

#include "runtime/engine/engine_int.h"

#define TINY "tests/golden/logits/gqa_b4_tied"
enum { BLOCK = 4, PROMPT = 8, TOKENS = 16, PAGES = 8, SESSIONS = 4, SEGMENTS_MAX = 8 };

// An engine of one rank, of which slot 0 has read its prompt.
static void open_slot(engine_case *c)
{
    static int32_t prompt[PROMPT] = {5, 6, 7, 8, 9, 10, 11, 12};
    static uint32_t pages[PAGES] = {0, 1, 2, 3, 4, 5, 6, 7};
    rt_engine_options o = engine_options(TINY);
    o.max_sessions = SESSIONS;
    o.attention.page = BLOCK;
    o.probe_every = 1;
    engine_open(c, &o, 1);
    Pb__Request request = PB__REQUEST__INIT, *admit = &request;
    Pb__Segment segment = PB__SEGMENT__INIT, *segments = &segment;
    Pb__Step step = PB__STEP__INIT;
    request.session = 1;
    request.prompt = prompt;
    request.n_prompt = PROMPT;
    request.pages = pages;
    request.n_pages = PAGES;
    request.max_tokens = TOKENS;
    request.steps = BLOCK;
    request.top_p = 1;
    segment.kind = KERN_SEG_PREFILL;
    segment.count = PROMPT;
    step.admit = &admit;
    step.n_admit = 1;
    step.segments = &segments;
    step.n_segments = 1;
    assert_ok(rt_step_execute(c->root, &step));
}

typedef struct row {
    uint32_t slot, kind, first, count;
    bool probe;
} row;

static rt_status execute(engine_case *c, const row *rows, size_t n)
{
    Pb__Segment segments[SEGMENTS_MAX], *pointers[SEGMENTS_MAX];
    assert_true(n <= SEGMENTS_MAX);
    for (size_t i = 0; i < n; i++) {
        pointers[i] = &segments[i];
        pb__segment__init(&segments[i]);
        segments[i].slot = rows[i].slot;
        segments[i].kind = rows[i].kind;
        segments[i].first = rows[i].first;
        segments[i].count = rows[i].count;
        segments[i].has_probe = segments[i].probe = rows[i].probe;
    }
    Pb__Step step = PB__STEP__INIT;
    step.segments = pointers;
    step.n_segments = n;
    return rt_step_execute(c->root, &step);
}

static void refuse(const row *rows, size_t n, const char *cause)
{
    engine_case c;
    open_slot(&c);
    assert_fails(execute(&c, rows, n), RT_ERR_INTERNAL, "segment of slot ", cause);
    engine_close(&c);
}

static void test_one_segment(void **state)
{
    (void)state;
    static const struct {
        row row;
        const char *cause;
    } cases[] = {
        {{SESSIONS, KERN_SEG_OPEN, 8, 4, false}, "slot 4, which is not in use"},
        {{1, KERN_SEG_OPEN, 8, 4, false}, "slot 1, which is not in use"},
        {{0, KERN_SEG_OPEN, 8, 1, false}, "kind 2 with 1 tokens, in blocks of 4"},
        {{0, KERN_SEG_OPEN, 8, 8, false}, "kind 2 with 8 tokens"},
        {{0, KERN_SEG_STEP, 8, 1, false}, "kind 4 with 1 tokens"},
        {{0, KERN_SEG_REST, 8, 3, false}, "kind 6 with 3 tokens"},
        {{0, KERN_SEG_COMMIT, 8, 8, false}, "kind 1 with 8 tokens"},
        {{0, KERN_SEG_FIRST, 8, 12, false}, "kind 3 with 12 tokens"},
        {{0, KERN_SEG_OPEN, 9, 4, false}, "starts at 9, where 8 are committed"},
        {{0, KERN_SEG_OPEN, 4, 4, false}, "starts at 4, where 8 are committed"},
        {{0, KERN_SEG_OPEN, 12, 4, false}, "starts at 12, where 8 are committed"},
        {{0, KERN_SEG_FIRST, 16, 4, false}, "starts at 16, where 8 are committed"},
        {{0, KERN_SEG_PREFILL, 8, 20, false}, "20 tokens at 8, there are 24"},
        {{0, KERN_SEG_COMMIT, 8, 4, true}, "a probe of kind 1, which has no block"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(&cases[i].row, 1, cases[i].cause);
}

static void test_segments_of_a_slot(void **state)
{
    (void)state;
    static const row open[SEGMENTS_MAX] = {
        {0, KERN_SEG_OPEN, 8, 4, false}, {0, KERN_SEG_OPEN, 8, 4, false},
        {0, KERN_SEG_OPEN, 8, 4, false}, {0, KERN_SEG_OPEN, 8, 4, false},
        {0, KERN_SEG_OPEN, 8, 4, false}, {0, KERN_SEG_OPEN, 8, 4, false},
        {0, KERN_SEG_OPEN, 8, 4, false}, {0, KERN_SEG_OPEN, 8, 4, false},
    };
    static const row commit[] = {{0, KERN_SEG_COMMIT, 8, 4, false},
                                 {0, KERN_SEG_COMMIT, 8, 4, false}};
    static const row both[] = {{0, KERN_SEG_COMMIT, 8, 4, false},
                               {0, KERN_SEG_FIRST, 12, 4, false}};
    refuse(open, SEGMENTS_MAX, "kind 2, which it cannot have with others");
    refuse(commit, 2, "kind 1, which it cannot have with others");
    engine_case c;
    open_slot(&c);
    assert_ok(execute(&c, open, 1));
    assert_ok(execute(&c, both, 2));
    engine_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_segment),
        cmocka_unit_test(test_segments_of_a_slot),
    };
    return cmocka_run_group_tests_name("engine step", tests, NULL, NULL);
}
