// SPDX-License-Identifier: Apache-2.0
// Configurations of published checkpoints, from their config.json files: SDAR (JetLM)
// and Fast-dLLM v2 (Efficient-Large-Model). Sizes only; the rest is the architecture's.
#include "runtime/io/config_int.h"

#include <string.h>

typedef struct published {
    const char *name, *architecture;
    int layers, hidden, heads, kv_heads, ffn, vocab;
} published;

enum { HEAD_DIM = 128, POSITIONS = 32768 }; // of all of them

static const published models[] = {
    {"sdar-8b", "SDARForCausalLM", 36, 4096, 32, 8, 12288, 151936},
    {"sdar-4b", "SDARForCausalLM", 36, 2560, 32, 8, 9728, 151936},
    {"sdar-1.7b", "SDARForCausalLM", 28, 2048, 16, 8, 6144, 151936},
    {"fast-dllm-v2-7b", "Fast_dLLM_QwenForCausalLM", 28, 3584, 28, 4, 18944, 152064},
};
enum { MODELS = sizeof models / sizeof *models };

const char *rt_config_published_name(size_t i)
{
    return i < MODELS ? models[i].name : NULL;
}

static rt_status override(const rt_architecture *arch, const rt_config_overrides *o,
                          rt_model_config *c)
{
    if (o->block_length < 0 || o->block_length > RT_CONFIG_MAX_BLOCK)
        return RT_FAIL(RT_ERR_INVALID, "block length %d is outside [1, %d]", o->block_length,
                       (int)RT_CONFIG_MAX_BLOCK);
    if (o->mask_id < -1 || o->mask_id >= c->vocab)
        return RT_FAIL(RT_ERR_INVALID, "mask id %d is outside [0, %d), the vocabulary", o->mask_id,
                       c->vocab);
    static const char given[] = "the command line", standard[] = "the architecture's default";
    rt_config_set_block(arch, o->block_length ? o->block_length : arch->block_length,
                        o->block_length ? given : standard, c);
    c->mask_id = o->mask_id >= 0 ? o->mask_id : arch->mask_id;
    c->mask_source = o->mask_id >= 0 ? given : standard;
    return RT_OK;
}

rt_status rt_config_published(size_t i, const rt_config_overrides *overrides, rt_model_config *out)
{
    RT_CHECK_ARG(i < MODELS);
    const published *m = &models[i];
    const rt_architecture *arch = rt_config_architecture(m->architecture);
    rt_model_config c = {
        .hidden = m->hidden,
        .ffn = m->ffn,
        .layers = m->layers,
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .head_dim = HEAD_DIM,
        .vocab = m->vocab,
        .max_positions = POSITIONS,
        .rms_eps = 1e-6,
        .rope = {.kind = RT_ROPE_PLAIN, .theta = 1e6, .factor = 1},
        .qkv_bias = arch->qkv_bias,
        .qk_norm = arch->qk_norm,
        .shifted = arch->shifted,
        .stop_count = arch->stop_count,
        .top_p = 1,
    };
    strcpy(c.architecture, arch->name);
    memcpy(c.stop_ids, arch->stop_ids, sizeof arch->stop_ids);
    RT_TRY(override(arch, overrides, &c));
    *out = c;
    return RT_OK;
}
