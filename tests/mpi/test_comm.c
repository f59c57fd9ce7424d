// SPDX-License-Identifier: Apache-2.0
// All collectives on the ranks of an MPI job.
#include "tests/mpi/comm_checks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static comm_rank_case self;

static void test_check(void **state)
{
    const comm_check *check = *state;
    check->run(&self);
}

static int open_world(void **state)
{
    (void)state;
    kern_dev_options options = {.kind = KERN_CPU, .threads = 1};
    return kern_dev_open(&options, &self.dev) || comm_open_world(30.0, &self.world);
}

static int close_world(void **state)
{
    (void)state;
    comm_close(self.world);
    kern_dev_close(self.dev);
    return 0;
}

int main(void)
{
    struct CMUnitTest *tests = calloc(comm_checks_len, sizeof *tests);
    if (!tests)
        return 1;
    for (size_t i = 0; i < comm_checks_len; i++) {
        tests[i].name = comm_checks[i].name;
        tests[i].test_func = test_check;
        tests[i].initial_state = (void *)&comm_checks[i];
    }
    const int failed =
        _cmocka_run_group_tests("comm", tests, comm_checks_len, open_world, close_world);
    free(tests);
    return failed;
}
