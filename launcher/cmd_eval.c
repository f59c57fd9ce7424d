// SPDX-License-Identifier: Apache-2.0
// losa eval: its options. eval_run.c runs it.
#include "launcher/decoding_options.h"
#include "launcher/eval.h"

#define AT(member) offsetof(app_eval_args, member)

static const app_option options[] = {
    APP_OPTION_MODEL(app_eval_args),
    APP_OPTION_BLOCK_LENGTH(app_eval_args),
    APP_OPTION_MASK_ID(app_eval_args),
    APP_OPTION_ALLOW_NONFINITE(app_eval_args),
    {"data", 'd', APP_TEXT, AT(data), 0, 0, "FILE", NULL, "the documents, a JSON object a line",
     "Documents", NULL, NULL},
    {"lengths", 'l', APP_PARSE, AT(lengths), 0, 0, "N,...", "powers of two",
     "upper bounds in tokens that results are grouped by; longer documents are left out", NULL,
     NULL, app_lengths_parse},
    {"plain", 0, APP_FLAG, AT(plain), 0, 0, NULL, NULL,
     "send a document as it is, not as the user's turn of a chat (ChatML)", NULL, NULL, NULL},
    {"policies", 'p', APP_TEXT, AT(policies), 0, 0, "POLICY,...", NULL,
     "NAME[:BUDGET[+SCAN]][:WORD]..., a WORD being an active rule or an attention option of 'losa "
     "generate' without its dashes: losa:128:topk:5:plan-scope=head",
     NULL, NULL, NULL},

    APP_OPTIONS_DENOISING(app_eval_args),
    APP_OPTIONS_SAMPLING(app_eval_args),

    APP_OPTION_DEVICE(app_eval_args),
    APP_OPTION_PRECISION(app_eval_args),
    {"threads", 0, APP_INT, AT(engine.threads), 0, 1024, "N", NULL,
     "per rank; 0: cores / ranks of the host", NULL, NULL, NULL},
    {"prefill-chunk", 0, APP_INT, AT(engine.prefill_chunk), 1, 1 << 20, "N", NULL,
     "prompt tokens in one forward", NULL, NULL, NULL},
    {"max-sessions", 0, APP_INT, AT(engine.max_sessions), 1, 4096, "N", NULL,
     "documents that run at the same time", NULL, NULL, NULL},
    APP_OPTION_NO_SHARING(app_eval_args),
    APP_OPTION_KV_MEMORY(app_eval_args,
                         "most memory of KV pages on each rank, such as 8G; documents that find "
                         "none wait"),
    {"probe", 0, APP_INT, AT(engine.probe_every), 0, 1 << 20, "N", NULL,
     "compare the logits of one in N sparse steps with dense attention's; 0: of none", NULL, NULL,
     NULL},
    APP_OPTION_TIMEOUT(app_eval_args),

    {"resume", 'r', APP_TEXT, AT(resume), 0, 0, "FILE", NULL,
     "keep every result in this file, and do not repeat those that it holds", "Output", NULL, NULL},
    {"json", 0, APP_TEXT, AT(json), 0, 0, "FILE", NULL, "also write the summary as JSON", NULL,
     NULL, NULL},
    {"csv", 0, APP_TEXT, AT(csv), 0, 0, "FILE", NULL, "also write it as CSV", NULL, NULL, NULL},
    {"plots", 0, APP_TEXT, AT(plots), 0, 0, "FOLDER", NULL,
     "also write SVG plots of accuracy and forwards against density", NULL, NULL, NULL},
    APP_OPTION_VERBOSE(app_eval_args),
    APP_OPTION_QUIET(app_eval_args),
};

static void defaults(void *target)
{
    enum { SESSIONS = 16, TOKENS = 160, PROBE = 4 };
    app_eval_args *args = target;
    args->engine = rt_engine_options_default();
    args->engine.max_sessions = SESSIONS;
    args->engine.probe_every = PROBE;
    args->request = rt_request_default();
    args->request.max_tokens = TOKENS;
    args->policies = "dense,quest-init:128,losa:128";
    args->commit = args->engine.separate_commit;
}

static rt_status check(void *target)
{
    app_eval_args *args = target;
    if (!args->model)
        return RT_FAIL(RT_ERR_INVALID, "--model DIR is missing");
    if (!args->data)
        return RT_FAIL(RT_ERR_INVALID, "--data FILE is missing");
    RT_TRY(app_decoding_check(&args->request));
    args->engine.model_dir = args->model;
    args->engine.separate_commit = args->commit == 1;
    app_policies policies = {0}; // the run makes its own
    const rt_status status = app_policies_parse(args->policies, &policies);
    app_policies_free(&policies);
    return status;
}

const app_command app_cmd_eval = {
    .name = "eval",
    .summary = "documents through several policies: accuracy, density, forwards",
    .usage = "--model DIR --data FILE [--policies POLICY,...] [OPTION...]",
    .notes = "docs/QUALITY.md says what the columns mean and how documents are written. What ended "
             "in\nthe middle goes on with the same --resume FILE, also with more policies or other "
             "lengths.\n",
    .table = {options, sizeof options / sizeof options[0]},
    .args_size = sizeof(app_eval_args),
    .defaults = defaults,
    .check = check,
    .run = app_eval_run,
};
