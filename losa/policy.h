// SPDX-License-Identifier: Apache-2.0
// Sparse-attention policies. A policy answers three questions per layer and step:
// which tokens of the block read the prefix, which pages they read, and what the
// other tokens do. Its schedule says in which steps. Adding one is one row of the table in
// policy.c.
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
    LOSA_PAGES_KEYS, // the pages of the keys nearest to the block's mean query
} losa_pages;

// Which steps of a block, after its first, are not sparse steps (LOSA's STEP).
typedef enum losa_schedule {
    LOSA_STEPS_PLAIN,  // none
    LOSA_STEPS_SKIP,   // the first skip * T of its T steps and one more are as dense as the first
    LOSA_STEPS_DELAY,  // the second is
    LOSA_STEPS_REFRESH // those before which few tokens were unmasked: all rows reuse
} losa_schedule;

typedef struct losa_policy {
    const char *name;
    const char *summary;
    losa_readers readers; // in later steps of a block
    losa_pages pages;     // in later steps of a block
    losa_schedule schedule;
    bool sparse_open; // even a request's very first step is sparse
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

// First steps that are QUEST passes by all tokens.
typedef enum losa_first {
    LOSA_FIRST_DENSE,  // none
    LOSA_FIRST_SPARSE, // those of later blocks, and commits
    LOSA_FIRST_ALL     // that of a request's first block too
} losa_first;

typedef struct losa_config {
    const losa_policy *policy;
    int budget;       // prefix tokens one row, or a kept list, may take
    int first_budget; // prefix tokens one row may take in a first step that scans; 0: budget
    int scan_budget;  // MIX: prefix tokens one row may add to that list by its scan
    double keep;      // share of the prefix's pages that a kept list takes, 0 .. 1; 0: by budget
    int page;         // tokens in a page: a power of two, 4 .. 256
    kern_active_rule rule;
    int active_k;        // of TOPK and NEW_TOPK
    double active_share; // of SHARE
    losa_first first;
    bool commit_scan; // with sparse first steps: committed rows of kept lists scan too
    int dense_layers; // the first layers always read everything
    double skip;      // STEPS_SKIP: share of a block's steps, 0 .. 1
    int refresh;      // STEPS_REFRESH: unmasked tokens after which the prefix is read again
    losa_scope scope;
    losa_locality locality;
    bool check_plans; // all-reduce a checksum of every plan
} losa_config;

// losa, budget 256, scan budget 64, `unsettled`, dense first steps, page 8, no dense
// layers, head, query (docs/QUALITY.md); SparseD's skip 0.2, FlashBlock's refresh 2.
losa_config losa_config_default(void);
// RT_ERR_INVALID, naming the parameter and its range.
rt_status losa_config_check(const losa_config *config);
// "all", "topk:K", "new+K", "unsettled", "mass:P" -> rule and active_k or active_share.
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

// Where a block stands before a later step.
typedef struct losa_block {
    int step, steps; // steps it has had, at least 1, and may have
    int unread;      // tokens unmasked since its rows last read the prefix
} losa_block;
// KERN_SEG_STEP, KERN_SEG_EARLY or KERN_SEG_REST.
int losa_step_kind(const losa_config *config, const losa_block *block);

// Pages that `tokens` fill, the last maybe in part.
int losa_pages_of(const losa_config *config, int tokens);

#endif
