// SPDX-License-Identifier: Apache-2.0
// Monotonic time and deadlines. All times are seconds in double.
#ifndef RT_BASE_CLOCK_H
#define RT_BASE_CLOCK_H

#include <stdbool.h>

// Monotonic seconds from an arbitrary start.
double rt_clock_now(void);

// Sleeps for about `seconds`; returns early on a signal.
void rt_clock_sleep(double seconds);

#endif
