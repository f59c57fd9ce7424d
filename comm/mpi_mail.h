// SPDX-License-Identifier: Apache-2.0
// Mail between processes, on an MPI communicator of its own: see comm_post.
#ifndef COMM_MPI_MAIL_H
#define COMM_MPI_MAIL_H

#include "comm/comm_int.h"

#include <mpi.h>

typedef struct comm_mpi_mail {
    MPI_Comm world;
    struct comm_parcel *sending;  // not yet handed over
    struct comm_parcel *arriving; // announced, and being received; NULL: none
} comm_mpi_mail;

rt_status comm_mpi_mail_post(comm_mpi_mail *mail, int to, const void *bytes, size_t n);
// Never waits: a letter that is announced but not here yet is for a later call.
rt_status comm_mpi_mail_fetch(comm_mpi_mail *mail, int *from, rt_str *bytes);
// Waits no more for a letter whose sender is lost.
void comm_mpi_mail_drop_lost(comm_mpi_mail *mail, const atomic_bool *lost_ranks);
// Frees what is left. What MPI may still write to, or read, stays allocated: the process ends.
void comm_mpi_mail_close(comm_mpi_mail *mail);

#endif
