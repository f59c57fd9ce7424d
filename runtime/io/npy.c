// SPDX-License-Identifier: Apache-2.0
// .npy: magic, version, 2 bytes of header length, a Python dictionary, the data.
// The format is documented in numpy.lib.format.
#include "runtime/io/npy.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PREFIX = 10, WRITTEN_HEADER = 128 }; // the data starts at a multiple of 64

static const char magic[8] = "\x93NUMPY\x01"; // and the minor version 0

struct rt_npy_writer {
    FILE *file;
    char *path;
    char *part; // where it is written, and renamed to `path` from; NULL: in its place
    size_t rows, cols;
};

// ---- writing ---------------------------------------------------------------

static rt_status write_failed(const rt_npy_writer *w)
{
    return RT_FAIL(RT_ERR_IO, "%s: cannot write: %s", w->path, strerror(errno));
}

static rt_status write_header(rt_npy_writer *w)
{
    char header[WRITTEN_HEADER];
    const size_t dict = WRITTEN_HEADER - PREFIX;
    memset(header, ' ', sizeof header);
    memcpy(header, magic, sizeof magic);
    header[8] = (char)dict;
    header[9] = 0;
    int n = snprintf(header + PREFIX, dict,
                     "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", w->rows,
                     w->cols);
    header[PREFIX + n] = ' '; // the NUL of snprintf
    header[WRITTEN_HEADER - 1] = '\n';
    if (fseek(w->file, 0, SEEK_SET) != 0 || fwrite(header, sizeof header, 1, w->file) != 1)
        return write_failed(w);
    return RT_OK;
}

// A device or a link is written where it is.
static bool can_replace(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0 ? S_ISREG(info.st_mode) : errno == ENOENT;
}

static rt_status name_part(rt_npy_writer *w)
{
    rt_str name = {0};
    RT_TRY(rt_str_printf(&name, "%s.tmp", w->path));
    w->part = rt_mem_strdup(name.data, "npy path");
    rt_str_free(&name);
    return w->part ? RT_OK : RT_ERR_NOMEM;
}

rt_status rt_npy_create(const char *path, size_t cols, rt_npy_writer **out)
{
    rt_status status;
    rt_npy_writer *w;
    RT_TRY(RT_ALLOC(w, 1, "npy writer"));
    w->cols = cols;
    w->path = rt_mem_strdup(path, "npy path");
    if (!w->path) {
        status = RT_ERR_NOMEM;
        goto free_writer;
    }
    if (can_replace(path))
        RT_TRY_GOTO(status, name_part(w), free_writer);
    w->file = fopen(w->part ? w->part : path, "wbe");
    if (!w->file) {
        status = RT_FAIL(RT_ERR_IO, "%s: cannot create: %s", path, strerror(errno));
        goto free_writer;
    }
    RT_TRY_GOTO(status, write_header(w), free_writer);
    *out = w;
    return RT_OK;
free_writer:
    rt_npy_abandon(w);
    return status;
}

rt_status rt_npy_append(rt_npy_writer *writer, const float *rows, size_t count)
{
    size_t n = count * writer->cols;
    if (fwrite(rows, sizeof *rows, n, writer->file) != n)
        return write_failed(writer);
    writer->rows += count;
    return RT_OK;
}

rt_status rt_npy_finish(rt_npy_writer *writer)
{
    // The data must be on the file before a header promises it.
    rt_status status = fflush(writer->file) == 0 ? RT_OK : write_failed(writer);
    if (status == RT_OK)
        status = write_header(writer);
    if (fclose(writer->file) != 0 && status == RT_OK)
        status = write_failed(writer);
    writer->file = NULL;
    if (status == RT_OK && writer->part && rename(writer->part, writer->path) != 0)
        status = write_failed(writer);
    rt_npy_abandon(writer);
    return status;
}

void rt_npy_abandon(rt_npy_writer *writer)
{
    if (!writer)
        return;
    if (writer->file)
        fclose(writer->file);
    if (writer->part)
        unlink(writer->part); // nothing there once it was renamed
    rt_free(writer->part);
    rt_free(writer->path);
    rt_free(writer);
}

// ---- reading ---------------------------------------------------------------

// A cursor over the dictionary; `end` is the end of the header.
typedef struct scanner {
    const char *at, *end;
} scanner;

static bool take(scanner *s, const char *text)
{
    size_t n = strlen(text);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, text, n) != 0)
        return false;
    s->at += n;
    return true;
}

static bool take_number(scanner *s, size_t *out)
{
    const char *first = s->at;
    size_t value = 0;
    for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++) {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (size_t)(*s->at - '0'), &value))
            return false;
    }
    *out = value;
    return s->at > first;
}

// "(2, 3)", "(5,)" or "()".
static bool take_shape(scanner *s, rt_npy *out)
{
    out->count = 1;
    if (!take(s, "("))
        return false;
    while (!take(s, ")")) {
        if (out->dims == RT_NPY_MAX_DIMS || !take_number(s, &out->shape[out->dims]))
            return false;
        if (__builtin_mul_overflow(out->count, out->shape[out->dims], &out->count))
            return false;
        out->dims++;
        bool comma = take(s, ",");
        take(s, " ");
        if (!comma && (s->at == s->end || *s->at != ')'))
            return false;
    }
    return true;
}

// The keys in the order in which numpy writes them.
static bool take_header(scanner *s, rt_npy *out)
{
    if (!take(s, "{'descr': '"))
        return false;
    if (take(s, "<f4"))
        out->type = RT_NPY_F32;
    else if (take(s, "<i4"))
        out->type = RT_NPY_I32;
    else
        return false;
    if (!take(s, "', 'fortran_order': False, 'shape': ") || !take_shape(s, out))
        return false;
    take(s, ",");
    take(s, " ");
    if (!take(s, "}"))
        return false;
    while (take(s, " "))
        ;
    return take(s, "\n") && s->at == s->end;
}

static rt_status parse(const rt_map *map, const char *path, rt_npy *out)
{
    rt_npy array = {0};
    size_t bytes;
    if (map->len < PREFIX || memcmp(map->data, magic, sizeof magic) != 0)
        return RT_FAIL(RT_ERR_FORMAT, "%s: not an .npy file of version 1.0", path);
    size_t header = (size_t)map->data[8] | (size_t)map->data[9] << 8;
    if (header > map->len - PREFIX)
        return RT_FAIL(RT_ERR_FORMAT, "%s: the header is cut off", path);
    const char *dict = (const char *)map->data + PREFIX;
    scanner s = {dict, dict + header};
    if (!take_header(&s, &array))
        return RT_FAIL(RT_ERR_FORMAT,
                       "%s: the header is not that of a '<f4' or '<i4' array in C order", path);
    if (__builtin_mul_overflow(array.count, sizeof(float), &bytes) ||
        bytes != map->len - PREFIX - header)
        return RT_FAIL(RT_ERR_FORMAT, "%s: %zu bytes of data, but a shape of %zu elements", path,
                       map->len - PREFIX - header, array.count);
    RT_TRY(RT_ALLOC(array.f32, array.count, path));
    if (bytes > 0)
        memcpy(array.f32, dict + header, bytes);
    *out = array;
    return RT_OK;
}

rt_status rt_npy_read(const char *path, rt_npy *out)
{
    rt_map map;
    RT_TRY(rt_map_open(path, &map));
    rt_status status = parse(&map, path, out);
    rt_map_close(&map);
    return status;
}

void rt_npy_free(rt_npy *array)
{
    rt_free(array->f32);
    *array = (rt_npy){0};
}
