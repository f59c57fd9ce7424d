// SPDX-License-Identifier: Apache-2.0
// losa batch: its options. batch_run.c runs it.
#include "launcher/batch.h"
#include "launcher/decoding_options.h"
#include "launcher/model_options.h"

#include <limits.h>

enum { SESSIONS_MAX = 4096, SESSIONS_DEFAULT = 32, EXIT_RESUME = 75 }; // EX_TEMPFAIL of sysexits.h
enum { CHUNK_DEFAULT = 2048 }; // nobody watches a block that waits for it

#define AT(member) offsetof(app_batch_args, member)

static const app_option options[] = {
    APP_OPTION_MODEL(app_batch_args),
    APP_OPTION_DUMMY(app_batch_args),
    {"model-name", 0, APP_TEXT, AT(model_name), 0, 0, "NAME", "the folder's",
     "what lines may call the model, and records do", NULL, NULL, NULL},
    APP_OPTION_BLOCK_LENGTH(app_batch_args),
    APP_OPTION_MASK_ID(app_batch_args),
    APP_OPTION_ALLOW_NONFINITE(app_batch_args),
    {"context", 0, APP_INT, AT(engine.context), 0, INT_MAX, "N", NULL,
     "tokens to reserve KV pages for, over all requests that a group runs at once; 0: the model's "
     "length",
     NULL, NULL, NULL},

    {"input", 'i', APP_TEXT, AT(input), 0, 0, "FILE", "none", "requests, a line of JSON each",
     "Job", NULL, NULL},
    {"output", 'o', APP_TEXT, AT(output), 0, 0, "FILE", "none",
     "results, a line of JSON each; until all are there, FILE.journal keeps them", NULL, NULL,
     NULL},
    {"resume", 0, APP_FLAG, AT(resume), 0, 0, NULL, NULL,
     "keep the results of FILE.journal, if there is one, and answer the rest", NULL, NULL, NULL},
    {"keep-order", 0, APP_FLAG, AT(keep_order), 0, 0, NULL, NULL,
     "results in the order of the requests, not as they were finished", NULL, NULL, NULL},
    {"grace", 0, APP_REAL, AT(grace), 0, 86400, "SECONDS", NULL,
     "after SIGTERM, SIGUSR1 or Ctrl-C: what runs has so long to finish", NULL, NULL, NULL},
    {"metrics-file", 0, APP_TEXT, AT(metrics_file), 0, 0, "FILE", "none",
     "how far the job is, every 5 s, for Prometheus (node_exporter's textfile collector)", NULL,
     NULL, NULL},

    APP_OPTIONS_DENOISING(app_batch_args),
    APP_OPTIONS_SAMPLING(app_batch_args),

    APP_OPTIONS_ATTENTION(app_batch_args, attention),

    {"tp", 0, APP_INT, AT(tp), 0, INT_MAX, "N", "those of a host",
     "ranks that share a model; every group of so many answers requests of its own", "Machine",
     NULL, NULL},
    {"max-sessions", 0, APP_INT, AT(engine.max_sessions), 1, SESSIONS_MAX, "N", NULL,
     "requests that a group runs at the same time", NULL, NULL, NULL},
    APP_OPTION_NO_SHARING(app_batch_args),
    {"prefill-chunk", 0, APP_INT, AT(engine.prefill_chunk), 1, 1 << 20, "N", NULL,
     "prompt tokens in one forward", NULL, NULL, NULL},
    {"device", 0, APP_CHOICE, AT(engine.device), 0, 0, "KIND", NULL,
     "where to compute; cuda only in a build with CUDA", NULL, app_device_choice, NULL},
    APP_OPTION_PRECISION(app_batch_args),
    APP_OPTION_NO_GRAPH(app_batch_args),
    {"threads", 0, APP_INT, AT(engine.threads), 0, 1024, "N", NULL,
     "per rank; 0: cores / ranks of the host", NULL, NULL, NULL},
    APP_OPTION_KV_MEMORY(
        app_batch_args, "most memory of KV pages on each rank, such as 8G; requests that find none "
                        "wait"),
    APP_OPTION_TIMEOUT(app_batch_args),
    APP_OPTION_VERBOSE(app_batch_args),
    APP_OPTION_QUIET(app_batch_args),
};

static void defaults(void *target)
{
    app_batch_args *args = target;
    args->dummy = APP_NO_DUMMY;
    args->grace = 10;
    args->engine = rt_engine_options_default();
    args->engine.max_sessions = SESSIONS_DEFAULT;
    args->engine.prefill_chunk = CHUNK_DEFAULT;
    args->request = rt_request_default();
    args->commit = args->engine.separate_commit;
    app_attention_defaults(&args->attention);
}

static rt_status check_files(const app_batch_args *args)
{
    if (!args->input || !args->output)
        return RT_FAIL(RT_ERR_INVALID, "--%s FILE is missing", args->input ? "output" : "input");
    return RT_OK;
}

static rt_status check(void *target)
{
    app_batch_args *args = target;
    RT_TRY(app_model_check(args->model, args->dummy));
    RT_TRY(check_files(args));
    RT_TRY(app_decoding_check(&args->request));
    RT_TRY(app_attention_check(&args->attention));
    args->engine.model_dir = args->model;
    args->engine.separate_commit = args->commit == 1;
    args->engine.attention = args->attention.config;
    return RT_OK;
}

const app_command app_cmd_batch = {
    .name = "batch",
    .summary = "a file of requests -> a file of results, over all ranks; can be resumed",
    .usage = "--model DIR --input FILE --output FILE [OPTION...]",
    .notes =
        "Lines of input and output are those of OpenAI's Batch API, for /v1/chat/completions and\n"
        "/v1/completions; docs/BATCH.md has them all. Options of denoising and sampling are for\n"
        "lines that do not say. A line that is wrong makes a record that says why.\n"
        "Exit status: 0 done, 1 failed, 2 wrong usage, 75 ended by a signal: go on with "
        "--resume.\n",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(app_batch_args),
    .defaults = defaults,
    .check = check,
    .run = app_batch_run,
    .ended_status = EXIT_RESUME,
};
