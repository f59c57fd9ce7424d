// SPDX-License-Identifier: Apache-2.0
// The readers of checkpoints take paths. A target writes its input to files of a
// folder of its own in memory, which goes when the process ends.
#ifndef TESTS_FUZZ_SCRATCH_H
#define TESTS_FUZZ_SCRATCH_H

#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SCRATCH_FILES = 8 };

static char scratch_folder[PATH_MAX / 2];
static const char *scratch_names[SCRATCH_FILES]; // literals of the target

static inline void must(int holds)
{
    if (!holds)
        abort();
}

static inline void scratch_remove(void)
{
    char path[PATH_MAX];
    for (int i = 0; i < SCRATCH_FILES && scratch_names[i]; i++) {
        snprintf(path, sizeof path, "%s/%s", scratch_folder, scratch_names[i]);
        unlink(path);
    }
    rmdir(scratch_folder);
}

static inline void scratch_open(void)
{
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(scratch_folder, sizeof scratch_folder, "%s/losa-fuzz-XXXXXX", base);
    must(mkdtemp(scratch_folder) != NULL);
    atexit(scratch_remove);
}

// "folder/name", in one of a few rotating buffers.
static inline const char *scratch_path(const char *name)
{
    static char paths[4][PATH_MAX];
    static unsigned next;
    if (!scratch_folder[0])
        scratch_open();
    char *path = paths[next++ % 4];
    snprintf(path, PATH_MAX, "%s/%s", scratch_folder, name);
    return path;
}

static inline void scratch_note(const char *name)
{
    int i = 0;
    while (i < SCRATCH_FILES && scratch_names[i] && strcmp(scratch_names[i], name) != 0)
        i++;
    must(i < SCRATCH_FILES);
    scratch_names[i] = name;
}

// Writes a whole file; `name` is a literal. Returns its path (see scratch_path).
static inline const char *scratch_write(const char *name, const void *bytes, size_t size)
{
    scratch_note(name);
    const char *path = scratch_path(name);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0);
    must(write(fd, bytes, size) == (ssize_t)size);
    close(fd);
    return path;
}

static inline void scratch_delete(const char *name)
{
    unlink(scratch_path(name));
}

#endif
