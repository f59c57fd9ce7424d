// SPDX-License-Identifier: Apache-2.0
// Frames of the control plane: a 4-byte little-endian length, then one packed
// message of losa.proto.
//
// Both directions check every field against the limits below, so that a bad step
// fails on the rank that builds it and bytes from elsewhere never reach the
// engine unchecked: RT_ERR_FORMAT with the field and its value. Fields this
// version does not know are refused; all ranks run the same program. Whether a
// slot or a page exists is for the engine to know.
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include "proto/losa.pb-c.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"

#include <stddef.h>

enum {
    PB_FRAME_HEAD = 4,
    // With the head. A prompt and its pages of the sizes below take 6 MiB (3 bytes an entry).
    PB_FRAME_MAX = 16 << 20,
    PB_RESULT_FRAME_MAX = 192, // 15 fields of at most 11 bytes, in a frame

    PB_TOKENS_MAX = 1 << 20,             // of a prompt or an answer: beyond any context in use
    PB_POSITION_MAX = 2 * PB_TOKENS_MAX, // within a prompt and its answer
    PB_PAGES_MAX = 1 << 20,              // a page holds at least one token
    PB_SLOTS_MAX = 1 << 16,              // requests that run at the same time
    PB_RANKS_MAX = 1 << 16,
    PB_SEGMENTS_MAX = 2 * PB_SLOTS_MAX, // of a slot: a commit and the first step behind it
    PB_SEGMENT_KINDS = 7,               // KERN_SEG_PREFILL .. KERN_SEG_REST
    PB_STRATEGIES = 4,                  // RT_STRATEGY_SEQUENTIAL .. RT_STRATEGY_ENTROPY
};

// Appends one frame to `out`, which stays as it was on failure.
rt_status pb_step_pack(const Pb__Step *step, rt_str *out);
rt_status pb_result_pack(const Pb__Result *result, rt_str *out);

// Bytes of the frame, head included, at the start of `bytes`; RT_ERR_FORMAT if it
// is not whole. For frames that lie in slots of a fixed size.
rt_status pb_frame_size(const void *bytes, size_t len, size_t *out);

// One frame that fills `len` exactly. Free with pb_*_free.
rt_status pb_step_unpack(const void *bytes, size_t len, Pb__Step **out);
rt_status pb_result_unpack(const void *bytes, size_t len, Pb__Result **out);

void pb_step_free(Pb__Step *step); // NULL is allowed
void pb_result_free(Pb__Result *result);

#endif
