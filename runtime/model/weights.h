// SPDX-License-Identifier: Apache-2.0
// The weights of one rank, in the shapes the forward wants: q, k and v in one
// matrix, gate and up in one matrix, each cut to the rank's heads and columns.
#ifndef RUNTIME_MODEL_WEIGHTS_H
#define RUNTIME_MODEL_WEIGHTS_H

#include "kernels/kern.h"
#include "parallel/plan.h"
#include "runtime/io/config.h"
#include "runtime/io/safetensors.h"

typedef struct rt_layer_weights {
    kern_buf *attn_norm, *mlp_norm; // f32 [hidden]
    kern_buf *qkv;                  // [(heads + 2 kv_heads) head_dim, hidden]
    kern_buf *qkv_bias;             // f32 [(heads + 2 kv_heads) head_dim], or NULL
    kern_buf *q_norm, *k_norm;      // f32 [head_dim], or NULL
    kern_buf *o;                    // [hidden, heads head_dim]
    kern_buf *gate_up;              // [2 ffn, hidden]
    kern_buf *down;                 // [hidden, ffn]
} rt_layer_weights;

typedef struct rt_weights {
    kern_buf *embed;      // [vocab shard, hidden]
    kern_buf *head;       // the same buffer as `embed` when tied
    kern_buf *final_norm; // f32 [hidden]
    int layer_count;
    rt_layer_weights *layers;
} rt_weights;

// Where the weights come from: a checkpoint, or without one random numbers of the
// configured shapes, kept as if they were stored in bf16. Random weights depend on the
// rank: shards of another split are not parts of the same matrix.
typedef struct rt_weights_source {
    const rt_checkpoint *ckpt; // NULL: random
    bool allow_nonfinite;      // else a slice that holds NaN or infinity is refused, by name
    struct rt_load_progress *progress; // NULL: nobody counts
} rt_weights_source;

// Bytes of the checkpoint that a rank has read. A dry device reads nothing and counts what
// another would.
typedef struct rt_load_progress {
    uint64_t done;
    void (*fn)(void *ctx, uint64_t done); // after each window; NULL: none
    void *ctx;
} rt_load_progress;

rt_status rt_weights_load(kern_dev *dev, const par_plan *plan, const rt_model_config *config,
                          const rt_weights_source *source, rt_weights *out);
void rt_weights_free(rt_weights *w); // safe on a partly loaded or zero struct

#endif
