// SPDX-License-Identifier: Apache-2.0
// The prompts of losa generate, and the tokens of KV pages to reserve for them.
#include "launcher/generate.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

#include <string.h>

enum { PROMPT_MAX = 256 << 20 }; // bytes; far beyond any context

size_t app_prompts_count(const app_generate_args *args)
{
    return args->prompts.len + args->prompt_files.len;
}

static const char *display_name(const char *path)
{
    return strcmp(path, "-") == 0 ? "standard input" : path;
}

// The text of a file, without a byte order mark at its start and one newline at its end.
static rt_status read_file(const char *path, rt_str *out)
{
    char *text;
    size_t len;
    RT_TRY(rt_file_read(path, PROMPT_MAX, &text, &len));
    if (len > 0 && text[len - 1] == '\n')
        len -= len > 1 && text[len - 2] == '\r' ? 2 : 1;
    const size_t from = rt_utf8_mark(text, len);
    const rt_status status = rt_str_append(out, text + from, len - from);
    rt_free(text);
    return status;
}

static rt_status read_prompt(const app_generate_args *args, const rt_str *before, size_t i,
                             app_prompt *out)
{
    RT_TRY(rt_str_append(&out->text, before->data, before->len));
    if (args->prompts.len) {
        RT_TRY(rt_str_puts(&out->text, args->prompts.items[i]));
    } else {
        out->name = args->prompt_files.items[i];
        RT_TRY(read_file(out->name, &out->text));
    }
    if (out->text.len == before->len && (args->document || !args->request.chat))
        return RT_FAIL(RT_ERR_INVALID, "%s: the prompt is empty",
                       out->name ? display_name(out->name) : "--prompt");
    return RT_OK;
}

// Results of several prompts name them, in JSON.
static rt_status check_name(const char *name)
{
    json_t *text = json_string(name);
    json_decref(text);
    return text ? RT_OK : RT_FAIL(RT_ERR_INVALID, "%s: the file's name is not UTF-8", name);
}

// What is wrong in a document is not to be looked for in the prompts behind it.
static rt_status check_utf8(const char *path, const rt_str *text)
{
    int32_t cp;
    for (size_t at = 0, used; at < text->len; at += used) {
        used = rt_utf8_next(text->data + at, text->len - at, &cp);
        if (cp < 0)
            return RT_FAIL(RT_ERR_INVALID, "%s: not UTF-8 at byte %zu", display_name(path), at);
    }
    return RT_OK;
}

// The document and an empty line; nothing without one.
static rt_status read_document(const app_generate_args *args, rt_str *out)
{
    if (!args->document)
        return RT_OK;
    RT_TRY(read_file(args->document, out));
    RT_TRY(check_utf8(args->document, out));
    if (out->len == 0)
        return RT_FAIL(RT_ERR_INVALID, "%s: the document is empty", display_name(args->document));
    return rt_str_puts(out, "\n\n");
}

rt_status app_prompts_read(const app_generate_args *args, app_prompts *out)
{
    const size_t count = app_prompts_count(args);
    *out = (app_prompts){0};
    RT_TRY(RT_ALLOC(out->items, count, "prompts"));
    out->count = count;
    for (size_t i = 0; i < args->prompt_files.len && count > 1; i++)
        RT_TRY(check_name(args->prompt_files.items[i]));
    rt_str document = {0};
    rt_status status = read_document(args, &document);
    for (size_t i = 0; i < count && status == RT_OK; i++)
        status = read_prompt(args, &document, i, &out->items[i]);
    rt_str_free(&document);
    return status;
}

void app_prompts_free(app_prompts *prompts)
{
    for (size_t i = 0; i < prompts->count; i++)
        rt_str_free(&prompts->items[i].text);
    rt_free(prompts->items);
}

rt_status app_prompt_refused(const app_prompts *prompts, size_t i, rt_status status)
{
    const char *name = prompts->items[i].name;
    if (name)
        return RT_FAIL(status, "%s: %s", display_name(name), rt_last_error());
    if (prompts->count == 1)
        return status;
    return RT_FAIL(status, "--prompt %zu of %zu: %s", i + 1, prompts->count, rt_last_error());
}

rt_request app_prompt_request(const app_generate_args *args, const app_prompt *prompt)
{
    rt_request request = args->request;
    request.prompt = prompt->text.data ? prompt->text.data : "";
    request.prompt_len = prompt->text.len;
    return request;
}

rt_status app_prompts_context(const app_generate_args *args, const app_prompts *prompts,
                              const rt_engine_options *options, int *out)
{
    rt_request *requests;
    RT_TRY(RT_ALLOC(requests, prompts->count, "requests"));
    for (size_t i = 0; i < prompts->count; i++)
        requests[i] = app_prompt_request(args, &prompts->items[i]);
    size_t refused;
    const rt_status status =
        rt_engine_context_for(options, requests, prompts->count, out, &refused);
    rt_free(requests);
    return refused < prompts->count ? app_prompt_refused(prompts, refused, status) : status;
}
