// SPDX-License-Identifier: Apache-2.0
// What a checkpoint's chat template makes of a plain chat, read off its text: templates are
// programs (Jinja), and this is no interpreter. One that writes <|im_start|> is ChatML. A
// system turn that stands in it word by word, as in Qwen2.5's, is the one it writes when the
// chat has none, unless it stands under a condition that asks for more. As transformers finds it: chat_template.jinja before tokenizer_config.json.
#include "runtime/text/chat.h"

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <limits.h>
#include <string.h>

enum { DEPTH = 64 };           // of branches
enum { FILE_MAX = 256 << 20 }; // as for the other JSON files of a checkpoint

static const char start_marker[] = "<|im_start|>", end_marker[] = "<|im_end|>";
static const char opening[] = "<|im_start|>system";

static bool starts(const char *at, const char *with)
{
    return strncmp(at, with, strlen(with)) == 0;
}

// ---- the text of a template ----------------------------------------------------------

typedef struct scan {
    const char *at;
    bool code;  // between {{ or {% and their ends
    int braces; // open ones of the code
    char quote; // of the string of the code; 0: none
    rt_str system, found;
    bool have, puzzling;  // system is set; not to be known which
    bool left_out[DEPTH]; // the open branches: not taken in a plain chat
    int depth;
} scan;

static const char *skip_comment(const char *at)
{
    const char *end = strstr(at + 2, "#}");
    return end ? end + 2 : at + strlen(at);
}

// One character of what the template writes, as Jinja reads it; 0: none that is known.
static char take_char(scan *s, const char **at)
{
    static const char names[] = "nrt\\'\"", values[] = "\n\r\t\\'\"";
    const char c = *(*at)++;
    if (c == '\r') {
        *at += **at == '\n';
        return '\n';
    }
    if (!s->quote || c != '\\')
        return c;
    const char *name = **at ? strchr(names, *(*at)++) : NULL;
    if (!name)
        s->puzzling = true;
    return name ? values[name - names] : '\0';
}

// The text between `opening` and the end of its turn goes to s->found. *whole: it ends in the
// same string, or between two pieces of code.
static rt_status take_turn(scan *s, bool *whole)
{
    const char *at = s->at + sizeof opening - 1;
    s->found.len = 0;
    *whole = false;
    while (*at && !starts(at, end_marker)) {
        const bool ends = s->quote ? *at == s->quote : *at == '{' && strchr("{%#", at[1]);
        if (ends)
            return RT_OK;
        const char c = take_char(s, &at);
        RT_TRY(rt_str_append(&s->found, &c, 1));
    }
    *whole = *at && s->found.len > 0 && s->found.data[0] == '\n';
    return RT_OK;
}

static rt_status keep_turn(scan *s)
{
    bool whole;
    const bool puzzling = s->puzzling;
    RT_TRY(take_turn(s, &whole));
    if (!whole) {
        s->puzzling = puzzling;
        return RT_OK;
    }
    const char *text = s->found.data + 1;
    if (s->have && strcmp(text, s->system.data) != 0)
        s->puzzling = true;
    s->system.len = 0;
    s->have = true;
    return rt_str_puts(&s->system, text);
}

static void step_code(scan *s)
{
    const char c = *s->at;
    if (s->quote) {
        s->at += c == '\\' && s->at[1] ? 2 : 1;
        s->quote = c == s->quote ? '\0' : s->quote;
        return;
    }
    if (c == '\'' || c == '"')
        s->quote = c;
    if (s->braces == 0 && (starts(s->at, "}}") || starts(s->at, "%}"))) {
        s->code = false;
        s->at++;
    }
    s->braces += c == '{' ? 1 : c == '}' && s->braces > 0 ? -1 : 0;
    s->at++;
}

// Whether a condition asks for something else than the chat's messages, such as tools, or a
// word by which one asks for reasoning: what nobody gives is false.
static bool asks_for_more(const char *at)
{
    static const char *const own[] = {"message", "loop", "system", "not "};
    const char *end = strstr(at, "%}");
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        const char *found = strstr(at, own[i]);
        if (found && (!end || found < end))
            return false;
    }
    return true;
}

static void open_branch(scan *s, bool left_out)
{
    if (s->depth < DEPTH)
        s->left_out[s->depth] = left_out;
    else
        s->puzzling = true;
    s->depth++;
}

