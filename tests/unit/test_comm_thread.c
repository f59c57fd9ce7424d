// SPDX-License-Identifier: Apache-2.0
// Ranks as threads: what every backend does, and what becomes of a group of which a
// rank is late, ends it or leaves.
#include "comm/comm_int.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/mpi/comm_checks.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { RANKS_MAX = 4 };

typedef struct member {
    comm_rank_case self;
    void (*run)(struct member *m);
    // What a rank of the tests of failure saw.
    rt_status status;
    char message[256];
    double waited;
} member;

static void *member_main(void *arg)
{
    member *m = arg;
    m->run(m);
    comm_close(m->self.world);
    return NULL;
}

// A failed assertion in a thread ends the program: cmocka has no way back there.
static void run_group(int ranks, double deadline, void (*run)(member *m), member *members)
{
    pthread_t threads[RANKS_MAX];
    comm *c[RANKS_MAX];
    assert_int_equal(comm_open_threads(ranks, deadline, c), RT_OK);
    for (int r = 0; r < ranks; r++) {
        const kern_dev_options options = {.kind = KERN_CPU, .threads = 1};
        members[r] = (member){.run = run, .self.world = c[r]};
        assert_int_equal(kern_dev_open(&options, &members[r].self.dev), RT_OK);
    }
    for (int r = 0; r < ranks; r++)
        assert_int_equal(pthread_create(&threads[r], NULL, member_main, &members[r]), 0);
    for (int r = 0; r < ranks; r++)
        pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++)
        kern_dev_close(members[r].self.dev);
}

static void run_checks(member *m)
{
    for (size_t i = 0; i < comm_checks_len; i++)
        comm_checks[i].run(&m->self);
}

static void test_checks(void **state)
{
    (void)state;
    static const int ranks[] = {1, 2, 3, 4};
    member members[RANKS_MAX];
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++)
        run_group(ranks[i], 60.0, run_checks, members);
}

// The order of the sum is that of the ranks, whatever the order of arrival.
static void add_in_order(member *m)
{
    static const float value[] = {1e8F, 1.0F, -1e8F, 0.5F};
    const int rank = comm_rank(m->self.world);
    kern_buf *buf;
    assert_int_equal(kern_buf_new(m->self.dev, KERN_F32, 8, "sum", &buf), RT_OK);
    float *x = kern_buf_ptr(buf), want = 0;
    for (int r = 0; r < 4; r++)
        want += value[r];
    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 8; i++)
            x[i] = value[rank];
        if (round % 4 == rank)
            rt_clock_sleep(1e-4);
        assert_int_equal(comm_allreduce(m->self.world, COMM_HIDDEN, buf, 8, COMM_SUM), RT_OK);
        for (int i = 0; i < 8; i++)
            assert_true(x[i] == want);
    }
    kern_buf_free(buf);
}

static void test_order_of_sum(void **state)
{
    (void)state;
    member members[RANKS_MAX];
    run_group(4, 60.0, add_in_order, members);
}

// ---- failures ---------------------------------------------------------------------

static void note(member *m, double start, rt_status status)
{
    m->status = status;
    m->waited = rt_clock_now() - start;
    snprintf(m->message, sizeof m->message, "%s", status == RT_OK ? "" : rt_last_error());
}

static void gather_and_note(member *m)
{
    comm *c = m->self.world;
    const double start = rt_clock_now();
    int own = comm_rank(c), all[RANKS_MAX];
    note(m, start, comm_ctl_allgather(c, &own, sizeof own, all));
    if (m->status == RT_OK)
        return;
    // Broken for good, and at once.
    const double again = rt_clock_now();
    assert_int_equal(comm_ctl_barrier(c), m->status);
    assert_string_equal(rt_last_error(), m->message);
    assert_true(rt_clock_now() - again < 0.25);
}

static void rank_1_is_absent(member *m)
{
    comm *c = m->self.world;
    assert_int_equal(comm_ctl_barrier(c), RT_OK);
    if (comm_rank(c) == 1)
        rt_clock_sleep(1.0);
    gather_and_note(m);
}

