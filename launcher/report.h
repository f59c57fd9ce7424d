// SPDX-License-Identifier: Apache-2.0
// What a run reports: its result as a JSON object, and plain tables.
#ifndef LAUNCHER_REPORT_H
#define LAUNCHER_REPORT_H

#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/engine/engine.h"

#include <stddef.h>
#include <stdio.h>

// The object of `losa generate --json`: text, token_ids, finish_reason, usage,
// stats. Caller owns it (json_decref). `finish` is rt_finish_name(result->finish).
rt_status app_report_result(const rt_result *result, const char *finish, json_t **out);

// Writes a value and a newline; `path` "-" is standard output. Every write error,
// also of the last buffer, is seen and names the file.
rt_status app_report_write(const json_t *value, const char *path);
// The same for several values, one a line (JSON Lines).
rt_status app_report_write_lines(json_t *const *values, size_t count, const char *path);

// The statistics side by side: results[i] is an object of app_report_result, titles[i]
// its heading. An answer is compared with the first one to the same prompt.
rt_status app_report_compare(FILE *to, json_t *const *results, const char *const *titles,
                             size_t count);

#endif
