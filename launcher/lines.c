// SPDX-License-Identifier: Apache-2.0
#include "launcher/lines.h"

#include "runtime/base/mem.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 256 << 10 };

// The buffer holds [start, end) of what was read and not given out; of it, `seen` bytes
// have no line end.
struct app_lines {
    int fd;
    const char *name;
    size_t max;
    char *buf;
    size_t cap, start, end, seen;
    uint64_t number, offset; // of the next line
    uint64_t read_to;        // offset of the next byte to read
    bool at_end;
};

rt_status app_lines_open(int fd, const char *name, size_t max, app_lines **out)
{
    app_lines *l;
    RT_TRY(RT_ALLOC(l, 1, "lines"));
    l->fd = fd;
    l->name = name;
    l->max = max;
    l->cap = 2 * CHUNK;
    const rt_status status = RT_ALLOC(l->buf, l->cap, "lines");
    if (status != RT_OK) {
        rt_free(l);
        return status;
    }
    *out = l;
    return RT_OK;
}

void app_lines_close(app_lines *l)
{
    if (!l)
        return;
    rt_free(l->buf);
    rt_free(l);
}

static rt_status read_some(int fd, const char *name, uint64_t offset, char *to, size_t most,
                           size_t *out)
{
    ssize_t n;
    do
        n = pread(fd, to, most, (off_t)offset);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot read: %s", name, strerror(errno));
    *out = (size_t)n;
    return RT_OK;
}

// Makes room for a chunk behind what is held.
static rt_status make_room(app_lines *l)
{
    memmove(l->buf, l->buf + l->start, l->end - l->start);
    l->end -= l->start;
    l->start = 0;
    if (l->cap - l->end >= CHUNK)
        return RT_OK;
    char *grown = rt_mem_grow(l->buf, l->cap, 2 * l->cap, 1, "lines");
    if (!grown)
        return RT_ERR_NOMEM;
    l->buf = grown;
    l->cap *= 2;
    return RT_OK;
}

static rt_status fill(app_lines *l)
{
    size_t n = 0;
    RT_TRY(make_room(l));
    RT_TRY(read_some(l->fd, l->name, l->read_to, l->buf + l->end, CHUNK, &n));
    l->end += n;
    l->read_to += n;
    l->at_end = n == 0;
    return RT_OK;
}

// Finds the end of the next line: *len bytes from `start`, of which the last `l->max + 1`
// at most are held. *dropped: bytes of it that are not held any more.
static rt_status find_end(app_lines *l, size_t *len, size_t *dropped, bool *ended)
{
    *dropped = 0;
    for (;;) {
        const char *from = l->buf + l->start + l->seen;
        const char *hit = memchr(from, '\n', l->end - l->start - l->seen);
        *ended = hit != NULL;
        *len = hit ? (size_t)(hit - (l->buf + l->start)) : l->end - l->start;
        if (hit || l->at_end)
            return RT_OK;
        l->seen = *len;
        if (*dropped + l->seen > l->max) {
            *dropped += l->seen;
            l->start = l->end = l->seen = 0;
        }
        RT_TRY(fill(l));
    }
}

rt_status app_lines_next(app_lines *l, app_line *out, bool *more)
{
    size_t len, dropped;
    bool ended;
    l->seen = 0;
    RT_TRY(find_end(l, &len, &dropped, &ended));
    *more = ended || dropped + len > 0;
    if (!*more)
        return RT_OK;
    const size_t whole = dropped + len;
    *out = (app_line){
        .number = l->number++,
        .offset = l->offset,
        .len = whole,
        .text = whole > l->max ? NULL : l->buf + l->start,
        .ended = ended,
    };
    l->start += len + ended;
    l->offset += whole + ended;
    return RT_OK;
}

bool app_line_is_blank(const app_line *line)
{
    for (size_t i = 0; line->text && i < line->len; i++)
        if (!strchr(" \t\r", line->text[i]) || !line->text[i])
            return false;
    return line->text != NULL;
}

rt_status app_read_at(int fd, const char *name, uint64_t offset, size_t len, rt_str *out)
{
    char *bytes;
    rt_status status;
    RT_TRY(RT_ALLOC(bytes, len, "line"));
    for (size_t at = 0, n = 0; at < len; at += n) {
        RT_TRY_GOTO(status, read_some(fd, name, offset + at, bytes + at, len - at, &n), free_bytes);
        if (n == 0) {
            status = RT_FAIL(RT_ERR_IO, "%s: became shorter while it was read", name);
            goto free_bytes;
        }
    }
    out->len = 0;
    status = rt_str_append(out, bytes, len);
free_bytes:
    rt_free(bytes);
    return status;
}
