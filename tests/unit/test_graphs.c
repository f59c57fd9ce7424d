// SPDX-License-Identifier: Apache-2.0
// Which forwards are enqueued, recorded and replayed: on a CPU device whose recorder only
// counts. That a replay computes the same is tested on GPUs (tests/gpu/test_model.c).
#include "runtime/engine/graphs.h"

#include "kernels/kern_int.h"
#include "tests/unit/testing.h"

static struct {
    int begun, ended, dropped, launched, freed;
} calls;

static rt_status begin(kern_dev *dev)
{
    (void)dev;
    calls.begun++;
    return RT_OK;
}

static rt_status end(kern_dev *dev, void **graph)
{
    (void)dev;
    if (graph)
        *graph = &calls;
    calls.ended += graph != NULL;
    calls.dropped += graph == NULL;
    return RT_OK;
}

static rt_status launch(kern_dev *dev, void *graph)
{
    (void)dev;
    assert_ptr_equal(graph, &calls);
    calls.launched++;
    return RT_OK;
}

static void release(void *graph)
{
    (void)graph;
    calls.freed++;
}

static const kern_record_ops counting = {begin, end, launch, release};

typedef struct fixture {
    kern_dev *dev;
    comm *comm;
    rt_graphs *graphs;
    kern_buf *buf;
    int runs;
    bool fails;
} fixture;

// A forward with one collective of 4 floats.
static rt_status forward(void *ctx)
{
    fixture *f = ctx;
    f->runs++;
    if (f->fails)
        return RT_FAIL(RT_ERR_DEVICE, "no");
    return comm_allreduce(f->comm, COMM_MASK, f->buf, 4, COMM_SUM);
}

static int open_fixture(void **state)
{
    static fixture f;
    f = (fixture){0};
    memset(&calls, 0, sizeof calls);
    assert_ok(kern_dev_open(&(kern_dev_options){.kind = KERN_CPU, .threads = 1}, &f.dev));
    f.dev->recorder = &counting;
    assert_ok(comm_open_self(&f.comm));
    assert_ok(kern_buf_new(f.dev, KERN_F32, 4, "test", &f.buf));
    assert_ok(rt_graphs_open(f.dev, f.comm, &f.graphs));
    *state = &f;
    return 0;
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    rt_graphs_close(f->graphs);
    kern_buf_free(f->buf);
    comm_close(f->comm);
    kern_dev_close(f->dev);
    return 0;
}

static rt_status run(fixture *f, int rows)
{
    const rt_forward_shape shape = {.rows = rows, .segs = 1, .head = {.rows = rows}};
    return rt_graphs_run(f->graphs, &shape, forward, f);
}

static void test_second_time_records(void **state)
{
    fixture *f = *state;
    assert_ok(run(f, 16)); // enqueued
    assert_int_equal(f->runs, 1);
    assert_int_equal(calls.begun, 0);
    assert_ok(run(f, 16)); // recorded, and launched
    assert_int_equal(f->runs, 2);
    assert_int_equal(calls.ended, 1);
    assert_int_equal(calls.launched, 1);
    for (int i = 0; i < 3; i++)
        assert_ok(run(f, 16));
    assert_int_equal(f->runs, 2);
    assert_int_equal(calls.launched, 4);
    assert_int_equal(comm_count(f->comm, COMM_MASK).calls, 5); // one in every forward
}

static void test_shapes_are_told_apart(void **state)
{
    fixture *f = *state;
    rt_forward_shape shape = {.rows = 16, .segs = 1};
    assert_ok(rt_graphs_run(f->graphs, &shape, forward, f));
    shape.head.filtered = 1;
    assert_ok(rt_graphs_run(f->graphs, &shape, forward, f));
    shape.max_pages = 8;
    assert_ok(rt_graphs_run(f->graphs, &shape, forward, f));
    assert_int_equal(f->runs, 3);
    assert_int_equal(calls.begun, 0);
}

static void test_failure_is_dropped(void **state)
{
    fixture *f = *state;
    assert_ok(run(f, 16));
    f->fails = true;
    assert_int_equal(run(f, 16), RT_ERR_DEVICE);
    assert_string_equal(rt_last_error(), "no");
    assert_int_equal(calls.dropped, 1);
    assert_int_equal(calls.launched, 0);
    f->fails = false;
    assert_ok(run(f, 16)); // may be recorded later
    assert_int_equal(calls.launched, 1);
}

static void test_oldest_makes_room(void **state)
{
    fixture *f = *state;
    enum { MANY = 200 };
    for (int rows = 1; rows <= MANY; rows++)
        for (int i = 0; i < 2; i++)
            assert_ok(run(f, rows));
    assert_int_equal(calls.ended, MANY);
    assert_in_range(calls.freed, 1, MANY - 1);
    const int runs = f->runs;
    assert_ok(run(f, MANY)); // is still there
    assert_int_equal(f->runs, runs);
    assert_ok(run(f, 1)); // is not
    assert_int_equal(f->runs, runs + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_second_time_records, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(test_shapes_are_told_apart, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(test_failure_is_dropped, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(test_oldest_makes_room, open_fixture, close_fixture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
