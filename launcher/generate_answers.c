// SPDX-License-Identifier: Apache-2.0
// The answers of losa generate: JSON Lines or plain text in the order of the prompts,
// and the reports at the end.
#include "launcher/generate.h"
#include "launcher/report.h"

#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

rt_status app_write_text(const char *text, size_t len)
{
    if (fwrite(text, 1, len, stdout) == len && fflush(stdout) == 0)
        return RT_OK;
    return RT_FAIL(RT_ERR_IO, "standard output: cannot write: %s", strerror(errno));
}

rt_status app_answers_open(const app_generate_args *args, const app_prompts *prompts,
                           app_answers *out)
{
    *out = (app_answers){.args = args, .prompts = prompts};
    return RT_ALLOC(out->results, prompts->count, "answers");
}

void app_answers_close(app_answers *answers)
{
    for (size_t i = 0; answers->results && i < answers->prompts->count; i++)
        json_decref(answers->results[i]);
    rt_free(answers->results);
}

// Which prompt it was, where there are several.
static rt_status add_prompt(const app_answers *a, size_t index, json_t *result)
{
    const char *name = a->prompts->items[index].name;
    json_t *prompt = json_pack("{s:i, s:s*}", "index", (int)index, "file", name);
    if (json_object_set_new(result, "prompt", prompt) != 0)
        return RT_FAIL(RT_ERR_NOMEM, "out of memory: result");
    return RT_OK;
}

// A heading, as head and tail write it, and the text.
static rt_status print_text(const app_answers *a, size_t index)
{
    const char *name = a->prompts->items[index].name;
    const json_t *text = json_object_get(a->results[index], "text");
    rt_str out = {0};
    rt_status status;
    RT_TRY_GOTO(status, rt_str_printf(&out, "%s==> ", index ? "\n" : ""), free_out);
    if (name)
        RT_TRY_GOTO(status, rt_str_puts(&out, name), free_out);
    else
        RT_TRY_GOTO(status, rt_str_printf(&out, "prompt %zu", index + 1), free_out);
    RT_TRY_GOTO(status, rt_str_puts(&out, " <==\n"), free_out);
    RT_TRY_GOTO(status, rt_str_append(&out, json_string_value(text), json_string_length(text)),
                free_out);
    RT_TRY_GOTO(status, rt_str_puts(&out, "\n"), free_out);
    RT_TRY_GOTO(status, app_write_text(out.data, out.len), free_out);
free_out:
    rt_str_free(&out);
    return status;
}

static void warn_of_cut(const app_answers *a, size_t index)
{
    const json_t *finish = json_object_get(a->results[index], "finish_reason");
    char which[64] = "the answer";
    if (strcmp(json_string_value(finish), rt_finish_name(RT_FINISH_LENGTH)) != 0)
        return;
    if (a->prompts->count > 1)
        snprintf(which, sizeof which, "answer %zu of %zu", index + 1, a->prompts->count);
    const json_t *usage = json_object_get(a->results[index], "usage");
    rt_log(RT_LOG_WARN, "%s was cut after %" JSON_INTEGER_FORMAT " tokens (--max-tokens)", which,
           json_integer_value(json_object_get(usage, "completion_tokens")));
}

// Of one prompt the text has been streamed already. JSON says why an answer ends.
static rt_status print(const app_answers *a, size_t index)
{
    if (a->args->json)
        return app_report_write(a->results[index], "-");
    RT_TRY(a->prompts->count > 1 ? print_text(a, index) : app_write_text("\n", 1));
    warn_of_cut(a, index);
    return RT_OK;
}

rt_status app_answers_take(app_answers *a, size_t index, const rt_result *result)
{
    const char *finish = rt_finish_name(result->finish);
    RT_TRY(app_report_result(result, finish, &a->results[index]));
    if (a->prompts->count > 1)
        RT_TRY(add_prompt(a, index, a->results[index]));
    for (; a->printed < a->prompts->count && a->results[a->printed]; a->printed++)
        RT_TRY(print(a, a->printed));
    return RT_OK;
}

// The statistics side by side; a single prompt's under the name of the policy.
static rt_status compare(const app_answers *a)
{
    enum { TITLE_MAX = 32 };
    const size_t count = a->prompts->count;
    char(*text)[TITLE_MAX] = NULL;
    const char **titles = NULL;
    rt_status status;
    RT_TRY_GOTO(status, RT_ALLOC(text, count, "titles"), free_titles);
    RT_TRY_GOTO(status, RT_ALLOC(titles, count, "titles"), free_titles);
    for (size_t i = 0; i < count; i++) {
        snprintf(text[i], TITLE_MAX, "prompt %zu", i + 1);
        titles[i] = count > 1 ? text[i] : a->args->engine.attention.policy->name;
    }
    status = app_report_compare(stderr, a->results, titles, count);
free_titles:
    rt_free(text);
    rt_free(titles);
    return status;
}

rt_status app_answers_report(const app_answers *a)
{
    const size_t count = a->prompts->count;
    for (size_t i = 0; i < count; i++)
        if (!a->results[i])
            return RT_FAIL(RT_ERR_INTERNAL, "the engine is idle and gave no result");
    if (a->args->stats_file)
        RT_TRY(app_report_write_lines(a->results, count, a->args->stats_file));
    return a->args->common.verbose ? compare(a) : RT_OK;
}
