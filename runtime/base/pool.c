// SPDX-License-Identifier: Apache-2.0
// Thread pool.
//
// A run is published by one store to `state`: its generation, the OPEN bit and
// the number of workers inside. A worker joins by a compare-and-swap that fails
// once the run is closed, so the caller waits only for workers that joined: when
// it has finished all items itself, a worker that is still asleep costs nothing.
// `fn`, `ctx`, `items` and `next` are written only while nobody is inside.
// Waiting (for work, for the last worker) spins briefly and then sleeps.
#include "runtime/base/pool.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, PAUSES_PER_LOOK = 16 };

static const double spin_seconds = 30e-6; // longer than the gap between two small kernels

#define INSIDE ((uint64_t)0xffff) // workers inside; MAX_THREADS fits
#define OPEN ((uint64_t)0x10000)
#define GENERATION ((uint64_t)0x20000)

typedef struct worker {
    rt_pool *pool;
    pthread_t thread;
    int index;
} worker;

struct rt_pool {
    int threads;
    worker *workers; // threads - 1 of them, of which `started` run
    int started;

    pthread_mutex_t mutex; // orders sleeping against waking; guards no data of its own
    pthread_cond_t work, idle;
    _Atomic uint64_t state;
    atomic_bool stop;

    rt_pool_fn *fn;
    void *ctx;
    size_t items;
    atomic_size_t next;
};

static void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static uint64_t generation_of(uint64_t state)
{
    return state / GENERATION;
}

typedef bool condition(rt_pool *pool, uint64_t arg);

static bool has_news(rt_pool *pool, uint64_t seen)
{
    return generation_of(atomic_load(&pool->state)) != seen || atomic_load(&pool->stop);
}

static bool is_empty(rt_pool *pool, uint64_t arg)
{
    (void)arg;
    return (atomic_load(&pool->state) & INSIDE) == 0;
}

static void wait_until(rt_pool *pool, condition *holds, uint64_t arg, pthread_cond_t *cond)
{
    double deadline = rt_clock_now() + spin_seconds;
    do {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if (holds(pool, arg))
                return;
            cpu_pause();
        }
    } while (rt_clock_now() < deadline);
    pthread_mutex_lock(&pool->mutex);
    while (!holds(pool, arg))
        pthread_cond_wait(cond, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

// Taking the mutex between the change and the signal closes the window in which
// a waiter has checked its condition but does not sleep yet.
static void wake(rt_pool *pool, pthread_cond_t *cond)
{
    pthread_mutex_lock(&pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    pthread_cond_broadcast(cond);
}

static void work_on(rt_pool *pool, int thread)
{
    size_t item;
    while ((item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed)) < pool->items)
        pool->fn(pool->ctx, item, thread);
}

// Enters the open run, if there is one; *seen gets its generation either way.
static bool join_run(rt_pool *pool, uint64_t *seen)
{
    uint64_t state = atomic_load(&pool->state);
    do {
        *seen = generation_of(state);
        if (!(state & OPEN))
            return false;
    } while (!atomic_compare_exchange_weak(&pool->state, &state, state + 1));
    return true;
}

static void leave_run(rt_pool *pool)
{
    uint64_t now = atomic_fetch_sub(&pool->state, 1) - 1;
    if (!(now & OPEN) && (now & INSIDE) == 0)
        wake(pool, &pool->idle);
}

static void *worker_main(void *arg)
{
    worker *self = arg;
    rt_pool *pool = self->pool;
    uint64_t seen = 0;
    while (true) {
        wait_until(pool, has_news, seen, &pool->work);
        if (atomic_load(&pool->stop))
            return NULL;
        if (join_run(pool, &seen)) {
            work_on(pool, self->index);
            leave_run(pool);
        }
    }
}

// Workers take no signals: those belong to the main thread.
static rt_status start_workers(rt_pool *pool)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    while (pool->started < pool->threads - 1) {
        worker *w = &pool->workers[pool->started];
        *w = (worker){.pool = pool, .index = pool->started + 1};
        error = pthread_create(&w->thread, NULL, worker_main, w);
        if (error)
            break;
        pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return RT_FAIL(RT_ERR_LIMIT, "cannot start thread %d of %d: %s", pool->started + 2,
                       pool->threads, strerror(error));
    return RT_OK;
}

rt_status rt_pool_open(int threads, rt_pool **out)
{
    RT_CHECK_ARG(threads >= 1 && threads <= MAX_THREADS);
    rt_pool *pool;
    RT_TRY(RT_ALLOC(pool, 1, "thread pool"));
    pool->threads = threads;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->idle, NULL);
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(pool->workers, (size_t)threads - 1, "thread pool"), close_pool);
    RT_TRY_GOTO(status, start_workers(pool), close_pool);
    *out = pool;
    return RT_OK;
close_pool:
    rt_pool_close(pool);
    return status;
}

void rt_pool_close(rt_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->stop, true);
    wake(pool, &pool->work);
    for (int i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->idle);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
    rt_free(pool->workers);
    rt_free(pool);
}

int rt_pool_threads(const rt_pool *pool)
{
    return pool->threads;
}

void rt_pool_run(rt_pool *pool, size_t items, rt_pool_fn *fn, void *ctx)
{
    if (pool->threads == 1 || items <= 1) {
        for (size_t i = 0; i < items; i++)
            fn(ctx, i, 0);
        return;
    }
    pool->fn = fn;
    pool->ctx = ctx;
    pool->items = items;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    uint64_t generation = generation_of(atomic_load(&pool->state)) + 1;
    atomic_store(&pool->state, generation * GENERATION | OPEN);
    wake(pool, &pool->work);
    work_on(pool, 0);
    atomic_fetch_and(&pool->state, ~OPEN);
    wait_until(pool, is_empty, 0, &pool->idle);
}

int rt_pool_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN); // more CPUs than a cpu_set_t holds
    return online > 0 ? (int)online : 1;
}
