// SPDX-License-Identifier: Apache-2.0
// The state of LoSA attention, shared by state.c (opens and closes it) and
// attention.c (runs a layer).
//
// It owns three kinds of device memory: per layer, what outlives a step (remembered
// tokens, cached (o_p, L_p), kept page lists); for the layer being computed, the plan and
// the partial results; per forward, the counters. Policies without reuse keep one
// cache row, so that the kernels need no second form.
#ifndef LOSA_LOSA_INT_H
#define LOSA_LOSA_INT_H

#include "losa/attention.h"

typedef struct layer_cache {
    kern_buf *prev;       // f32 [slots, prev_cols]
    kern_buf *o, *lse;    // f32 [slots, heads, head_dim], [slots, heads]
    kern_kept_lists kept; // of policies that choose by mass
} layer_cache;

// Host copy of the plan, with all lists; made by the first losa_observe.
typedef struct losa_copy {
    int32_t *act_rows, *act_count, *pages, *page_count;
    int32_t *gathered; // from the ranks, before it is put in order
} losa_copy;

struct losa_state {
    par_group group;
    losa_config config;
    losa_limits limits;
    int heads, kv_heads;
    int all_lists;          // of all ranks; those of copies of a KV head count once
    int score_lists, list0; // of the exchanged page scores
    bool exchange_scores;
    bool needs_delta; // the active rule looks at the change of the tokens
    losa_reading reading[KERN_SEG_KINDS];
    bool scans, measures; // some kind does
    bool by_keys;         // what is measured are keys, not attention
    int prev_cols;
    long long forward; // number of losa_begin, for messages
    int planned_segs;  // sparse segments for which the plan's active rows hold; -1: none
    layer_cache *layers;
    kern_plan plan;
    kern_buf *delta;    // f32 [rows]
    kern_buf *score;    // f32 [segs, score_lists, act_cap, max_pages]
    kern_buf *page_lse; // f32 [sessions, block, heads, max_pages]
    kern_buf *keys;     // f32 [sessions, score_lists, max_pages * page]
    kern_buf *mass;     // f32 [sessions, score_lists, max_pages]
    kern_buf *o, *lse;  // f32 [rows, heads, head_dim], [rows, heads]
    kern_buf *counts;   // i64 [segs, KERN_COUNT_N]
    kern_buf *checksum; // i32 [2]
    losa_observer *observer;
    void *observer_ctx;
    losa_copy copy; // of the plan, for the observer
    losa_marker *marker;
    void *marker_ctx;
};

// Tells the marker, if there is one, that a stage has been enqueued.
rt_status losa_mark(const losa_state *s, losa_stage stage);

// Shows the plan of a layer to the observer, if there is one. Collective then.
rt_status losa_show(losa_state *s, int layer, const kern_batch *batch);

// The active rule in force: policies without reuse let every token read.
kern_active_rule losa_effective_rule(const losa_config *config);

#endif
