// SPDX-License-Identifier: Apache-2.0
// The input of a batch: read once through at the start, then line by line as the window has
// room, then again when a line is handed out. Lines are never held.
#ifndef LAUNCHER_BATCH_INPUT_H
#define LAUNCHER_BATCH_INPUT_H

#include "launcher/lines.h"

typedef struct app_input app_input;

// A regular file. Lines beyond `max` bytes are passed over (app_line.text NULL).
rt_status app_input_open(const char *path, size_t max, app_input **out);
void app_input_close(app_input *input);

uint64_t app_input_hash(const app_input *input);     // of all bytes
uint64_t app_input_lines(const app_input *input);    // all of them
uint64_t app_input_requests(const app_input *input); // lines that are not blank

// The next line that is not blank.
rt_status app_input_next(app_input *input, app_line *out, bool *more);
// A line again.
rt_status app_input_read(const app_input *input, uint64_t offset, size_t len, rt_str *out);

#endif
