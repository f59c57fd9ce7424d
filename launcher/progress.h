// SPDX-License-Identifier: Apache-2.0
// A progress bar of one line on standard error. Silent unless that is a terminal.
#ifndef LAUNCHER_PROGRESS_H
#define LAUNCHER_PROGRESS_H

#include <stdbool.h>

typedef struct app_progress {
    bool shown;       // on a terminal, and wanted
    bool drawn;       // there is a line to clear
    double start;     // seconds, of app_progress_begin
    double last_draw; // seconds
} app_progress;

// Starts the clock. `wanted` false: every other call does nothing.
app_progress app_progress_begin(bool wanted);
// `unit` is plural: "tokens". Redraws at most ten times a second, and at the end.
void app_progress_update(app_progress *p, const char *what, const char *unit, int done, int total);
// Any text of one line instead.
void app_progress_show(app_progress *p, const char *line);
// Clears the line, so that other output can follow.
void app_progress_end(app_progress *p);

#endif
