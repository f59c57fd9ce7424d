// SPDX-License-Identifier: Apache-2.0
// MPI backend: both planes on host memory, so the data plane serves CPU buffers.
//
// No call but those under a guard (guard.h) blocks inside MPI: every collective is started
// in its nonblocking form and tested until its limit. One that failed is left as it is, and
// MPI goes on with it whenever it is called: by the heart, and by rank 0, which has lost its
// group and goes on. So the control plane's calls are made on memory that is never used for
// something else once one failed; the buffers of the data plane are not freed then.
//
// With MPI_THREAD_MULTIPLE and more than one rank a heart (heart.h) finds ranks that
// die or stop; without it the deadline alone does.
//
// Identical bits on all ranks. MPI asks implementations to give every rank the
// same result of MPI_Allreduce and Open MPI's nonblocking algorithms do: binomial,
// ring and Rabenseifner compute each element once, in one order, and distribute
// it; recursive doubling has both partners of a step combine the same two values,
// and f32 addition and maximum commute. tests/mpi/test_comm.c compares the bits.
#include "comm/comm_int.h"
#include "comm/guard.h"
#include "comm/heart.h"
#include "comm/mpi_mail.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

// A wait first polls, which answers fastest; then gives the core away between
// polls, because ranks may outnumber cores; then sleeps, so that ranks that wait
// for work leave the machine to others.
static const double SPIN_SECONDS = 20e-6, YIELD_SECONDS = 0.1, NAP_SECONDS = 100e-6;

typedef struct mpi_state {
    MPI_Comm data, ctl, beats; // own contexts: none matches the others' messages
    comm_mpi_mail mail;
    comm_heart *heart; // NULL: none
    char *words;       // what the control plane sends and receives
    size_t words_len;
} mpi_state;

static rt_status check(const comm *c, int code, const char *call)
{
    if (code == MPI_SUCCESS)
        return RT_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0;
    if (MPI_Error_string(code, text, &len) != MPI_SUCCESS)
        len = 0;
    return RT_FAIL(RT_ERR_COMM, "rank %d: %s number %llu: %s: %.*s", c->rank, c->operation,
                   (unsigned long long)c->number, call, len, text);
}

static rt_status wait(const comm *c, MPI_Request *request, double limit)
{
    double start = rt_clock_now();
    for (;;) {
        int done = 0;
        RT_TRY(check(c, MPI_Test(request, &done, MPI_STATUS_IGNORE), "MPI_Test"));
        if (done)
            return RT_OK;
        RT_TRY(comm_check_whole(c));
        double waited = rt_clock_now() - start;
        if (waited > limit)
            return comm_timeout(c, limit);
        if (waited > YIELD_SECONDS)
            rt_clock_sleep(NAP_SECONDS);
        else if (waited > SPIN_SECONDS)
            sched_yield();
    }
}

// dst [ranks, n] in pieces of at most chunk_max bytes per rank. A piece is one
// element of a type whose extent is a whole row of dst.
static rt_status gather_pieces(const comm *c, MPI_Comm world, const char *src, size_t n, char *dst,
                               double limit)
{
    for (size_t first = 0; first < n; first += c->chunk_max) {
        int piece = (int)(n - first < c->chunk_max ? n - first : c->chunk_max);
        MPI_Datatype bytes, row;
        RT_TRY(check(c, MPI_Type_contiguous(piece, MPI_BYTE, &bytes), "MPI_Type_contiguous"));
        RT_TRY(check(c, MPI_Type_create_resized(bytes, 0, (MPI_Aint)n, &row),
                     "MPI_Type_create_resized"));
        RT_TRY(check(c, MPI_Type_commit(&row), "MPI_Type_commit"));
        MPI_Request request;
        RT_TRY(check(
            c, MPI_Iallgather(src + first, piece, MPI_BYTE, dst + first, 1, row, world, &request),
            "MPI_Iallgather"));
        RT_TRY(wait(c, &request, limit));
        MPI_Type_free(&row);
        MPI_Type_free(&bytes);
    }
    return RT_OK;
}

static rt_status gather(const comm *c, MPI_Comm world, const void *src, size_t n, void *dst,
                        double limit)
{
    if (n > c->chunk_max)
        return gather_pieces(c, world, src, n, dst, limit);
    MPI_Request request;
    RT_TRY(check(c, MPI_Iallgather(src, (int)n, MPI_BYTE, dst, (int)n, MPI_BYTE, world, &request),
                 "MPI_Iallgather"));
    return wait(c, &request, limit);
}

