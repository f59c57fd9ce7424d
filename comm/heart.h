// SPDX-License-Identifier: Apache-2.0
// The heart of a rank of an MPI job: a thread that tells others that this rank lives, and
// watches them. Rank 0 and every other rank watch each other. A deadline cannot tell a slow
// rank from a stopped one; this can, within seconds.
//
// A rank that dies, falls silent or is asked to end by a signal without doing so:
// the thread logs one line that names it and the operation this rank is in, and ends
// the job. Whoever ends the job says goodbye first, so that there is no second line. Where
// the ranks form groups (comm_split) such a rank ends its group alone: rank 0 tells the
// others of it to rest.
#ifndef COMM_HEART_H
#define COMM_HEART_H

#include "comm/comm_int.h"

#include <mpi.h>

typedef struct comm_heart comm_heart;

// Collective. MPI must allow calls from several threads. `beats` is a communicator of
// the heart's own; it stays the caller's, who frees it after the end.
rt_status comm_heart_start(comm *c, MPI_Comm beats, comm_heart **out);
// Says goodbye and joins the thread. In order: waits for the goodbyes of the watched ranks,
// so that nothing is under way when MPI ends. NULL is fine.
void comm_heart_stop(comm_heart *h, bool in_order);
// Rank 0: tells all other ranks to end with this exit status, and joins the thread.
void comm_heart_end(comm_heart *h, int status);

#endif
