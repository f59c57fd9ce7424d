// SPDX-License-Identifier: Apache-2.0
#include "launcher/result_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

rt_status app_result_file_open(const char *path, int *fd)
{
    const int opened = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (opened < 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    if (flock(opened, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        close(opened);
        return RT_FAIL(RT_ERR_INVALID, "%s: another losa writes to it", path);
    }
    *fd = opened;
    return RT_OK;
}

rt_status app_result_file_add(int fd, const char *path, const char *bytes, size_t len)
{
    while (len > 0) {
        const ssize_t n = write(fd, bytes, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
        bytes += n;
        len -= (size_t)n;
    }
    return RT_OK;
}
