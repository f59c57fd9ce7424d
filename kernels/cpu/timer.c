// SPDX-License-Identifier: Apache-2.0
// Marks of time on the CPU, where calls are done when they return.
#include "kernels/kern_int.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

rt_status kern_cpu_timer_open(kern_dev *dev, int marks, void **state)
{
    (void)dev;
    double *seconds;
    RT_TRY(RT_ALLOC(seconds, (size_t)marks, "timer"));
    *state = seconds;
    return RT_OK;
}

void kern_cpu_timer_close(void *state, int marks)
{
    (void)marks;
    rt_free(state);
}

rt_status kern_cpu_timer_mark(kern_dev *dev, void *state, int mark)
{
    (void)dev;
    ((double *)state)[mark] = rt_clock_now();
    return RT_OK;
}

rt_status kern_cpu_timer_read(kern_dev *dev, void *state, int from, int to, double *ms)
{
    (void)dev;
    const double *seconds = state;
    *ms = 1e3 * (seconds[to] - seconds[from]);
    return RT_OK;
}
