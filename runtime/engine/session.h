// SPDX-License-Identifier: Apache-2.0
// Rank 0's side of a request: its parameters, the text that grows, the stops, and
// the result at the end.
#ifndef RUNTIME_ENGINE_SESSION_H
#define RUNTIME_ENGINE_SESSION_H

#include "proto/frame.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/pagebook.h"
#include "runtime/engine/slot.h"
#include "runtime/text/tokenizer.h"

typedef struct rt_session rt_session;
struct rt_session {
    rt_session *next;
    rt_session_id id;
    rt_request request; // numbers and callbacks, defaults filled in; borrows no memory
    char **stops;       // copies, [stops_len of request]
    rt_ids prompt;
    int turn_end;       // a stop id besides the model's; -1: none
    int slot;           // -1 until admitted
    rt_holding holding; // its KV pages: taken while it has a slot
    uint64_t refused;   // what the page book had got back when there was no room; none yet: 0

    rt_ids output;   // generated tokens known so far, without a stop id
    int known;       // generated positions looked at, the stop id included
    rt_detok *detok; // NULL when the model has no tokenizer
    rt_str text;
    size_t emitted; // bytes of `text` given to on_text
    bool finished, releasing;
    rt_finish finish;

    int blocks, steps, forwards, prefill_forwards, shared_tokens;
    rt_probed probed;
    double admitted_at, prefilled_at, finished_at;
};

// Checks the request against the model, tokenises it and fills in the defaults. With max_tokens 0
// nothing will be denoised, and the prompt may fill the context.
rt_status rt_session_new(const rt_engine *e, const rt_request *request, rt_session **out);
void rt_session_free(rt_session *s);
// The prompt's tokens, checked; `e` needs a configuration and, if there is text, a tokenizer.
rt_status rt_session_prompt(const rt_engine *e, const rt_request *r, rt_ids *out);

// The text not given out yet, but for what may become a stop string.
void rt_session_emit(rt_session *s);

// After a forward: takes the tokens that are now known up to the first mask, decides
// whether the request is done, and gives out text when a block is complete.
rt_status rt_session_progress(const rt_engine *e, rt_session *s, const rt_slot *slot);

// Gives out the text that is left and delivers the result; `results` [ranks] is what the
// ranks counted, or NULL when the request never ran.
void rt_session_deliver(const rt_engine *e, rt_session *s, Pb__Result *const *results);

// The admission message. Borrows the session's memory; free with rt_free on `pages`.
rt_status rt_session_message(const rt_engine *e, const rt_session *s, Pb__Request *out);

#endif
