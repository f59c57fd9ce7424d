// SPDX-License-Identifier: Apache-2.0
// losa generate: its options. generate_run.c runs it.
#include "launcher/decoding_options.h"
#include "launcher/generate.h"

#include <limits.h>
#include <string.h>

enum { SESSIONS_MAX = 4096 }; // that an engine takes

#define AT(member) offsetof(app_generate_args, member)

static const app_option options[] = {
    APP_OPTION_MODEL(app_generate_args),
    APP_OPTION_BLOCK_LENGTH(app_generate_args),
    APP_OPTION_MASK_ID(app_generate_args),
    {"context", 0, APP_INT, AT(engine.context), 0, INT_MAX, "N", NULL,
     "tokens to reserve KV pages for, over all prompts that run at once; 0: what they need", NULL,
     NULL, NULL},
    APP_OPTION_KV_MEMORY(app_generate_args,
                         "most memory of KV pages on each rank, such as 8G; prompts that find none "
                         "wait"),
    APP_OPTION_ALLOW_NONFINITE(app_generate_args),

    {"prompt", 'p', APP_LIST, AT(prompts), 0, 0, "TEXT", NULL, "the prompt; may be given again",
     "Prompt", NULL, NULL},
    {"prompt-file", 'f', APP_LIST, AT(prompt_files), 0, 0, "FILE", NULL,
     "read the prompt from a UTF-8 file (- is standard input); one newline at its end is dropped; "
     "may be given again",
     NULL, NULL, NULL},
    {"document", 0, APP_TEXT, AT(document), 0, 0, "FILE", "none",
     "a text that stands before every prompt, with an empty line between; however many prompts "
     "there are, it is computed once",
     NULL, NULL, NULL},
    {"chat", 'c', APP_FLAG, AT(request.chat), 0, 0, NULL, NULL,
     "send the prompt as the user's turn of a chat (ChatML)", NULL, NULL, NULL},
    {"system", 0, APP_TEXT, AT(request.system), 0, 0, "TEXT", NULL,
     "system turn before it; needs --chat", NULL, NULL, NULL},
    {"parse-special", 0, APP_FLAG, AT(request.parse_special), 0, 0, NULL, NULL,
     "special tokens written in the prompt count as such; otherwise they are plain text", NULL,
     NULL, NULL},

    APP_OPTIONS_DENOISING(app_generate_args),
    APP_OPTIONS_SAMPLING(app_generate_args),
    {"stop", 0, APP_LIST, AT(stops), 0, 0, "TEXT", NULL, "end before this text; may be given again",
     NULL, NULL, NULL},
    {"ignore-stop", 0, APP_FLAG, AT(request.ignore_stop_ids), 0, 0, NULL, NULL,
     "go on past the model's stop tokens", NULL, NULL, NULL},

    APP_OPTIONS_ATTENTION(app_generate_args, attention),

    APP_OPTION_DEVICE(app_generate_args),
    APP_OPTION_PRECISION(app_generate_args),
    APP_OPTION_NO_GRAPH(app_generate_args),
    {"threads", 0, APP_INT, AT(engine.threads), 0, 1024, "N", NULL,
     "per rank; 0: cores / ranks of the host", NULL, NULL, NULL},
    {"prefill-chunk", 0, APP_INT, AT(engine.prefill_chunk), 1, 1 << 20, "N", NULL,
     "prompt tokens in one forward", NULL, NULL, NULL},
    {"max-sessions", 0, APP_INT, AT(engine.max_sessions), 0, SESSIONS_MAX, "N", NULL,
     "prompts that run at the same time; 0: all, at most 16", NULL, NULL, NULL},
    APP_OPTION_NO_SHARING(app_generate_args),
    APP_OPTION_TIMEOUT(app_generate_args),

    {"json", 0, APP_FLAG, AT(json), 0, 0, NULL, NULL,
     "print a JSON object with text, token ids and statistics; of several prompts one a line",
     "Output", NULL, NULL},
    {"stats-file", 0, APP_TEXT, AT(stats_file), 0, 0, "FILE", NULL,
     "also write that to a file, for 'losa report'", NULL, NULL, NULL},
    {"trace-plans", 0, APP_TEXT, AT(engine.trace_plans), 0, 0, "FILE", NULL,
     "write every active set and page list of all ranks to a file, for 'losa info --trace'", NULL,
     NULL, NULL},
    APP_OPTION_VERBOSE(app_generate_args),
    APP_OPTION_QUIET(app_generate_args),
};

static void defaults(void *target)
{
    app_generate_args *args = target;
    args->engine = rt_engine_options_default();
    args->engine.max_sessions = 0;
    args->request = rt_request_default();
    args->commit = args->engine.separate_commit;
    app_attention_defaults(&args->attention);
}

static rt_status check_prompts(const app_generate_args *args)
{
    if (!args->prompts.len == !args->prompt_files.len)
        return RT_FAIL(RT_ERR_INVALID, "give either --prompt or --prompt-file");
    size_t standard = args->document && strcmp(args->document, "-") == 0;
    for (size_t i = 0; i < args->prompt_files.len; i++)
        standard += strcmp(args->prompt_files.items[i], "-") == 0;
    if (standard > 1)
        return RT_FAIL(RT_ERR_INVALID, "--prompt-file -: standard input can be read only once");
    if (args->request.system && !args->request.chat)
        return RT_FAIL(RT_ERR_INVALID, "--system needs --chat");
    return RT_OK;
}

static rt_status check(void *target)
{
    app_generate_args *args = target;
    if (!args->model)
        return RT_FAIL(RT_ERR_INVALID, "--model DIR is missing");
    RT_TRY(check_prompts(args));
    for (size_t i = 0; i < args->stops.len; i++)
        if (!*args->stops.items[i])
            return RT_FAIL(RT_ERR_INVALID, "--stop: the text is empty");
    RT_TRY(app_decoding_check(&args->request));
    RT_TRY(app_attention_check(&args->attention));
    args->engine.model_dir = args->model;
    args->engine.separate_commit = args->commit == 1;
    args->engine.attention = args->attention.config;
    args->request.stops = args->stops.items;
    args->request.stops_len = args->stops.len;
    return RT_OK;
}

const app_command app_cmd_generate = {
    .name = "generate",
    .summary = "prompts -> text; one streams as its blocks finish, several run together",
    .usage = "--model DIR (--prompt TEXT | --prompt-file FILE)... [OPTION...]",
    .notes =
        "Several prompts are answered in their order, each under a line '==> FILE <==', or as a\n"
        "JSON object a line that also has prompt.index and prompt.file. All are checked before "
        "the\n"
        "first one runs. What else runs changes nothing in an answer.\n"
        "Exit status: 0 done, 1 failed, 2 wrong usage, 130 or 143 ended by Ctrl-C or SIGTERM\n"
        "(mpirun itself then ends with 1).\n"
        "A second Ctrl-C ends the program at once.\n",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(app_generate_args),
    .defaults = defaults,
    .check = check,
    .run = app_generate_run,
};
