// SPDX-License-Identifier: Apache-2.0
// The heart's thread. Between two looks it sleeps in poll(): on the clock, on the word
// of the main thread to end, and, when the rank before runs on this host, on its
// process, whose death is then seen at once.
//
// The thread owns everything but `ending`, which the main thread sets.
#include "comm/heart.h"

#include "comm/wait.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const double TICK_SECONDS = 0.25; // between two looks
static const double BEAT_SECONDS = 1.0;
static const double SILENCE_SECONDS = 5.0; // of the rank before, then it is dead or stopped
static const double STALL_SECONDS = 2.0;   // between two looks: this rank was stopped itself
// After that, mpirun may have continued it only to end the job, and others go first.
static const double EXCUSE_SECONDS = 1.5;
// A rank that was asked to end has this long to do so in order. mpirun, which asks all
// of them, kills after about one second: who goes down with the job is not news.
static const double SIGNAL_SECONDS = 2.0, FAREWELL_SECONDS = 0.3;
static const double SEND_SECONDS = 1.0; // to hand over the goodbye

enum { TAG = 1, BEAT = 1, GOODBYE = 2, EXIT_SIGNAL = 128 };

struct comm_heart {
    comm *c;
    MPI_Comm ring;
    int before, after;  // ranks
    int process, event; // descriptors: of the rank before or -1; wakes the thread
    pthread_t thread;
    atomic_int ending; // 0, or how the main thread wants it to end
    MPI_Request sending;
    int word;               // what is being sent
    double beaten, heard;   // last beat sent; last sign of life of the rank before
    double woken, signaled; // last look; when a signal was first seen, or 0
    double excused;         // until then nobody is judged
    bool parted;            // the rank before said goodbye
};

enum { ENDING_IN_ORDER = 1, ENDING_AT_ONCE = 2 };

// ---- the ring -------------------------------------------------------------------

