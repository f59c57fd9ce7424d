// SPDX-License-Identifier: Apache-2.0
// Strict JSON on top of jansson: readers that name the file and the key when
// something is missing or of the wrong type or range.
#ifndef RT_BASE_JSON_H
#define RT_BASE_JSON_H

#include "runtime/base/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Parses a whole text (UTF-8; duplicate keys, trailing text and nesting beyond
// jansson's limit are refused; "\u0000" in strings is allowed). `name` is the
// file name for messages. Caller owns *out (json_decref). Where an integer of a text
// is beyond int64_t, those of 2^53 and more in size are reals.
rt_status rt_json_parse(const char *text, size_t len, const char *name, json_t **out);

// Reads and parses a file of at most `max_bytes`.
rt_status rt_json_load(const char *path, size_t max_bytes, json_t **out);

// Typed members of an object. A missing key or null leaves *out untouched (the
// caller presets the default) and returns RT_OK; set `required` to refuse that.
// A value of the wrong type, or outside [min, max], is RT_ERR_FORMAT.
rt_status rt_json_int(const json_t *obj, const char *key, const char *name, bool required,
                      int64_t min, int64_t max, int64_t *out);
rt_status rt_json_real(const json_t *obj, const char *key, const char *name, bool required,
                       double min, double max, double *out);
rt_status rt_json_bool(const json_t *obj, const char *key, const char *name, bool *out);
// *out borrows the string from `obj`.
rt_status rt_json_str(const json_t *obj, const char *key, const char *name, bool required,
                      const char **out);

#endif
