// SPDX-License-Identifier: Apache-2.0
// Public entries of comm: argument checks, counters, call numbers, the broken
// flag, and what both planes can express with the table alone (agreement,
// broadcasts of variable length).
#include "comm/comm.h"

#include "comm/comm_int.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Largest piece of one transport call: MPI counts are int.
static const size_t CHUNK_BYTES = (size_t)1 << 30;

// Longest message comm_agree carries, and the first piece of a broadcast of
// variable length: most step commands fit, and then cost one collective.
enum { AGREE_MESSAGE = COMM_AGREE_MAX, BCAST_INLINE = 1008 };

// Elements of the first collectives on a device.
enum { FIRST_MOST = 1 << 21 };
static const size_t FIRST_COUNTS[] = {64, 1 << 14, 1 << 18, FIRST_MOST};

static const char *const REDUCE_NAME[COMM_CLASSES] = {
    [COMM_HIDDEN] = "all-reduce of hidden", [COMM_MASK] = "all-reduce of mask",
    [COMM_SCORES] = "all-reduce of scores", [COMM_CHECK] = "all-reduce of check",
    [COMM_VOCAB] = "all-reduce of vocab",
};
static const char *const GATHER_NAME[COMM_CLASSES] = {
    [COMM_HIDDEN] = "all-gather of hidden", [COMM_MASK] = "all-gather of mask",
    [COMM_SCORES] = "all-gather of scores", [COMM_CHECK] = "all-gather of check",
    [COMM_VOCAB] = "all-gather of vocab",
};

rt_status comm_new(double deadline, comm **out)
{
    comm *c = NULL;
    RT_TRY(RT_ALLOC(c, 1, "communicator"));
    c->local_ranks = 1;
    c->one_host = true;
    c->deadline = deadline;
    c->chunk_max = CHUNK_BYTES;
    c->operation = "open";
    pthread_mutex_init(&c->words_mutex, NULL);
    *out = c;
    return RT_OK;
}

rt_status comm_take_place(comm *c, int rank, int ranks)
{
    c->rank = rank;
    c->ranks = ranks;
    return RT_ALLOC(c->statuses, (size_t)ranks, "statuses of all ranks");
}

void comm_free(comm *c)
{
    if (!c)
        return;
    rt_free(c->statuses);
    rt_free(c->group_of);
    rt_free((void *)(uintptr_t)c->lost_ranks);
    pthread_mutex_destroy(&c->words_mutex);
    rt_free(c);
}

rt_status comm_timeout(const comm *c, double limit)
{
    return RT_FAIL(RT_ERR_TIMEOUT, "rank %d: %s number %llu: no answer within %g s", c->rank,
                   c->operation, (unsigned long long)c->number, limit);
}

// Of operations in which a live rank may take its time.
static double patience(const comm *c)
{
    return c->watched ? INFINITY : c->deadline;
}

// The process is about to go. What the main thread would still find out and say, such as
// an input that was cut off, follows from what the heart has said already.
static void stay_if_ended(const comm *c)
{
    while (c->ended || (c->parent && c->parent->ended))
        rt_clock_sleep(1.0);
}

rt_status comm_check_whole(const comm *c)
{
    const comm *world = c->parent ? c->parent : c;
    if (c->parent ? !world->group_lost : !world->any_lost)
        return RT_OK;
    while (world->rank != 0)
        rt_clock_sleep(1.0);
    return RT_FAIL(RT_ERR_COMM, "rank 0: %s number %llu: a rank is lost", c->operation,
                   (unsigned long long)c->number);
}

void comm_enter(comm *c, const char *operation)
{
    c->operation = operation;
    c->number++;
    if (c->parent) { // what the heart says of this rank
        c->parent->operation = operation;
        c->parent->number = (uint64_t)c->number;
    }
}

static rt_status begin(comm *c, const char *operation)
{
    stay_if_ended(c);
    if (c->broken != RT_OK)
        return RT_FAIL(c->broken, "%s", c->cause);
    comm_enter(c, operation);
    return comm_check_whole(c);
}

// A rank that failed is out of step with the others whatever the cause: there is
// no way back into the common order.
static rt_status finish(comm *c, rt_status status)
{
    if (status != RT_OK && c->broken == RT_OK) {
        c->broken = status;
        snprintf(c->cause, sizeof c->cause, "%s", rt_last_error());
    }
    return status;
}

