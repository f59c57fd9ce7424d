// SPDX-License-Identifier: Apache-2.0
// losa report: the statistics of several runs side by side, and whether they gave the
// same answer. Its input is what `losa generate --stats-file` wrote, for one prompt or several.
#include "launcher/app.h"
#include "launcher/report.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

enum { FILE_MAX_BYTES = 64 << 20, TITLE_MAX = 32 };

typedef struct report_args {
    app_common common;
} report_args;

static void defaults(void *target)
{
    (void)target;
}

static rt_status check(void *target)
{
    const report_args *args = target;
    if (args->common.operands.len == 0)
        return RT_FAIL(RT_ERR_INVALID, "name at least one file");
    return RT_OK;
}

// "out/losa.json" -> "losa"; "losa#2" for the second of several results; the end of a long name.
static json_t *title_of(const char *path, size_t index, size_t count)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    size_t len = dot && dot != name ? (size_t)(dot - name) : strlen(name);
    rt_str title = {0};
    size_t rest;
    json_t *out = NULL;
    for (; len > TITLE_MAX || (*name & 0xC0) == 0x80; len--) // no half of a letter
        name++;
    if (rt_utf8_append(&title, name, len, &rest) == RT_OK)
        out = count > 1 ? json_sprintf("%s#%zu", title.data, index + 1) : json_string(title.data);
    rt_str_free(&title);
    return out;
}

// One object a line; blank lines are passed over.
static rt_status parse_lines(const char *text, const char *path, json_t *objects)
{
    char where[PATH_MAX];
    size_t number = 1;
    for (const char *line = text; *line; number++) {
        const size_t len = strcspn(line, "\n");
        json_t *object;
        snprintf(where, sizeof where, "%s:%zu", path, number);
        if (strspn(line, " \t\r") < len) {
            RT_TRY(rt_json_parse(line, len, where, &object));
            if (json_array_append_new(objects, object) != 0)
                return RT_FAIL(RT_ERR_NOMEM, "%s: no memory", path);
        }
        line += len + (line[len] == '\n');
    }
    return RT_OK;
}

// A file of one object, however it is laid out, or of one a line.
static rt_status parse(const char *text, size_t len, const char *path, json_t *objects)
{
    json_t *object;
    if (rt_json_parse(text, len, path, &object) != RT_OK)
        return parse_lines(text, path, objects);
    if (json_array_append_new(objects, object) != 0)
        return RT_FAIL(RT_ERR_NOMEM, "%s: no memory", path);
    return RT_OK;
}

static rt_status load(const char *path, json_t *objects)
{
    char *text;
    size_t len;
    RT_TRY(rt_file_read(path, FILE_MAX_BYTES, &text, &len));
    rt_status status = parse(text, len, path, objects);
    rt_free(text);
    if (status == RT_OK && json_array_size(objects) == 0)
        status = RT_FAIL(RT_ERR_FORMAT, "%s: empty", path);
    for (size_t i = 0; i < json_array_size(objects) && status == RT_OK; i++)
        if (!json_is_object(json_object_get(json_array_get(objects, i), "stats")))
            status =
                RT_FAIL(RT_ERR_FORMAT, "%s: not an object of 'losa generate --stats-file'", path);
    return status;
}

// Appends the file's results and their titles.
static rt_status add_file(const char *path, json_t *results, json_t *titles)
{
    json_t *objects = json_array();
    rt_status status = load(path, objects);
    const size_t count = json_array_size(objects);
    for (size_t i = 0; i < count && status == RT_OK; i++)
        if (json_array_append_new(titles, title_of(path, i, count)) != 0)
            status = RT_FAIL(RT_ERR_NOMEM, "%s: no memory", path);
    if (status == RT_OK && json_array_extend(results, objects) != 0)
        status = RT_FAIL(RT_ERR_NOMEM, "%s: no memory", path);
    json_decref(objects);
    return status;
}

static rt_status print(const json_t *results, const json_t *titles)
{
    const size_t count = json_array_size(results);
    json_t **items = NULL;
    const char **names = NULL;
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(items, count, "results"), free_items);
    RT_TRY_GOTO(status, RT_ALLOC(names, count, "titles"), free_items);
    for (size_t i = 0; i < count; i++) {
        items[i] = json_array_get(results, i);
        names[i] = json_string_value(json_array_get(titles, i));
    }
    status = app_report_compare(stdout, items, names, count);
free_items:
    rt_free(items);
    rt_free(names);
    return status;
}

static rt_status run(comm *c, void *target)
{
    (void)c;
    const app_list *files = &((const report_args *)target)->common.operands;
    json_t *results = json_array(), *titles = json_array();
    rt_status status = RT_OK;
    for (size_t i = 0; i < files->len && status == RT_OK; i++)
        status = add_file(files->items[i], results, titles);
    if (status == RT_OK)
        status = print(results, titles);
    json_decref(results);
    json_decref(titles);
    return status;
}

const app_command app_cmd_report = {
    .name = "report",
    .summary = "statistics of several runs side by side",
    .usage = "FILE...",
    .notes = "FILE is what 'losa generate --stats-file FILE' wrote; its name becomes the heading.\n"
             "Of several prompts each has a column. An answer is compared with the first one to\n"
             "the same prompt.\n",
    .args_size = sizeof(report_args),
    .operands = true,
    .local = true,
    .defaults = defaults,
    .check = check,
    .run = run,
};
