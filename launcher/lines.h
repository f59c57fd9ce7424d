// SPDX-License-Identifier: Apache-2.0
// A file line by line, never held whole. A line longer than the limit is passed over
// without being held either.
#ifndef LAUNCHER_LINES_H
#define LAUNCHER_LINES_H

#include "runtime/base/status.h"
#include "runtime/base/str.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct app_line {
    uint64_t number;  // from 0
    uint64_t offset;  // of its first byte in the file
    size_t len;       // without the line's end ("\n"), which the last line may lack
    const char *text; // NULL: longer than the limit. Valid until the next call; not NUL-terminated
    bool ended;       // with a "\n"
} app_line;

typedef struct app_lines app_lines;

// From the start of the file; `fd` and `name`, for messages, are borrowed. `max`: bytes.
rt_status app_lines_open(int fd, const char *name, size_t max, app_lines **out);
void app_lines_close(app_lines *lines);
// Before the first line a mark of the byte order is passed over.
// *more false: the file is at its end, and *out is not set.
rt_status app_lines_next(app_lines *lines, app_line *out, bool *more);

// Whether nothing but blanks is in it. A line beyond the limit is not blank.
bool app_line_is_blank(const app_line *line);

// `len` bytes at an offset replace `out`.
rt_status app_read_at(int fd, const char *name, uint64_t offset, size_t len, rt_str *out);

#endif
