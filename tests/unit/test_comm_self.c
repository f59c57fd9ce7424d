// SPDX-License-Identifier: Apache-2.0
// One rank, and what comm.c itself does: with a backend of the test's own behind
// the table, the broken flag and the call numbers are seen without MPI.
#include "comm/comm.h"
#include "comm/comm_int.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static kern_dev *dev;

static kern_buf *new_buf(kern_dtype dtype, size_t count)
{
    kern_buf *buf = NULL;
    assert_int_equal(kern_buf_new(dev, dtype, count, "test", &buf), RT_OK);
    return buf;
}

static void test_one_rank(void **state)
{
    (void)state;
    comm *c = NULL;
    assert_int_equal(comm_open_self(&c), RT_OK);
    assert_int_equal(comm_rank(c), 0);
    assert_int_equal(comm_ranks(c), 1);
    assert_int_equal(comm_local_rank(c), 0);
    assert_int_equal(comm_local_ranks(c), 1);

    size_t n = 10007; // more than one piece of the copy
    kern_buf *a = new_buf(KERN_F32, n), *b = new_buf(KERN_F32, n);
    float *x = kern_buf_ptr(a), *y = kern_buf_ptr(b);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)i;
    assert_int_equal(comm_allreduce(c, COMM_HIDDEN, a, n, COMM_SUM), RT_OK);
    assert_int_equal(comm_allreduce(c, COMM_HIDDEN, a, n, COMM_MAX), RT_OK);
    assert_int_equal(comm_allgather(c, COMM_SCORES, a, n - 1, b), RT_OK);
    for (size_t i = 0; i < n; i++) {
        assert_true(x[i] == (float)i);
        assert_true(y[i] == (i < n - 1 ? (float)i : 0.0F));
    }
    assert_int_equal(comm_count(c, COMM_HIDDEN).calls, 2);
    assert_int_equal(comm_count(c, COMM_SCORES).calls, 1);
    assert_int_equal(comm_count(c, COMM_HIDDEN).bytes, 0);
    assert_int_equal(comm_count(c, COMM_VOCAB).calls, 0);

    int in = 42, out = 0;
    assert_int_equal(comm_ctl_bcast(c, 0, &in, sizeof in), RT_OK);
    assert_int_equal(comm_ctl_allgather(c, &in, sizeof in, &out), RT_OK);
    assert_int_equal(out, 42);
    assert_int_equal(comm_ctl_barrier(c), RT_OK);
    comm_abort(c); // nothing to end: returns
    comm_close(c);
    kern_buf_free(a);
    kern_buf_free(b);
}

static void test_agree(void **state)
{
    (void)state;
    comm *c = NULL;
    assert_int_equal(comm_open_self(&c), RT_OK);
    assert_int_equal(comm_agree(c, RT_OK), RT_OK);
    assert_int_equal(comm_agree(c, RT_FAIL(RT_ERR_FORMAT, "a.json: no 'x'")), RT_ERR_FORMAT);
    assert_string_equal(rt_last_error(), "a.json: no 'x'");
    comm_close(c);
}

static void test_bcast_bytes(void **state)
{
    (void)state;
    comm *c = NULL;
    assert_int_equal(comm_open_self(&c), RT_OK);
    rt_str s = {0};
    for (int i = 0; i < 2000; i++)
        assert_int_equal(rt_str_puts(&s, "x"), RT_OK);
    assert_int_equal(comm_ctl_bcast_bytes(c, 0, &s, 1999), RT_ERR_LIMIT);
    assert_int_equal(comm_ctl_bcast_bytes(c, 0, &s, 2000), RT_OK);
    assert_int_equal(s.len, 2000);
    rt_str_free(&s);
    assert_int_equal(comm_ctl_bcast_bytes(c, 0, &s, 0), RT_OK);
    assert_int_equal(s.len, 0);
    comm_close(c);
}

static void test_world_without_launcher(void **state)
{
    (void)state;
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK",
                                        "PMI_SIZE"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unsetenv(names[i]);
    comm *c = NULL;
    assert_int_equal(comm_open_world(-1.0, &c), RT_ERR_INVALID);
    assert_int_equal(comm_open_world(5.0, &c), RT_OK);
    assert_int_equal(comm_ranks(c), 1);
    comm_close(c);
    comm_close(NULL);
}

// A backend of three ranks of which the others never answer.
static int ctl_calls;

static rt_status silent_reduce(comm *c, kern_buf *buf, size_t count, comm_op op)
{
    (void)buf;
    (void)count;
    (void)op;
    return comm_timeout(c, c->deadline);
}

static double ctl_limit; // of the last one

static rt_status ctl_bcast(comm *c, int root, void *bytes, size_t n, double limit)
{
    (void)c;
    (void)root;
    (void)bytes;
    (void)n;
    ctl_calls++;
    ctl_limit = limit;
    return RT_OK;
}

static rt_status ctl_allgather(comm *c, const void *src, size_t n, void *dst, double limit)
{
    memset(dst, 0, n * (size_t)c->ranks);
    (void)src;
    ctl_limit = limit;
    return RT_OK;
}

static const comm_data_ops silent_data = {.allreduce = silent_reduce};
static const comm_ctl_ops counting_ctl = {.bcast = ctl_bcast, .allgather = ctl_allgather};

