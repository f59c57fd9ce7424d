// SPDX-License-Identifier: Apache-2.0
// Thread backend: the ranks are threads of one process. What sanitizers and debuggers
// see whole, and programs that embed the engine need no launcher for.
//
// A collective is two meetings. At the first one every rank has posted where its bytes
// are; between the two each rank reads the others' bytes and writes only what is its
// own to write; after the second one the bytes belong to their callers again. A rank
// can fail at the first meeting alone: past it all ranks only copy memory, so the
// second one ends by itself and nobody's buffer is read after its call returned.
//
// An element of an all-reduce is added up by one rank, in the order of the ranks, and
// handed to all: the same bits everywhere, in every run.
#include "comm/comm_int.h"

#include "comm/wait.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct post {
    void *bytes;
    size_t n;
} post;

typedef struct group {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int ranks;
    // Under mutex. `posts` is also read between the meetings, when nobody writes it.
    int arrived;      // at the meeting under way
    uint64_t meeting; // counts the meetings that took place
    int members;      // ranks that did not leave; the last one frees the group
    bool broken;
    char cause[COMM_CAUSE_MAX]; // why, once broken
    post posts[];               // [ranks]
} group;

// ---- meetings ---------------------------------------------------------------------

static void break_group(group *g, const char *cause)
{
    if (!g->broken)
        snprintf(g->cause, sizeof g->cause, "%s", cause);
    g->broken = true;
    pthread_cond_broadcast(&g->changed);
}

static rt_status broken_by_other(const comm *c, const group *g)
{
    return RT_FAIL(RT_ERR_COMM, "rank %d: %s number %llu: ended by another rank (%s)", c->rank,
                   c->operation, (unsigned long long)c->number, g->cause);
}

// With the mutex held; true when the meeting took place.
static bool arrive(group *g)
{
    if (++g->arrived < g->ranks)
        return false;
    g->arrived = 0;
    g->meeting++;
    pthread_cond_broadcast(&g->changed);
    return true;
}

static rt_status wait_for_all(const comm *c, group *g, double limit)
{
    const struct timespec end = comm_moment(limit);
    const uint64_t meeting = g->meeting;
    if (arrive(g))
        return RT_OK;
    while (g->meeting == meeting && !g->broken)
        if (pthread_cond_timedwait(&g->changed, &g->mutex, &end) == ETIMEDOUT &&
            g->meeting == meeting && !g->broken) {
            const rt_status status = comm_timeout(c, limit);
            break_group(g, rt_last_error());
            return status;
        }
    return g->meeting != meeting ? RT_OK : broken_by_other(c, g);
}

// First meeting: this rank's bytes are there to be read.
static rt_status meet(comm *c, void *bytes, size_t n, double limit)
{
    group *g = c->ctl_state;
    pthread_mutex_lock(&g->mutex);
    g->posts[c->rank] = (post){bytes, n};
    rt_status status = g->broken ? broken_by_other(c, g) : wait_for_all(c, g, limit);
    pthread_mutex_unlock(&g->mutex);
    return status;
}

