// SPDX-License-Identifier: Apache-2.0
#include "launcher/eval_store.h"

#include "launcher/options.h"
#include "launcher/result_file.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 30, WHERE_MAX = 512, HASH_TEXT = 17, DIGITS = 9 };

struct app_store {
    const char *path;  // borrowed
    int fd;            // -1: in memory only
    json_t *by_policy; // object of objects: policy -> document -> result
};

static rt_status no_memory(void)
{
    return RT_FAIL(RT_ERR_NOMEM, "results: no memory, or text that is not UTF-8");
}

static rt_status io_failed(const app_store *s, const char *what)
{
    return RT_FAIL(RT_ERR_IO, "%s: cannot %s: %s", s->path, what, strerror(errno));
}

// ---- in memory ---------------------------------------------------------------------

static rt_status keep(app_store *s, const char *policy, const char *document, json_t *result)
{
    json_t *documents = json_object_get(s->by_policy, policy);
    if (!documents) {
        documents = json_object();
        if (json_object_set_new(s->by_policy, policy, documents) != 0)
            return no_memory();
    }
    return json_object_set(documents, document, result) == 0 ? RT_OK : no_memory();
}

const json_t *app_store_find(const app_store *s, const char *policy, const char *document)
{
    return json_object_get(json_object_get(s->by_policy, policy), document);
}

// ---- the file's first line -------------------------------------------------------------

static rt_status make_head(const app_setting *setting, json_t **out)
{
    char model[HASH_TEXT], data[HASH_TEXT];
    snprintf(model, sizeof model, "%016llx", (unsigned long long)setting->model);
    snprintf(data, sizeof data, "%016llx", (unsigned long long)setting->data);
    *out = json_pack("{s:i, s:s, s:s, s:s}", "losa_eval", 1, "model", model, "data", data,
                     "options", setting->options);
    return *out ? RT_OK : no_memory();
}

static rt_status check_head(const app_store *s, const json_t *got, const json_t *want)
{
    static const struct {
        const char *key, *what;
    } parts[] = {{"losa_eval", "results of another version of losa eval"},
                 {"model", "results of another model"},
                 {"data", "results on other documents"},
                 {"options", "results with other options"}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const json_t *value = json_object_get(got, parts[i].key);
        if (json_equal(value, json_object_get(want, parts[i].key)))
            continue;
        char words[200];
        if (strcmp(parts[i].key, "options") == 0 && json_is_string(value)) {
            const char *now = json_string_value(json_object_get(want, "options"));
            app_first_difference(json_string_value(value), now, words, sizeof words);
            return RT_FAIL(RT_ERR_INVALID, "%s: %s: %s", s->path, parts[i].what, words);
        }
        return RT_FAIL(RT_ERR_INVALID, "%s: %s", s->path, parts[i].what);
    }
    return RT_OK;
}

// ---- reading ---------------------------------------------------------------------------

static rt_status take_line(app_store *s, const char *line, size_t len, int number,
                           const json_t *head)
{
    char where[WHERE_MAX];
    json_t *object;
    snprintf(where, sizeof where, "%s:%d", s->path, number);
    RT_TRY(rt_json_parse(line, len, where, &object));
    rt_status status;
    const char *policy, *document;
    if (number == 1) {
        status = check_head(s, object, head);
        goto drop;
    }
    RT_TRY_GOTO(status, rt_json_str(object, "policy", where, true, &policy), drop);
    RT_TRY_GOTO(status, rt_json_str(object, "document", where, true, &document), drop);
    status = keep(s, policy, document, object);
drop:
    json_decref(object);
    return status;
}

// The lines that are whole. *used: their bytes.
static rt_status take_lines(app_store *s, const char *text, size_t len, const json_t *head,
                            size_t *used)
{
    int number = 0;
    const char *at = text, *end;
    while ((end = memchr(at, '\n', len - (size_t)(at - text)))) {
        RT_TRY(take_line(s, at, (size_t)(end - at), ++number, head));
        at = end + 1;
    }
    *used = (size_t)(at - text);
    return RT_OK;
}

// ---- writing ---------------------------------------------------------------------------

static rt_status write_line(const app_store *s, const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(DIGITS));
    if (!text)
        return no_memory();
    rt_str line = {0};
    rt_status status = rt_str_printf(&line, "%s\n", text);
    if (status == RT_OK)
        status = app_result_file_add(s->fd, s->path, line.data, line.len);
    if (status == RT_OK && fsync(s->fd) != 0)
        status = io_failed(s, "write");
    rt_str_free(&line);
    free(text);
    return status;
}

rt_status app_store_add(app_store *s, const char *policy, const char *document, json_t *result)
{
    if (json_object_set_new(result, "policy", json_string(policy)) != 0 ||
        json_object_set_new(result, "document", json_string(document)) != 0)
        return no_memory();
    if (s->fd >= 0)
        RT_TRY(write_line(s, result));
    return keep(s, policy, document, result);
}

// ---- opening ---------------------------------------------------------------------------

// A file that this program began: its first line may be cut short, but is no other.
static rt_status check_start(const app_store *s, const char *text, size_t len)
{
    static const char start[] = "{\"losa_eval\":";
    const size_t n = len < sizeof start - 1 ? len : sizeof start - 1;
    if (memcmp(text, start, n) == 0)
        return RT_OK;
    return RT_FAIL(RT_ERR_INVALID, "%s: not results of losa eval", s->path);
}

// Whether a line follows the first one.
static bool has_results(const char *text, size_t len)
{
    const char *end = memchr(text, '\n', len);
    return end && memchr(end + 1, '\n', len - (size_t)(end + 1 - text));
}

// Takes over what an earlier run left, and cuts off half a line. Without a result the file
// begins anew, for these documents and options.
static rt_status resume(app_store *s, const json_t *head)
{
    char *text;
    size_t len, used = 0;
    RT_TRY(rt_file_read(s->path, FILE_BYTES_MAX, &text, &len));
    const bool half = len > 0 && text[len - 1] != '\n';
    rt_status status = check_start(s, text, len);
    if (status == RT_OK && has_results(text, len))
        status = take_lines(s, text, len, head, &used);
    rt_free(text);
    RT_TRY(status);
    if (used < len && ftruncate(s->fd, (off_t)used) != 0)
        return io_failed(s, "cut off half a line");
    if (half)
        rt_log(RT_LOG_WARN, "%s: dropped half a line at its end", s->path);
    return used == 0 ? write_line(s, head) : RT_OK;
}

static rt_status open_file(app_store *s, const app_setting *setting)
{
    json_t *head;
    RT_TRY(app_result_file_open(s->path, &s->fd));
    RT_TRY(make_head(setting, &head));
    const rt_status status = resume(s, head);
    json_decref(head);
    return status;
}

rt_status app_store_open(const char *path, const app_setting *setting, app_store **out)
{
    app_store *s;
    RT_TRY(RT_ALLOC(s, 1, "results"));
    s->path = path;
    s->fd = -1;
    s->by_policy = json_object();
    rt_status status = s->by_policy ? RT_OK : no_memory();
    if (status == RT_OK && path)
        status = open_file(s, setting);
    if (status != RT_OK) {
        app_store_close(s);
        return status;
    }
    *out = s;
    return RT_OK;
}

void app_store_close(app_store *s)
{
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    json_decref(s->by_policy);
    rt_free(s);
}
