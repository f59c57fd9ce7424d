// SPDX-License-Identifier: Apache-2.0
// Letters of a batch job: one frame each (proto/frame.h), checked when packed and unpacked.
#ifndef PROTO_BATCH_H
#define PROTO_BATCH_H

#include "proto/frame.h"

// Bytes of a line of input or output: a prompt of PB_TOKENS_MAX ids fits.
enum { PB_LINE_MAX = 8 << 20 };

// Appends the frame to `out`, which stays as it was on failure.
rt_status pb_letter_pack(const Pb__BatchLetter *letter, rt_str *out);
rt_status pb_letter_unpack(const void *bytes, size_t len, Pb__BatchLetter **out);
void pb_letter_free(Pb__BatchLetter *letter); // NULL is allowed

#endif