static rt_status wait_idle(comm *c, kern_dev *dev)
{
    const double start = rt_clock_now();
    for (;;) {
        bool idle = false;
        RT_TRY(kern_poll(dev, &idle));
        if (c->ops.data->check) // an idle device too may have given up a sum
            RT_TRY(c->ops.data->check(c));
        if (idle)
            return RT_OK;
        RT_TRY(comm_check_whole(c));
        if (rt_clock_now() - start > c->deadline)
            return comm_timeout(c, c->deadline);
        sched_yield();
    }
}

static void count_call(comm *c, comm_class class, size_t bytes)
{
    c->counters[class].calls++;
    if (c->ranks > 1)
        c->counters[class].bytes += bytes;
}

static rt_status ctl_bcast(comm *c, const char *operation, int root, void *bytes, size_t n)
{
    RT_TRY(begin(c, operation));
    if (n == 0)
        return RT_OK;
    return finish(c, c->ops.ctl->bcast(c, root, bytes, n, patience(c)));
}

// What follows the first piece of a variable broadcast; `in` gets the whole.
static rt_status bcast_rest(comm *c, int root, const rt_str *bytes, size_t n, rt_str *in)
{
    char *whole = NULL;
    rt_status status;
    if (c->rank == root)
        return ctl_bcast(c, "broadcast", root, bytes->data, n);
    RT_TRY_GOTO(status, RT_ALLOC(whole, n, "broadcast"), out);
    RT_TRY_GOTO(status, ctl_bcast(c, "broadcast", root, whole, n), out);
    status = rt_str_append(in, whole, n);
out:
    rt_free(whole);
    return status;
}

rt_status comm_open_world(double deadline, comm **out)
{
    static const char *const LAUNCHERS[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK",
                                            "PMI_SIZE"};
    RT_CHECK_ARG(out && isfinite(deadline) && deadline >= 0);
    bool launched = false;
    for (size_t i = 0; i < sizeof LAUNCHERS / sizeof LAUNCHERS[0]; i++)
        launched = launched || getenv(LAUNCHERS[i]);
    if (!launched)
        return comm_open_self(out);

    comm *c = NULL;
    RT_TRY(comm_new(deadline, &c));
    rt_status status = comm_mpi_open(c);
    if (status != RT_OK) {
        comm_free(c);
        return status;
    }
    *out = c;
    return RT_OK;
}

static rt_status attach_cuda(comm *c, kern_dev *dev)
{
    if (c->ranks == 1) {
        c->ops.data = &comm_self_data;
        return RT_OK;
    }
#ifdef LOSA_CUDA
    return comm_nccl_open(c, dev);
#else
    (void)dev;
    return RT_FAIL(RT_ERR_UNSUPPORTED, "device cuda: this build has no NCCL");
#endif
}

static rt_status call_first(comm *c, kern_dev *dev, kern_buf *one, kern_buf *all)
{
    for (size_t i = 0; i < sizeof FIRST_COUNTS / sizeof FIRST_COUNTS[0]; i++) {
        RT_TRY(c->ops.data->allreduce(c, one, FIRST_COUNTS[i], COMM_SUM));
        RT_TRY(c->ops.data->allgather(c, one, FIRST_COUNTS[i], all));
    }
    return wait_idle(c, dev);
}

// The first collectives of a kind and size set up their connections, for seconds: here,
// not in the first request.
static rt_status warm_up(comm *c, kern_dev *dev)
{
    const char *what = "first collectives";
    kern_buf *one = NULL, *all = NULL;
    rt_status status;
    comm_enter(c, what);
    RT_TRY_GOTO(status, kern_buf_new(dev, KERN_F32, FIRST_MOST, what, &one), detach);
    RT_TRY_GOTO(status, kern_buf_new(dev, KERN_F32, (size_t)c->ranks * FIRST_MOST, what, &all),
                detach);
    status = call_first(c, dev, one, all);
detach:
    // First: to free a buffer waits for the device, and that for ranks which may not come.
    if (finish(c, status) != RT_OK)
        comm_detach(c);
    kern_buf_free(all);
    kern_buf_free(one);
    return status;
}

rt_status comm_attach(comm *c, kern_dev *dev)
{
    RT_CHECK_ARG(c && dev && !c->host_data);
    if (kern_dev_kind(dev) == KERN_CPU)
        return RT_OK;
    c->host_data = c->ops.data;
    c->host_state = c->data_state;
    RT_TRY(begin(c, "start of the data plane"));
    const rt_status status = attach_cuda(c, dev);
    if (status != RT_OK) {
        c->host_data = NULL;
        return status;
    }
    return warm_up(c, dev);
}

