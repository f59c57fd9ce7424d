// SPDX-License-Identifier: Apache-2.0
// What every backend of comm must do, as one rank sees it: run under mpirun by
// tests/mpi/test_comm.c and on threads by tests/unit/test_comm_thread.c.
#ifndef TESTS_MPI_COMM_CHECKS_H
#define TESTS_MPI_COMM_CHECKS_H

#include "comm/comm.h"

typedef struct comm_rank_case {
    comm *world;
    kern_dev *dev; // of this rank
} comm_rank_case;

typedef struct comm_check {
    const char *name;
    // Collective: every rank runs the same checks in the same order.
    void (*run)(const comm_rank_case *me);
} comm_check;

extern const comm_check comm_checks[];
extern const size_t comm_checks_len;

#endif
