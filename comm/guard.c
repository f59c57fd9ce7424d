// SPDX-License-Identifier: Apache-2.0
// A thread that sleeps until it is stopped or the time is over.
#include "comm/guard.h"

#include "comm/wait.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

struct comm_guard {
    const char *what;
    double seconds;
    struct timespec end;
    bool stopped; // under mutex
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t thread;
};

static void *watch(void *arg)
{
    comm_guard *g = arg;
    bool late = false;
    pthread_mutex_lock(&g->mutex);
    while (!g->stopped && !late)
        late = pthread_cond_timedwait(&g->changed, &g->mutex, &g->end) == ETIMEDOUT;
    if (!g->stopped) {
        rt_log(RT_LOG_ERROR, "%s: no answer within %g s", g->what, g->seconds);
        _exit(1);
    }
    pthread_mutex_unlock(&g->mutex);
    return NULL;
}

static void destroy(comm_guard *g)
{
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->mutex);
    rt_free(g);
}

rt_status comm_guard_start(const char *what, double seconds, comm_guard **out)
{
    comm_guard *g;
    RT_TRY(RT_ALLOC(g, 1, "guard"));
    g->what = what;
    g->seconds = seconds;
    g->end = comm_moment(seconds);
    pthread_mutex_init(&g->mutex, NULL);
    comm_cond_init(&g->changed);
    const int error = comm_thread_start(&g->thread, watch, g);
    if (error) {
        destroy(g);
        return RT_FAIL(RT_ERR_LIMIT, "%s: cannot start a thread: %s", what, strerror(error));
    }
    *out = g;
    return RT_OK;
}

void comm_guard_stop(comm_guard *g)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->mutex);
    g->stopped = true;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->mutex);
    pthread_join(g->thread, NULL);
    destroy(g);
}