void comm_detach(comm *c)
{
    if (!c->host_data)
        return;
    comm_enter(c, "end of the data plane");
    if (c->ops.data->close && c->ops.data != c->host_data)
        c->ops.data->close(c);
    c->ops.data = c->host_data;
    c->data_state = c->host_state;
    c->host_data = NULL;
}

void comm_close(comm *c)
{
    if (!c)
        return;
    stay_if_ended(c);
    comm_detach(c);
    comm_enter(c, "close");
    if (c->ops.data->close)
        c->ops.data->close(c);
    if (c->ops.ctl->close)
        c->ops.ctl->close(c);
    comm_drop_letters(c);
    if (c->parent)
        c->parent->grouped = false;
    comm_free(c);
}

int comm_rank(const comm *c)
{
    return c->rank;
}

int comm_ranks(const comm *c)
{
    return c->ranks;
}

int comm_local_rank(const comm *c)
{
    return c->local_rank;
}

int comm_local_ranks(const comm *c)
{
    return c->local_ranks;
}

comm_counter comm_count(const comm *c, comm_class class)
{
    return c->counters[class];
}

void comm_count_again(comm *c, const comm_counter counted[COMM_CLASSES])
{
    for (int i = 0; i < COMM_CLASSES; i++) {
        c->counters[i].calls += counted[i].calls;
        c->counters[i].bytes += counted[i].bytes;
    }
}

rt_status comm_allreduce(comm *c, comm_class class, kern_buf *buf, size_t count, comm_op op)
{
    RT_CHECK_ARG(c && buf && (unsigned)class < COMM_CLASSES);
    RT_CHECK_ARG(op == COMM_SUM || op == COMM_MAX);
    kern_dtype dtype = kern_buf_dtype(buf);
    RT_CHECK_ARG(dtype == KERN_F32 || (dtype == KERN_I32 && op == COMM_MAX));
    RT_CHECK_ARG(count <= kern_buf_count(buf));
    RT_TRY(begin(c, REDUCE_NAME[class]));
    count_call(c, class, count * kern_dtype_size(dtype));
    if (count == 0)
        return RT_OK;
    return finish(c, c->ops.data->allreduce(c, buf, count, op));
}

static rt_status sum_norm(comm *c, kern_dev *dev, const kern_rmsnorm_args *args, size_t count)
{
    kern_buf *add = (kern_buf *)args->add;
    bool done = false;
    if (c->ops.data->sum_norm)
        RT_TRY(c->ops.data->sum_norm(c, args, &done));
    if (done)
        return RT_OK;
    RT_TRY(c->ops.data->allreduce(c, add, count, COMM_SUM));
    return kern_rmsnorm(dev, args);
}

rt_status comm_sum_norm(comm *c, kern_dev *dev, const kern_rmsnorm_args *args)
{
    RT_CHECK_ARG(c && dev && args && args->add && args->rows >= 0 && args->cols >= 0);
    const size_t count = (size_t)args->rows * (size_t)args->cols;
    RT_CHECK_ARG(kern_buf_dtype(args->add) == KERN_F32 && count <= kern_buf_count(args->add));
    RT_TRY(begin(c, REDUCE_NAME[COMM_HIDDEN]));
    count_call(c, COMM_HIDDEN, count * sizeof(float));
    if (count == 0)
        return RT_OK;
    return finish(c, sum_norm(c, dev, args, count));
}

rt_status comm_allgather(comm *c, comm_class class, const kern_buf *src, size_t count,
                         kern_buf *dst)
{
    RT_CHECK_ARG(c && src && dst && src != dst && (unsigned)class < COMM_CLASSES);
    RT_CHECK_ARG(kern_buf_dtype(src) == kern_buf_dtype(dst));
    RT_CHECK_ARG(count <= kern_buf_count(src));
    RT_CHECK_ARG(count <= kern_buf_count(dst) / (size_t)c->ranks);
    RT_TRY(begin(c, GATHER_NAME[class]));
    count_call(c, class, count * kern_dtype_size(kern_buf_dtype(src)));
    if (count == 0)
        return RT_OK;
    return finish(c, c->ops.data->allgather(c, src, count, dst));
}

rt_status comm_settle(comm *c, kern_dev *dev)
{
    RT_CHECK_ARG(c && dev);
    RT_TRY(begin(c, "wait for the device"));
    return finish(c, wait_idle(c, dev));
}

rt_status comm_ctl_bcast(comm *c, int root, void *bytes, size_t n)
{
    RT_CHECK_ARG(c && (bytes || n == 0) && root >= 0 && root < c->ranks);
    return ctl_bcast(c, "broadcast", root, bytes, n);
}

