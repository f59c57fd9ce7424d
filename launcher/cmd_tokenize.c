// SPDX-License-Identifier: Apache-2.0
// losa tokenize: standard input -> a JSON array of ids, and back.
//
// By default a special token's literal text becomes that token, as Hugging Face's
// encode() does, and decoding writes special tokens out: the two are inverse.
#include "launcher/app.h"
#include "runtime/base/json.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/text/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { INPUT_MAX = 1 << 30, PATH_BYTES = 4096 };

typedef struct tokenize_args {
    app_common common;
    const char *model, *tokenizer;
    bool decode, no_special;
} tokenize_args;

#define AT(member) offsetof(tokenize_args, member)

static const app_option options[] = {
    {"tokenizer", 't', APP_TEXT, AT(tokenizer), 0, 0, "FILE", NULL, "a tokenizer.json", "Tokenizer",
     NULL, NULL},
    {"model", 'm', APP_TEXT, AT(model), 0, 0, "DIR", NULL, "or the checkpoint folder that holds it",
     NULL, NULL, NULL},
    {"decode", 'd', APP_FLAG, AT(decode), 0, 0, NULL, NULL,
     "standard input is a JSON array of ids; print their text", "Direction", NULL, NULL},
    {"no-special", 0, APP_FLAG, AT(no_special), 0, 0, NULL, NULL,
     "special tokens in the text are plain text; with --decode they are left out", NULL, NULL,
     NULL},
};

static void defaults(void *target)
{
    (void)target;
}

static rt_status check(void *target)
{
    const tokenize_args *args = target;
    if (!args->model == !args->tokenizer)
        return RT_FAIL(RT_ERR_INVALID, "give either --tokenizer or --model");
    return RT_OK;
}

static rt_status open_tokenizer(const tokenize_args *args, rt_tokenizer **out)
{
    if (args->tokenizer)
        return rt_tokenizer_open(args->tokenizer, out);
    char path[PATH_BYTES];
    RT_TRY(rt_path_join(args->model, "tokenizer.json", path, sizeof path));
    return rt_tokenizer_open(path, out);
}

static rt_status encode(const tokenize_args *args, const rt_tokenizer *tok, const char *text,
                        size_t len)
{
    rt_ids ids = {0};
    const rt_special special = args->no_special ? RT_SPECIAL_TEXT : RT_SPECIAL_PARSE;
    rt_status status = rt_tokenizer_encode(tok, text, len, special, &ids);
    if (status == RT_OK) {
        putchar('[');
        for (size_t i = 0; i < ids.len; i++)
            printf(i ? ",%d" : "%d", ids.data[i]);
        puts("]");
    }
    rt_ids_free(&ids);
    return status;
}

// A model may have more ids than its tokenizer, and writes those without text too.
static rt_status read_ids(const char *text, size_t len, rt_ids *out)
{
    json_t *array;
    RT_TRY(rt_json_parse(text, len, "standard input", &array));
    rt_status status = RT_OK;
    if (!json_is_array(array))
        status = RT_FAIL(RT_ERR_FORMAT, "standard input: not a JSON array of ids");
    for (size_t i = 0; status == RT_OK && i < json_array_size(array); i++) {
        const json_t *value = json_array_get(array, i);
        const json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > INT32_MAX) {
            status = RT_FAIL(RT_ERR_FORMAT, "standard input: element %zu is not a token id", i);
            break;
        }
        const int32_t small = (int32_t)id;
        status = rt_ids_append(out, &small, 1);
    }
    json_decref(array);
    return status;
}

static rt_status decode_ids(const tokenize_args *args, const rt_tokenizer *tok, const rt_ids *ids)
{
    rt_detok *d;
    rt_str text = {0};
    rt_status status = rt_detok_open(tok, !args->no_special, &d);
    if (status != RT_OK)
        return status;
    RT_TRY_GOTO(status, rt_detok_push(d, ids->data, ids->len, &text), close);
    RT_TRY_GOTO(status, rt_detok_flush(d, &text), close);
    if (text.len > 0 && fwrite(text.data, 1, text.len, stdout) != text.len)
        status = RT_FAIL(RT_ERR_IO, "standard output: cannot write: %s", strerror(errno));
close:
    rt_str_free(&text);
    rt_detok_close(d);
    return status;
}

static rt_status decode(const tokenize_args *args, const rt_tokenizer *tok, const char *text,
                        size_t len)
{
    rt_ids ids = {0};
    rt_status status = read_ids(text, len, &ids);
    if (status == RT_OK)
        status = decode_ids(args, tok, &ids);
    rt_ids_free(&ids);
    return status;
}

static rt_status run(comm *c, void *target)
{
    (void)c;
    const tokenize_args *args = target;
    rt_tokenizer *tok;
    char *text;
    size_t len;
    RT_TRY(open_tokenizer(args, &tok));
    rt_status status = rt_file_read("-", INPUT_MAX, &text, &len);
    if (status == RT_OK) {
        status = args->decode ? decode(args, tok, text, len) : encode(args, tok, text, len);
        rt_free(text);
    }
    rt_tokenizer_close(tok);
    return status;
}

const app_command app_cmd_tokenize = {
    .name = "tokenize",
    .summary = "text on standard input -> token ids, and back",
    .usage = "(--tokenizer FILE | --model DIR) [--decode] [--no-special]",
    .notes =
        "Text is taken and given byte for byte: no newline is dropped or added. An id that the\n"
        "tokenizer does not know has no text.\n",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(tokenize_args),
    .local = true,
    .defaults = defaults,
    .check = check,
    .run = run,
};
