// SPDX-License-Identifier: Apache-2.0
// The options of LoSA attention, for every command that runs it.
#ifndef LAUNCHER_ATTENTION_OPTIONS_H
#define LAUNCHER_ATTENTION_OPTIONS_H

#include "launcher/options.h"
#include "losa/policy.h"

#include <limits.h>

// A member of a command's argument struct.
typedef struct app_attention {
    losa_config config;
    int policy; // index in the policy table
    bool no_commit_scan;
} app_attention;

app_choices app_policy_choice, app_first_choice, app_scope_choice, app_locality_choice;
rt_status app_parse_rule(const char *text, void *config); // losa_config

void app_attention_defaults(app_attention *args);
// Moves the choices into the configuration and checks it.
rt_status app_attention_check(app_attention *args);

// Rows of the option table; A is the argument struct, M its app_attention member.
#define APP_ATTENTION_AT(A, M, member) (offsetof(A, M) + offsetof(app_attention, member))
// clang-format off
#define APP_OPTIONS_ATTENTION(A, M)                                                                \
    {"attention", 'a', APP_CHOICE, APP_ATTENTION_AT(A, M, policy), 0, 0, "POLICY", NULL,           \
     "who reads which pages", "Attention", app_policy_choice, NULL},                               \
    {"budget", 0, APP_INT, APP_ATTENTION_AT(A, M, config.budget), 1, INT_MAX, "N", NULL,           \
     "prefix tokens that a row, or a list made by mass, may take in a sparse step", NULL, NULL,    \
     NULL},                                                                                        \
    {"scan-budget", 0, APP_INT, APP_ATTENTION_AT(A, M, config.scan_budget), 1, INT_MAX, "N", NULL, \
     "prefix tokens that a row may add by a scan to a list made by mass: in losa-mix, and in "     \
     "commits with --first sparse",                                                                \
     NULL, NULL, NULL},                                                                            \
    {"active", 0, APP_PARSE, APP_ATTENTION_AT(A, M, config), 0, 0, "RULE", "unsettled",            \
     "losa, losa-mass, losa-mix: rows that read the prefix in later steps: all, topk:K, new+K, "   \
     "unsettled, mass:P",                                                                          \
     NULL, NULL, app_parse_rule},                                                                  \
    {"first", 0, APP_CHOICE, APP_ATTENTION_AT(A, M, config.first), 0, 0, "HOW", NULL,              \
     "first steps and commits read everything, or what a scan finds: sparse in all blocks but a "  \
     "request's first, all-sparse there too; quest always scans",                                  \
     NULL, app_first_choice, NULL},                                                                \
    {"first-budget", 0, APP_INT, APP_ATTENTION_AT(A, M, config.first_budget), 0, INT_MAX, "N",     \
     "the budget", "prefix tokens that a row may take in a first step that scans", NULL, NULL,     \
     NULL},                                                                                        \
    {"no-commit-scan", 0, APP_FLAG, APP_ATTENTION_AT(A, M, no_commit_scan), 0, 0, NULL, NULL,      \
     "with --first sparse: losa-mass, losa-mix and mage commit a block by its list alone",         \
     NULL, NULL, NULL},                                                                            \
    {"page-size", 0, APP_INT, APP_ATTENTION_AT(A, M, config.page), 4, 256, "N", NULL,              \
     "tokens in a KV page, a power of two", NULL, NULL, NULL},                                     \
    {"plan-scope", 0, APP_CHOICE, APP_ATTENTION_AT(A, M, config.scope), 0, 0, "SCOPE", NULL,       \
     "one page list for all heads, or one per KV head", NULL, app_scope_choice, NULL},             \
    {"locality", 0, APP_CHOICE, APP_ATTENTION_AT(A, M, config.locality), 0, 0, "KIND", NULL,       \
     "what topk, new+K and mass:P measure the change of a row by", NULL, app_locality_choice,      \
     NULL},                                                                                        \
    {"keep", 0, APP_REAL, APP_ATTENTION_AT(A, M, config.keep), 0, 1, "X", "by the budget",         \
     "share of the prefix that a list kept for a block takes: Sparse-dLLM 0.5, SparseD 0.3", NULL, \
     NULL, NULL},                                                                                  \
    {"skip", 0, APP_REAL, APP_ATTENTION_AT(A, M, config.skip), 0, 1, "X", NULL,                    \
     "sparsed: share of a block's steps that are dense", NULL, NULL, NULL},                        \
    {"refresh", 0, APP_INT, APP_ATTENTION_AT(A, M, config.refresh), 0, 4096, "N", NULL,            \
     "flashblock: unmasked tokens after which the prefix is read again", NULL, NULL, NULL},        \
    {"dense-layers", 0, APP_INT, APP_ATTENTION_AT(A, M, config.dense_layers), 0, 1024, "N", NULL,  \
     "first layers that always read everything", NULL, NULL, NULL},                                \
    {"check-plans", 0, APP_FLAG, APP_ATTENTION_AT(A, M, config.check_plans), 0, 0, NULL, NULL,     \
     "compare the page plans of all ranks in every layer and step", NULL, NULL, NULL}
// clang-format on

#endif