static rt_status data_allreduce(comm *c, kern_buf *buf, size_t count, comm_op op)
{
    const mpi_state *s = c->data_state;
    kern_dtype dtype = kern_buf_dtype(buf);
    size_t size = kern_dtype_size(dtype), most = c->chunk_max / size;
    MPI_Datatype type = dtype == KERN_I32 ? MPI_INT32_T : MPI_FLOAT;
    MPI_Op how = op == COMM_MAX ? MPI_MAX : MPI_SUM;
    char *data = kern_buf_ptr(buf);
    for (size_t first = 0; first < count; first += most) {
        size_t n = count - first < most ? count - first : most;
        MPI_Request request;
        RT_TRY(check(
            c,
            MPI_Iallreduce(MPI_IN_PLACE, data + first * size, (int)n, type, how, s->data, &request),
            "MPI_Iallreduce"));
        RT_TRY(wait(c, &request, c->deadline));
    }
    return RT_OK;
}

static rt_status data_allgather(comm *c, const kern_buf *src, size_t count, kern_buf *dst)
{
    const mpi_state *s = c->data_state;
    size_t n = count * kern_dtype_size(kern_buf_dtype(src));
    return gather(c, s->data, kern_buf_ptr(src), n, kern_buf_ptr(dst), c->deadline);
}

// n bytes of s->words.
static rt_status make_room(mpi_state *s, size_t n)
{
    if (n <= s->words_len)
        return RT_OK;
    rt_free(s->words);
    s->words_len = 0;
    RT_TRY(RT_ALLOC(s->words, n, "messages"));
    s->words_len = n;
    return RT_OK;
}

static void free_state(mpi_state *s)
{
    if (!s)
        return;
    rt_free(s->words);
    rt_free(s);
}

// With room for what an agreement sends: it takes no memory.
static rt_status new_state(int ranks, mpi_state **out)
{
    mpi_state *s;
    RT_TRY(RT_ALLOC(s, 1, "MPI state"));
    const size_t statuses = ((size_t)ranks + 1) * sizeof(int32_t);
    const rt_status status = make_room(s, statuses > COMM_AGREE_MAX ? statuses : COMM_AGREE_MAX);
    if (status != RT_OK) {
        free_state(s);
        return status;
    }
    *out = s;
    return RT_OK;
}

static rt_status ctl_bcast(comm *c, int root, void *bytes, size_t n, double limit)
{
    mpi_state *s = c->ctl_state;
    RT_TRY(make_room(s, n));
    if (c->rank == root)
        memcpy(s->words, bytes, n);
    for (size_t first = 0; first < n; first += c->chunk_max) {
        int piece = (int)(n - first < c->chunk_max ? n - first : c->chunk_max);
        MPI_Request request;
        RT_TRY(check(c, MPI_Ibcast(s->words + first, piece, MPI_BYTE, root, s->ctl, &request),
                     "MPI_Ibcast"));
        RT_TRY(wait(c, &request, limit));
    }
    if (c->rank != root)
        memcpy(bytes, s->words, n);
    return RT_OK;
}

static rt_status ctl_allgather(comm *c, const void *src, size_t n, void *dst, double limit)
{
    mpi_state *s = c->ctl_state;
    const size_t all = n * (size_t)c->ranks;
    RT_TRY(make_room(s, n + all));
    memcpy(s->words + all, src, n);
    RT_TRY(gather(c, s->ctl, s->words + all, n, s->words, limit));
    memcpy(dst, s->words, all);
    return RT_OK;
}

static rt_status ctl_barrier(comm *c)
{
    const mpi_state *s = c->ctl_state;
    MPI_Request request;
    RT_TRY(check(c, MPI_Ibarrier(s->ctl, &request), "MPI_Ibarrier"));
    return wait(c, &request, c->deadline);
}

static rt_status ctl_post(comm *c, int to, const void *bytes, size_t n)
{
    mpi_state *s = c->ctl_state;
    return comm_mpi_mail_post(&s->mail, to, bytes, n);
}

static rt_status ctl_fetch(comm *c, int *from, rt_str *bytes)
{
    mpi_state *s = c->ctl_state;
    if (c->any_lost)
        comm_mpi_mail_drop_lost(&s->mail, c->lost_ranks);
    return comm_mpi_mail_fetch(&s->mail, from, bytes);
}

static void ctl_abort(comm *c)
{
    mpi_state *s = c->ctl_state;
    if (c->ranks == 1)
        return;
    comm_heart_stop(s->heart, false); // who ends the job is not reported as dead
    MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
}