rt_status comm_ctl_bcast_bytes(comm *c, int root, rt_str *bytes, size_t max)
{
    RT_CHECK_ARG(c && bytes && root >= 0 && root < c->ranks);
    struct {
        uint64_t len;
        char bytes[BCAST_INLINE];
    } first = {0};
    if (c->rank == root) {
        first.len = bytes->len;
        if (bytes->len > 0 && bytes->len <= sizeof first.bytes)
            memcpy(first.bytes, bytes->data, bytes->len);
    }
    RT_TRY(ctl_bcast(c, "broadcast", root, &first, sizeof first));
    // Decided after the length went round, so that every rank refuses together.
    if (first.len > max)
        return RT_FAIL(RT_ERR_LIMIT, "broadcast of %llu bytes from rank %d: limit is %zu",
                       (unsigned long long)first.len, root, max);

    rt_str in = {0};
    rt_status status = RT_OK;
    if (first.len > sizeof first.bytes)
        status = bcast_rest(c, root, bytes, (size_t)first.len, &in);
    else if (c->rank != root)
        status = rt_str_append(&in, first.bytes, (size_t)first.len);
    if (status != RT_OK) {
        rt_str_free(&in);
        return finish(c, status);
    }
    if (c->rank != root) {
        rt_str_free(bytes);
        *bytes = in;
    }
    return RT_OK;
}

rt_status comm_ctl_allgather(comm *c, const void *src, size_t n, void *dst)
{
    RT_CHECK_ARG(c && ((src && dst) || n == 0));
    RT_TRY(begin(c, "gather"));
    if (n == 0)
        return RT_OK;
    return finish(c, c->ops.ctl->allgather(c, src, n, dst, c->deadline));
}

rt_status comm_ctl_barrier(comm *c)
{
    RT_CHECK_ARG(c);
    RT_TRY(begin(c, "barrier"));
    return finish(c, c->ops.ctl->barrier(c));
}

rt_status comm_agree(comm *c, rt_status mine)
{
    RT_CHECK_ARG(c);
    // The collectives below may replace the thread's message: keep it first.
    char message[AGREE_MESSAGE] = "";
    if (mine != RT_OK)
        snprintf(message, sizeof message, "%s", rt_last_error());

    const int32_t own = mine;
    RT_TRY(begin(c, "agreement"));
    RT_TRY(finish(c, c->ops.ctl->allgather(c, &own, sizeof own, c->statuses, patience(c))));
    int root = 0;
    while (root < c->ranks && c->statuses[root] == RT_OK)
        root++;
    if (root == c->ranks)
        return RT_OK;
    const rt_status theirs = (rt_status)c->statuses[root];
    RT_TRY(ctl_bcast(c, "agreement", root, message, sizeof message));
    message[sizeof message - 1] = '\0';
    return RT_FAIL(theirs, "%s", message);
}

void comm_watch_signal(comm *c, comm_signal_fn *caught, double seconds)
{
    c->signal_seconds = seconds;
    c->caught = caught;
}

void comm_watch_end(comm *c, comm_words_fn *words, void *ctx)
{
    pthread_mutex_lock(&c->words_mutex);
    c->last_words = words;
    c->last_words_ctx = ctx;
    pthread_mutex_unlock(&c->words_mutex);
}

static rt_status new_child(comm *world, int size, comm **out)
{
    comm *child = NULL;
    RT_TRY(comm_new(world->deadline, &child));
    child->parent = world;
    child->watched = world->watched;
    child->local_rank = world->local_rank;
    child->local_ranks = world->local_ranks;
    *out = child;
    return comm_take_place(child, world->rank % size, size);
}

rt_status comm_split(comm *world, int size, comm **group)
{
    RT_CHECK_ARG(world && group && size >= 1 && world->ranks % size == 0 && !world->grouped);
    if (!world->ops.ctl->split)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "groups of ranks: there are none without MPI");
    comm *child = NULL;
    rt_status status = comm_agree(world, new_child(world, size, &child));
    if (status == RT_OK)
        status = world->ops.ctl->split(world, size, child);
    if (status != RT_OK) {
        comm_free(child);
        return status;
    }
    world->grouped = true;
    *group = child;
    return RT_OK;
}

bool comm_is_lost(const comm *world, int rank)
{
    return world->lost_ranks && world->lost_ranks[rank];
}

bool comm_has_lost(const comm *world)
{
    return world->any_lost;
}

void comm_end(comm *world, int status)
{
    world->ops.ctl->end(world, status);
}

void comm_abort(comm *c)
{
    if (c && c->ops.ctl->abort)
        c->ops.ctl->abort(c);
}
