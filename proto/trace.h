// SPDX-License-Identifier: Apache-2.0
// Traces of page plans (losa generate --trace-plans): PB_TRACE_MAGIC, then frames of
// TraceEntry: a head, any number of plans, and an end that counts them.
//
// As in proto/frame.h both directions check every field; what does not fit the head is
// refused by the reader: RT_ERR_FORMAT.
#ifndef PROTO_TRACE_H
#define PROTO_TRACE_H

#include "proto/frame.h"

#include <stdbool.h>
#include <stdint.h>

#define PB_TRACE_MAGIC "losa plans 1\n"

enum {
    PB_TRACE_NAME_MAX = 64, // bytes of a name, printable ASCII
    PB_TRACE_SHAPE_MAX = 1 << 20,
};

// Appends one frame to `out`, which stays as it was on failure.
rt_status pb_trace_pack(const Pb__TraceEntry *entry, rt_str *out);

// Reads a trace that lies in memory; borrows it.
typedef struct pb_trace {
    const unsigned char *bytes;
    size_t len, at;
    Pb__TraceEntry *head; // of the file
    uint64_t plans;       // read so far
} pb_trace;

// Reads magic and head. Close after success.
rt_status pb_trace_open(const void *bytes, size_t len, pb_trace *out);
// The next plan, or NULL after the last one of a file that is whole. Free with
// pb_trace_free; the plan is out->plan.
rt_status pb_trace_next(pb_trace *trace, Pb__TraceEntry **out);
void pb_trace_close(pb_trace *trace);
void pb_trace_free(Pb__TraceEntry *entry); // NULL is allowed

// Tokens and pages before the last block of a plan's segment: its prefix.
uint32_t pb_trace_prefix(const pb_trace *trace, const Pb__TracePlan *plan);
uint32_t pb_trace_pages(const pb_trace *trace, const Pb__TracePlan *plan);
// Prefix tokens that a list of the plan covers; none when nobody reads.
uint32_t pb_trace_tokens(const pb_trace *trace, const Pb__TracePlan *plan, size_t list);

#endif
