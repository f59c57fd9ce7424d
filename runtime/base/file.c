// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/file.h"

#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 1 << 16 };

static rt_status open_read(const char *path, int *fd, struct stat *info)
{
    do
        *fd = open(path, O_RDONLY | O_CLOEXEC);
    while (*fd < 0 && errno == EINTR);
    if (*fd < 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(*fd, info) == 0 && !S_ISDIR(info->st_mode))
        return RT_OK;
    rt_status status = S_ISDIR(info->st_mode)
                           ? RT_FAIL(RT_ERR_IO, "%s: is a folder, not a file", path)
                           : RT_FAIL(RT_ERR_IO, "%s: cannot stat: %s", path, strerror(errno));
    close(*fd);
    return status;
}

static rt_status map_file(int fd, const char *path, const struct stat *info, rt_map *out)
{
    if (!S_ISREG(info->st_mode))
        return RT_FAIL(RT_ERR_IO, "%s: not a regular file", path);
    rt_map map = {.len = (size_t)info->st_size};
    if (map.len > 0) {
        void *data = mmap(NULL, map.len, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            return RT_FAIL(RT_ERR_IO, "%s: cannot map %zu bytes: %s", path, map.len,
                           strerror(errno));
        map.data = data;
    }
    *out = map;
    return RT_OK;
}

// Doubles the buffer up to one byte over the limit (the byte that proves it).
static rt_status grow(char **buf, size_t used, size_t *cap, size_t max_bytes, const char *name)
{
    size_t most = max_bytes + 1;
    size_t wanted = *cap == 0 ? CHUNK : *cap > most / 2 ? most : *cap * 2;
    if (wanted > most)
        wanted = most;
    char *grown = rt_mem_grow(*buf, used, wanted + 1, 1, name);
    if (!grown)
        return RT_ERR_NOMEM;
    *buf = grown;
    *cap = wanted;
    return RT_OK;
}

static rt_status read_all(int fd, const char *name, size_t hint, size_t max_bytes, char **out,
                          size_t *len)
{
    rt_status status;
    size_t used = 0, cap = hint < max_bytes ? hint + 1 : max_bytes + 1;
    char *buf = rt_mem_alloc(cap + 1, 1, name);
    if (!buf)
        return RT_ERR_NOMEM;
    while (true) {
        if (used == cap)
            RT_TRY_GOTO(status, grow(&buf, used, &cap, max_bytes, name), free_buf);
        ssize_t got = read(fd, buf + used, cap - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            status = RT_FAIL(RT_ERR_IO, "%s: cannot read: %s", name, strerror(errno));
            goto free_buf;
        }
        if (got == 0)
            break;
        used += (size_t)got;
        if (used > max_bytes) {
            status = RT_FAIL(RT_ERR_LIMIT, "%s: larger than %zu bytes", name, max_bytes);
            goto free_buf;
        }
    }
    buf[used] = '\0';
    *out = buf;
    *len = used;
    return RT_OK;
free_buf:
    rt_free(buf);
    return status;
}

rt_status rt_map_open(const char *path, rt_map *out)
{
    int fd;
    struct stat info = {0};
    RT_TRY(open_read(path, &fd, &info));
    rt_status status = map_file(fd, path, &info, out);
    close(fd); // a mapping outlives its descriptor
    return status;
}

void rt_map_close(rt_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->len);
    *map = (rt_map){0};
}

void rt_map_want(const void *first, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = (uintptr_t)first / page * page;
    if (bytes > 0)
        (void)madvise((void *)begin, (uintptr_t)first + bytes - begin, MADV_WILLNEED);
}

// Only whole pages: the others are shared with neighbours.
void rt_map_drop(const void *first, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)first + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)first + bytes) / page * page;
    if (end > begin)
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
}

rt_status rt_file_read(const char *path, size_t max_bytes, char **out, size_t *len)
{
    RT_CHECK_ARG(max_bytes <= PTRDIFF_MAX / 2);
    if (strcmp(path, "-") == 0)
        return read_all(STDIN_FILENO, "standard input", CHUNK, max_bytes, out, len);
    int fd;
    struct stat info = {0};
    RT_TRY(open_read(path, &fd, &info));
    size_t hint = S_ISREG(info.st_mode) ? (size_t)info.st_size : CHUNK;
    rt_status status = read_all(fd, path, hint, max_bytes, out, len);
    close(fd);
    return status;
}

bool rt_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

rt_status rt_path_join(const char *dir, const char *name, char *out, size_t size)
{
    size_t n = strlen(dir);
    const char *slash = n > 0 && dir[n - 1] != '/' ? "/" : "";
    int len = snprintf(out, size, "%s%s%s", dir, slash, name);
    if (len < 0 || (size_t)len >= size)
        return RT_FAIL(RT_ERR_LIMIT, "path too long: %s/%s", dir, name);
    return RT_OK;
}
