// SPDX-License-Identifier: Apache-2.0
// A file of results, which one process at a time adds to at its end.
#ifndef LAUNCHER_RESULT_FILE_H
#define LAUNCHER_RESULT_FILE_H

#include "runtime/base/status.h"

#include <stddef.h>

// Opens or makes it, to read and add. Where the file system has no locks, nothing keeps two
// processes apart.
rt_status app_result_file_open(const char *path, int *fd);
rt_status app_result_file_add(int fd, const char *path, const char *bytes, size_t len);

#endif
