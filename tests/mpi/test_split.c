// SPDX-License-Identifier: Apache-2.0
// Groups of ranks: collectives stay inside, groups need not do the same, mail and the world's
// collectives go on.
#include "tests/unit/testing.h"

#include "comm/comm_int.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

static comm *world;
static kern_dev *dev;

// The sum of the world's ranks over a group, the number of times that the group wants.
static void sum_ranks(comm *group, int first, int size, int times)
{
    kern_buf *buf;
    assert_ok(kern_buf_new(dev, KERN_F32, 1, "sum", &buf));
    for (int i = 0; i < times; i++) {
        *(float *)kern_buf_ptr(buf) = (float)comm_rank(world);
        assert_ok(comm_allreduce(group, COMM_HIDDEN, buf, 1, COMM_SUM));
        assert_true(*(float *)kern_buf_ptr(buf) == (float)(size * (2 * first + size - 1)) / 2);
    }
    kern_buf_free(buf);
}

static void check_group(comm *group, int size)
{
    const int me = comm_rank(world), first = me / size * size;
    int all[16], word = me;
    assert_int_equal(comm_rank(group), me - first);
    assert_int_equal(comm_ranks(group), size);
    assert_int_equal(comm_local_rank(group), comm_local_rank(world)); // one device a rank
    assert_true(group->one_host); // however many ranks of the host are in other groups
    sum_ranks(group, first, size, 1 + first);
    assert_ok(comm_ctl_allgather(group, &me, sizeof me, all));
    for (int i = 0; i < size; i++)
        assert_int_equal(all[i], first + i);
    assert_ok(comm_ctl_bcast(group, size - 1, &word, sizeof word));
    assert_int_equal(word, first + size - 1);
    const rt_status mine = first == 0 ? RT_ERR_LIMIT : RT_OK;
    if (mine != RT_OK)
        RT_FAIL(mine, "the first group failed");
    assert_int_equal(comm_agree(group, mine), mine); // no other group hears of it
}

static void split(int size)
{
    comm *group;
    assert_ok(comm_split(world, size, &group));
    check_group(group, size);
    assert_false(comm_has_lost(world));
    assert_false(comm_is_lost(world, 0));
    assert_ok(comm_ctl_barrier(world));
    comm_close(group);
}

static void test_groups(void **state)
{
    (void)state;
    comm *group;
    if (comm_ranks(world) == 1) {
        assert_fails(comm_split(world, 1, &group), RT_ERR_UNSUPPORTED, "groups", "threads");
        return;
    }
    for (int size = 1; size <= comm_ranks(world); size *= 2)
        split(size);
    assert_fails(comm_split(world, comm_ranks(world) + 1, &group), RT_ERR_INVALID, "comm_split",
                 "ranks");
}

// One rank lacks it, all hear of it; and the next time there is enough.
static void test_no_memory(void **state)
{
    (void)state;
    comm *group;
    int failures = 0;
    for (rt_status status = RT_ERR_NOMEM; status == RT_ERR_NOMEM; failures++) {
        if (comm_ranks(world) == 1)
            return;
        if (comm_rank(world) == comm_ranks(world) - 1)
            rt_mem_fail_at(failures + 1);
        status = comm_split(world, 1, &group);
        rt_mem_fail_at(0);
        if (status == RT_OK)
            comm_close(group);
        else
            assert_int_equal(status, RT_ERR_NOMEM);
    }
    assert_true(failures > 4);
}

// ---- a lost group ------------------------------------------------------------------------

enum { SRC = 64 };

static void wait_for_letter(void)
{
    rt_str bytes = {0};
    for (int from = -1; from < 0; rt_clock_sleep(1e-3))
        assert_ok(comm_fetch(world, &from, &bytes));
    rt_str_free(&bytes);
}

// Rank 1 gives the group up, and yet joins the call of rank 0's when that has failed.
static void join_late(comm *group)
{
    static char src[SRC], dst[16 * SRC];
    memset(src, 'x', sizeof src);
    world->gave_up = true;
    while (!world->group_lost)
        rt_clock_sleep(1e-3);
    wait_for_letter();
    world->group_lost = false; // else it rests
    (void)group->ops.ctl->allgather(group, src, sizeof src, dst, 0);
    assert_ok(comm_post(world, 0, "", 0));
    for (int from;;) { // lets MPI send it
        rt_str bytes = {0};
        (void)comm_fetch(world, &from, &bytes);
        rt_clock_sleep(1e-3);
    }
}

// Rank 0 lives on, and has its memory for itself.
static void test_lost(void **state)
{
    (void)state;
    comm *group;
    if (comm_ranks(world) == 1)
        return;
    assert_ok(comm_split(world, comm_ranks(world), &group));
    char src[SRC] = {0}, *dst = calloc(16, SRC);
    assert_non_null(dst);
    if (comm_rank(world) == 1)
        join_late(group);
    while (comm_rank(world) > 1)
        (void)comm_ctl_allgather(group, src, sizeof src, dst);
    assert_fails(comm_ctl_allgather(group, src, sizeof src, dst), RT_ERR_COMM, "gather",
                 "a rank is lost");
    assert_true(comm_has_lost(world) && comm_is_lost(world, 0));
    assert_ok(comm_post(world, 1, "", 0));
    wait_for_letter();
    for (int i = 0; i < 16 * SRC; i++)
        assert_int_equal(dst[i], 0);
    free(dst);
    comm_close(group);
}

int main(void)
{
    const kern_dev_options options = {.kind = KERN_CPU, .threads = 1};
    if (comm_open_world(30, &world) != RT_OK || kern_dev_open(&options, &dev) != RT_OK) {
        fprintf(stderr, "%s\n", rt_last_error());
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_no_memory),
                                       cmocka_unit_test(test_groups), cmocka_unit_test(test_lost)};
    const int failed = cmocka_run_group_tests_name("split", tests, NULL, NULL);
    if (comm_has_lost(world))
        comm_end(world, failed);
    if (failed)
        comm_abort(world);
    kern_dev_close(dev);
    comm_close(world);
    return failed;
}
