// SPDX-License-Identifier: Apache-2.0
// The finished results of losa eval, by policy and document. With a file they outlive the
// run: a line of JSON each, on the disk before the next one is added.
//
// The first line says what the results are of. Results of another model, other documents or
// other options are refused. A last line that a crash cut short is dropped.
#ifndef LAUNCHER_EVAL_STORE_H
#define LAUNCHER_EVAL_STORE_H

#include "runtime/base/json.h"

// What results depend on, besides the policy and the document.
typedef struct app_setting {
    uint64_t model, data; // hashes
    const char *options;  // text
} app_setting;

typedef struct app_store app_store;

// `path` NULL: in memory only. The file is made when there is none. One process at a time.
rt_status app_store_open(const char *path, const app_setting *setting, app_store **out);
void app_store_close(app_store *store);
// NULL: not finished. Borrowed.
const json_t *app_store_find(const app_store *store, const char *policy, const char *document);
// Takes a new reference to `result`, an object; sets its keys "policy" and "document".
rt_status app_store_add(app_store *store, const char *policy, const char *document, json_t *result);

#endif
