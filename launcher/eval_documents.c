// SPDX-License-Identifier: Apache-2.0
// One line is in memory at a time; of a document stay its ids and its rule.
#include "launcher/eval_documents.h"

#include "launcher/eval_score.h"
#include "launcher/lines.h"
#include "runtime/base/hash.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES_MAX = 64 << 20, WHERE_MAX = 512, BAD_SHOWN = 10 };

// ---- lengths ---------------------------------------------------------------------

rt_status app_lengths_parse(const char *text, void *target)
{
    app_lengths *lengths = target;
    lengths->count = 0;
    for (const char *at = text;; at++) {
        char *end;
        const long bound = strtol(at, &end, 10);
        const int before = lengths->count ? lengths->bound[lengths->count - 1] : 0;
        if (end == at || (*end && *end != ',') || bound <= before || bound > INT_MAX)
            return RT_FAIL(RT_ERR_INVALID, "'%s' is not a list of ascending numbers of tokens",
                           text);
        if (lengths->count == APP_LENGTHS_MAX)
            return RT_FAIL(RT_ERR_INVALID, "'%s' has more than %d lengths", text, APP_LENGTHS_MAX);
        lengths->bound[lengths->count++] = (int)bound;
        at = end;
        if (!*at)
            return RT_OK;
    }
}

int app_lengths_class(const app_lengths *lengths, size_t tokens)
{
    for (size_t i = 0; i < lengths->count; i++)
        if (tokens <= (size_t)lengths->bound[i])
            return lengths->bound[i];
    if (lengths->count > 0)
        return 0;
    int bound = 1;
    while (bound <= INT_MAX / 2 && (size_t)bound < tokens)
        bound *= 2;
    return bound;
}

// ---- one document ------------------------------------------------------------------

typedef struct reader {
    const char *path;
    const app_encoding *encoding;
    const app_lengths *lengths;
    app_documents *out;
    int number, bad; // lines
} reader;

// The first of two keys that there is; NULL: none.
static rt_status text_of(const json_t *line, const char *key, const char *other, const char *where,
                         const char **out)
{
    *out = NULL;
    RT_TRY(rt_json_str(line, key, where, false, out));
    return *out ? RT_OK : rt_json_str(line, other, where, false, out);
}

static rt_status encode(const reader *r, const char *where, const char *text, size_t len,
                        rt_ids *out)
{
    const app_encoding *e = r->encoding;
    const rt_status status =
        e->chat ? rt_chat_encode(e->tokenizer, e->format, NULL, text, len, RT_SPECIAL_TEXT, out)
                : rt_tokenizer_encode(e->tokenizer, text, len, RT_SPECIAL_TEXT, out);
    return status == RT_OK ? RT_OK : RT_FAIL(status, "%s: %s", where, rt_last_error());
}

// LongBench: the context, an empty line, the question.
static rt_status encode_parts(const reader *r, const json_t *line, const char *where, rt_ids *out)
{
    const char *context, *input = "";
    RT_TRY(rt_json_str(line, "context", where, true, &context));
    RT_TRY(rt_json_str(line, "input", where, false, &input));
    rt_str text = {0};
    rt_status status = rt_str_printf(&text, "%s%s%s", context, *input ? "\n\n" : "", input);
    if (status == RT_OK)
        status = encode(r, where, text.data, text.len, out);
    rt_str_free(&text);
    return status;
}

static rt_status fill_prompt(const reader *r, const json_t *line, const char *where, rt_ids *out)
{
    const json_t *user = json_object_get(line, "user");
    if (user && !json_is_string(user))
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'user' is not a string", where);
    return user ? encode(r, where, json_string_value(user), json_string_length(user), out)
                : encode_parts(r, line, where, out);
}

static rt_status fill_accept(const json_t *line, const char *where, json_t **out)
{
    json_t *accept = json_object_get(line, "accept"), *answers = json_object_get(line, "answers");
    *out = accept ? json_incref(accept) : json_pack("{s:O*}", "contains", answers);
    return app_accept_check(*out, where);
}

