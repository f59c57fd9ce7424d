// SPDX-License-Identifier: Apache-2.0
// LoSA attention of one layer (arXiv 2604.12056): locality -> active set -> page
// plan -> prefix attention -> in-block attention and merge, over the ranks of a
// tensor-parallel group. The order of collectives is the same on every rank: it
// depends only on the configuration and on the batch's host-side counts.
#ifndef LOSA_ATTENTION_H
#define LOSA_ATTENTION_H

#include "losa/policy.h"
#include "parallel/linear.h"
#include "parallel/plan.h"

// Capacities, fixed at start.
typedef struct losa_limits {
    int layers;
    int head_dim, hidden;
    int block;
    int rows;      // rows in a batch
    int segs;      // segments in a batch
    int max_pages; // pages of one request
    int sessions;  // requests that run at the same time
} losa_limits;

// Remembered queries and (o_p, L_p) of every running block, and the plan of the
// layer being computed.
typedef struct losa_state losa_state;

rt_status losa_open(const par_group *group, const par_plan *plan, const losa_config *config,
                    const losa_limits *limits, losa_state **out);
void losa_close(losa_state *s);

// Where segments of this kind (KERN_SEG_*) stand in a batch: those that scan first (0),
// then the others with a plan, of a kept list or of no reader at all (1), then those that read
// everything (2).
int losa_kind_order(const losa_config *config, int seg_kind);

// Whether blocks keep (o_p, L_p) and remembered tokens from step to step: the engine
// then gives the rows of the block being denoised a cache_slot, else -1.
bool losa_uses_cache(const losa_config *config);

// One layer. qkv [rows, (heads + 2 kv_heads) head_dim] after q/k norm and RoPE, x [rows,
// hidden] the layer's input; writes the rows to be committed to `kv`, and the
// attention output to out [rows, heads * head_dim] (local heads). Buffers borrowed.
typedef struct losa_layer_args {
    int layer;
    const kern_batch *batch;
    const kern_buf *qkv;
    const kern_buf *x;
    kern_kv kv;
    kern_buf *out;
} losa_layer_args;
rt_status losa_layer(losa_state *s, const losa_layer_args *args);

// Start of a forward: clears the counters of its `segs` segments.
rt_status losa_begin(losa_state *s, int segs);
// What a layer decided, on the host. Arrays as in kern_plan, valid during the call, but with
// the lists of all ranks.
typedef struct losa_view {
    int layer;
    const kern_batch *batch; // as this layer ran it: a dense layer has no sparse segments
    int lists;               // 1, or one per KV head of the model, in their order
    const int32_t *act_rows, *act_count;
    const int32_t *pages, *page_count;
} losa_view;
typedef rt_status losa_observer(void *ctx, const losa_view *view);

// From now on `observer` sees every layer's plan, before anybody reads by it; NULL ends
// that. On all ranks or on none: they exchange their lists. It costs a copy and a wait for
// the device in every layer: for traces and tests.
rt_status losa_observe(losa_state *s, losa_observer *observer, void *ctx);

// The stages of a layer. Exchanges are those of deltas, scores and masses.
typedef enum losa_stage {
    LOSA_STAGE_WRITE, // K, V and metadata of committed rows
    LOSA_STAGE_LOCALITY,
    LOSA_STAGE_EXCHANGE,
    LOSA_STAGE_ACTIVE,
    LOSA_STAGE_SCORE,  // of pages, where ranks add them up
    LOSA_STAGE_SELECT, // choice of pages; elsewhere their scores too
    LOSA_STAGE_COUNT,  // counters of segments without a plan
    LOSA_STAGE_ATTEND, // to the prefix and the own block
    LOSA_STAGE_MASS,
    LOSA_STAGES
} losa_stage;
const char *losa_stage_name(losa_stage stage);

// Called when the work of a stage has been enqueued.
typedef rt_status losa_marker(void *ctx, losa_stage stage);

// From now on `marker` is called at the end of every stage that runs; NULL ends that.
// For benchmarks.
void losa_mark_stages(losa_state *s, losa_marker *marker, void *ctx);

// i64 [segs, KERN_COUNT_N], summed over the layers since losa_begin (this rank's lists).
const kern_buf *losa_counts(const losa_state *s);

#endif
