// SPDX-License-Identifier: Apache-2.0
// A limit for what cannot be given one: MPI's own start, groups and end wait for all ranks
// without a deadline, where no heart beats or nobody has died.
#ifndef COMM_GUARD_H
#define COMM_GUARD_H

#include "runtime/base/status.h"

typedef struct comm_guard comm_guard;

// Unless stopped within `seconds`, logs one line that names `what` and ends this process
// with status 1; mpirun then ends the others.
rt_status comm_guard_start(const char *what, double seconds, comm_guard **out);
void comm_guard_stop(comm_guard *g); // NULL is fine

#endif
