// SPDX-License-Identifier: Apache-2.0
// Rotary embedding parameters, from `rope_theta` + `rope_scaling` (transformers 4)
// or `rope_parameters` (transformers 5; when both say something, `rope_scaling` wins
// there and here).
//
// YaRN as transformers' _compute_yarn_parameters reads it. An explicit `factor`
// wins; without one it is max_position_embeddings over the original length. (Some
// 4.x versions preferred the quotient also when `factor` was given, which breaks
// checkpoints whose max_position_embeddings was not edited along with it.)
//
// Context length: linear scaling multiplies max_position_embeddings; YaRN gives
// factor x original, and never less than max_position_embeddings. vLLM derives
// its maximum the same way. More than RT_CONFIG_MAX_CONTEXT is not used.
#include "runtime/io/config_int.h"

#include <math.h>
#include <string.h>

static const double max_factor = 1e6;
static const double default_theta = 10000;
enum { default_positions = 32768 }; // of Qwen2Config, Qwen3Config and SDARConfig

typedef struct rope_source {
    const json_t *params; // NULL: plain
    const char *key;      // where it stands in config.json
    const char *path;
} rope_source;

static rt_status real_in(const rope_source *src, const char *key, double min, double max,
                         double *out)
{
    return rt_json_real(src->params, key, src->path, false, min, max, out);
}

static rt_status pick_object(const rt_config_source *src, const char *key, rope_source *out)
{
    const json_t *value = json_object_get(src->json, key);
    if (!value || json_is_null(value) || out->params)
        return RT_OK;
    if (!json_is_object(value))
        return RT_FAIL(RT_ERR_FORMAT, "%s: '%s' is neither an object nor null", src->path, key);
    if (json_object_size(value) == 0) // as transformers: says nothing
        return RT_OK;
    if (json_object_get(value, "full_attention") || json_object_get(value, "sliding_attention"))
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: '%s' by layer type is not supported", src->path,
                       key);
    out->params = value;
    out->key = key;
    return RT_OK;
}

static rt_status read_theta(const rt_config_source *src, const rope_source *rope, double *theta)
{
    const json_t *v5 = json_object_get(src->json, "rope_parameters");
    *theta = default_theta;
    RT_TRY(rt_json_real(src->json, "rope_theta", src->path, false, 1, 1e12, theta));
    if (json_is_object(v5))
        RT_TRY(rt_json_real(v5, "rope_theta", src->path, false, 1, 1e12, theta));
    if (rope->params)
        RT_TRY(real_in(rope, "rope_theta", 1, 1e12, theta));
    return RT_OK;
}

static rt_status refuse_partial(const json_t *obj, const char *path)
{
    double share = 1;
    RT_TRY(rt_json_real(obj, "partial_rotary_factor", path, false, 0, 1, &share));
    if (share != 1)
        return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: 'partial_rotary_factor' %g is not supported", path,
                       share);
    return RT_OK;
}

