// SPDX-License-Identifier: Apache-2.0
// Inside comm: the communicator and the table of operations a backend fills.
//
// comm.c checks arguments, counts, numbers the calls and keeps the broken flag;
// backends only move data. The table has two halves with a state each, so that a
// backend for device memory can replace the data plane and keep the control plane
// of the backend that started the job.
#ifndef COMM_COMM_INT_H
#define COMM_COMM_INT_H

#include "comm/comm.h"

#include <pthread.h>
#include <stdatomic.h>

// Called with checked arguments, count > 0, and on every rank in the same order.
// A failure is final: comm.c marks the communicator broken with its message.
typedef struct comm_data_ops {
    rt_status (*allreduce)(comm *c, kern_buf *buf, size_t count, comm_op op);
    rt_status (*allgather)(comm *c, const kern_buf *src, size_t count, kern_buf *dst);
    // All-reduce of args->add and the norm; NULL: comm.c does one after the other. Sets
    // *done to false, having done nothing, when it cannot.
    rt_status (*sum_norm)(comm *c, const kern_rmsnorm_args *args, bool *done);
    rt_status (*check)(comm *c); // fails after a collective on the stream failed; NULL: none do
    void (*close)(comm *c);      // frees data_state
} comm_data_ops;

typedef struct comm_ctl_ops {
    // `limit`: seconds of a wait; INFINITY: as long as the others live. All other waits, of the
    // data plane too, have the deadline.
    rt_status (*bcast)(comm *c, int root, void *bytes, size_t n, double limit);
    rt_status (*allgather)(comm *c, const void *src, size_t n, void *dst, double limit);
    rt_status (*barrier)(comm *c);
    // To and from other ranks; NULL: there is no mail between ranks.
    rt_status (*post)(comm *c, int to, const void *bytes, size_t n);
    rt_status (*fetch)(comm *c, int *from, rt_str *bytes);
    void (*abort)(comm *c); // returns only when there is nothing to end
    void (*close)(comm *c); // ends the job's transport, frees ctl_state
    // Backend and one_host of the group of this rank, which has its place; all ranks return the
    // same status. NULL: there are no groups.
    rt_status (*split)(comm *c, int size, comm *child);
    void (*end)(comm *c, int status);
} comm_ctl_ops;

typedef struct comm_ops {
    const comm_data_ops *data;
    const comm_ctl_ops *ctl;
} comm_ops;

// Bytes of the cause that breaks a communicator, and of the message that an agreement carries.
enum { COMM_CAUSE_MAX = 1024, COMM_AGREE_MAX = 1024 };

struct comm {
    comm_ops ops;
    void *data_state, *ctl_state;   // of the two halves
    const comm_data_ops *host_data; // while a device is attached: the data plane it replaced
    void *host_state;
    int rank, ranks, local_rank, local_ranks;
    bool one_host;    // all ranks are on this one
    double deadline;  // seconds of one wait
    bool watched;     // a heart ends the job when a rank dies or stops
    size_t chunk_max; // most bytes handed to the transport in one piece
    comm_counter counters[COMM_CLASSES];
    int32_t *statuses; // [ranks], of an agreement

    // The collective that runs or ran last, of a world also its group's. Atomic: the heart names
    // it too.
    _Atomic(const char *) operation;
    _Atomic uint64_t number; // counts from 1: of a world until it is split, the same on every rank

    _Atomic(comm_signal_fn *) caught; // see comm_watch_signal
    _Atomic double signal_seconds;
    pthread_mutex_t words_mutex; // held while the words are said
    comm_words_fn *last_words;   // see comm_watch_end
    void *last_words_ctx;
    atomic_bool ended; // the heart ends the job: the main thread takes part no more

    // Groups (comm_split). What the heart shares with the main thread is the world's.
    comm *parent;            // of a group's: the world
    atomic_bool grouped;     // of the world: there are groups
    int *group_of;           // [ranks]
    atomic_bool *lost_ranks; // [ranks], on rank 0
    atomic_bool any_lost;    // one of them
    atomic_bool group_lost;  // this rank's group is
    atomic_bool gave_up;     // because this rank gave it up

    struct comm_letter *letters; // from this rank to itself, the oldest first

    rt_status broken; // RT_OK, or what every call returns from now on
    char cause[COMM_CAUSE_MAX];
};

// A communicator without backend or place; its owner fills ops and the local ranks.
rt_status comm_new(double deadline, comm **out);
// Which of how many ranks this one is. From now on an agreement takes no memory: a rank that has
// none left can still say so.
rt_status comm_take_place(comm *c, int rank, int ranks);
// Of a communicator whose backend is closed, or was never opened. NULL is allowed.
void comm_free(comm *c);
// Whether the communicator is still whole; a wait asks again and again. Rank 0, which has
// other things to do, gets an error when it is not; other ranks rest here until the job ends.
rt_status comm_check_whole(const comm *c);
// Message and code of a wait, in the current operation, that reached its limit.
rt_status comm_timeout(const comm *c, double limit);
// Names what this rank does from now on: a call, or a part of one that is made of several.
void comm_enter(comm *c, const char *operation);

void comm_drop_letters(comm *c);

// Data plane of one rank, on any device.
extern const comm_data_ops comm_self_data;
// The data plane of CUDA devices; collective. Replaces what the halves hold.
rt_status comm_nccl_open(comm *c, kern_dev *dev);
// Starts MPI and fills both halves. On failure MPI may be left running: the
// program ends without MPI_Finalize, and mpirun ends the job.
rt_status comm_mpi_open(comm *c);

#endif
