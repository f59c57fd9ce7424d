// SPDX-License-Identifier: Apache-2.0
// The heart's thread. Between two looks it sleeps in poll(): on the clock, on the word
// of the main thread to end, and, of ranks that run on this host, on their processes, whose
// death is then seen at once.
//
// The thread owns everything but `ending`, which the main thread sets.
#include "comm/heart.h"

#include "comm/wait.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const double TICK_SECONDS = 0.25; // between two looks
static const double BEAT_SECONDS = 1.0;
static const double SILENCE_SECONDS = 5.0; // of a rank, then it is dead or stopped
static const double STALL_SECONDS = 2.0;   // between two looks: this rank was stopped itself
// After that, mpirun may have continued it only to end the job, and others go first.
static const double EXCUSE_SECONDS = 1.5;
// When rank 0 is gone all others know; rank 1 says so, unless it is gone too. Rank 0 says why a
// signal ends the job, unless it cannot.
static const double PRECEDENCE_SECONDS = 1.5;
// mpirun, which asks all ranks to end, kills after about one second: who goes down with the
// job is not news.
static const double FAREWELL_SECONDS = 0.3;
static const double SEND_SECONDS = 1.0; // to hand over the goodbye

// Words. SIGNAL + number: a rank got this signal. END + status: rank 0 ends the job, and every
// rank itself with this status.
enum { BEAT = 1, GOODBYE, PARK, FAILED, SIGNAL, END = SIGNAL + 128 };
enum { TAG = 1, EXIT_SIGNAL = 128 };

// A rank that this one watches.
typedef struct peer {
    int rank;
    int process; // descriptor, or -1
    MPI_Request sending;
    int word;       // what is being sent
    double heard;   // last sign of life
    double doubted; // since when it seems dead, or 0
    bool parted;    // said goodbye, or is gone
    bool gone;      // its process ended
    bool lost;      // with its group: nobody's concern any more
} peer;

struct comm_heart {
    comm *c;
    MPI_Comm beats;
    peer *peers; // of rank 0: all others; of the others: rank 0
    int count;
    struct pollfd *wake; // [count + 1], what the thread sleeps on
    int event;           // descriptor that wakes the thread
    pthread_t thread;
    atomic_int ending;      // 0, or how the main thread wants it to end
    atomic_int status;      // of ENDING_WITH_STATUS
    double beaten;          // last beat
    double woken, signaled; // last look; when a signal was first seen, or 0
    double excused;         // until then nobody is judged
    bool confessed;         // rank 0 knows that this rank gave up
    int passed;             // signal of another rank: to be taken (rank 0), or rank 0 has it
    bool hushed;            // another rank ends the job, and said why
};

enum { ENDING_IN_ORDER = 1, ENDING_AT_ONCE, ENDING_WITH_STATUS };

// ---- words ----------------------------------------------------------------------

