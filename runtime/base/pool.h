// SPDX-License-Identifier: Apache-2.0
// A fixed pool of threads for data-parallel loops (pthread; not OpenMP, whose
// runtime ThreadSanitizer cannot see into).
#ifndef RT_BASE_POOL_H
#define RT_BASE_POOL_H

#include "runtime/base/status.h"

#include <stddef.h>

typedef struct rt_pool rt_pool;

// `threads` >= 1 counts the calling thread, so 1 starts no thread.
rt_status rt_pool_open(int threads, rt_pool **out);
void rt_pool_close(rt_pool *pool);
int rt_pool_threads(const rt_pool *pool);

// Calls fn(ctx, item, thread) for every item in [0, items); items are handed out
// dynamically, `thread` is in [0, threads). Returns when all are done. Which
// thread runs an item must not change its result. One run at a time per pool.
typedef void rt_pool_fn(void *ctx, size_t item, int thread);
void rt_pool_run(rt_pool *pool, size_t items, rt_pool_fn *fn, void *ctx);

// Number of cores this process may run on (affinity mask), at least 1.
int rt_pool_cores(void);

#endif
