// SPDX-License-Identifier: Apache-2.0
// A policy in one word, for commands that compare several:
//
//   NAME[:BUDGET[+SCAN]][:WORD]...
//
// A WORD is an attention option of `losa generate` without its dashes (first=sparse,
// plan-scope=head, no-commit-scan), or an active rule. Behind NAME, a colon before a
// digit belongs to the word: losa:128:topk:5 has the rule topk:5.
#ifndef LAUNCHER_POLICY_SPEC_H
#define LAUNCHER_POLICY_SPEC_H

#include "losa/policy.h"
#include "runtime/base/str.h"

typedef struct app_policy {
    char *text;   // as it was given
    char *key;    // every option spelled out: equal keys, equal policies
    char *family; // `key` without the budget: policies of one curve
    losa_config config;
} app_policy;

typedef struct app_policies { // zero-initialise
    app_policy *items;
    size_t count;
} app_policies;

rt_status app_policy_parse(const char *text, losa_config *out);
// Appends what `key` is of a configuration.
rt_status app_policy_describe(const losa_config *config, rt_str *out);
// Comma-separated; the same policy twice is refused. `out` may hold some on failure too.
rt_status app_policies_parse(const char *list, app_policies *out);
void app_policies_free(app_policies *policies);

#endif
