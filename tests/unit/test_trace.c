// SPDX-License-Identifier: Apache-2.0
// Traces of page plans: what is written is read, and whatever is not a whole, sane trace
// is refused with a message that says what is wrong.
#include "proto/trace.h"
#include "runtime/base/rng.h"
#include "tests/unit/testing.h"

#include <stdint.h>

static Pb__TraceHead sample_head(void)
{
    Pb__TraceHead head = PB__TRACE_HEAD__INIT;
    head.architecture = (char *)"SDARForCausalLM";
    head.layers = 6;
    head.heads = 8;
    head.kv_heads = 2;
    head.head_dim = 64;
    head.block = 16;
    head.page = 32;
    head.policy = (char *)"losa";
    head.scope = (char *)"head";
    return head;
}

// Rows 0, 3 and 15 of a block at 80 (3 pages, the last half full) read two lists.
typedef struct sample {
    uint32_t active[3], pages[2];
    Pb__TraceList list[2], *lists[2];
    Pb__TracePlan plan;
} sample;

static void sample_init(sample *s)
{
    *s = (sample){.active = {0, 3, 15}, .pages = {0, 2}};
    for (int i = 0; i < 2; i++) {
        pb__trace_list__init(&s->list[i]);
        s->lists[i] = &s->list[i];
    }
    s->list[0].n_pages = 2;
    s->list[0].pages = s->pages;
    s->list[1].has_all = s->list[1].all = true;
    pb__trace_plan__init(&s->plan);
    s->plan.session = 7;
    s->plan.forward = 1ull << 40;
    s->plan.block = 2;
    s->plan.step = 4;
    s->plan.layer = 5;
    s->plan.kind = 4;
    s->plan.first = 80;
    s->plan.rows = 16;
    s->plan.n_active = 3;
    s->plan.active = s->active;
    s->plan.n_lists = 2;
    s->plan.lists = s->lists;
}

static void add_head(rt_str *out, const Pb__TraceHead *head)
{
    Pb__TraceEntry entry = PB__TRACE_ENTRY__INIT;
    entry.head = (Pb__TraceHead *)(uintptr_t)head;
    assert_int_equal(pb_trace_pack(&entry, out), RT_OK);
}

static void add_plan(rt_str *out, Pb__TracePlan *plan)
{
    Pb__TraceEntry entry = PB__TRACE_ENTRY__INIT;
    entry.plan = plan;
    assert_int_equal(pb_trace_pack(&entry, out), RT_OK);
}

static void add_end(rt_str *out, uint64_t plans)
{
    Pb__TraceEnd end = PB__TRACE_END__INIT;
    Pb__TraceEntry entry = PB__TRACE_ENTRY__INIT;
    end.plans = plans;
    entry.end = &end;
    assert_int_equal(pb_trace_pack(&entry, out), RT_OK);
}

// A trace of the sample twice.
static void build(rt_str *out, sample *s)
{
    const Pb__TraceHead head = sample_head();
    assert_int_equal(rt_str_puts(out, PB_TRACE_MAGIC), RT_OK);
    add_head(out, &head);
    add_plan(out, &s->plan);
    add_plan(out, &s->plan);
    add_end(out, 2);
}

// Reads a whole trace; the number of plans.
static rt_status read_all(const void *bytes, size_t len, int *plans)
{
    pb_trace t;
    RT_TRY(pb_trace_open(bytes, len, &t));
    rt_status status;
    *plans = 0;
    for (;;) {
        Pb__TraceEntry *entry = NULL;
        status = pb_trace_next(&t, &entry);
        if (status != RT_OK || !entry)
            break;
        ++*plans;
        pb_trace_free(entry);
    }
    pb_trace_close(&t);
    return status;
}

static void refused(const rt_str *file, const char *what)
{
    int plans;
    assert_int_equal(read_all(file->data, file->len, &plans), RT_ERR_FORMAT);
    if (!strstr(rt_last_error(), what))
        fail_msg("\"%s\" does not say \"%s\"", rt_last_error(), what);
}