static bool is_sent(peer *p)
{
    int done = 1;
    return MPI_Test(&p->sending, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done;
}

// One message at a time: if the last one is still here, the other rank is in trouble.
static bool say(comm_heart *h, peer *p, int word)
{
    if (!is_sent(p))
        return false;
    p->word = word;
    MPI_Isend(&p->word, 1, MPI_INT, p->rank, TAG, h->beats, &p->sending);
    return true;
}

static void beat(comm_heart *h)
{
    if (h->woken - h->beaten < BEAT_SECONDS)
        return;
    h->beaten = h->woken;
    for (int i = 0; i < h->count; i++)
        if (!h->peers[i].parted) // the lost too: they are to know that the job goes on
            say(h, &h->peers[i], BEAT);
}

static bool all_sent(comm_heart *h)
{
    bool sent = true;
    for (int i = 0; i < h->count; i++)
        sent &= h->peers[i].gone || is_sent(&h->peers[i]);
    return sent;
}

static void wait_sent(comm_heart *h)
{
    const double end = rt_clock_now() + SEND_SECONDS;
    while (!all_sent(h) && rt_clock_now() < end)
        rt_clock_sleep(1e-3);
}

// Those that said goodbye hear it too: they wait for an answer.
static void say_to_all(comm_heart *h, int word)
{
    wait_sent(h);
    for (int i = 0; i < h->count; i++)
        if (!h->peers[i].gone)
            say(h, &h->peers[i], word);
    wait_sent(h);
}

static peer *peer_of(comm_heart *h, int rank)
{
    for (int i = 0; i < h->count; i++)
        if (h->peers[i].rank == rank)
            return &h->peers[i];
    return NULL;
}

// ---- the end of the job, or of a group ------------------------------------------

// To the ranks that this one does not watch, and who may find out the same.
static void hush_others(comm_heart *h)
{
    static const int word = GOODBYE; // MPI may still read it afterwards
    for (int r = 1; r < h->c->ranks; r++) {
        MPI_Request request;
        int done = r == h->c->rank || peer_of(h, r) ||
                   MPI_Isend(&word, 1, MPI_INT, r, TAG, h->beats, &request) != MPI_SUCCESS;
        for (int i = 0; i < 100 && !done; i++) {
            MPI_Test(&request, &done, MPI_STATUS_IGNORE);
            if (!done)
                rt_clock_sleep(1e-3);
        }
    }
}

static void say_last_words(comm *c)
{
    pthread_mutex_lock(&c->words_mutex);
    if (c->last_words)
        c->last_words(c->last_words_ctx);
    pthread_mutex_unlock(&c->words_mutex);
}

static void end_job(comm_heart *h, int status)
{
    say_last_words(h->c);
    hush_others(h);
    say_to_all(h, GOODBYE);
    MPI_Abort(MPI_COMM_WORLD, status);
    _exit(status);
}

// Rank 0: the ranks of a group rest from now on, until the job ends.
static void lose_group(comm_heart *h, int group)
{
    comm *c = h->c;
    for (int i = 0; i < h->count; i++) {
        peer *p = &h->peers[i];
        if (c->group_of[p->rank] != group || p->lost)
            continue;
        p->lost = true;
        c->lost_ranks[p->rank] = true;
        say(h, p, PARK);
    }
    c->any_lost = true;
    if (group == c->group_of[0])
        c->lost_ranks[0] = c->group_lost = true;
}

// What a rank did ends its group, where there are several, or the job.
static void condemn(comm_heart *h, const peer *p, const char *what)
{
    comm *c = h->c;
    if (c->grouped && c->rank == 0) {
        rt_log(RT_LOG_ERROR, "rank 0: rank %d %s; its group is lost", p->rank, what);
        lose_group(h, c->group_of[p->rank]);
        return;
    }
    c->ended = true;
    rt_log(RT_LOG_ERROR, "rank %d: rank %d %s; %s number %llu", c->rank, p->rank, what,
           c->operation, (unsigned long long)c->number);
    end_job(h, EXIT_FAILURE);
}

static void obey(comm_heart *h, peer *p, int word)
{
    if (word >= END)
        _exit(word - END);
    h->hushed |= !p;
    if (!p)
        return;
    p->heard = h->woken;
    p->parted |= word == GOODBYE;
    if (word == FAILED && !p->lost)
        condemn(h, p, "gave up");
    if (word == PARK)
        h->c->group_lost = true;
    if (word > SIGNAL)
        h->passed = word - SIGNAL;
}

static bool receive(comm_heart *h)
{
    int there = 0, word = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, TAG, h->beats, &there, &status) != MPI_SUCCESS || !there)
        return false;
    MPI_Recv(&word, 1, MPI_INT, status.MPI_SOURCE, TAG, h->beats, MPI_STATUS_IGNORE);
    obey(h, peer_of(h, status.MPI_SOURCE), word);
    return true;
}

