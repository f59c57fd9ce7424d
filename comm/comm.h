// SPDX-License-Identifier: Apache-2.0
// Communication between the ranks of a job.
//
// The data plane works on device buffers in the order of the device's stream; the
// control plane carries host bytes. All functions are collective over the
// communicator unless said otherwise: every rank calls them in the same order.
// Whatever changes that order (admit, stop, cancel) is decided on rank 0 and
// broadcast on the control plane.
//
// Every wait ends. Between ranks of an MPI job a heartbeat tells slow ranks from dead
// or stopped ones: when a rank falls silent, the one that watches it logs one line
// that names both, operation and sequence number, and ends the job. Live ranks that
// do not meet end by the deadline: the call returns RT_ERR_TIMEOUT or RT_ERR_COMM with
// a message naming rank, operation and sequence number; the communicator is then
// broken, every later call fails at once, and the program ends the job with
// comm_abort. Where a rank waits for what another one decides or reads (broadcast,
// agreement), it waits as long as the heart beats: a user may be slow. MPI may write to the
// buffers of a data-plane call that failed for as long as the process goes on.
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include "kernels/kern.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct comm comm;

// Seconds per wait of comm_open_world(0, ...). Without a heart, which needs an MPI
// that threads may call, the deadline alone finds ranks that stopped.
#define COMM_DEADLINE 300.0
#define COMM_DEADLINE_UNWATCHED 60.0

// Opens the communicator over all ranks of the job: MPI when the process was
// started by mpirun (or srun with PMIx), a single rank otherwise, with no MPI at
// all. Call once, from the main thread. `deadline` is seconds per wait; 0: the default.
rt_status comm_open_world(double deadline, comm **out);
// A communicator of one rank, with the same semantics and counters.
rt_status comm_open_self(comm **out);
// Fills out [ranks] with the ranks of a group inside this process; each belongs to
// the thread that uses it. Host buffers only. There is no heart: every wait has the
// deadline, and whoever fails, aborts or closes early makes the others' waits fail.
rt_status comm_open_threads(int ranks, double deadline, comm **out);
// Collective (a thread's rank leaves by itself); ends MPI.
void comm_close(comm *c);

// Collective: from here on the data plane works on buffers of this device, on its
// stream: NCCL between CUDA devices, which are all of one kind. Host memory needs
// no call. Detach before the device is closed.
rt_status comm_attach(comm *c, kern_dev *dev);
void comm_detach(comm *c); // not attached: nothing happens

// The number of a signal that asked this process to end, or 0.
typedef int comm_signal_fn(void);
// Not collective. From now on the heart looks at `caught`: a signal that did not lead to
// an orderly end within so many seconds ends the job. Without it such a rank would go on.
void comm_watch_signal(comm *c, comm_signal_fn *caught, double seconds);
// Not collective. Called by the heart, from its thread, before it ends the job. NULL: nothing,
// and nobody is in the former function when this returns.
typedef void comm_words_fn(void *ctx);
void comm_watch_end(comm *c, comm_words_fn *words, void *ctx);

// Collective over the world. Groups of `size` consecutive ranks, each with a communicator of
// its own for all that is collective; `size` divides the ranks. Needs a heart. A rank
// that dies, stops or gives up (comm_abort of its group) takes its group along, not the job:
// its ranks rest until the job ends, except rank 0, whose waits on the group then fail.
// The world keeps the mail; its collectives need all groups, and fail on rank 0 when one is lost.
rt_status comm_split(comm *world, int size, comm **group);
// Rank 0, of the world: whether a rank's group is lost; whether any is.
bool comm_is_lost(const comm *world, int rank);
bool comm_has_lost(const comm *world);
// Rank 0, of a world that has lost a group: ends all ranks with this exit status. Does not
// return.
void comm_end(comm *world, int status);

int comm_rank(const comm *c);
int comm_ranks(const comm *c);
int comm_local_rank(const comm *c);  // among the ranks on this host
int comm_local_ranks(const comm *c); // ranks on this host

// What a data-plane call carries, for the byte counters.
typedef enum comm_class {
    COMM_HIDDEN, // activations of row-parallel linears
    COMM_MASK,   // locality deltas
    COMM_SCORES, // page scores
    COMM_CHECK,  // plan checksums
    COMM_VOCAB,  // head statistics
    COMM_CLASSES
} comm_class;

typedef struct comm_counter {
    uint64_t calls;
    uint64_t bytes; // payload this rank contributed
} comm_counter;
// Not collective. A communicator of one rank counts calls and no bytes.
comm_counter comm_count(const comm *c, comm_class class);

// Not collective. Books calls that a recorded sequence made again: what they counted when it
// was recorded.
void comm_count_again(comm *c, const comm_counter counted[COMM_CLASSES]);

typedef enum comm_op { COMM_SUM, COMM_MAX } comm_op;

// Element-wise over the first `count` elements of every rank's buffer, in place.
// SUM takes F32; MAX takes F32 and I32. Every rank gets the same bits.
rt_status comm_allreduce(comm *c, comm_class class, kern_buf *buf, size_t count, comm_op op);
// kern_rmsnorm on the sum of all ranks' args->add, an f32 buffer that is worthless afterwards:
// one operation where GPUs share memory. Of class COMM_HIDDEN.
rt_status comm_sum_norm(comm *c, kern_dev *dev, const kern_rmsnorm_args *args);
// dst [ranks, count] gets every rank's src [count], in rank order; same type.
rt_status comm_allgather(comm *c, comm_class class, const kern_buf *src, size_t count,
                         kern_buf *dst);

// Waits until the device has done all that was enqueued on it, the collectives included.
// A collective that does not end is an error here, by the deadline at the latest.
rt_status comm_settle(comm *c, kern_dev *dev);

// Control plane. Root's bytes to everyone; `n` is the same on all ranks.
rt_status comm_ctl_bcast(comm *c, int root, void *bytes, size_t n);
// Root's string replaces everyone's, whatever its length. More than `max` bytes is
// RT_ERR_LIMIT on every rank, and the communicator stays usable. `max` is the same
// on all ranks. One collective up to about 1000 bytes, two beyond.
rt_status comm_ctl_bcast_bytes(comm *c, int root, rt_str *bytes, size_t max);
// dst [ranks, n] on every rank.
rt_status comm_ctl_allgather(comm *c, const void *src, size_t n, void *dst);
rt_status comm_ctl_barrier(comm *c);

// Mail, for what is not in step with the other ranks: a letter goes to one rank, which takes
// it when it looks. Not collective; for the main thread. Letters of one sender arrive in
// their order. Between processes they are at most COMM_LETTER_MAX bytes.
#define COMM_LETTER_MAX ((size_t)1 << 30)
rt_status comm_post(comm *c, int to, const void *bytes, size_t n); // copies; does not wait
// The next letter that is here, whoever sent it, replaces `bytes`; *from is -1: there is none.
rt_status comm_fetch(comm *c, int *from, rt_str *bytes);

// All ranks learn whether all succeeded: returns RT_OK if every rank passed
// RT_OK, else the status of the lowest failing rank, with that rank's last error
// message as the message here too.
rt_status comm_agree(comm *c, rt_status mine);

// Not collective: ends the whole job with a non-zero status. Does not return when
// there is more than one process; in a group of threads the other ranks' waits fail.
void comm_abort(comm *c);

#endif
