// SPDX-License-Identifier: Apache-2.0
// A checkpoint folder's config.json, generation_config.json and
// tokenizer_config.json -> what the runtime needs to know about the model.
#ifndef RUNTIME_IO_CONFIG_H
#define RUNTIME_IO_CONFIG_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RT_CONFIG_MAX_STOPS = 16,
    RT_CONFIG_MAX_BLOCK = 1024,
    RT_CONFIG_MAX_CONTEXT = 1 << 20, // tokens that are used of a longer context
};

typedef enum rt_rope_kind { RT_ROPE_PLAIN, RT_ROPE_LINEAR, RT_ROPE_YARN } rt_rope_kind;

// `rope_scaling` / `rope_parameters` as transformers defines them.
typedef struct rt_rope_config {
    rt_rope_kind kind;
    double theta;
    double factor;           // 1 for PLAIN
    int original_positions;  // YARN: original_max_position_embeddings
    double attention_factor; // YARN: multiplies cos and sin; 0.1 ln(factor) + 1 by default
    double beta_fast, beta_slow;
    bool truncate;
} rt_rope_config;

typedef struct rt_model_config {
    char architecture[64]; // as config.json names it
    int hidden, ffn, layers, heads, kv_heads, head_dim, vocab;
    int max_positions; // context length, with rope scaling applied; RT_CONFIG_MAX_CONTEXT at most
    double rms_eps;
    rt_rope_config rope;
    bool qkv_bias, qk_norm, tied_head;
    bool shifted;          // row i predicts token i + 1 (Fast-dLLM v2)
    int default_sub_block; // positions unmasked left to right in groups; 0 = whole block

    int block_length;
    const char *block_source; // where it came from, for messages
    int mask_id;              // -1: unknown (requests for an answer are then refused)
    const char *mask_source;

    int stop_ids[RT_CONFIG_MAX_STOPS];
    int stop_count;
    // What the files name outside the vocabulary can never come out of the model: it is left
    // out, and counted here for rt_config_warn.
    int stops_outside;
    bool mask_outside;
    double temperature; // generation_config.json defaults; 0 when do_sample is false
    int top_k;
    double top_p;
} rt_model_config;

// What the command line may force; 0 / -1 = take it from the checkpoint.
typedef struct rt_config_overrides {
    int block_length; // 0 = not given
    int mask_id;      // -1 = not given
} rt_config_overrides;

// Reads and validates. Block length: override, then config.json (block_size,
// block_length, bd_size), then the folder name's suffix -bNN, then the
// architecture's default. Mask id: override, then config.json (mask_token_id),
// then the tokenizer's mask token, then the architecture's default. Ids outside the
// vocabulary: a stop id is left out, such a mask means that there is none. An unknown
// architecture is RT_ERR_UNSUPPORTED, with the known ones listed.
rt_status rt_config_load(const char *model_dir, const rt_config_overrides *overrides,
                         rt_model_config *out);
// Logs what of the files was left out; for whoever opens a model, on one rank.
void rt_config_warn(const rt_model_config *config, const char *model_dir);

// Published checkpoints whose configuration is known without their files, for measuring
// speed with random weights. The i-th name; NULL after the last.
const char *rt_config_published_name(size_t i);
// The i-th configuration, i < their number. Block length and mask id: override, then the
// architecture's default.
rt_status rt_config_published(size_t i, const rt_config_overrides *overrides, rt_model_config *out);

#endif
