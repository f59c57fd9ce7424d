// SPDX-License-Identifier: Apache-2.0
// config.json: which architecture, its sizes, and the features that must be off
// because the runtime does not have them. What it cannot do is refused by name
// rather than computed wrongly. config_*.c read the other parts.
#include "runtime/io/config_int.h"

#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/str.h"

#include <limits.h>
#include <string.h>

enum { MAX_WIDTH = 1 << 20, MAX_LAYERS = 1 << 12, MAX_HEADS = 1 << 12, MAX_HEAD_DIM = 1 << 10 };

// Qwen3 normalises queries and keys and has no bias; Qwen2 has a bias on q, k and v
// and no norm. SDAR is Qwen3, and Fast-dLLM v2 is Qwen2 whose rows predict the next
// token. A plain Qwen, as a base of fine-tuning, gets SDAR's block and no mask.
static const rt_architecture architectures[] = {
    {.name = "SDARForCausalLM",
     .model_type = "sdar",
     .qk_norm = true,
     .reads_attention_bias = true,
     .head_dim = 128,
     .block_length = 4,
     .mask_id = 151669,
     .stop_ids = {151645, 151643},
     .stop_count = 2},
    {.name = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .qk_norm = true,
     .reads_attention_bias = true,
     .head_dim = 128,
     .block_length = 4,
     .mask_id = -1},
    {.name = "Fast_dLLM_QwenForCausalLM",
     .model_type = "Fast_dLLM_Qwen",
     .qkv_bias = true,
     .shifted = true,
     .block_length = 32,
     .sub_block = 8,
     .mask_id = 151665,
     .stop_ids = {151645},
     .stop_count = 1},
    {.name = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .qkv_bias = true,
     .block_length = 4,
     .mask_id = -1},
};
enum { ARCHITECTURES = sizeof architectures / sizeof *architectures };

rt_status rt_config_int(const json_t *obj, const char *key, const char *name, bool required,
                        int min, int max, int *out)
{
    int64_t value = *out;
    RT_TRY(rt_json_int(obj, key, name, required, min, max, &value));
    *out = (int)value;
    return RT_OK;
}

rt_status rt_config_load_optional(const char *dir, const char *name, char *path, size_t path_size,
                                  json_t **out)
{
    *out = NULL;
    RT_TRY(rt_path_join(dir, name, path, path_size));
    if (!rt_file_exists(path))
        return RT_OK;
    RT_TRY(rt_json_load(path, RT_CONFIG_MAX_BYTES, out));
    if (json_is_object(*out))
        return RT_OK;
    json_decref(*out);
    *out = NULL;
    return RT_FAIL(RT_ERR_FORMAT, "%s: not a JSON object", path);
}

// ---- architecture ----------------------------------------------------------

const rt_architecture *rt_config_architecture(const char *name)
{
    for (int i = 0; i < ARCHITECTURES; i++)
        if (strcmp(name, architectures[i].name) == 0)
            return &architectures[i];
    return NULL;
}

static rt_status unknown_architecture(const char *path, const char *key, const char *name)
{
    rt_str known = {0};
    rt_status status = RT_OK;
    for (int i = 0; i < ARCHITECTURES && status == RT_OK; i++)
        status = rt_str_printf(&known, "%s%s", i ? ", " : "", architectures[i].name);
    if (status == RT_OK)
        status = RT_FAIL(RT_ERR_UNSUPPORTED, "%s: %s '%s' is not supported (known: %s)", path, key,
                         name, known.data);
    rt_str_free(&known);
    return status;
}

