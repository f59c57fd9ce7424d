// SPDX-License-Identifier: Apache-2.0
// Rank 0's choice of the next step command: who is released, who is admitted, and
// which segments the forward runs.
#ifndef RUNTIME_ENGINE_COMMAND_H
#define RUNTIME_ENGINE_COMMAND_H

#include "proto/frame.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/session.h"

// One prompt that is being read.
typedef struct rt_reader {
    rt_session *session;
    int left;  // tokens of the prompt
    int count; // in this forward
} rt_reader;

// Made anew for every step, in the same memory. Borrows the sessions' memory.
typedef struct rt_command {
    Pb__Step step;
    Pb__Request *admit;    // [max_sessions]
    Pb__Segment *segments; // [2 max_sessions], those of one request next to each other
    Pb__Request **admit_ptr;
    Pb__Segment **segment_ptr; // in losa_kind_order
    uint32_t *release;         // [max_sessions]
    rt_reader *readers;        // [max_sessions]
    int admits, count, releases;
} rt_command;

rt_status rt_command_open(int max_sessions, rt_command *out);
void rt_command_close(rt_command *c); // safe on a zero struct

// Also books what the command does on rank 0: slots, pages, the sessions' states.
rt_status rt_command_make(rt_engine *e, rt_command *c);

// Whether the command changes nothing.
bool rt_command_is_empty(const rt_command *c);
// Whether segment i + 1 is of the same request: a commit beside a first step.
bool rt_command_continues(const rt_command *c, int i);

#endif