static void listen(comm_heart *h)
{
    // A probe that finds nothing still lets MPI fetch what has arrived.
    for (int empty = 0; empty < 2;)
        empty += !receive(h);
}

// ---- verdicts -------------------------------------------------------------------

static bool is_dead(const peer *p)
{
    struct pollfd process = {.fd = p->process, .events = POLLIN};
    return p->process >= 0 && poll(&process, 1, 0) > 0;
}

static bool is_silent(const comm_heart *h, const peer *p)
{
    return h->woken - p->heard > SILENCE_SECONDS;
}

static void judge(comm_heart *h, peer *p)
{
    char text[64];
    const bool dead = p->gone = is_dead(p);
    if (dead)
        listen(h); // what it said before it went
    if (dead && h->signaled > 0 && h->woken - h->signaled > FAREWELL_SECONDS)
        p->parted = true;
    const bool bad = !h->hushed && !p->parted && !p->lost && (dead || is_silent(h, p));
    p->doubted = !bad ? 0 : p->doubted > 0 ? p->doubted : h->woken;
    if (!bad)
        return;
    if (h->c->rank > 1 && h->woken - p->doubted < PRECEDENCE_SECONDS)
        return;
    snprintf(text, sizeof text, "gave no sign of life for %g s", SILENCE_SECONDS);
    condemn(h, p, dead ? "died" : text);
    p->parted = dead;
}

// A batch system may ask any one rank to end; rank 0 can do it in order. It takes the signal as if
// it had got it itself; Ctrl-C as SIGTERM, since it may get that too, and a second one kills.
static void pass_signal(comm_heart *h, int number)
{
    if (h->c->rank > 0 && number && !h->passed && say(h, &h->peers[0], SIGNAL + number))
        h->passed = number;
    if (h->c->rank > 0 || !h->passed)
        return;
    if (!number)
        kill(getpid(), h->passed == SIGINT ? SIGTERM : h->passed);
    h->passed = 0;
}

static void judge_signal(comm_heart *h)
{
    comm *c = h->c;
    comm_signal_fn *caught = c->caught;
    if (!caught)
        return;
    const int number = caught();
    // Rank 0 goes first, if it can, and says goodbye.
    const double later = c->rank == 0 ? 0 : PRECEDENCE_SECONDS;
    const bool over = c->rank > 0 && h->peers[0].parted;
    pass_signal(h, number);
    if (number && h->signaled == 0)
        h->signaled = h->woken;
    if (number && !over && h->woken - h->signaled > c->signal_seconds + later) {
        c->ended = true;
        rt_log(RT_LOG_ERROR, "rank %d: ended by signal %d; %s number %llu", c->rank, number,
               c->operation, (unsigned long long)c->number);
        end_job(h, EXIT_SIGNAL + number);
    }
}

// The main thread gave the group of this rank up.
static void judge_self(comm_heart *h)
{
    if (!h->c->gave_up || h->confessed)
        return;
    if (h->c->rank == 0)
        lose_group(h, h->c->group_of[0]);
    h->confessed = h->c->rank == 0 || say(h, &h->peers[0], FAILED);
}

// ---- the thread -----------------------------------------------------------------

static void sleep_until_news(comm_heart *h)
{
    h->wake[0] = (struct pollfd){.fd = h->event, .events = POLLIN};
    for (int i = 0; i < h->count; i++) {
        const peer *p = &h->peers[i];
        const bool judged = p->parted || p->lost || p->doubted > 0 || h->woken < h->excused;
        h->wake[i + 1] = (struct pollfd){.fd = judged ? -1 : p->process, .events = POLLIN};
    }
    poll(h->wake, (nfds_t)h->count + 1, (int)(1e3 * TICK_SECONDS));
    eventfd_t count;
    if (h->wake[0].revents)
        eventfd_read(h->event, &count);
}

