// SPDX-License-Identifier: Apache-2.0
// The parts of `losa generate`: its options, its prompts, its answers.
#ifndef LAUNCHER_GENERATE_H
#define LAUNCHER_GENERATE_H

#include "launcher/app.h"
#include "launcher/attention_options.h"

#include "runtime/base/json.h"
#include "runtime/base/str.h"
#include "runtime/engine/engine.h"

typedef struct app_generate_args {
    app_common common;
    const char *model;
    app_list prompts, prompt_files; // one of them is empty
    const char *document;           // of the file that comes before every prompt, or NULL
    rt_engine_options engine;       // max_sessions 0: as many as there are prompts, to a limit
    rt_request request;
    app_list stops;
    app_attention attention;
    int commit; // index in the choices of --commit
    bool json;
    const char *stats_file;
} app_generate_args;

rt_status app_generate_run(comm *c, void *args);

// ---- prompts

typedef struct app_prompt {
    const char *name; // the file's; NULL: given on the command line
    rt_str text;
} app_prompt;

typedef struct app_prompts {
    app_prompt *items;
    size_t count;
} app_prompts;

size_t app_prompts_count(const app_generate_args *args);
// Reads all of them. `out` may hold some on failure too; app_prompts_free frees it.
rt_status app_prompts_read(const app_generate_args *args, app_prompts *out);
void app_prompts_free(app_prompts *prompts);
// What is asked with a prompt, without callbacks.
rt_request app_prompt_request(const app_generate_args *args, const app_prompt *prompt);
// Names a refused prompt's file, or which of several it is, in the last error's message; `status`.
rt_status app_prompt_refused(const app_prompts *prompts, size_t i, rt_status status);
// Tokens of KV pages that the prompts and their answers may need at once.
rt_status app_prompts_context(const app_generate_args *args, const app_prompts *prompts,
                              const rt_engine_options *options, int *out);

// ---- answers

// Prints the answers to several prompts, in the order of the prompts, as soon as those
// before are printed.
typedef struct app_answers {
    const app_generate_args *args;
    const app_prompts *prompts;
    json_t **results; // [count]; NULL: still open
    size_t printed;
} app_answers;

rt_status app_answers_open(const app_generate_args *args, const app_prompts *prompts,
                           app_answers *out);
void app_answers_close(app_answers *answers);
// Keeps the result of prompt `index`, and prints what is complete.
rt_status app_answers_take(app_answers *answers, size_t index, const rt_result *result);
// After the last one: --stats-file and --verbose.
rt_status app_answers_report(const app_answers *answers);

// Standard output, with every error seen.
rt_status app_write_text(const char *text, size_t len);

#endif
