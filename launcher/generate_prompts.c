// SPDX-License-Identifier: Apache-2.0
// The prompts of losa generate, and the pages to reserve for them.
#include "launcher/generate.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT_MAX = 256 << 20 }; // bytes; far beyond any context

size_t app_prompts_count(const app_generate_args *args)
{
    return args->prompts.len + args->prompt_files.len;
}

// The text of a file, without one newline at its end.
static rt_status read_file(const char *path, rt_str *out)
{
    char *text;
    size_t len;
    RT_TRY(rt_file_read(path, PROMPT_MAX, &text, &len));
    if (len > 0 && text[len - 1] == '\n')
        len--;
    if (len > 0 && text[len - 1] == '\r')
        len--;
    const rt_status status = rt_str_append(out, text, len);
    rt_free(text);
    return status;
}

static rt_status read_prompt(const app_generate_args *args, size_t i, app_prompt *out)
{
    if (args->prompts.len) {
        RT_TRY(rt_str_puts(&out->text, args->prompts.items[i]));
    } else {
        out->name = args->prompt_files.items[i];
        RT_TRY(read_file(out->name, &out->text));
    }
    if (out->text.len == 0 && !args->request.chat)
        return RT_FAIL(RT_ERR_INVALID, "%s: the prompt is empty",
                       out->name ? out->name : "--prompt");
    return RT_OK;
}

rt_status app_prompts_read(const app_generate_args *args, app_prompts *out)
{
    const size_t count = app_prompts_count(args);
    *out = (app_prompts){0};
    RT_TRY(RT_ALLOC(out->items, count, "prompts"));
    out->count = count;
    for (size_t i = 0; i < count; i++)
        RT_TRY(read_prompt(args, i, &out->items[i]));
    return RT_OK;
}

void app_prompts_free(app_prompts *prompts)
{
    for (size_t i = 0; i < prompts->count; i++)
        rt_str_free(&prompts->items[i].text);
    rt_free(prompts->items);
}

static int larger_first(const void *a, const void *b)
{
    const size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x < y) - (x > y);
}

// Upper bounds of what the requests need, the largest first.
static rt_status bound_needs(const app_generate_args *args, const app_prompts *prompts,
                             size_t *needs)
{
    enum { CHAT_TOKENS = 64 }; // of the turns' markers and roles
    rt_model_config model;
    const rt_config_overrides given = {args->engine.block_length, args->engine.mask_id};
    RT_TRY(rt_config_load(args->model, &given, &model));
    const size_t longest = (size_t)model.max_positions;
    const size_t system = args->request.system ? strlen(args->request.system) : 0;
    for (size_t i = 0; i < prompts->count; i++) {
        const size_t most =
            prompts->items[i].text.len + system + CHAT_TOKENS + (size_t)args->request.max_tokens;
        needs[i] = most < longest ? most : longest;
    }
    qsort(needs, prompts->count, sizeof *needs, larger_first);
    return RT_OK;
}

rt_status app_prompts_context(const app_generate_args *args, const app_prompts *prompts,
                              int sessions, int *out)
{
    *out = args->engine.context;
    if (*out != 0 || prompts->count == 1)
        return RT_OK;
    size_t *needs, sum = 0;
    RT_TRY(RT_ALLOC(needs, prompts->count, "prompts"));
    const rt_status status = bound_needs(args, prompts, needs);
    for (size_t i = 0; i < prompts->count && i < (size_t)sessions; i++)
        sum += needs[i];
    rt_free(needs);
    *out = sum < INT_MAX ? (int)sum : INT_MAX;
    return status;
}
