// SPDX-License-Identifier: Apache-2.0
#include "launcher/batch_input.h"

#include "runtime/base/hash.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct app_input {
    char *path;
    int fd;
    app_lines *reader;
    uint64_t hash, lines, requests;
};

static rt_status open_file(app_input *in)
{
    struct stat info;
    in->fd = open(in->path, O_RDONLY | O_CLOEXEC);
    if (in->fd < 0 || fstat(in->fd, &info) != 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot open: %s", in->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return RT_FAIL(RT_ERR_INVALID, "%s: not a regular file", in->path);
    return RT_OK;
}

// The lines say where each begins and how long it is: with their texts that is all bytes.
static rt_status read_through(app_input *in)
{
    app_line line;
    bool more;
    in->hash = RT_HASH_START;
    for (;;) {
        RT_TRY(app_lines_next(in->reader, &line, &more));
        if (!more)
            return RT_OK;
        in->lines++;
        in->requests += !app_line_is_blank(&line);
        in->hash = rt_hash(in->hash, &line.len, sizeof line.len);
        if (line.text)
            in->hash = rt_hash(in->hash, line.text, line.len);
    }
}

static rt_status open_all(app_input *in, size_t max)
{
    RT_TRY(open_file(in));
    RT_TRY(app_lines_open(in->fd, in->path, max, &in->reader));
    RT_TRY(read_through(in));
    app_lines_close(in->reader);
    in->reader = NULL;
    return app_lines_open(in->fd, in->path, max, &in->reader);
}

rt_status app_input_open(const char *path, size_t max, app_input **out)
{
    app_input *in;
    RT_TRY(RT_ALLOC(in, 1, "input"));
    in->fd = -1;
    in->path = rt_mem_strdup(path, "input");
    const rt_status status = in->path ? open_all(in, max) : RT_ERR_NOMEM;
    if (status != RT_OK) {
        app_input_close(in);
        return status;
    }
    *out = in;
    return RT_OK;
}

void app_input_close(app_input *in)
{
    if (!in)
        return;
    app_lines_close(in->reader);
    if (in->fd >= 0)
        close(in->fd);
    rt_free(in->path);
    rt_free(in);
}

uint64_t app_input_hash(const app_input *in)
{
    return in->hash;
}

uint64_t app_input_lines(const app_input *in)
{
    return in->lines;
}

uint64_t app_input_requests(const app_input *in)
{
    return in->requests;
}

rt_status app_input_next(app_input *in, app_line *out, bool *more)
{
    do
        RT_TRY(app_lines_next(in->reader, out, more));
    while (*more && app_line_is_blank(out));
    if (*more && out->number >= in->lines)
        return RT_FAIL(RT_ERR_IO, "%s: grew while it was read", in->path);
    return RT_OK;
}

rt_status app_input_read(const app_input *in, uint64_t offset, size_t len, rt_str *out)
{
    return app_read_at(in->fd, in->path, offset, len, out);
}