static void ctl_end(comm *c, int status)
{
    mpi_state *s = c->ctl_state;
    comm_heart_end(s->heart, status);
    MPI_Abort(MPI_COMM_WORLD, status);
}

// MPI_Finalize waits for all ranks without a deadline, so the ranks meet in a
// barrier that has one; whoever cannot ends the job instead of hanging.
static void ctl_close(comm *c)
{
    mpi_state *s = c->ctl_state;
    if (c->ranks > 1 && c->broken == RT_OK && ctl_barrier(c) != RT_OK) {
        rt_log(RT_LOG_ERROR, "%s", rt_last_error());
        ctl_abort(c);
    }
    if (c->broken != RT_OK)
        ctl_abort(c);
    comm_guard *guard = NULL;
    if (comm_guard_start("end of MPI", COMM_DEADLINE_UNWATCHED, &guard) != RT_OK)
        rt_log(RT_LOG_WARN, "%s", rt_last_error());
    comm_heart_stop(s->heart, true);
    MPI_Comm_free(&s->data);
    MPI_Comm_free(&s->ctl);
    MPI_Comm_free(&s->beats);
    comm_mpi_mail_close(&s->mail);
    MPI_Comm_free(&s->mail.world);
    free_state(s);
    MPI_Finalize();
    comm_guard_stop(guard);
}

// ---- groups ------------------------------------------------------------------------

// The heart tells rank 0; nobody else of the group waits for this rank for long.
static void group_abort(comm *c)
{
    c->parent->gave_up = true;
    c->parent->group_lost = true;
    if (comm_check_whole(c) != RT_OK) // other ranks stay in there
        rt_log(RT_LOG_DEBUG, "%s", rt_last_error());
}

static void group_close(comm *c)
{
    mpi_state *s = c->ctl_state;
    if (!c->parent->group_lost && c->broken == RT_OK) {
        MPI_Comm_free(&s->data);
        MPI_Comm_free(&s->ctl);
        free_state(s);
    } // else MPI may still write there
}

static const comm_data_ops mpi_data = {
    .allreduce = data_allreduce,
    .allgather = data_allgather,
};

static const comm_ctl_ops group_ctl = {
    .bcast = ctl_bcast,
    .allgather = ctl_allgather,
    .barrier = ctl_barrier,
    .abort = group_abort,
    .close = group_close,
};

// The ranks of `all` on this host: how many, and the number of this one.
static rt_status find_local(const comm *c, MPI_Comm all, int *rank, int *ranks)
{
    MPI_Comm local;
    RT_TRY(check(c, MPI_Comm_split_type(all, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local),
                 "MPI_Comm_split_type"));
    RT_TRY(check(c, MPI_Comm_rank(local, rank), "MPI_Comm_rank"));
    RT_TRY(check(c, MPI_Comm_size(local, ranks), "MPI_Comm_size"));
    return check(c, MPI_Comm_free(&local), "MPI_Comm_free");
}

