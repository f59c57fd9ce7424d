// SPDX-License-Identifier: Apache-2.0
// losa eval: its options (cmd_eval.c) and its run (eval_run.c).
#ifndef LAUNCHER_EVAL_H
#define LAUNCHER_EVAL_H

#include "launcher/app.h"
#include "launcher/eval_documents.h"
#include "launcher/policy_spec.h"
#include "runtime/engine/engine.h"

typedef struct app_eval_args {
    app_common common;
    const char *model, *data;
    const char *policies; // app_policies_parse takes them
    app_lengths lengths;
    rt_engine_options engine; // attention is each policy's in turn
    rt_request request;
    int commit; // index in the choices of --commit
    bool plain;
    const char *resume, *json, *csv, *plots;
} app_eval_args;

rt_status app_eval_run(comm *c, void *args);

#endif
