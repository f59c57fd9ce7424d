// SPDX-License-Identifier: Apache-2.0
// Sparse-attention policies. A policy answers three questions per layer and step:
// which tokens of the block read the prefix, which pages they read, and what the
// other tokens do. Adding one is one row of the table in policy.c.
#ifndef LOSA_POLICY_H
#define LOSA_POLICY_H

#include "kernels/kern.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef enum losa_readers {
    LOSA_READ_ALL,    // every token of the block reads
    LOSA_READ_ACTIVE, // the active ones read; the others reuse their (o_p, L_p)
} losa_readers;

typedef enum losa_pages {
    LOSA_PAGES_ALL,  // the whole prefix
    LOSA_PAGES_SCAN, // union of the readers' QUEST lists
    LOSA_PAGES_MASS, // the pages of most attention mass in the block's first step
    LOSA_PAGES_MIX,  // both: that list, and a small scan
} losa_pages;

typedef struct losa_policy {
    const char *name;
    const char *summary;
    losa_readers readers; // in later steps of a block
    losa_pages pages;     // in later steps of a block
    bool sparse_open;     // even a request's very first step is sparse
} losa_policy;

size_t losa_policy_count(void);
const losa_policy *losa_policy_at(size_t i);
const losa_policy *losa_policy_find(const char *name); // NULL when unknown

typedef enum losa_scope {
    LOSA_SCOPE_SHARED, // one page list per layer for all heads of all ranks
    LOSA_SCOPE_HEAD,   // one list per KV head
} losa_scope;

typedef enum losa_locality {
    LOSA_LOCALITY_QUERY,  // change of the query vectors; summed over the ranks
    LOSA_LOCALITY_HIDDEN, // change of the layer's input; no exchange
} losa_locality;

typedef struct losa_config {
    const losa_policy *policy;
    int budget;      // prefix tokens one row, or a list by mass, may take
    int scan_budget; // MIX: prefix tokens one row may add to that list by its scan
    int page;        // tokens in a page: a power of two, 4 .. 256
    kern_active_rule rule;
    int active_k;      // of TOPK and NEW_TOPK
    bool first_sparse; // first steps of later blocks are QUEST passes by all tokens
    bool commit_scan;  // with it: committed rows of MASS and MIX policies scan too
    int dense_layers;  // the first layers always read everything
    losa_scope scope;
    losa_locality locality;
    bool check_plans; // all-reduce a checksum of every plan
} losa_config;

// losa, budget 256, scan budget 64, `unsettled`, dense first steps, page 16, no dense
// layers, shared, query.
losa_config losa_config_default(void);
// RT_ERR_INVALID, naming the parameter and its range.
rt_status losa_config_check(const losa_config *config);
// "all", "topk:K", "new+K", "unsettled" -> rule and active_k.
rt_status losa_config_parse_rule(const char *text, losa_config *config);
// The text of the rule, as it is parsed.
void losa_config_rule_text(const losa_config *config, char *out, size_t size);

// How segments of a kind (KERN_SEG_*) read the prefix under a configuration.
typedef struct losa_reading {
    bool sparse;             // by a page plan; otherwise everything
    kern_page_choice choice; // of the plan
    bool measures;           // its pages' attention mass makes the request's kept list
} losa_reading;
losa_reading losa_reading_of(const losa_config *config, int seg_kind);

// Pages that `tokens` fill, the last maybe in part.
int losa_pages_of(const losa_config *config, int tokens);

#endif