static void test_broken_for_good(void **state)
{
    (void)state;
    comm *c = NULL;
    assert_int_equal(comm_new(2.5, &c), RT_OK);
    assert_int_equal(comm_take_place(c, 1, 3), RT_OK);
    c->ops = (comm_ops){.data = &silent_data, .ctl = &counting_ctl};
    kern_buf *buf = new_buf(KERN_F32, 4);
    char byte = 0;
    assert_int_equal(comm_ctl_bcast(c, 0, &byte, 1), RT_OK);
    assert_int_equal(comm_allreduce(c, COMM_MASK, buf, 0, COMM_SUM), RT_OK);
    assert_int_equal(comm_allreduce(c, COMM_MASK, buf, 4, COMM_SUM), RT_ERR_TIMEOUT);
    const char *cause = "rank 1: all-reduce of mask number 3: no answer within 2.5 s";
    assert_string_equal(rt_last_error(), cause);
    assert_int_equal(comm_count(c, COMM_MASK).calls, 2);
    assert_int_equal(comm_count(c, COMM_MASK).bytes, 4 * sizeof(float));

    (void)RT_FAIL(RT_ERR_INTERNAL, "something else");
    rt_str s = {0};
    kern_buf *all = new_buf(KERN_F32, 12);
    assert_int_equal(comm_ctl_bcast(c, 0, &byte, 1), RT_ERR_TIMEOUT);
    assert_string_equal(rt_last_error(), cause);
    assert_int_equal(comm_ctl_bcast_bytes(c, 0, &s, 10), RT_ERR_TIMEOUT);
    assert_int_equal(comm_ctl_allgather(c, &byte, 1, &byte), RT_ERR_TIMEOUT);
    assert_int_equal(comm_ctl_barrier(c), RT_ERR_TIMEOUT);
    assert_int_equal(comm_allgather(c, COMM_MASK, buf, 1, all), RT_ERR_TIMEOUT);
    assert_int_equal(comm_agree(c, RT_FAIL(RT_ERR_IO, "mine")), RT_ERR_TIMEOUT);
    assert_string_equal(rt_last_error(), cause);
    assert_int_equal(ctl_calls, 1);
    assert_int_equal(comm_count(c, COMM_MASK).calls, 2);
    comm_close(c);
    kern_buf_free(all);
    kern_buf_free(buf);
}

// Only where a live rank may take its time, and only where a heart tells it from a dead one.
static void test_patience(void **state)
{
    (void)state;
    comm *c = NULL;
    char byte = 0;
    assert_int_equal(comm_open_self(&c), RT_OK);
    c->ops.ctl = &counting_ctl;
    c->deadline = 2.5;
    for (int watched = 0; watched < 2; watched++) {
        const double patient = watched ? INFINITY : 2.5;
        c->watched = watched;
        assert_int_equal(comm_ctl_bcast(c, 0, &byte, 1), RT_OK);
        assert_true(ctl_limit == patient);
        assert_int_equal(comm_ctl_allgather(c, &byte, 1, &byte), RT_OK);
        assert_true(ctl_limit == 2.5);
        assert_int_equal(comm_agree(c, RT_OK), RT_OK);
        assert_true(ctl_limit == patient);
    }
    comm_close(c);
}

static const char *closed_in; // the operation in which the data plane was closed

static void close_data(comm *c)
{
    closed_in = c->operation;
}

static void test_detach(void **state)
{
    (void)state;
    static const comm_data_ops device_data = {.close = close_data};
    comm *c = NULL;
    assert_int_equal(comm_open_self(&c), RT_OK);
    c->host_data = c->ops.data; // as comm_attach leaves it
    c->ops.data = &device_data;
    assert_int_equal(comm_ctl_barrier(c), RT_OK);
    comm_detach(c);
    assert_string_equal(closed_in, "end of the data plane");
    assert_int_equal((uint64_t)c->number, 2);
    comm_close(c);
}

static rt_status gave_up(comm *c)
{
    return comm_timeout(c, c->deadline);
}

// A kernel that waited for another rank leaves an idle device and a wrong sum.
static void test_settle(void **state)
{
    (void)state;
    static const comm_data_ops bad_data = {.check = gave_up};
    comm *c = NULL;
    assert_int_equal(comm_open_self(&c), RT_OK);
    assert_int_equal(comm_settle(c, dev), RT_OK);
    c->ops.data = &bad_data;
    assert_int_equal(comm_settle(c, dev), RT_ERR_TIMEOUT);
    assert_string_equal(rt_last_error(),
                        "rank 0: wait for the device number 2: no answer within 1 s");
    assert_int_equal(comm_ctl_barrier(c), RT_ERR_TIMEOUT);
    comm_close(c);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    comm *c = NULL;
    for (int n = 1; n <= 2; n++) {
        rt_mem_fail_at(n);
        assert_int_equal(comm_open_self(&c), RT_ERR_NOMEM);
        assert_null(c);
    }
    rt_mem_fail_at(0);
    assert_int_equal(comm_open_self(&c), RT_OK);
    // An agreement takes none: the others wait for this rank's word.
    rt_mem_fail_at(1);
    assert_int_equal(comm_agree(c, RT_FAIL(RT_ERR_NOMEM, "mine")), RT_ERR_NOMEM);
    assert_string_equal(rt_last_error(), "mine");
    rt_mem_fail_at(0);
    assert_int_equal(comm_ctl_barrier(c), RT_OK);
    comm_close(c);
}

static int open_dev(void **state)
{
    (void)state;
    kern_dev_options options = {.kind = KERN_CPU, .threads = 1};
    return kern_dev_open(&options, &dev);
}

static int close_dev(void **state)
{
    (void)state;
    kern_dev_close(dev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rank),        cmocka_unit_test(test_agree),
        cmocka_unit_test(test_bcast_bytes),     cmocka_unit_test(test_world_without_launcher),
        cmocka_unit_test(test_broken_for_good), cmocka_unit_test(test_patience),
        cmocka_unit_test(test_detach),          cmocka_unit_test(test_settle),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, open_dev, close_dev);
}
