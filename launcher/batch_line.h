// SPDX-License-Identifier: Apache-2.0
// A line of a batch's input, as OpenAI's Batch API has it, and the request that it asks for.
//
//   {"custom_id": TEXT, "method": "POST", "url": "/v1/chat/completions" or "/v1/completions",
//    "body": {...}}
//
// What of the body has no meaning here is refused by name unless it asks for nothing ("n": 1).
#ifndef LAUNCHER_BATCH_LINE_H
#define LAUNCHER_BATCH_LINE_H

#include "runtime/base/json.h"
#include "runtime/engine/engine.h"

typedef struct app_batch_line {
    json_t *root;          // owns the texts
    const char *custom_id; // NULL: none that a record could name
    const json_t *body;
    bool chat; // the url
} app_batch_line;

// The envelope alone. On failure `out` may hold the custom_id nevertheless; close it in any
// case. Messages do not say which line it is.
rt_status app_batch_line_open(const char *text, size_t len, app_batch_line *out);
void app_batch_line_close(app_batch_line *line);

// How long the request will take, in forwards, as far as it can be told without a tokenizer.
// `max_tokens`: where the line does not say.
double app_batch_line_need(const app_batch_line *line, int max_tokens);
// Equal for requests whose prompts begin alike, for a good while; 0: the prompt is short.
uint64_t app_batch_line_prefix(const app_batch_line *line);

typedef struct app_batch_request {
    rt_request request; // borrows from the line and from what follows
    rt_turn *turns;
    rt_str *texts; // [turns], of contents that came in parts
    size_t turns_len;
    int32_t *ids;
    const char **stops;
    bool token_ids; // the record is to hold them
} app_batch_request;

// The line's request over the defaults. `model`: its name, if the body gives one.
// Free it in any case.
rt_status app_batch_request_make(const app_batch_line *line, const rt_request *defaults,
                                 const char *model, app_batch_request *out);
void app_batch_request_free(app_batch_request *request);

#endif
