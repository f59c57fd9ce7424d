// SPDX-License-Identifier: Apache-2.0
// Log lines on standard error: time, level, rank, text. Lower case, exact cause.
#ifndef RT_BASE_LOG_H
#define RT_BASE_LOG_H

typedef enum rt_log_level { RT_LOG_ERROR, RT_LOG_WARN, RT_LOG_INFO, RT_LOG_DEBUG } rt_log_level;

// The log sink is the one piece of global state in the program. Default: WARN,
// rank 0 of 1. The rank is printed only when there is more than one.
void rt_log_setup(rt_log_level level, int rank, int ranks);
rt_log_level rt_log_current_level(void);

void rt_log(rt_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
