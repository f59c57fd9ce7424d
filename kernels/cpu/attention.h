// SPDX-License-Identifier: Apache-2.0
// The two halves of attention on the CPU: attention.c has the prefix and runs both,
// attn_merge.c the rows' own blocks and the merge.
#ifndef KERNELS_CPU_ATTENTION_H
#define KERNELS_CPU_ATTENTION_H

#include "kernels/kern_int.h"

// A head of a row of qkv: query heads, then K, then V.
static inline const float *attn_qkv_head(const kern_attn_args *args, int row, int head)
{
    const size_t heads = (size_t)args->heads + 2 * (size_t)args->kv.kv_heads;
    return kern_cf32(args->qkv) + ((size_t)row * heads + (size_t)head) * (size_t)args->kv.head_dim;
}

// Rows are whole blocks, cache slots exist, and the scratch suffices.
rt_status attn_check_blocks(const kern_dev *dev, const kern_attn_args *args);

// In-block attention, merged with what the prefix left in args->o and args->lse.
void attn_merge_blocks(kern_dev *dev, const kern_attn_args *args);

#endif
