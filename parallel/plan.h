// SPDX-License-Identifier: Apache-2.0
// Tensor-parallel shards: which part of each axis belongs to a rank.
// Attention heads, MLP columns and the vocabulary are split (Megatron-LM, arXiv
// 1909.08053); norms are replicated. With more ranks than KV heads, each KV head
// is replicated on ranks / kv_heads consecutive ranks.
#ifndef PARALLEL_PLAN_H
#define PARALLEL_PLAN_H

#include "runtime/base/status.h"

#include <stdint.h>

typedef struct par_shape {
    int heads, kv_heads, ffn, vocab;
} par_shape;

typedef struct par_range {
    int first, count;
} par_range;

typedef struct par_plan {
    int rank, ranks;
    par_range heads;    // query heads of this rank
    par_range kv_heads; // the KV heads they use
    int kv_replicas;    // ranks that hold a copy of the same KV head
    par_range ffn;      // columns of gate and up, rows of down
    par_range vocab;    // rows of the embedding and the head; the last may be short
    int vocab_rows;     // of every rank but the last
} par_plan;

// RT_ERR_UNSUPPORTED with the numbers when heads, kv_heads (or ranks over
// kv_heads) or ffn do not divide.
rt_status par_plan_make(const par_shape *shape, int rank, int ranks, par_plan *out);

#endif
