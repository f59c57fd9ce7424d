// SPDX-License-Identifier: Apache-2.0
// The log sink. A line is built whole and written at once, so that lines of
// threads and ranks that share a terminal do not mix.
#include "runtime/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 2048 };

static atomic_int sink_level = RT_LOG_WARN;
static atomic_int sink_rank = 0;
static atomic_int sink_ranks = 1;

static const char *level_name(rt_log_level level)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    return names[level];
}

// "12:34:56.789 warning [rank 3] " into `line`; its length.
static size_t put_prefix(char *line, size_t size, rt_log_level level)
{
    struct timespec now;
    struct tm local;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &local);
    int n = snprintf(line, size, "%02d:%02d:%02d.%03d %s ", local.tm_hour, local.tm_min,
                     local.tm_sec, (int)(now.tv_nsec / 1000000), level_name(level));
    if (atomic_load(&sink_ranks) > 1)
        n += snprintf(line + n, size - (size_t)n, "[rank %d] ", atomic_load(&sink_rank));
    return (size_t)n;
}

static void write_all(const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t put = write(STDERR_FILENO, bytes, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return; // nowhere left to report it
        bytes += put;
        n -= (size_t)put;
    }
}

void rt_log_setup(rt_log_level level, int rank, int ranks)
{
    atomic_store(&sink_level, (int)level);
    atomic_store(&sink_rank, rank);
    atomic_store(&sink_ranks, ranks);
}

rt_log_level rt_log_current_level(void)
{
    return (rt_log_level)atomic_load(&sink_level);
}

void rt_log(rt_log_level level, const char *fmt, ...)
{
    if (level > rt_log_current_level())
        return;
    int saved = errno;
    char line[LINE_MAX_BYTES];
    size_t used = put_prefix(line, sizeof line, level);
    va_list args;
    va_start(args, fmt);
    vsnprintf(line + used, sizeof line - used - 1, fmt, args);
    va_end(args);
    used += strlen(line + used);
    line[used++] = '\n';
    write_all(line, used);
    errno = saved;
}