static bool is_sent(comm_heart *h)
{
    int done = 1;
    return MPI_Test(&h->sending, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done;
}

// One message at a time: if the last one is still here, the rank after is in trouble,
// and that is for others to say.
static void beat(comm_heart *h)
{
    if (h->woken - h->beaten < BEAT_SECONDS || !is_sent(h))
        return;
    h->word = BEAT;
    h->beaten = h->woken;
    MPI_Isend(&h->word, 1, MPI_INT, h->after, TAG, h->ring, &h->sending);
}

static void wait_sent(comm_heart *h)
{
    const double end = rt_clock_now() + SEND_SECONDS;
    while (!is_sent(h) && rt_clock_now() < end)
        rt_clock_sleep(1e-3);
}

static void say_goodbye(comm_heart *h)
{
    wait_sent(h);
    if (!is_sent(h))
        return;
    h->word = GOODBYE;
    MPI_Isend(&h->word, 1, MPI_INT, h->after, TAG, h->ring, &h->sending);
    wait_sent(h);
}

static bool receive(comm_heart *h)
{
    int there = 0, word = 0;
    if (MPI_Iprobe(h->before, TAG, h->ring, &there, MPI_STATUS_IGNORE) != MPI_SUCCESS || !there)
        return false;
    MPI_Recv(&word, 1, MPI_INT, h->before, TAG, h->ring, MPI_STATUS_IGNORE);
    h->heard = h->woken;
    h->parted = h->parted || word == GOODBYE;
    return true;
}

static void listen_before(comm_heart *h)
{
    // A probe that finds nothing still lets MPI fetch what has arrived.
    for (int empty = 0; empty < 2;)
        empty += !receive(h);
}

// ---- verdicts -------------------------------------------------------------------

static void end_job(comm_heart *h, int status)
{
    say_goodbye(h);
    MPI_Abort(MPI_COMM_WORLD, status);
    _exit(status);
}

static void report(comm_heart *h, const char *what)
{
    comm *c = h->c;
    c->ended = true;
    rt_log(RT_LOG_ERROR, "rank %d: rank %d %s; %s number %llu", c->rank, h->before, what,
           c->operation, (unsigned long long)c->number);
    end_job(h, EXIT_FAILURE);
}

static bool is_dead(const comm_heart *h)
{
    struct pollfd process = {.fd = h->process, .events = POLLIN};
    return h->process >= 0 && poll(&process, 1, 0) > 0;
}

static void judge_before(comm_heart *h)
{
    char text[64];
    if (h->woken < h->excused)
        return;
    if (is_dead(h)) {
        listen_before(h); // what it said before it went
        if (!h->parted && !(h->signaled > 0 && h->woken - h->signaled > FAREWELL_SECONDS))
            report(h, "died");
        h->parted = true;
    }
    if (!h->parted && h->woken - h->heard > SILENCE_SECONDS) {
        snprintf(text, sizeof text, "gave no sign of life for %g s", SILENCE_SECONDS);
        report(h, text);
    }
}

static void judge_signal(comm_heart *h)
{
    comm *c = h->c;
    comm_signal_fn *caught = c->caught;
    const int number = caught ? caught() : 0;
    if (number && h->signaled == 0)
        h->signaled = h->woken;
    if (number && h->woken - h->signaled > SIGNAL_SECONDS) {
        c->ended = true;
        rt_log(RT_LOG_ERROR, "rank %d: ended by signal %d; %s number %llu", c->rank, number,
               c->operation, (unsigned long long)c->number);
        end_job(h, EXIT_SIGNAL + number);
    }
}

// ---- the thread -----------------------------------------------------------------

static void sleep_until_news(comm_heart *h)
{
    struct pollfd wake[] = {
        // -1: left out
        {.fd = h->event, .events = POLLIN},
        {.fd = h->parted || h->woken < h->excused ? -1 : h->process, .events = POLLIN},
    };
    poll(wake, 2, (int)(1e3 * TICK_SECONDS));
    eventfd_t count;
    if (wake[0].revents)
        eventfd_read(h->event, &count);
}

static void look(comm_heart *h)
{
    const double now = rt_clock_now();
    const bool stalled = now - h->woken > STALL_SECONDS;
    h->woken = now;
    if (stalled) { // what others did meanwhile is still to be read
        h->heard = now;
        h->excused = now + EXCUSE_SECONDS;
    }
    listen_before(h);
    judge_signal(h);
    judge_before(h);
}

static void *live(void *arg)
{
    comm_heart *h = arg;
    pthread_setname_np(pthread_self(), "losa-heart");
    while (!h->ending) {
        look(h);
        beat(h);
        sleep_until_news(h);
    }
    say_goodbye(h);
    while (h->ending == ENDING_IN_ORDER && !h->parted) {
        look(h);
        if (!h->parted)
            sleep_until_news(h);
    }
    return NULL;
}

// ---- start and end --------------------------------------------------------------

// Says on which host, and in whose numbering of processes, a rank is which process.
typedef struct identity {
    char host[MPI_MAX_PROCESSOR_NAME];
    uint64_t numbering;
    int64_t pid;
} identity;

static identity own_identity(void)
{
    identity me = {.pid = getpid()};
    int len;
    struct stat space;
    MPI_Get_processor_name(me.host, &len);
    if (stat("/proc/self/ns/pid", &space) == 0)
        me.numbering = space.st_ino;
    return me;
}

// A descriptor that becomes readable when the rank before ends; -1 when it runs
// elsewhere or the kernel has no such thing.
static rt_status find_before(const comm_heart *h, int *process)
{
    *process = -1;
    const identity me = own_identity();
    identity *all;
    RT_TRY(RT_ALLOC(all, (size_t)h->c->ranks, "processes of all ranks"));
    const rt_status status = h->c->ops.ctl->allgather(h->c, &me, sizeof me, all);
    if (status == RT_OK) {
        const identity *before = &all[h->before];
        if (me.numbering && before->numbering == me.numbering && strcmp(before->host, me.host) == 0)
            *process = (int)syscall(SYS_pidfd_open, (pid_t)before->pid, 0);
    }
    rt_free(all);
    return status;
}

static void heart_free(comm_heart *h)
{
    if (h->process >= 0)
        close(h->process);
    if (h->event >= 0)
        close(h->event);
    rt_free(h);
}

rt_status comm_heart_start(comm *c, MPI_Comm ring, comm_heart **out)
{
    comm_heart *h;
    RT_TRY(RT_ALLOC(h, 1, "heart"));
    h->c = c;
    h->ring = ring;
    h->before = (c->rank + c->ranks - 1) % c->ranks;
    h->after = (c->rank + 1) % c->ranks;
    h->sending = MPI_REQUEST_NULL;
    h->process = -1;
    h->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rt_status status = h->event >= 0
                           ? RT_OK
                           : RT_FAIL(RT_ERR_LIMIT, "cannot start the heart: %s", strerror(errno));
    RT_TRY_GOTO(status, status, fail);
    RT_TRY_GOTO(status, find_before(h, &h->process), fail);
    h->woken = h->heard = rt_clock_now();
    const int error = comm_thread_start(&h->thread, live, h);
    if (error) {
        status = RT_FAIL(RT_ERR_LIMIT, "cannot start the heart: %s", strerror(error));
        goto fail;
    }
    *out = h;
    return RT_OK;
fail:
    heart_free(h);
    return status;
}

void comm_heart_stop(comm_heart *h, bool in_order)
{
    if (!h)
        return;
    h->ending = in_order ? ENDING_IN_ORDER : ENDING_AT_ONCE;
    eventfd_write(h->event, 1);
    pthread_join(h->thread, NULL);
    heart_free(h);
}
