// SPDX-License-Identifier: Apache-2.0
// What the files of proto/ share: checks of fields, and frames of any message.
#ifndef PROTO_FRAME_INT_H
#define PROTO_FRAME_INT_H

#include "proto/frame.h"

#include <stdint.h>

// RT_ERR_FORMAT, naming the field and its value.
rt_status pb_check_int(const char *field, uint64_t value, uint64_t min, uint64_t max);
rt_status pb_check_known(const char *message, const ProtobufCMessage *base);

// Appends one frame to `out`.
rt_status pb_pack(const ProtobufCMessage *message, rt_str *out);
// One frame that fills `len` exactly; the fields are not checked yet.
rt_status pb_unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t len,
                    ProtobufCMessage **out);
void pb_free_message(ProtobufCMessage *message); // NULL is allowed

#endif
