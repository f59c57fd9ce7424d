// SPDX-License-Identifier: Apache-2.0
// A line of a batch's output, as OpenAI's Batch API has it: JSON on one line, without its end.
#ifndef LAUNCHER_BATCH_RECORD_H
#define LAUNCHER_BATCH_RECORD_H

#include "runtime/base/str.h"
#include "runtime/engine/engine.h"

#include <stdbool.h>
#include <stdint.h>

// Which request a record is of. Its ids follow from the job and the line: a request that is
// answered again has the same ones.
typedef struct app_batch_key {
    uint64_t job, line;
    const char *custom_id; // NULL: null
    const char *model;
    bool chat;
    bool token_ids; // the record of an answer holds them
} app_batch_key;

// Both append to `out`.
rt_status app_batch_record_answer(const app_batch_key *key, const rt_result *result, rt_str *out);
// `status` as in HTTP: 400, or 500 where it was not the request's fault. `message` may quote a
// text that was cut within a character.
rt_status app_batch_record_error(const app_batch_key *key, int status, const char *message,
                                 rt_str *out);
// Whether a record says that its request failed.
bool app_batch_record_is_error(const char *record, size_t len);

#endif
