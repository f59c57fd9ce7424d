// SPDX-License-Identifier: Apache-2.0
#include "launcher/progress.h"

#include "runtime/base/clock.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BAR_WIDTH = 30 };
#define REDRAW_SECONDS 0.1

// Under mpirun standard error is a pipe to it: what counts is where its own goes.
static bool launcher_has_terminal(void)
{
    char path[64];
    if (!getenv("OMPI_COMM_WORLD_RANK"))
        return false;
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)getppid(), STDERR_FILENO);
    const int fd = open(path, O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return false;
    const bool terminal = isatty(fd);
    close(fd);
    return terminal;
}

app_progress app_progress_begin(bool wanted)
{
    return (app_progress){
        .shown = wanted && (isatty(STDERR_FILENO) || launcher_has_terminal()),
        .start = rt_clock_now(),
    };
}

static void draw(const char *what, const char *unit, int done, int total, double elapsed)
{
    char bar[BAR_WIDTH + 1];
    const int full = (int)((double)done / total * BAR_WIDTH);
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)full);
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r\033[K%s [%s] %d/%d %s", what, bar, done, total, unit);
    if (elapsed > 0 && done > 0) {
        const double speed = done / elapsed;
        fprintf(stderr, ", %.0f %s/s, %.0f s left", speed, unit, (total - done) / speed);
    }
    fflush(stderr);
}

void app_progress_update(app_progress *p, const char *what, const char *unit, int done, int total)
{
    if (!p->shown || total <= 0 || done < 0 || done > total)
        return;
    const double now = rt_clock_now();
    if (p->drawn && done < total && now - p->last_draw < REDRAW_SECONDS)
        return;
    draw(what, unit, done, total, now - p->start);
    p->drawn = true;
    p->last_draw = now;
}

void app_progress_show(app_progress *p, const char *line)
{
    if (!p->shown)
        return;
    fprintf(stderr, "\r\033[K%s", line);
    fflush(stderr);
    p->drawn = true;
}

void app_progress_end(app_progress *p)
{
    if (!p->drawn)
        return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    p->drawn = false;
}