// At "{%": which branches are open behind it.
static void note_branch(scan *s)
{
    const char *word = s->at + 2;
    word += strspn(word, "-+ \t\r\n");
    if (starts(word, "if ") || starts(word, "for "))
        open_branch(s, starts(word, "if ") && asks_for_more(word));
    else if ((starts(word, "endif") || starts(word, "endfor")) && s->depth > 0)
        s->depth--;
    else if ((starts(word, "elif ") || starts(word, "else")) && s->depth > 0) {
        s->depth--;
        open_branch(s, starts(word, "elif ") && asks_for_more(word));
    }
}

static bool is_left_out(const scan *s)
{
    for (int i = 0; i < s->depth && i < DEPTH; i++)
        if (s->left_out[i])
            return true;
    return false;
}

static void step(scan *s)
{
    if (s->code) {
        step_code(s);
    } else if (starts(s->at, "{#")) {
        s->at = skip_comment(s->at);
    } else {
        if (starts(s->at, "{%"))
            note_branch(s);
        s->code = starts(s->at, "{{") || starts(s->at, "{%");
        s->at += s->code ? 2 : 1;
    }
}

static rt_status find_system(scan *s)
{
    while (*s->at) {
        if ((s->quote || !s->code) && starts(s->at, opening) && !is_left_out(s))
            RT_TRY(keep_turn(s));
        step(s);
    }
    return RT_OK;
}

static rt_status keep_refusal(const char *message, rt_chat_template *out)
{
    out->refusal = rt_mem_strdup(message, "chat template");
    return out->refusal ? RT_OK : RT_ERR_NOMEM;
}

static rt_status refuse(const char *path, const char *why, rt_chat_template *out)
{
    rt_str text = {0};
    RT_TRY(rt_str_printf(&text, "%s: the chat template %s", path, why));
    const rt_status status = keep_refusal(text.data, out);
    rt_str_free(&text);
    return status;
}

static rt_status read_template(const char *text, const char *path, rt_chat_template *out)
{
    if (!strstr(text, start_marker))
        return refuse(path, "is not ChatML (it has no <|im_start|>)", out);
    scan s = {.at = text};
    rt_status status = find_system(&s);
    if (status == RT_OK && s.puzzling)
        status = refuse(path, "has a system turn of its own that is not understood", out);
    else if (status == RT_OK && s.have) {
        out->system = rt_mem_strdup(s.system.data, "chat template");
        status = out->system ? RT_OK : RT_ERR_NOMEM;
    }
    rt_str_free(&s.system);
    rt_str_free(&s.found);
    return status;
}

// ---- where it stands ---------------------------------------------------------------------

// A text, or a list of named ones, of which chats take "default". NULL: none of these.
static const char *pick(const json_t *value)
{
    size_t i;
    json_t *item;
    json_array_foreach(value, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(item, "template"));
    }
    return json_string_value(value);
}

static rt_status from_config(const char *path, rt_chat_template *out)
{
    json_t *root;
    const rt_status loaded = rt_json_load(path, FILE_MAX, &root);
    if (loaded == RT_ERR_FORMAT) // Python writes Infinity, too; the text may be sent all the same
        return keep_refusal(rt_last_error(), out);
    RT_TRY(loaded);
    const json_t *value = json_object_get(root, "chat_template");
    const char *text = pick(value);
    rt_status status = RT_OK;
    if (text)
        status = read_template(text, path, out);
    else if (value && !json_is_null(value))
        status = refuse(path, "is neither a text nor a list with one named 'default'", out);
    json_decref(root);
    return status;
}

static rt_status from_jinja(const char *path, rt_chat_template *out)
{
    char *text;
    size_t len;
    RT_TRY(rt_file_read(path, FILE_MAX, &text, &len));
    const rt_status status = read_template(text, path, out);
    rt_free(text);
    return status;
}

rt_status rt_chat_template_load(const char *model_dir, rt_chat_template *out)
{
    static const struct {
        const char *name;
        rt_status (*read)(const char *path, rt_chat_template *out);
    } files[] = {{"chat_template.jinja", from_jinja}, {"tokenizer_config.json", from_config}};
    char path[PATH_MAX];
    rt_chat_template read = {0};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        RT_TRY(rt_path_join(model_dir, files[i].name, path, sizeof path));
        if (rt_file_exists(path)) {
            RT_TRY(files[i].read(path, &read));
            break;
        }
    }
    *out = read;
    return RT_OK;
}

void rt_chat_template_free(rt_chat_template *t)
{
    rt_free(t->system);
    rt_free(t->refusal);
    *t = (rt_chat_template){0};
}
