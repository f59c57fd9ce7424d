// SPDX-License-Identifier: Apache-2.0
// generation_config.json: where generation stops, and how tokens are sampled.
//
// Stop ids: generation_config.json's eos_token_id, else config.json's (in SDAR the
// latter names <|endoftext|> only, while chat turns end with <|im_end|>), else the
// architecture's. One outside the vocabulary is none. Sampling as in transformers: without
// do_sample the choice is greedy whatever else is said, and that is not looked at; with it,
// temperature and top_p default to 1. A missing top_k means no limit here (transformers
// itself would say 50), and so does one below 1.
#include "runtime/io/config_int.h"

#include <limits.h>

static rt_status add_stop(rt_model_config *config, const json_t *value, const char *path)
{
    if (!json_is_integer(value))
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'eos_token_id' is neither an integer nor a list of them",
                       path);
    json_int_t id = json_integer_value(value);
    if (id < 0 || id >= config->vocab) {
        config->stops_outside++;
        return RT_OK;
    }
    for (int i = 0; i < config->stop_count; i++) {
        if (config->stop_ids[i] == id)
            return RT_OK;
    }
    if (config->stop_count == RT_CONFIG_MAX_STOPS)
        return RT_FAIL(RT_ERR_LIMIT, "%s: 'eos_token_id' lists more than %d ids", path,
                       (int)RT_CONFIG_MAX_STOPS);
    config->stop_ids[config->stop_count++] = (int)id;
    return RT_OK;
}

static rt_status add_stops(rt_model_config *config, const json_t *obj, const char *path)
{
    const json_t *eos = json_object_get(obj, "eos_token_id");
    if (!eos || json_is_null(eos))
        return RT_OK;
    if (!json_is_array(eos))
        return add_stop(config, eos, path);
    for (size_t i = 0; i < json_array_size(eos); i++)
        RT_TRY(add_stop(config, json_array_get(eos, i), path));
    return RT_OK;
}

static void add_default_stops(rt_model_config *config, const rt_architecture *arch)
{
    for (int i = 0; i < arch->stop_count; i++) {
        if (arch->stop_ids[i] < config->vocab)
            config->stop_ids[config->stop_count++] = arch->stop_ids[i];
    }
}

static rt_status read_sampling(rt_model_config *config, const json_t *obj, const char *path)
{
    bool do_sample = false;
    int top_k = 0;
    double temperature = 1, top_p = 1;
    RT_TRY(rt_json_bool(obj, "do_sample", path, &do_sample));
    if (!do_sample)
        return RT_OK;
    RT_TRY(rt_json_real(obj, "temperature", path, false, 0, 100, &temperature));
    RT_TRY(rt_config_int(obj, "top_k", path, false, INT_MIN, RT_CONFIG_MAX_VOCAB, &top_k));
    RT_TRY(rt_json_real(obj, "top_p", path, false, 1e-6, 1, &top_p));
    config->temperature = temperature;
    config->top_k = top_k > 0 ? top_k : 0;
    config->top_p = top_p;
    return RT_OK;
}

rt_status rt_config_read_generation(const rt_config_source *src, rt_model_config *out)
{
    json_t *generation;
    char path[PATH_MAX];
    out->temperature = 0;
    out->top_k = 0;
    out->top_p = 1;
    RT_TRY(rt_config_load_optional(src->dir, "generation_config.json", path, sizeof path,
                                   &generation));
    if (generation) {
        rt_status status = add_stops(out, generation, path);
        if (status == RT_OK)
            status = read_sampling(out, generation, path);
        json_decref(generation);
        RT_TRY(status);
    }
    if (out->stop_count == 0)
        RT_TRY(add_stops(out, src->json, src->path));
    if (out->stop_count == 0)
        add_default_stops(out, src->arch);
    return RT_OK;
}
