// SPDX-License-Identifier: Apache-2.0
// One rank's shard of a dense decoder (Qwen3 as in SDAR and TraDo, Qwen2.5 as in
// Fast-dLLM v2) and its forward over a batch.
#ifndef RUNTIME_MODEL_MODEL_H
#define RUNTIME_MODEL_MODEL_H

#include "losa/attention.h"
#include "parallel/linear.h"
#include "parallel/plan.h"
#include "runtime/model/weights.h"

typedef struct rt_model rt_model;

// Capacities, fixed at start.
typedef struct rt_model_limits {
    int positions; // length of the rotary tables
    int rows;      // rows of a forward
    int head_rows; // rows of one call of the head
} rt_model_limits;

// Loads this rank's slices. `group` and `config` are copied, its members borrowed.
rt_status rt_model_open(const par_group *group, const par_plan *plan, const rt_model_config *config,
                        const rt_model_limits *limits, const rt_weights_source *source,
                        rt_model **out);
void rt_model_close(rt_model *m);

// The transformer layers and the final norm. `kv` has one entry per layer. The result
// stays inside the model for rt_model_head.
rt_status rt_model_forward(rt_model *m, const kern_batch *batch, losa_state *attention,
                           const kern_kv *kv);

// Logits of `rows` rows of the last forward, chosen by index (i32 [rows] on the device).
// Returns f32 [rows, shard of the vocabulary], owned by the model, valid until the
// next call.
rt_status rt_model_head(rt_model *m, const kern_buf *index, int rows, const kern_buf **logits);

#endif
