// SPDX-License-Identifier: Apache-2.0
#include "launcher/lines.h"

#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

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
    (void)lseek(fd, 0, SEEK_SET); // a pipe is at its start anyhow
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
    ssize_t n;
    RT_TRY(make_room(l));
    do
        n = read(l->fd, l->buf + l->end, CHUNK);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot read: %s", l->name, strerror(errno));
    l->end += (size_t)n;
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

static void skip_mark(app_line *first)
{
    const size_t n = first->text ? rt_utf8_mark(first->text, first->len) : 0;
    if (n == 0)
        return;
    first->offset += n;
    first->text += n;
    first->len -= n;
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
    if (out->number == 0)
        skip_mark(out);
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
    for (size_t at = 0; at < len;) {
        const ssize_t n = pread(fd, bytes + at, len - at, (off_t)(offset + at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            status = RT_FAIL(RT_ERR_IO, "%s: cannot read: %s", name,
                             n < 0 ? strerror(errno) : "it became shorter");
            goto free_bytes;
        }
        at += (size_t)n;
    }
    out->len = 0;
    status = rt_str_append(out, bytes, len);
free_bytes:
    rt_free(bytes);
    return status;
}
