// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/clock.h"

#include <time.h>

double rt_clock_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void rt_clock_sleep(double seconds)
{
    const double longest = 1e9;
    if (!(seconds > 0))
        return;
    if (seconds > longest)
        seconds = longest;
    struct timespec span = {.tv_sec = (time_t)seconds};
    span.tv_nsec = (long)((seconds - (double)span.tv_sec) * 1e9);
    nanosleep(&span, NULL);
}