static rt_status split(const comm *c, MPI_Comm from, int group, MPI_Comm *out)
{
    RT_TRY(check(c, MPI_Comm_split(from, group, c->rank, out), "MPI_Comm_split"));
    return check(c, MPI_Comm_set_errhandler(*out, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

// All that takes memory: a rank that has none must not leave the others in MPI's own calls.
static rt_status prepare_split(comm *c, int size, mpi_state **out)
{
    const mpi_state *world = c->ctl_state;
    if (!world->heart)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "groups of ranks need an MPI that threads may call");
    if (!c->group_of)
        RT_TRY(RT_ALLOC(c->group_of, (size_t)c->ranks, "groups"));
    if (!c->lost_ranks)
        RT_TRY(RT_ALLOC(c->lost_ranks, (size_t)c->ranks, "groups"));
    for (int r = 0; r < c->ranks; r++)
        c->group_of[r] = r / size;
    return new_state(size, out);
}

// Makes the communicators of the group; *local: how many of its ranks are on this host.
static rt_status split_state(const comm *c, int group, mpi_state *s, int *local)
{
    const mpi_state *world = c->ctl_state;
    int rank;
    RT_TRY(split(c, world->data, group, &s->data));
    RT_TRY(split(c, world->ctl, group, &s->ctl));
    return find_local(c, s->ctl, &rank, local);
}

static rt_status ctl_split(comm *c, int size, comm *child)
{
    mpi_state *s = NULL;
    comm_guard *guard = NULL;
    int local = 0;
    rt_status status;
    RT_TRY_GOTO(status, comm_agree(c, prepare_split(c, size, &s)), fail);
    comm_enter(c, "start of groups");
    if (comm_guard_start("start of groups", COMM_DEADLINE_UNWATCHED, &guard) != RT_OK)
        rt_log(RT_LOG_WARN, "%s", rt_last_error());
    status = split_state(c, c->rank / size, s, &local);
    comm_guard_stop(guard);
    RT_TRY_GOTO(status, comm_agree(c, status), fail);
    child->ops = (comm_ops){.data = size > 1 ? &mpi_data : &comm_self_data, .ctl = &group_ctl};
    child->data_state = child->ctl_state = s;
    child->one_host = local == size;
    return RT_OK;
fail:
    free_state(s);
    return status;
}

// ---- start -------------------------------------------------------------------------

// Both planes share one state, which ctl_close frees.
static const comm_ctl_ops mpi_ctl = {
    .bcast = ctl_bcast,
    .allgather = ctl_allgather,
    .barrier = ctl_barrier,
    .post = ctl_post,
    .fetch = ctl_fetch,
    .abort = ctl_abort,
    .close = ctl_close,
    .split = ctl_split,
    .end = ctl_end,
};

static rt_status start_mpi(comm *c, int *threads)
{
    int running = 0;
    RT_TRY(check(c, MPI_Initialized(&running), "MPI_Initialized"));
    if (running)
        return RT_FAIL(RT_ERR_INVALID, "comm_open_world: MPI was started before");
    RT_TRY(check(c, MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, threads), "MPI_Init_thread"));
    if (*threads < MPI_THREAD_FUNNELED)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "MPI offers thread level %d, MPI_THREAD_FUNNELED is %d",
                       *threads, MPI_THREAD_FUNNELED);
    RT_TRY(check(c, MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN),
                 "MPI_Comm_set_errhandler"));
    int rank = 0, ranks = 1;
    RT_TRY(check(c, MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank"));
    RT_TRY(check(c, MPI_Comm_size(MPI_COMM_WORLD, &ranks), "MPI_Comm_size"));
    return comm_take_place(c, rank, ranks);
}

static rt_status duplicate(const comm *c, MPI_Comm *out)
{
    MPI_Request request;
    RT_TRY(check(c, MPI_Comm_idup(MPI_COMM_WORLD, out, &request), "MPI_Comm_idup"));
    RT_TRY(wait(c, &request, c->deadline));
    return check(c, MPI_Comm_set_errhandler(*out, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

static rt_status start_heart(comm *c, mpi_state *s, int threads)
{
    if (c->ranks == 1)
        return RT_OK;
    if (threads < MPI_THREAD_MULTIPLE) {
        rt_log(RT_LOG_DEBUG, "MPI offers thread level %d: no heartbeat, waits end after %g s",
               threads, c->deadline);
        return RT_OK;
    }
    RT_TRY(comm_heart_start(c, s->beats, &s->heart));
    c->watched = true;
    return RT_OK;
}

static rt_status open_state(comm *c, int threads)
{
    mpi_state *s = NULL;
    rt_status status;
    RT_TRY_GOTO(status, new_state(c->ranks, &s), fail);
    RT_TRY_GOTO(status, duplicate(c, &s->data), fail);
    RT_TRY_GOTO(status, duplicate(c, &s->ctl), fail);
    RT_TRY_GOTO(status, duplicate(c, &s->beats), fail);
    RT_TRY_GOTO(status, duplicate(c, &s->mail.world), fail);
    RT_TRY_GOTO(status, find_local(c, MPI_COMM_WORLD, &c->local_rank, &c->local_ranks), fail);
    c->one_host = c->local_ranks == c->ranks;
    c->ops = (comm_ops){.data = &mpi_data, .ctl = &mpi_ctl};
    c->data_state = s;
    c->ctl_state = s;
    RT_TRY_GOTO(status, start_heart(c, s, threads), fail);
    return RT_OK;
fail:
    free_state(s);
    return status;
}

rt_status comm_mpi_open(comm *c)
{
    int threads = MPI_THREAD_SINGLE;
    comm_guard *guard;
    RT_TRY(comm_guard_start("start of MPI", COMM_DEADLINE_UNWATCHED, &guard));
    rt_status status = start_mpi(c, &threads);
    if (status == RT_OK) {
        if (c->deadline == 0)
            c->deadline = threads < MPI_THREAD_MULTIPLE ? COMM_DEADLINE_UNWATCHED : COMM_DEADLINE;
        status = open_state(c, threads);
    }
    comm_guard_stop(guard);
    return status;
}
