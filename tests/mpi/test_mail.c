// SPDX-License-Identifier: Apache-2.0
// Mail on 1, 2 and 4 processes: every letter arrives once, whole, and those of one sender in
// their order, while the ranks take part in collectives.
#include "tests/unit/testing.h"

#include "comm/comm.h"
#include "runtime/base/clock.h"

enum { LETTERS = 50, LONG = 3 << 20 }; // a long one does not fit into what MPI sends at once

static comm *world;

// What sender `from` writes as its i-th letter to `to`; the third is long, the first empty.
static size_t length_of(int i)
{
    return i == 0 ? 0 : i == 2 ? LONG : 4 + (size_t)i * 100;
}

static char byte_of(int from, int to, int i, size_t at)
{
    return (char)(from * 31 + to * 17 + i * 7 + (int)(at % 251));
}

static void post_all(int i)
{
    const int me = comm_rank(world);
    char *bytes = malloc(length_of(i) + 1);
    assert_non_null(bytes);
    for (int to = 0; to < comm_ranks(world); to++) {
        for (size_t k = 0; k < length_of(i); k++)
            bytes[k] = byte_of(me, to, i, k);
        assert_ok(comm_post(world, to, bytes, length_of(i)));
        if (length_of(i) > 0)
            bytes[0]++; // what was posted is a copy
    }
    free(bytes);
}

// Takes one letter, if there is one, and checks it. next[from]: letters had.
static bool take(int *next)
{
    int from;
    rt_str bytes = {0};
    assert_ok(comm_fetch(world, &from, &bytes));
    if (from >= 0) {
        const int i = next[from]++;
        assert_int_equal(bytes.len, length_of(i));
        for (size_t k = 0; k < bytes.len; k++)
            assert_int_equal(bytes.data[k], byte_of(from, comm_rank(world), i, k));
    }
    rt_str_free(&bytes);
    return from >= 0;
}

static void test_letters(void **state)
{
    (void)state;
    int next[16] = {0}, had = 0;
    const int all = LETTERS * comm_ranks(world);
    for (int i = 0; i < LETTERS; i++) {
        post_all(i);
        had += take(next);
        if (i % 10 == 0)
            assert_ok(comm_ctl_barrier(world));
    }
    const double end = rt_clock_now() + 30;
    while (had < all && rt_clock_now() < end)
        had += take(next);
    assert_int_equal(had, all);
    assert_false(take(next));
    assert_ok(comm_ctl_barrier(world));
}

static void test_refused(void **state)
{
    (void)state;
    assert_fails(comm_post(world, comm_ranks(world), "x", 1), RT_ERR_INVALID, "comm_post", "to");
}

int main(void)
{
    if (comm_open_world(30, &world) != RT_OK) {
        fprintf(stderr, "%s\n", rt_last_error());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_letters),
        cmocka_unit_test(test_refused),
    };
    const int failed = cmocka_run_group_tests_name("mail", tests, NULL, NULL);
    if (failed)
        comm_abort(world);
    comm_close(world);
    return failed;
}