static void test_round_trip(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    rt_str file = {0};
    build(&file, &s);
    pb_trace t;
    Pb__TraceEntry *entry;
    assert_int_equal(pb_trace_open(file.data, file.len, &t), RT_OK);
    assert_string_equal(t.head->head->architecture, "SDARForCausalLM");
    assert_int_equal(t.head->head->page, 32);
    assert_int_equal(pb_trace_next(&t, &entry), RT_OK);
    const Pb__TracePlan *p = entry->plan;
    assert_true(p->session == 7 && p->forward == 1ull << 40 && p->block == 2 && p->step == 4);
    assert_true(p->layer == 5 && p->kind == 4 && p->first == 80 && p->rows == 16);
    assert_true(p->n_active == 3 && p->active[2] == 15 && p->n_lists == 2);
    assert_true(p->lists[0]->n_pages == 2 && p->lists[0]->pages[1] == 2 && p->lists[1]->all);
    assert_int_equal(pb_trace_prefix(&t, p), 80);
    assert_int_equal(pb_trace_pages(&t, p), 3);
    assert_int_equal(pb_trace_tokens(&t, p, 0), 32 + 16);
    assert_int_equal(pb_trace_tokens(&t, p, 1), 80);
    pb_trace_free(entry);
    assert_int_equal(pb_trace_next(&t, &entry), RT_OK);
    pb_trace_free(entry);
    assert_int_equal(pb_trace_next(&t, &entry), RT_OK);
    assert_null(entry);
    pb_trace_close(&t);
    rt_str_free(&file);
}

// Whatever byte it stops at, and whatever byte is turned.
static void test_damage(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    rt_str file = {0};
    build(&file, &s);
    int plans;
    for (size_t len = 0; len < file.len; len++)
        assert_int_equal(read_all(file.data, len, &plans), RT_ERR_FORMAT);
    for (size_t i = 0; i < 8 * file.len; i++) {
        file.data[i / 8] = (char)(file.data[i / 8] ^ 1 << i % 8);
        const rt_status status = read_all(file.data, file.len, &plans);
        assert_true(status == RT_ERR_FORMAT || (status == RT_OK && plans == 2));
        file.data[i / 8] = (char)(file.data[i / 8] ^ 1 << i % 8);
    }
    rt_str_free(&file);
}

static void test_order(void **state)
{
    (void)state;
    sample s;
    sample_init(&s);
    const Pb__TraceHead head = sample_head();
    rt_str file = {0};
    assert_int_equal(rt_str_puts(&file, "{}"), RT_OK);
    refused(&file, "not a trace of page plans");
    file.len = 0;
    assert_int_equal(rt_str_puts(&file, PB_TRACE_MAGIC), RT_OK);
    refused(&file, "frame");
    const size_t start = file.len;
    add_plan(&file, &s.plan);
    refused(&file, "begin with its head");
    file.len = start;
    add_head(&file, &head);
    const size_t headed = file.len;
    refused(&file, "no end");
    add_head(&file, &head);
    refused(&file, "second head");
    file.len = headed;
    add_plan(&file, &s.plan);
    add_end(&file, 3);
    refused(&file, "after 1 plans, it should have 3");
    file.len = headed;
    add_end(&file, 0);
    add_end(&file, 0);
    refused(&file, "follow the trace's end");
    rt_str_free(&file);
}

// What does not fit the head, and what no writer lets through.
static void test_fields(void **state)
{
    (void)state;
    sample s;
    rt_str file = {0};
    for (int i = 0; i < 3; i++) {
        file.len = 0;
        sample_init(&s);
        s.plan.layer = i == 0 ? 6 : 5;
        s.plan.first = i == 1 ? 32 : 80; // one page; page 2 is beyond
        Pb__TraceHead head = sample_head();
        head.kv_heads = i == 2 ? 1 : 2;
        assert_int_equal(rt_str_puts(&file, PB_TRACE_MAGIC), RT_OK);
        add_head(&file, &head);
        add_plan(&file, &s.plan);
        add_end(&file, 1);
        refused(&file, i == 0 ? "plan.layer" : i == 1 ? "list.pages" : "plan.lists length");
    }
    rt_str_free(&file);
    Pb__TraceEntry entry = PB__TRACE_ENTRY__INIT;
    assert_int_equal(pb_trace_pack(&entry, &file), RT_ERR_FORMAT);
    entry.plan = &s.plan;
    static const char *const fields[] = {"plan.active", "plan.kind", "plan.rows", "list",
                                         "plan.session"};
    for (int i = 0; i < 5; i++) {
        sample_init(&s);
        s.active[1] = i == 0 ? 15 : 3;
        s.plan.kind = i == 1 ? 7 : 4;
        s.plan.rows = i == 2 ? 0 : 16;
        s.list[0].has_all = s.list[0].all = i == 3;
        s.plan.session = i == 4 ? 0 : 7;
        assert_int_equal(pb_trace_pack(&entry, &file), RT_ERR_FORMAT);
        assert_non_null(strstr(rt_last_error(), fields[i]));
        assert_int_equal(file.len, 0);
    }
    Pb__TraceHead head = sample_head();
    head.policy = (char *)"\x1b[2J";
    entry = (Pb__TraceEntry)PB__TRACE_ENTRY__INIT;
    entry.head = &head;
    assert_int_equal(pb_trace_pack(&entry, &file), RT_ERR_FORMAT);
    rt_str_free(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
