// SPDX-License-Identifier: Apache-2.0
// What the threads of comm share: conditions on the monotonic clock, and threads that
// leave the signals to the main thread.
#ifndef COMM_WAIT_H
#define COMM_WAIT_H

#include <pthread.h>
#include <time.h>

// The moment `seconds` from now, on CLOCK_MONOTONIC.
struct timespec comm_moment(double seconds);
void comm_cond_init(pthread_cond_t *cond);                                 // on CLOCK_MONOTONIC
int comm_thread_start(pthread_t *thread, void *(*run)(void *), void *arg); // errno value

#endif