static rt_status find_architecture(rt_config_source *src)
{
    const json_t *list = json_object_get(src->json, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    const char *type = NULL;
    if (list && !json_is_null(list) && !name)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'architectures' is not a list of names", src->path);
    RT_TRY(rt_json_str(src->json, "model_type", src->path, !name, &type));
    for (int i = 0; i < ARCHITECTURES; i++) {
        const rt_architecture *arch = &architectures[i];
        if (strcmp(name ? name : type, name ? arch->name : arch->model_type) == 0) {
            src->arch = arch;
            return RT_OK;
        }
    }
    return unknown_architecture(src->path, name ? "architecture" : "model_type",
                                name ? name : type);
}

// ---- what must be off ------------------------------------------------------

static rt_status refuse_quantized(const rt_config_source *src)
{
    const json_t *quantization = json_object_get(src->json, "quantization_config");
    if (!quantization || json_is_null(quantization))
        return RT_OK;
    const char *method = json_string_value(json_object_get(quantization, "quant_method"));
    return RT_FAIL(RT_ERR_UNSUPPORTED,
                   "%s: 'quantization_config' (%s): quantized weights are not "
                   "supported",
                   src->path, method ? method : "unknown method");
}

static rt_status check_dtype(const rt_config_source *src)
{
    static const char *const known[] = {"bfloat16", "float16", "float32"};
    const char *name = NULL;
    RT_TRY(rt_json_str(src->json, "torch_dtype", src->path, false, &name));
    RT_TRY(rt_json_str(src->json, "dtype", src->path, false, &name));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!name || strcmp(name, known[i]) == 0)
            return RT_OK;
    }
    return RT_FAIL(RT_ERR_UNSUPPORTED,
                   "%s: dtype '%s' is not supported (known: bfloat16, float16, float32)", src->path,
                   name);
}

static rt_status check_activation(const rt_config_source *src)
{
    const char *name = "silu";
    RT_TRY(rt_json_str(src->json, "hidden_act", src->path, false, &name));
    if (strcmp(name, "silu") == 0)
        return RT_OK;
    return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: 'hidden_act' '%s' is not supported (known: silu)",
                   src->path, name);
}

static rt_status check_bias(const rt_config_source *src)
{
    bool bias = false;
    RT_TRY(rt_json_bool(src->json, "attention_bias", src->path, &bias));
    if (bias && src->arch->reads_attention_bias)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: 'attention_bias' true is not supported with %s",
                       src->path, src->arch->name);
    return RT_OK;
}

// transformers: an explicit layer_types decides; otherwise the layers from
// max_window_layers on have a window, if use_sliding_window is set and it is not null.
static rt_status check_layer_types(const rt_config_source *src, const json_t *types, int layers)
{
    if (!json_is_array(types) || json_array_size(types) != (size_t)layers)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'layer_types' is not a list of %d names", src->path,
                       layers);
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || strcmp(type, "full_attention") != 0)
            return RT_FAIL(RT_ERR_UNSUPPORTED,
                           "%s: 'layer_types': layer %zu has '%s', only "
                           "full_attention is supported",
                           src->path, i, type ? type : "no name");
    }
    return RT_OK;
}

static rt_status check_window(const rt_config_source *src, const rt_model_config *config)
{
    bool used = false;
    int window = 4096, first = 28; // transformers' defaults for absent keys
    const json_t *types = json_object_get(src->json, "layer_types");
    if (types && !json_is_null(types))
        return check_layer_types(src, types, config->layers);
    RT_TRY(rt_json_bool(src->json, "use_sliding_window", src->path, &used));
    RT_TRY(rt_config_int(src->json, "sliding_window", src->path, false, 1, INT_MAX, &window));
    RT_TRY(rt_config_int(src->json, "max_window_layers", src->path, false, 0, INT_MAX, &first));
    bool none = json_is_null(json_object_get(src->json, "sliding_window"));
    if (used && !none && window < config->max_positions && first < config->layers)
        return RT_FAIL(RT_ERR_UNSUPPORTED,
                       "%s: 'use_sliding_window' with a 'sliding_window' of %d is not supported",
                       src->path, window);
    return RT_OK;
}

// ---- sizes -----------------------------------------------------------------

static rt_status read_head_dim(const rt_config_source *src, rt_model_config *out)
{
    if (!json_object_get(src->json, "head_dim"))
        out->head_dim = src->arch->head_dim;
    RT_TRY(rt_config_int(src->json, "head_dim", src->path, false, 2, MAX_HEAD_DIM, &out->head_dim));
    if (out->head_dim == 0) {
        if (out->hidden % out->heads != 0)
            return RT_FAIL(
                RT_ERR_FORMAT,
                "%s: 'hidden_size' %d is not a multiple of 'num_attention_heads' %d, and "
                "'head_dim' is missing",
                src->path, out->hidden, out->heads);
        out->head_dim = out->hidden / out->heads;
    }
    if (out->head_dim % 2 != 0 || out->head_dim > MAX_HEAD_DIM)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'head_dim' %d is odd or over %d", src->path,
                       out->head_dim, (int)MAX_HEAD_DIM);
    return RT_OK;
}