static void test_deadline(void **state)
{
    (void)state;
    member m[RANKS_MAX];
    run_group(3, 0.3, rank_1_is_absent, m);
    int late = 0;
    for (int r = 0; r < 3; r += 2) {
        char want[80];
        snprintf(want, sizeof want, "rank %d: gather number 2: no answer within 0.3 s", r);
        const bool timeout = m[r].status == RT_ERR_TIMEOUT;
        assert_true(timeout || m[r].status == RT_ERR_COMM);
        assert_true(m[r].waited < 0.9);
        if (timeout) { // the other one may have come later
            assert_string_equal(m[r].message, want);
            assert_true(m[r].waited >= 0.25);
            late++;
        }
    }
    assert_true(late >= 1); // the first one wakes the other
    assert_int_equal(m[1].status, RT_ERR_COMM);
    assert_true(m[1].waited < 0.25);
}

static void rank_2_aborts(member *m)
{
    comm *c = m->self.world;
    assert_int_equal(comm_ctl_barrier(c), RT_OK);
    if (comm_rank(c) == 2) {
        rt_clock_sleep(0.2);
        comm_abort(c);
    }
    gather_and_note(m);
}

static void test_abort(void **state)
{
    (void)state;
    member m[RANKS_MAX];
    run_group(4, 60.0, rank_2_aborts, m);
    for (int r = 0; r < 4; r++) {
        char want[100];
        snprintf(want, sizeof want,
                 "rank %d: gather number 2: ended by another rank (rank 2 aborted)", r);
        assert_int_equal(m[r].status, RT_ERR_COMM);
        if (r != 2)
            assert_string_equal(m[r].message, want);
        assert_true(m[r].waited < 10);
    }
}

static void rank_0_leaves(member *m)
{
    if (comm_rank(m->self.world) == 0)
        return;
    gather_and_note(m);
}

static void test_left(void **state)
{
    (void)state;
    member m[RANKS_MAX];
    run_group(2, 60.0, rank_0_leaves, m);
    assert_int_equal(m[1].status, RT_ERR_COMM);
    assert_non_null(strstr(m[1].message, "(rank 0 closed its communicator)"));
    assert_true(m[1].waited < 10);
}

static void ranks_disagree(member *m)
{
    comm *c = m->self.world;
    char bytes[8] = {0};
    note(m, rt_clock_now(), comm_ctl_bcast(c, 0, bytes, comm_rank(c) == 0 ? 4 : 8));
}

static void test_sizes_differ(void **state)
{
    (void)state;
    member m[RANKS_MAX];
    run_group(2, 60.0, ranks_disagree, m);
    assert_int_equal(m[0].status, RT_ERR_COMM);
    assert_string_equal(m[0].message, "rank 0: broadcast number 1: 4 bytes, but rank 1 has 8");
    assert_int_equal(m[1].status, RT_ERR_COMM);
}

static void test_open(void **state)
{
    (void)state;
    comm *c[RANKS_MAX] = {0};
    assert_int_equal(comm_open_threads(0, 1.0, c), RT_ERR_INVALID);
    assert_int_equal(comm_open_threads(2, -1.0, c), RT_ERR_INVALID);
    for (long n = 1; n <= 7; n++) { // a group; two for each rank
        rt_mem_fail_at(n);
        assert_int_equal(comm_open_threads(3, 1.0, c), RT_ERR_NOMEM);
    }
    rt_mem_fail_at(0);
    // Closed by one thread, in any order.
    assert_int_equal(comm_open_threads(3, 0, c), RT_OK);
    for (int r = 2; r >= 0; r--)
        comm_close(c[r]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checks),   cmocka_unit_test(test_order_of_sum),
        cmocka_unit_test(test_deadline), cmocka_unit_test(test_abort),
        cmocka_unit_test(test_left),     cmocka_unit_test(test_sizes_differ),
        cmocka_unit_test(test_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
