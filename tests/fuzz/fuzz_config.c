// SPDX-License-Identifier: Apache-2.0
// The JSON files of a checkpoint. The first byte chooses: 'f' and the rest is
// config.json; else the rest is three texts between NULs: members that replace those of
// a good config.json, then generation_config.json, then tokenizer_config.json (an empty
// text: no such file). What is accepted keeps the promises of config.h.
#include "tests/fuzz/scratch.h"

#include "runtime/base/json.h"
#include "runtime/io/config.h"

#include <math.h>

static const char good[] =
    "{\"architectures\": [\"SDARForCausalLM\"], \"model_type\": \"sdar\", \"vocab_size\": 1000,"
    " \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"head_dim\": 8,"
    " \"max_position_embeddings\": 4096, \"rope_theta\": 10000, \"block_size\": 4,"
    " \"mask_token_id\": 7, \"eos_token_id\": 3}";

// The text up to the next NUL; moves on behind it.
static const char *next_text(const uint8_t **at, const uint8_t *end, size_t *len)
{
    const char *text = (const char *)*at;
    const uint8_t *nul = *at < end ? memchr(*at, '\0', (size_t)(end - *at)) : NULL;
    *len = (size_t)((nul ? nul : end) - *at);
    *at = nul ? nul + 1 : end;
    return text;
}

static int write_config(const char *members, size_t len)
{
    json_t *root, *changes;
    if (rt_json_parse(members, len, "fuzz", &changes) != RT_OK)
        return 0;
    must(rt_json_parse(good, sizeof good - 1, "good", &root) == RT_OK);
    json_object_update(root, changes);
    char *text = json_dumps(root, JSON_COMPACT);
    must(text != NULL);
    scratch_write("config.json", text, strlen(text));
    free(text);
    json_decref(root);
    json_decref(changes);
    return 1;
}

static void write_optional(const char *name, const char *text, size_t len)
{
    if (len > 0)
        scratch_write(name, text, len);
    else
        scratch_delete(name);
}

static int write_files(const uint8_t *data, const uint8_t *end)
{
    size_t len;
    const uint8_t *at = data + 1;
    if (*data == 'f') {
        scratch_write("config.json", at, (size_t)(end - at));
        scratch_delete("generation_config.json");
        scratch_delete("tokenizer_config.json");
        return 1;
    }
    const char *text = next_text(&at, end, &len);
    if (!write_config(text, len))
        return 0;
    text = next_text(&at, end, &len);
    write_optional("generation_config.json", text, len);
    text = next_text(&at, end, &len);
    write_optional("tokenizer_config.json", text, len);
    return 1;
}

static void check_rope(const rt_rope_config *r)
{
    must(isfinite(r->theta) && r->theta > 0);
    must(isfinite(r->factor) && r->factor >= 1);
    if (r->kind != RT_ROPE_YARN)
        return;
    must(r->original_positions >= 1 && isfinite(r->attention_factor) && r->attention_factor > 0);
    must(isfinite(r->beta_fast) && isfinite(r->beta_slow) && r->beta_fast >= r->beta_slow);
}

static void check(const rt_model_config *c)
{
    must(c->hidden >= 1 && c->ffn >= 1 && c->layers >= 1 && c->vocab >= 1);
    must(c->heads >= 1 && c->kv_heads >= 1 && c->heads % c->kv_heads == 0);
    must(c->head_dim >= 2 && c->head_dim % 2 == 0 && c->max_positions >= 1);
    must(c->rms_eps > 0 && c->rms_eps < 1);
    must(c->block_length >= 1 && c->block_length <= 1024 && c->block_source);
    must(c->default_sub_block >= 0 && c->default_sub_block <= c->block_length);
    must(c->mask_id >= -1 && c->mask_id < c->vocab);
    must(c->stop_count >= 0 && c->stop_count <= RT_CONFIG_MAX_STOPS);
    for (int i = 0; i < c->stop_count; i++)
        must(c->stop_ids[i] >= 0 && c->stop_ids[i] < c->vocab);
    must(isfinite(c->temperature) && c->temperature >= 0 && c->top_k >= 0);
    must(c->top_p > 0 && c->top_p <= 1);
    check_rope(&c->rope);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    rt_model_config config = {.hidden = -7};
    if (size == 0 || !write_files(data, data + size))
        return 0;
    if (rt_config_load(scratch_folder, NULL, &config) == RT_OK)
        check(&config);
    else
        must(rt_last_error()[0] != '\0' && config.hidden == -7);
    return 0;
}