// Second meeting: this rank reads the others' bytes no more.
static void part(comm *c)
{
    group *g = c->ctl_state;
    pthread_mutex_lock(&g->mutex);
    const uint64_t meeting = g->meeting;
    const bool last = arrive(g);
    while (!last && g->meeting == meeting)
        pthread_cond_wait(&g->changed, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
}

// Ranks that are in different collectives would read beyond each other's bytes.
static rt_status check_sizes(const comm *c, size_t n)
{
    const group *g = c->ctl_state;
    for (int r = 0; r < c->ranks; r++)
        if (g->posts[r].n != n)
            return RT_FAIL(RT_ERR_COMM, "rank %d: %s number %llu: %zu bytes, but rank %d has %zu",
                           c->rank, c->operation, (unsigned long long)c->number, n, r,
                           g->posts[r].n);
    return RT_OK;
}

// ---- collectives ------------------------------------------------------------------

// posts[*].bytes[first, end) := their sum or maximum.
static void reduce_f32(const group *g, size_t first, size_t end, comm_op op)
{
    for (size_t i = first; i < end; i++) {
        float value = ((const float *)g->posts[0].bytes)[i];
        for (int r = 1; r < g->ranks; r++) {
            const float other = ((const float *)g->posts[r].bytes)[i];
            value = op == COMM_SUM ? value + other : other > value ? other : value;
        }
        for (int r = 0; r < g->ranks; r++)
            ((float *)g->posts[r].bytes)[i] = value;
    }
}

static void max_i32(const group *g, size_t first, size_t end)
{
    for (size_t i = first; i < end; i++) {
        int32_t value = ((const int32_t *)g->posts[0].bytes)[i];
        for (int r = 1; r < g->ranks; r++) {
            const int32_t other = ((const int32_t *)g->posts[r].bytes)[i];
            value = other > value ? other : value;
        }
        for (int r = 0; r < g->ranks; r++)
            ((int32_t *)g->posts[r].bytes)[i] = value;
    }
}

static rt_status data_allreduce(comm *c, kern_buf *buf, size_t count, comm_op op)
{
    const kern_dtype dtype = kern_buf_dtype(buf);
    const size_t n = count * kern_dtype_size(dtype);
    RT_TRY(meet(c, kern_buf_ptr(buf), n, c->deadline));
    const rt_status status = check_sizes(c, n);
    if (status == RT_OK) {
        const size_t rank = (size_t)c->rank, ranks = (size_t)c->ranks;
        const size_t share = (count + ranks - 1) / ranks;
        const size_t first = rank * share < count ? rank * share : count;
        const size_t end = first + share < count ? first + share : count;
        if (dtype == KERN_I32)
            max_i32(c->ctl_state, first, end);
        else
            reduce_f32(c->ctl_state, first, end, op);
    }
    part(c);
    return status;
}

static rt_status gather(comm *c, const void *src, size_t n, void *dst, double limit)
{
    const group *g = c->ctl_state;
    char *to = dst;
    RT_TRY(meet(c, (void *)src, n, limit));
    const rt_status status = check_sizes(c, n);
    for (size_t r = 0; status == RT_OK && r < (size_t)c->ranks; r++)
        memmove(to + r * n, g->posts[r].bytes, n);
    part(c);
    return status;
}

static rt_status data_allgather(comm *c, const kern_buf *src, size_t count, kern_buf *dst)
{
    const size_t n = count * kern_dtype_size(kern_buf_dtype(src));
    return gather(c, kern_buf_ptr(src), n, kern_buf_ptr(dst), c->deadline);
}

static rt_status ctl_bcast(comm *c, int root, void *bytes, size_t n, double limit)
{
    const group *g = c->ctl_state;
    RT_TRY(meet(c, bytes, n, limit));
    const rt_status status = check_sizes(c, n);
    if (status == RT_OK && c->rank != root)
        memcpy(bytes, g->posts[root].bytes, n);
    part(c);
    return status;
}

static rt_status ctl_barrier(comm *c)
{
    RT_TRY(meet(c, NULL, 0, c->deadline));
    part(c);
    return RT_OK;
}

// ---- ends -------------------------------------------------------------------------

static void leave(comm *c, const char *how)
{
    group *g = c->ctl_state;
    char cause[64];
    snprintf(cause, sizeof cause, "rank %d %s", c->rank, how);
    pthread_mutex_lock(&g->mutex);
    break_group(g, cause);
    pthread_mutex_unlock(&g->mutex);
}

static void ctl_abort(comm *c)
{
    leave(c, "aborted");
}

static void free_group(group *g)
{
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->mutex);
    rt_free(g);
}

static void ctl_close(comm *c)
{
    group *g = c->ctl_state;
    leave(c, "closed its communicator");
    pthread_mutex_lock(&g->mutex);
    const bool last = --g->members == 0;
    pthread_mutex_unlock(&g->mutex);
    if (last)
        free_group(g);
}

static const comm_data_ops thread_data = {
    .allreduce = data_allreduce,
    .allgather = data_allgather,
};

static const comm_ctl_ops thread_ctl = {
    .bcast = ctl_bcast,
    .allgather = gather,
    .barrier = ctl_barrier,
    .abort = ctl_abort,
    .close = ctl_close,
};

static rt_status new_group(int ranks, group **out)
{
    group *g = rt_mem_alloc(1, sizeof *g + (size_t)ranks * sizeof *g->posts, "group of threads");
    if (!g)
        return RT_ERR_NOMEM;
    pthread_mutex_init(&g->mutex, NULL);
    comm_cond_init(&g->changed);
    g->ranks = g->members = ranks;
    *out = g;
    return RT_OK;
}

static rt_status new_rank(group *g, int rank, double deadline, comm **out)
{
    comm *c;
    RT_TRY(comm_new(deadline, &c));
    const rt_status status = comm_take_place(c, rank, g->ranks);
    if (status != RT_OK) {
        comm_free(c);
        return status;
    }
    c->local_rank = rank;
    c->local_ranks = g->ranks;
    c->ops = (comm_ops){.data = &thread_data, .ctl = &thread_ctl};
    c->data_state = c->ctl_state = g;
    *out = c;
    return RT_OK;
}

rt_status comm_open_threads(int ranks, double deadline, comm **out)
{
    enum { RANKS_MAX = 1024 };
    RT_CHECK_ARG(out && ranks >= 1 && ranks <= RANKS_MAX);
    RT_CHECK_ARG(isfinite(deadline) && deadline >= 0);
    group *g;
    RT_TRY(new_group(ranks, &g));
    for (int r = 0; r < ranks; r++) {
        const rt_status status = new_rank(g, r, deadline > 0 ? deadline : COMM_DEADLINE, &out[r]);
        if (status != RT_OK) {
            while (r-- > 0)
                comm_free(out[r]);
            free_group(g);
            return status;
        }
    }
    return RT_OK;
}