static void look(comm_heart *h)
{
    const double now = rt_clock_now();
    const bool stalled = now - h->woken > STALL_SECONDS;
    h->woken = now;
    if (stalled) { // what others did meanwhile is still to be read
        for (int i = 0; i < h->count; i++)
            h->peers[i].heard = now;
        h->excused = now + EXCUSE_SECONDS;
    }
    listen(h);
    judge_signal(h);
    judge_self(h);
    for (int i = 0; i < h->count && h->woken >= h->excused; i++)
        judge(h, &h->peers[i]);
}

static bool all_parted(const comm_heart *h)
{
    bool parted = true;
    for (int i = 0; i < h->count; i++)
        parted &= h->peers[i].parted;
    return parted;
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
    if (h->ending == ENDING_WITH_STATUS)
        say_to_all(h, END + h->status);
    else
        say_to_all(h, GOODBYE);
    while (h->ending == ENDING_IN_ORDER && !all_parted(h)) {
        look(h);
        if (!all_parted(h))
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

// Descriptors that become readable when a watched rank ends, where it runs in this host's
// numbering and the kernel has such a thing.
static rt_status find_processes(comm_heart *h)
{
    const identity me = own_identity();
    identity *all;
    RT_TRY(RT_ALLOC(all, (size_t)h->c->ranks, "processes of all ranks"));
    const rt_status status = h->c->ops.ctl->allgather(h->c, &me, sizeof me, all, h->c->deadline);
    for (int i = 0; status == RT_OK && i < h->count; i++) {
        const identity *other = &all[h->peers[i].rank];
        if (me.numbering && other->numbering == me.numbering && strcmp(other->host, me.host) == 0)
            h->peers[i].process = (int)syscall(SYS_pidfd_open, (pid_t)other->pid, 0);
    }
    rt_free(all);
    return status;
}

static void heart_free(comm_heart *h)
{
    for (int i = 0; h->peers && i < h->count; i++)
        if (h->peers[i].process >= 0)
            close(h->peers[i].process);
    if (h->event >= 0)
        close(h->event);
    rt_free(h->peers);
    rt_free(h->wake);
    rt_free(h);
}

static rt_status fill(comm_heart *h)
{
    const int ranks = h->c->ranks;
    h->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (h->event < 0)
        return RT_FAIL(RT_ERR_LIMIT, "cannot start the heart: %s", strerror(errno));
    RT_TRY(RT_ALLOC(h->peers, (size_t)ranks, "heart"));
    RT_TRY(RT_ALLOC(h->wake, (size_t)ranks + 1, "heart"));
    h->woken = rt_clock_now();
    h->count = h->c->rank == 0 ? ranks - 1 : 1;
    for (int i = 0; i < h->count; i++)
        h->peers[i] = (peer){.rank = h->c->rank == 0 ? i + 1 : 0,
                             .process = -1,
                             .sending = MPI_REQUEST_NULL,
                             .heard = h->woken};
    RT_TRY(find_processes(h));
    const int error = comm_thread_start(&h->thread, live, h);
    return error ? RT_FAIL(RT_ERR_LIMIT, "cannot start the heart: %s", strerror(error)) : RT_OK;
}

rt_status comm_heart_start(comm *c, MPI_Comm beats, comm_heart **out)
{
    comm_heart *h;
    RT_TRY(RT_ALLOC(h, 1, "heart"));
    h->c = c;
    h->beats = beats;
    h->event = -1;
    const rt_status status = fill(h);
    if (status != RT_OK) {
        heart_free(h);
        return status;
    }
    *out = h;
    return RT_OK;
}

static void stop(comm_heart *h, int how)
{
    h->ending = how;
    eventfd_write(h->event, 1);
    pthread_join(h->thread, NULL);
    heart_free(h);
}

void comm_heart_stop(comm_heart *h, bool in_order)
{
    if (h)
        stop(h, in_order ? ENDING_IN_ORDER : ENDING_AT_ONCE);
}

void comm_heart_end(comm_heart *h, int status)
{
    h->status = status;
    stop(h, ENDING_WITH_STATUS);
}
