// SPDX-License-Identifier: Apache-2.0
// losa report: the statistics of several runs side by side, and whether they gave the
// same answer. Its input is what `losa generate --stats-file` wrote.
#include "launcher/app.h"
#include "launcher/report.h"

#include "runtime/base/mem.h"

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

// "out/losa.json" -> "losa".
static void title_of(const char *path, char *out)
{
    const char *slash = strrchr(path, '/');
    snprintf(out, TITLE_MAX, "%s", slash ? slash + 1 : path);
    char *dot = strrchr(out, '.');
    if (dot && dot != out)
        *dot = '\0';
}

static rt_status load(const char *path, json_t **out)
{
    json_t *object;
    RT_TRY(rt_json_load(path, FILE_MAX_BYTES, &object));
    if (json_is_object(json_object_get(object, "stats"))) {
        *out = object;
        return RT_OK;
    }
    json_decref(object);
    return RT_FAIL(RT_ERR_FORMAT, "%s: not an object of 'losa generate --stats-file'", path);
}

static rt_status print(const app_list *files, json_t **results, char (*text)[TITLE_MAX],
                       const char **titles)
{
    for (size_t i = 0; i < files->len; i++) {
        RT_TRY(load(files->items[i], &results[i]));
        title_of(files->items[i], text[i]);
        titles[i] = text[i];
    }
    return app_report_compare(stdout, results, titles, files->len);
}

static rt_status run(comm *c, void *target)
{
    (void)c;
    const app_list *files = &((const report_args *)target)->common.operands;
    json_t **results = NULL;
    char(*text)[TITLE_MAX] = NULL;
    const char **titles = NULL;
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(results, files->len, "results"), done);
    RT_TRY_GOTO(status, RT_ALLOC(text, files->len, "titles"), done);
    RT_TRY_GOTO(status, RT_ALLOC(titles, files->len, "titles"), done);
    status = print(files, results, text, titles);
done:
    for (size_t i = 0; results && i < files->len; i++)
        json_decref(results[i]);
    rt_free(results);
    rt_free(text);
    rt_free(titles);
    return status;
}

const app_command app_cmd_report = {
    .name = "report",
    .summary = "statistics of several runs side by side",
    .usage = "FILE...",
    .notes = "FILE is what 'losa generate --stats-file FILE' wrote; its name becomes the heading.\n"
             "The answers are compared with the first one.\n",
    .args_size = sizeof(report_args),
    .operands = true,
    .local = true,
    .defaults = defaults,
    .check = check,
    .run = run,
};
