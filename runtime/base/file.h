// SPDX-License-Identifier: Apache-2.0
// Whole files: mapped read-only, read into memory, written with every error seen.
#ifndef RT_BASE_FILE_H
#define RT_BASE_FILE_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct rt_map {
    const unsigned char *data; // NULL for an empty file
    size_t len;
} rt_map;

// Maps a regular file read-only. Unmap with rt_map_close (safe on a zero struct).
rt_status rt_map_open(const char *path, rt_map *out);
void rt_map_close(rt_map *map);

// A part of a mapped file that will be read soon; one that was read for the last time. Both are
// hints: what is dropped comes back from the file when it is touched again.
void rt_map_want(const void *first, size_t bytes);
void rt_map_drop(const void *first, size_t bytes);

// Reads a file, or standard input for "-", into a NUL-terminated buffer (the NUL
// is not counted). More than `max_bytes` is RT_ERR_LIMIT. Free with rt_free.
rt_status rt_file_read(const char *path, size_t max_bytes, char **out, size_t *len);

bool rt_file_exists(const char *path);

// "dir/name" into `out`; RT_ERR_LIMIT when it does not fit.
rt_status rt_path_join(const char *dir, const char *name, char *out, size_t size);

#endif
