// SPDX-License-Identifier: Apache-2.0
// The parts of the checkpoint configuration reader. Each function validates what
// it reads and fills its own fields of the config.
#ifndef RUNTIME_IO_CONFIG_INT_H
#define RUNTIME_IO_CONFIG_INT_H

#include "runtime/base/json.h"
#include "runtime/io/config.h"

enum {
    RT_CONFIG_MAX_VOCAB = 1 << 24,
    RT_CONFIG_MAX_POSITIONS = 1 << 30,
    RT_CONFIG_MAX_BYTES = 256 << 20, // of a JSON file; tokenizer.json is the large one
    RT_ARCH_MAX_STOPS = 2,
};

// What an architecture's name implies and config.json does not say.
typedef struct rt_architecture {
    const char *name;       // of `architectures`
    const char *model_type; // when `architectures` is absent
    bool qkv_bias, qk_norm, shifted;
    bool reads_attention_bias; // transformers gives all four projections a bias then
    int head_dim;              // where the key is absent; 0: hidden_size / heads
    int block_length, sub_block;
    int mask_id; // -1: has none
    int stop_ids[RT_ARCH_MAX_STOPS];
    int stop_count;
} rt_architecture;

// The one of this name; NULL: not known.
const rt_architecture *rt_config_architecture(const char *name);

// A parsed config.json and where it was found.
typedef struct rt_config_source {
    const char *dir;
    const char *path; // of config.json, for messages
    const json_t *json;
    const rt_architecture *arch;
} rt_config_source;

// An integer member in [min, max]; absent leaves *out.
rt_status rt_config_int(const json_t *obj, const char *key, const char *name, bool required,
                        int min, int max, int *out);

// Parses "dir/name"; *out is NULL when there is no such file.
rt_status rt_config_load_optional(const char *dir, const char *name, char *path, size_t path_size,
                                  json_t **out);

// rope, max_positions
rt_status rt_config_read_rope(const rt_config_source *src, rt_model_config *out);

// block_length, default_sub_block
rt_status rt_config_find_block(const rt_config_source *src, int override, rt_model_config *out);
// The same from a block length that is known, and where it came from.
void rt_config_set_block(const rt_architecture *arch, int length, const char *source,
                         rt_model_config *out);
// mask_id; needs vocab
rt_status rt_config_find_mask(const rt_config_source *src, int override, rt_model_config *out);

// stop ids, temperature, top_k, top_p; needs vocab
rt_status rt_config_read_generation(const rt_config_source *src, rt_model_config *out);

#endif