static rt_status fill_names(const reader *r, const json_t *line, const char *where,
                            app_document *out)
{
    const char *id, *task;
    char number[32];
    RT_TRY(text_of(line, "id", "_id", where, &id));
    RT_TRY(text_of(line, "task", "dataset", where, &task));
    snprintf(number, sizeof number, "line %d", r->number);
    out->id = rt_mem_strdup(id ? id : number, "documents");
    out->task = rt_mem_strdup(task ? task : "all", "documents");
    if (!out->id || !out->task)
        return RT_ERR_NOMEM;
    for (size_t i = 0; i < r->out->count; i++)
        if (strcmp(r->out->items[i].id, out->id) == 0)
            return RT_FAIL(RT_ERR_FORMAT, "%s: the id '%s' is there already", where, out->id);
    return RT_OK;
}

static rt_status fill(const reader *r, const json_t *line, const char *where, app_document *out)
{
    if (!json_is_object(line))
        return RT_FAIL(RT_ERR_FORMAT, "%s: not an object", where);
    RT_TRY(fill_names(r, line, where, out));
    RT_TRY(fill_accept(line, where, &out->accept));
    return fill_prompt(r, line, where, &out->prompt);
}

static void free_document(app_document *d)
{
    rt_free(d->id);
    rt_free(d->task);
    rt_ids_free(&d->prompt);
    json_decref(d->accept);
}

// ---- the file ------------------------------------------------------------------------

static rt_status keep(app_documents *all, const app_document *d)
{
    if (all->count == all->cap) {
        const size_t cap = all->cap ? all->cap * 2 : 64;
        app_document *grown =
            rt_mem_grow(all->items, all->cap, cap, sizeof *all->items, "documents");
        if (!grown)
            return RT_ERR_NOMEM;
        all->items = grown;
        all->cap = cap;
    }
    all->items[all->count++] = *d;
    return RT_OK;
}

static rt_status take_line(reader *r, const app_line *in)
{
    char where[WHERE_MAX];
    app_document d = {0};
    json_t *line;
    snprintf(where, sizeof where, "%s:%d", r->path, r->number);
    if (!in->text)
        return RT_FAIL(RT_ERR_LIMIT, "%s: longer than %d bytes", where, LINE_BYTES_MAX);
    RT_TRY(rt_json_parse(in->text, in->len, where, &line));
    rt_status status = fill(r, line, where, &d);
    json_decref(line);
    if (status == RT_OK)
        d.length = app_lengths_class(r->lengths, d.prompt.len);
    if (status == RT_OK && d.length > 0)
        status = keep(r->out, &d);
    else
        r->out->left_out += status == RT_OK;
    if (status != RT_OK || d.length == 0)
        free_document(&d);
    return status;
}

static rt_status read_lines(reader *r, app_lines *lines)
{
    for (;;) {
        bool more = false;
        app_line line;
        RT_TRY(app_lines_next(lines, &line, &more));
        if (!more)
            break;
        r->number++;
        if (line.text)
            r->out->hash = rt_hash(r->out->hash, line.text, line.len);
        if (app_line_is_blank(&line))
            continue;
        const rt_status status = take_line(r, &line);
        if (status == RT_ERR_NOMEM)
            return status;
        if (status != RT_OK && r->bad++ < BAD_SHOWN)
            rt_log(RT_LOG_ERROR, "%s", rt_last_error());
    }
    if (r->bad)
        return RT_FAIL(RT_ERR_FORMAT, "%s: %d bad lines of %d", r->path, r->bad, r->number);
    if (r->out->count == 0)
        return RT_FAIL(RT_ERR_FORMAT, "%s: no document%s", r->path,
                       r->out->left_out ? " of these lengths" : "");
    return RT_OK;
}

rt_status app_documents_read(const char *path, const app_encoding *encoding,
                             const app_lengths *lengths, app_documents *out)
{
    *out = (app_documents){.hash = RT_HASH_START};
    reader r = {.path = path, .encoding = encoding, .lengths = lengths, .out = out};
    app_lines *lines;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return RT_FAIL(RT_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    rt_status status = app_lines_open(fd, path, LINE_BYTES_MAX, &lines);
    if (status == RT_OK) {
        status = read_lines(&r, lines);
        app_lines_close(lines);
    }
    close(fd);
    return status;
}

void app_documents_free(app_documents *documents)
{
    for (size_t i = 0; i < documents->count; i++)
        free_document(&documents->items[i]);
    rt_free(documents->items);
    *documents = (app_documents){0};
}