static rt_status read_kind(const rope_source *src, rt_rope_kind *out)
{
    const char *name = NULL;
    RT_TRY(rt_json_str(src->params, "type", src->path, false, &name));
    RT_TRY(rt_json_str(src->params, "rope_type", src->path, false, &name));
    if (!name && json_object_get(src->params, "factor"))
        return RT_FAIL(RT_ERR_FORMAT, "%s: '%s' has a factor but no 'rope_type'", src->path,
                       src->key);
    if (!name || strcmp(name, "default") == 0)
        *out = RT_ROPE_PLAIN;
    else if (strcmp(name, "linear") == 0)
        *out = RT_ROPE_LINEAR;
    else if (strcmp(name, "yarn") == 0)
        *out = RT_ROPE_YARN;
    else
        return RT_FAIL(RT_ERR_UNSUPPORTED,
                       "%s: rope type '%s' is not supported (known: default, linear, yarn)",
                       src->path, name);
    return RT_OK;
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static rt_status read_attention_factor(const rope_source *src, rt_rope_config *rope)
{
    double mscale = 0, all_dim = 0;
    RT_TRY(real_in(src, "mscale", 0, 1e3, &mscale));
    RT_TRY(real_in(src, "mscale_all_dim", 0, 1e3, &all_dim));
    rope->attention_factor = mscale != 0 && all_dim != 0 ? yarn_mscale(rope->factor, mscale) /
                                                               yarn_mscale(rope->factor, all_dim)
                                                         : yarn_mscale(rope->factor, 1);
    return real_in(src, "attention_factor", 1e-6, 1e3, &rope->attention_factor);
}

static rt_status read_yarn(const rope_source *src, int trained, rt_rope_config *rope)
{
    rope->original_positions = trained;
    RT_TRY(rt_config_int(src->params, "original_max_position_embeddings", src->path, false, 1,
                         RT_CONFIG_MAX_POSITIONS, &rope->original_positions));
    const json_t *given = json_object_get(src->params, "factor");
    if ((!given || json_is_null(given)) && rope->original_positions < trained)
        rope->factor = (double)trained / rope->original_positions;
    else
        RT_TRY(rt_json_real(src->params, "factor", src->path, true, 1, max_factor, &rope->factor));
    RT_TRY(read_attention_factor(src, rope));
    RT_TRY(real_in(src, "beta_fast", 0, 1e6, &rope->beta_fast));
    RT_TRY(real_in(src, "beta_slow", 0, 1e6, &rope->beta_slow));
    if (rope->beta_fast == 0) // as transformers: zero is "not given"
        rope->beta_fast = 32;
    if (rope->beta_slow == 0)
        rope->beta_slow = 1;
    if (rope->beta_fast < rope->beta_slow)
        return RT_FAIL(RT_ERR_FORMAT, "%s: 'beta_fast' %g is below 'beta_slow' %g", src->path,
                       rope->beta_fast, rope->beta_slow);
    return rt_json_bool(src->params, "truncate", src->path, &rope->truncate);
}

static rt_status scaled_positions(const rope_source *src, const rt_rope_config *rope, int trained,
                                  int *out)
{
    double positions = trained;
    if (rope->kind == RT_ROPE_LINEAR)
        positions = floor(rope->factor * trained);
    if (rope->kind == RT_ROPE_YARN)
        positions = fmax(trained, floor(rope->factor * rope->original_positions));
    if (positions > RT_CONFIG_MAX_POSITIONS)
        return RT_FAIL(RT_ERR_FORMAT,
                       "%s: '%s' makes a context of %.0f tokens, over the limit of %d", src->path,
                       src->key, positions, (int)RT_CONFIG_MAX_POSITIONS);
    *out = (int)fmin(positions, RT_CONFIG_MAX_CONTEXT);
    return RT_OK;
}

rt_status rt_config_read_rope(const rt_config_source *src, rt_model_config *out)
{
    int trained = default_positions;
    rope_source source = {.path = src->path};
    rt_rope_config rope = {.kind = RT_ROPE_PLAIN,
                           .factor = 1,
                           .attention_factor = 1,
                           .beta_fast = 32,
                           .beta_slow = 1,
                           .truncate = true};
    RT_TRY(rt_config_int(src->json, "max_position_embeddings", src->path, false, 1,
                         RT_CONFIG_MAX_POSITIONS, &trained));
    RT_TRY(pick_object(src, "rope_scaling", &source));
    RT_TRY(pick_object(src, "rope_parameters", &source));
    RT_TRY(read_theta(src, &source, &rope.theta));
    RT_TRY(refuse_partial(src->json, src->path));
    if (source.params) {
        RT_TRY(refuse_partial(source.params, src->path));
        RT_TRY(read_kind(&source, &rope.kind));
    }
    rope.original_positions = trained;
    if (rope.kind == RT_ROPE_LINEAR)
        RT_TRY(rt_json_real(source.params, "factor", src->path, true, 1, max_factor, &rope.factor));
    if (rope.kind == RT_ROPE_YARN)
        RT_TRY(read_yarn(&source, trained, &rope));
    RT_TRY(scaled_positions(&source, &rope, trained, &out->max_positions));
    out->rope = rope;
    return RT_OK;
}