static rt_status read_sizes(const rt_config_source *src, rt_model_config *out)
{
    const struct {
        const char *key;
        int max;
        int *out;
    } sizes[] = {
        {"vocab_size", RT_CONFIG_MAX_VOCAB, &out->vocab},
        {"hidden_size", MAX_WIDTH, &out->hidden},
        {"intermediate_size", MAX_WIDTH, &out->ffn},
        {"num_hidden_layers", MAX_LAYERS, &out->layers},
        {"num_attention_heads", MAX_HEADS, &out->heads},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        RT_TRY(
            rt_config_int(src->json, sizes[i].key, src->path, true, 1, sizes[i].max, sizes[i].out));
    out->kv_heads = out->heads;
    RT_TRY(rt_config_int(src->json, "num_key_value_heads", src->path, false, 1, MAX_HEADS,
                         &out->kv_heads));
    if (out->heads % out->kv_heads != 0)
        return RT_FAIL(RT_ERR_FORMAT,
                       "%s: 'num_attention_heads' %d is not a multiple of 'num_key_value_heads' %d",
                       src->path, out->heads, out->kv_heads);
    out->rms_eps = 1e-6;
    RT_TRY(rt_json_real(src->json, "rms_norm_eps", src->path, false, 1e-15, 0.1, &out->rms_eps));
    return read_head_dim(src, out);
}

static rt_status read_all(rt_config_source *src, const rt_config_overrides *overrides,
                          rt_model_config *out)
{
    RT_TRY(find_architecture(src));
    RT_TRY(refuse_quantized(src));
    RT_TRY(check_dtype(src));
    RT_TRY(check_activation(src));
    RT_TRY(check_bias(src));
    strcpy(out->architecture, src->arch->name);
    out->qkv_bias = src->arch->qkv_bias;
    out->qk_norm = src->arch->qk_norm;
    out->shifted = src->arch->shifted;
    RT_TRY(rt_json_bool(src->json, "tie_word_embeddings", src->path, &out->tied_head));
    RT_TRY(read_sizes(src, out));
    RT_TRY(rt_config_read_rope(src, out));
    RT_TRY(check_window(src, out));
    RT_TRY(rt_config_find_block(src, overrides->block_length, out));
    RT_TRY(rt_config_find_mask(src, overrides->mask_id, out));
    return rt_config_read_generation(src, out);
}

void rt_config_warn(const rt_model_config *config, const char *model_dir)
{
    if (config->stops_outside > 0)
        rt_log(RT_LOG_WARN, "%s: stop ids outside the vocabulary of %d are left out (%d)",
               model_dir, config->vocab, config->stops_outside);
    if (config->mask_outside)
        rt_log(RT_LOG_WARN,
               "%s: the id of the mask token is outside the vocabulary of %d: "
               "there is none",
               model_dir, config->vocab);
}

rt_status rt_config_load(const char *model_dir, const rt_config_overrides *overrides,
                         rt_model_config *out)
{
    static const rt_config_overrides none = {.mask_id = -1};
    char path[PATH_MAX];
    json_t *json;
    rt_model_config config = {0};
    RT_TRY(rt_path_join(model_dir, "config.json", path, sizeof path));
    RT_TRY(rt_json_load(path, RT_CONFIG_MAX_BYTES, &json));
    rt_config_source src = {.dir = model_dir, .path = path, .json = json};
    rt_status status = json_is_object(json) ? read_all(&src, overrides ? overrides : &none, &config)
                                            : RT_FAIL(RT_ERR_FORMAT, "%s: not a JSON object", path);
    json_decref(json);
    RT_TRY(status);
    *out = config;
    return RT_OK;
}
