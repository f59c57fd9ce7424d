// SPDX-License-Identifier: Apache-2.0
// Checkpoint configuration: a good config with one thing changed at a time.
#include "tests/unit/testing.h"

#include "runtime/base/mem.h"
#include "runtime/io/config.h"

#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

static const char base_text[] =
    "{\"architectures\": [\"SDARForCausalLM\"], \"model_type\": \"sdar\", \"vocab_size\": 151936,"
    " \"hidden_size\": 2560, \"intermediate_size\": 9728, \"num_hidden_layers\": 36,"
    " \"num_attention_heads\": 32, \"num_key_value_heads\": 8, \"head_dim\": 128,"
    " \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000,"
    " \"rope_scaling\": null, \"max_position_embeddings\": 32768, \"attention_bias\": false,"
    " \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"eos_token_id\": 151643,"
    " \"sliding_window\": null, \"use_sliding_window\": false, \"max_window_layers\": 36}";

// Writes config.json: the base with the members of `patch` put over it, "-" for none.
static const char *write_config(const test_dir *dir, const char *patch)
{
    json_t *root = json_loads(base_text, 0, NULL), *over = json_loads(patch, 0, NULL);
    assert_non_null(root);
    assert_non_null(over);
    json_object_update(root, over);
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(root, next, key, value)
    {
        if (json_is_string(value) && strcmp(json_string_value(value), "-") == 0)
            json_object_del(root, key);
    }
    const char *path = test_path(dir, "config.json");
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(over);
    json_decref(root);
    return path;
}

static rt_model_config load(const test_dir *dir, const char *patch)
{
    rt_model_config config;
    write_config(dir, patch);
    assert_ok(rt_config_load(dir->path, NULL, &config));
    return config;
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fabs(b);
}

// ---- sizes and architectures -----------------------------------------------

static void test_sizes(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config c = load(&dir, "{}");
    assert_string_equal(c.architecture, "SDARForCausalLM");
    assert_true(c.hidden == 2560 && c.ffn == 9728 && c.layers == 36 && c.vocab == 151936);
    assert_true(c.heads == 32 && c.kv_heads == 8 && c.head_dim == 128);
    assert_true(c.max_positions == 32768 && c.rms_eps == 1e-6 && !c.tied_head);
    assert_true(c.qk_norm && !c.qkv_bias && !c.shifted && c.default_sub_block == 0);
    assert_true(c.rope.kind == RT_ROPE_PLAIN && c.rope.theta == 1e6 && c.rope.factor == 1);
    assert_true(c.rope.attention_factor == 1);
    c = load(&dir, "{\"head_dim\": null, \"num_key_value_heads\": null, \"rms_norm_eps\": null,"
                   " \"tie_word_embeddings\": true, \"rope_theta\": null}");
    assert_true(c.head_dim == 80 && c.kv_heads == 32 && c.rms_eps == 1e-6 && c.tied_head);
    assert_true(c.rope.theta == 10000);
    test_dir_remove(&dir);
}

// What the configuration classes of transformers say where a key is absent.
static void test_absent_keys(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config c = load(&dir, "{\"head_dim\": \"-\", \"max_position_embeddings\": \"-\","
                                   " \"num_attention_heads\": 16, \"hidden_size\": 2561}");
    assert_true(c.head_dim == 128 && c.max_positions == 32768);
    c = load(&dir, "{\"head_dim\": \"-\", \"max_position_embeddings\": \"-\","
                   " \"num_attention_heads\": 16, \"architectures\": [\"Qwen2ForCausalLM\"]}");
    assert_true(c.head_dim == 160 && c.max_positions == 32768);
    c = load(&dir, "{\"max_position_embeddings\": null, \"rope_scaling\":"
                   " {\"rope_type\": \"yarn\", \"factor\": 4.0}}");
    assert_int_equal(c.max_positions, 131072);
    test_dir_remove(&dir);
}

static const struct {
    const char *patch, *name;
    bool qkv_bias, qk_norm, shifted;
    int block, sub_block, mask;
} known[] = {
    {"{\"architectures\": [\"SDARForCausalLM\"]}", "SDARForCausalLM", false, true, false, 4, 0,
     151669},
    {"{\"architectures\": [\"Qwen3ForCausalLM\"]}", "Qwen3ForCausalLM", false, true, false, 4, 0,
     -1},
    {"{\"architectures\": [\"Fast_dLLM_QwenForCausalLM\"], \"model_type\": \"Fast_dLLM_Qwen\"}",
     "Fast_dLLM_QwenForCausalLM", true, false, true, 32, 8, 151665},
    {"{\"architectures\": [\"Qwen2ForCausalLM\"]}", "Qwen2ForCausalLM", true, false, false, 4, 0,
     -1},
    {"{\"architectures\": null, \"model_type\": \"Fast_dLLM_Qwen\"}", "Fast_dLLM_QwenForCausalLM",
     true, false, true, 32, 8, 151665},
    {"{\"architectures\": null, \"model_type\": \"qwen3\"}", "Qwen3ForCausalLM", false, true, false,
     4, 0, -1},
};

static void test_architectures(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        rt_model_config c = load(&dir, known[i].patch);
        assert_string_equal(c.architecture, known[i].name);
        assert_true(c.qkv_bias == known[i].qkv_bias && c.qk_norm == known[i].qk_norm);
        assert_int_equal(c.shifted, known[i].shifted);
        assert_int_equal(c.block_length, known[i].block);
        assert_int_equal(c.default_sub_block, known[i].sub_block);
        assert_int_equal(c.mask_id, known[i].mask);
    }
    test_dir_remove(&dir);
}

// ---- what is refused -------------------------------------------------------

static const struct {
    const char *patch;
    rt_status code;
    const char *cause;
} refused[] = {
    {"{\"architectures\": [\"LlamaForCausalLM\"]}", RT_ERR_UNSUPPORTED,
     "architecture 'LlamaForCausalLM' is not supported (known: SDARForCausalLM, "
     "Qwen3ForCausalLM, Fast_dLLM_QwenForCausalLM, Qwen2ForCausalLM)"},
    {"{\"architectures\": null, \"model_type\": \"llama\"}", RT_ERR_UNSUPPORTED,
     "model_type 'llama' is not supported"},
    {"{\"architectures\": null, \"model_type\": null}", RT_ERR_FORMAT, "'model_type' is missing"},
    {"{\"architectures\": []}", RT_ERR_FORMAT, "'architectures' is not a list"},
    {"{\"architectures\": \"SDARForCausalLM\"}", RT_ERR_FORMAT, "'architectures' is not a list"},
    {"{\"architectures\": [7]}", RT_ERR_FORMAT, "'architectures' is not a list"},
    {"{\"vocab_size\": null}", RT_ERR_FORMAT, "'vocab_size' is missing"},
    {"{\"vocab_size\": 0}", RT_ERR_FORMAT, "'vocab_size' is 0, outside [1, 16777216]"},
    {"{\"vocab_size\": 16777217}", RT_ERR_FORMAT, "'vocab_size' is 16777217"},
    {"{\"hidden_size\": -1}", RT_ERR_FORMAT, "'hidden_size' is -1"},
    {"{\"hidden_size\": 9223372036854775807}", RT_ERR_FORMAT, "'hidden_size' is 92233720368547"},
    {"{\"hidden_size\": \"2560\"}", RT_ERR_FORMAT, "'hidden_size' is a string"},
    {"{\"hidden_size\": 2560.0}", RT_ERR_FORMAT, "'hidden_size' is a real number"},
    {"{\"intermediate_size\": 0}", RT_ERR_FORMAT, "'intermediate_size' is 0"},
    {"{\"num_hidden_layers\": 0}", RT_ERR_FORMAT, "'num_hidden_layers' is 0"},
    {"{\"num_hidden_layers\": 100000}", RT_ERR_FORMAT, "'num_hidden_layers' is 100000"},
    {"{\"num_attention_heads\": 0}", RT_ERR_FORMAT, "'num_attention_heads' is 0"},
    {"{\"num_key_value_heads\": 0}", RT_ERR_FORMAT, "'num_key_value_heads' is 0"},
    {"{\"num_key_value_heads\": 5}", RT_ERR_FORMAT,
     "'num_attention_heads' 32 is not a multiple of 'num_key_value_heads' 5"},
    {"{\"num_key_value_heads\": 64}", RT_ERR_FORMAT, "'num_key_value_heads' 64"},
    {"{\"head_dim\": 0}", RT_ERR_FORMAT, "'head_dim' is 0"},
    {"{\"head_dim\": 127}", RT_ERR_FORMAT, "'head_dim' 127 is odd"},
    {"{\"head_dim\": 2048}", RT_ERR_FORMAT, "'head_dim' is 2048"},
    {"{\"head_dim\": null, \"hidden_size\": 2561}", RT_ERR_FORMAT, "'head_dim' is missing"},
    {"{\"head_dim\": null, \"num_attention_heads\": 8, \"hidden_size\": 65536}", RT_ERR_FORMAT,
     "'head_dim' 8192"},
    {"{\"rms_norm_eps\": 0}", RT_ERR_FORMAT, "'rms_norm_eps' is 0"},
    {"{\"rms_norm_eps\": -1e-6}", RT_ERR_FORMAT, "'rms_norm_eps' is -1e-06"},
    {"{\"max_position_embeddings\": 0}", RT_ERR_FORMAT, "'max_position_embeddings' is 0"},
    {"{\"max_position_embeddings\": 4294967296}", RT_ERR_FORMAT, "'max_position_embeddings'"},
    {"{\"hidden_act\": \"gelu\"}", RT_ERR_UNSUPPORTED, "'hidden_act' 'gelu'"},
    {"{\"attention_bias\": true}", RT_ERR_UNSUPPORTED, "'attention_bias' true"},
    {"{\"attention_bias\": 0}", RT_ERR_FORMAT, "'attention_bias' is an integer"},
    {"{\"torch_dtype\": \"float64\"}", RT_ERR_UNSUPPORTED, "dtype 'float64'"},
    {"{\"torch_dtype\": null, \"dtype\": \"int8\"}", RT_ERR_UNSUPPORTED, "dtype 'int8'"},
    {"{\"tie_word_embeddings\": \"no\"}", RT_ERR_FORMAT, "'tie_word_embeddings' is a string"},
    {"{\"quantization_config\": {\"quant_method\": \"awq\"}}", RT_ERR_UNSUPPORTED,
     "'quantization_config' (awq)"},
    {"{\"quantization_config\": {}}", RT_ERR_UNSUPPORTED, "'quantization_config'"},
    {"{\"use_sliding_window\": true, \"sliding_window\": 4096, \"max_window_layers\": 0}",
     RT_ERR_UNSUPPORTED, "'sliding_window' of 4096"},
    {"{\"num_hidden_layers\": 2, \"layer_types\": [\"full_attention\", \"sliding_attention\"]}",
     RT_ERR_UNSUPPORTED, "layer 1 has 'sliding_attention'"},
    {"{\"num_hidden_layers\": 2, \"layer_types\": [\"full_attention\"]}", RT_ERR_FORMAT,
     "'layer_types' is not a list of 2 names"},
    {"{\"partial_rotary_factor\": 0.5}", RT_ERR_UNSUPPORTED, "'partial_rotary_factor' 0.5"},
    {"{\"rope_theta\": 0}", RT_ERR_FORMAT, "'rope_theta' is 0"},
    {"{\"rope_theta\": \"1e6\"}", RT_ERR_FORMAT, "'rope_theta' is a string"},
    {"{\"rope_scaling\": 4}", RT_ERR_FORMAT, "'rope_scaling' is neither an object nor null"},
    {"{\"rope_scaling\": {\"factor\": 4}}", RT_ERR_FORMAT, "no 'rope_type'"},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 4}}", RT_ERR_UNSUPPORTED,
     "rope type 'llama3' is not supported (known: default, linear, yarn)"},
    {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 4}}", RT_ERR_UNSUPPORTED,
     "rope type 'dynamic'"},
    {"{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}",
     RT_ERR_UNSUPPORTED, "'rope_parameters' by layer type"},
    {"{\"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5}}",
     RT_ERR_UNSUPPORTED, "'partial_rotary_factor'"},
    {"{\"rope_scaling\": {\"type\": \"linear\"}}", RT_ERR_FORMAT, "'factor' is missing"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}}", RT_ERR_FORMAT,
     "'factor' is 0.5"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 1e5}}", RT_ERR_FORMAT,
     "'rope_scaling' makes a context of 3276800000 tokens"},
    {"{\"rope_scaling\": {\"type\": \"yarn\"}}", RT_ERR_FORMAT, "'factor' is missing"},
    {"{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"beta_fast\": 1,"
     " \"beta_slow\": 2}}",
     RT_ERR_FORMAT, "'beta_fast' 1 is below 'beta_slow' 2"},
    {"{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"attention_factor\": 0}}",
     RT_ERR_FORMAT, "'attention_factor' is 0"},
    {"{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4,"
     " \"original_max_position_embeddings\": 0}}",
     RT_ERR_FORMAT, "'original_max_position_embeddings' is 0"},
    {"{\"block_size\": 0}", RT_ERR_FORMAT, "'block_size' is 0"},
    {"{\"bd_size\": 5000}", RT_ERR_FORMAT, "'bd_size' is 5000"},
    {"{\"mask_token_id\": 1.5}", RT_ERR_FORMAT, "'mask_token_id' is a real"},
    {"{\"eos_token_id\": \"x\"}", RT_ERR_FORMAT, "'eos_token_id' is neither"},
    {"{\"eos_token_id\": [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", RT_ERR_LIMIT,
     "'eos_token_id' lists more than 16 ids"},
};

static void test_refused(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config config = {.hidden = 77};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const char *path = write_config(&dir, refused[i].patch);
        assert_fails(rt_config_load(dir.path, NULL, &config), refused[i].code, path,
                     refused[i].cause);
    }
    assert_int_equal(config.hidden, 77); // untouched
    test_dir_remove(&dir);
}

static void test_bad_files(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config config;
    const char *path = test_path(&dir, "config.json");
    assert_fails(rt_config_load(dir.path, NULL, &config), RT_ERR_IO, path, "No such file");
    test_write_text(&dir, "config.json", "{\"a\": NaN}");
    assert_fails(rt_config_load(dir.path, NULL, &config), RT_ERR_FORMAT, path, "line 1 column");
    test_write_text(&dir, "config.json", "[]");
    assert_fails(rt_config_load(dir.path, NULL, &config), RT_ERR_FORMAT, path, "not a JSON object");
    write_config(&dir, "{}");
    path = test_write_text(&dir, "generation_config.json", "[]");
    assert_fails(rt_config_load(dir.path, NULL, &config), RT_ERR_FORMAT, path, "not a JSON object");
    test_dir_remove(&dir);
}

// What looks like a refused feature but is switched off.
static void test_switched_off(void **state)
{
    (void)state;
    static const char *const patches[] = {
        "{\"sliding_window\": 4096, \"use_sliding_window\": false}",
        "{\"sliding_window\": 32768, \"use_sliding_window\": true, \"max_window_layers\": 0}",
        "{\"sliding_window\": 4096, \"use_sliding_window\": true, \"max_window_layers\": 36}",
        "{\"num_hidden_layers\": 1, \"layer_types\": [\"full_attention\"]}",
        "{\"quantization_config\": null, \"partial_rotary_factor\": 1.0}",
        "{\"torch_dtype\": null, \"dtype\": \"float16\"}",
        "{\"architectures\": [\"Qwen2ForCausalLM\"], \"attention_bias\": true}",
        "{\"rope_parameters\": null, \"rope_scaling\": {\"rope_type\": \"default\"}}",
        "{\"debug\": false, \"ep_size\": 1, \"fuse_cross_entropy\": true}",
    };
    test_dir dir = test_dir_new();
    for (size_t i = 0; i < sizeof patches / sizeof *patches; i++)
        (void)load(&dir, patches[i]);
    test_dir_remove(&dir);
}

// ---- rope ------------------------------------------------------------------

static void test_rope(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config c = load(&dir, "{\"rope_theta\": null, \"rope_parameters\":"
                                   " {\"rope_type\": \"default\", \"rope_theta\": 600000.0}}");
    assert_true(c.rope.kind == RT_ROPE_PLAIN && c.rope.theta == 600000);
    c = load(&dir, "{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.5}}");
    assert_true(c.rope.kind == RT_ROPE_LINEAR && c.rope.factor == 2.5);
    assert_true(c.rope.attention_factor == 1 && c.max_positions == 81920);
    c = load(&dir, "{\"rope_scaling\": {}, \"rope_parameters\":"
                   " {\"rope_type\": \"linear\", \"factor\": 2.5}}");
    assert_true(c.rope.kind == RT_ROPE_LINEAR && c.max_positions == 81920);
    c = load(&dir, "{\"max_position_embeddings\": 4194304}");
    assert_int_equal(c.max_positions, 1 << 20); // a message holds no more
    test_dir_remove(&dir);
}

static void test_yarn(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    // Qwen3's published recipe: the explicit factor counts, not 40960 / 32768.
    rt_model_config c =
        load(&dir, "{\"max_position_embeddings\": 40960, \"rope_scaling\": {\"rope_type\": "
                   "\"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 32768}}");
    assert_true(c.rope.kind == RT_ROPE_YARN && c.rope.factor == 4 && c.rope.theta == 1e6);
    assert_true(c.rope.original_positions == 32768 && c.max_positions == 131072);
    assert_true(c.rope.beta_fast == 32 && c.rope.beta_slow == 1 && c.rope.truncate);
    assert_true(near(c.rope.attention_factor, 0.1 * log(4) + 1));
    // The original length falls back to the context length.
    c = load(&dir, "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2}}");
    assert_true(c.rope.original_positions == 32768 && c.max_positions == 65536);
    // Without a factor, the quotient of the two lengths.
    c = load(&dir, "{\"rope_scaling\": {\"type\": \"yarn\","
                   " \"original_max_position_embeddings\": 4096}}");
    assert_true(c.rope.factor == 8 && c.max_positions == 32768);
    c = load(&dir, "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"mscale\": 1.0,"
                   " \"mscale_all_dim\": 0.5, \"beta_fast\": 16, \"beta_slow\": 2,"
                   " \"truncate\": false}}");
    assert_true(near(c.rope.attention_factor, (0.1 * log(4) + 1) / (0.05 * log(4) + 1)));
    assert_true(c.rope.beta_fast == 16 && c.rope.beta_slow == 2 && !c.rope.truncate);
    c = load(&dir, "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"mscale\": 0.7,"
                   " \"attention_factor\": 1.25}}");
    assert_true(c.rope.attention_factor == 1.25);
    test_dir_remove(&dir);
}

// ---- block length ----------------------------------------------------------

static void test_block_sources(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config c = load(&dir, "{\"block_size\": 16, \"bd_size\": 8}");
    assert_int_equal(c.block_length, 16);
    assert_string_equal(c.block_source, "config.json block_size");
    c = load(&dir, "{\"block_length\": 64}");
    assert_int_equal(c.block_length, 64);
    c = load(&dir, "{\"bd_size\": 8}");
    assert_string_equal(c.block_source, "config.json bd_size");
    rt_config_overrides overrides = {.block_length = 20, .mask_id = -1};
    write_config(&dir, "{\"block_size\": 16, \"architectures\": [\"Fast_dLLM_QwenForCausalLM\"]}");
    assert_ok(rt_config_load(dir.path, &overrides, &c));
    assert_int_equal(c.block_length, 20);
    assert_int_equal(c.default_sub_block, 0); // 8 does not divide 20
    assert_string_equal(c.block_source, "the command line");
    overrides.block_length = -4;
    assert_fails(rt_config_load(dir.path, &overrides, &c), RT_ERR_INVALID, "block length -4",
                 "outside [1, 1024]");
    test_dir_remove(&dir);
}

static const struct {
    const char *name;
    int block;
} folder_names[] = {
    {"SDAR-8B-Chat-b32", 32}, {"SDAR-b8///", 8}, {"SDAR-b32-extra", 4},
    {"SDAR-8b32", 4},         {"SDAR-b", 4},     {"SDAR-b99999", 4},
    {"SDAR-b0", 4},           {"b16", 4},        {"SDAR-b16", 16},
    {"SDAR-b16/.", 16},
};

static void test_folder_name(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    for (size_t i = 0; i < sizeof folder_names / sizeof *folder_names; i++) {
        test_dir model;
        size_t n = (size_t)snprintf(model.path, sizeof model.path, "%s/%s", dir.path,
                                    folder_names[i].name);
        assert_true(n < sizeof model.path);
        mkdir(model.path, 0700);
        rt_model_config c = load(&model, "{}");
        assert_int_equal(c.block_length, folder_names[i].block);
        assert_string_equal(c.block_source, folder_names[i].block == 4
                                                ? "the architecture's default"
                                                : "the folder's name");
    }
    test_dir_remove(&dir);
}

static void test_folder_links(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config c;
    const char *steps[] = {"models--JetLM--SDAR-b64", "models--JetLM--SDAR-b64/snapshots",
                           "models--JetLM--SDAR-b64/snapshots/0a1b"};
    for (int i = 0; i < 3; i++)
        assert_int_equal(mkdir(test_path(&dir, steps[i]), 0700), 0);
    test_dir snapshot;
    assert_true(snprintf(snapshot.path, sizeof snapshot.path, "%.200s/%s", dir.path, steps[2]) > 0);
    c = load(&snapshot, "{}");
    assert_int_equal(c.block_length, 64);
    assert_int_equal(symlink(steps[2], test_path(&dir, "plain")), 0);
    assert_ok(rt_config_load(test_path(&dir, "plain"), NULL, &c));
    assert_int_equal(c.block_length, 64);
    assert_int_equal(symlink(steps[2], test_path(&dir, "link-b16")), 0);
    assert_ok(rt_config_load(test_path(&dir, "link-b16"), NULL, &c));
    assert_int_equal(c.block_length, 16);
    test_dir_remove(&dir);
}

// ---- mask ------------------------------------------------------------------

static const struct {
    const char *tokenizer_config, *tokenizer;
    int mask;
} mask_files[] = {
    {NULL, NULL, 151669},
    {"{}", "{}", 151669},
    {"{\"mask_token\": \"<|M|>\", \"added_tokens_decoder\": {\"11\": {\"content\": \"<|M|>\"}}}",
     NULL, 11},
    {"{\"mask_token\": {\"content\": \"<|M|>\"}, \"added_tokens_decoder\":"
     " {\"10\": {\"content\": \"x\"}, \"11\": {\"content\": \"<|M|>\"}}}",
     NULL, 11},
    // SDAR's own files: the same id under two spellings.
    {"{\"mask_token\": \"<|MASK|>\"}",
     "{\"added_tokens\": [{\"id\": 12, \"content\": \"<MASK>\"}]}", 12},
    {"{\"mask_token\": null}", "{\"added_tokens\": [{\"id\": 13, \"content\": \"|<MASK>|\"}]}", 13},
    {NULL, "{\"added_tokens\": [{\"id\": 14, \"content\": \"<|mask|>\"}]}", 14},
    {"{\"added_tokens_decoder\": {\"15\": {\"content\": \"<|MASK|>\"}}}", NULL, 15},
    {"{\"mask_token\": \"<|M|>\"}", "{\"added_tokens\": [{\"id\": 16, \"content\": \"<|M|>\"}]}",
     16},
};

static void test_mask_sources(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof mask_files / sizeof *mask_files; i++) {
        test_dir dir = test_dir_new();
        if (mask_files[i].tokenizer_config)
            test_write_text(&dir, "tokenizer_config.json", mask_files[i].tokenizer_config);
        if (mask_files[i].tokenizer)
            test_write_text(&dir, "tokenizer.json", mask_files[i].tokenizer);
        rt_model_config c = load(&dir, "{}");
        assert_int_equal(c.mask_id, mask_files[i].mask);
        assert_string_equal(c.mask_source, c.mask_id == 151669 ? "the architecture's default"
                                                               : "the tokenizer's mask token");
        c = load(&dir, "{\"mask_token_id\": 7}");
        assert_int_equal(c.mask_id, 7);
        const rt_config_overrides overrides = {.mask_id = 0};
        assert_ok(rt_config_load(dir.path, &overrides, &c));
        assert_int_equal(c.mask_id, 0);
        assert_string_equal(c.mask_source, "the command line");
        test_dir_remove(&dir);
    }
}

static void test_mask_refused(void **state)
{
    (void)state;
    static const struct {
        const char *tokenizer_config, *subject, *cause;
    } cases[] = {
        {"{\"mask_token\": 5}", "tokenizer_config.json", "'mask_token' is neither"},
        {"{\"mask_token\": \"<m>\"}", "", "'<m>' of tokenizer_config.json is not an added token"},
        {"{\"added_tokens_decoder\": {\"x\": {\"content\": \"<MASK>\"}}}", "tokenizer_config.json",
         "the key 'x', not an id"},
        {"{", "tokenizer_config.json", "line 1"},
    };
    test_dir dir = test_dir_new();
    rt_model_config c;
    write_config(&dir, "{}");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_write_text(&dir, "tokenizer_config.json", cases[i].tokenizer_config);
        assert_fails(rt_config_load(dir.path, NULL, &c), RT_ERR_FORMAT, cases[i].subject,
                     cases[i].cause);
    }
    const rt_config_overrides over = {.mask_id = 151936}, under = {.mask_id = -2};
    assert_fails(rt_config_load(dir.path, &over, &c), RT_ERR_INVALID, "mask id 151936",
                 "outside [0, 151936)");
    assert_fails(rt_config_load(dir.path, &under, &c), RT_ERR_INVALID, "mask id -2", "outside");
    test_dir_remove(&dir);
}

static void test_mask_unknown(void **state)
{
    (void)state;
    test_dir dir = test_dir_new(); // the default mask is outside this vocabulary
    rt_model_config c = load(&dir, "{\"vocab_size\": 100, \"eos_token_id\": 1}");
    assert_int_equal(c.mask_id, -1);
    assert_non_null(c.mask_source);
    assert_false(c.mask_outside);
    test_dir_remove(&dir);
}

// An id that the model cannot have: no mask, and no other source is asked.
static void test_mask_outside(void **state)
{
    (void)state;
    static const struct {
        const char *patch, *tokenizer_config;
    } cases[] = {
        {"{\"mask_token_id\": -1}", "{}"},
        {"{\"mask_token_id\": 151936}", "{\"added_tokens_decoder\": {\"7\": \"<MASK>\"}}"},
        {"{}", "{\"added_tokens_decoder\": {\"151936\": {\"content\": \"<MASK>\"}}}"},
        {"{}", "{\"added_tokens_decoder\": {\"99999999999999999999\": {\"content\": \"<MASK>\"}}}"},
    };
    test_dir dir = test_dir_new();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_write_text(&dir, "tokenizer_config.json", cases[i].tokenizer_config);
        rt_model_config c = load(&dir, cases[i].patch);
        assert_true(c.mask_id == -1 && c.mask_outside);
        const rt_config_overrides given = {.mask_id = 5};
        assert_ok(rt_config_load(dir.path, &given, &c));
        assert_true(c.mask_id == 5 && !c.mask_outside);
    }
    test_dir_remove(&dir);
}

// ---- generation ------------------------------------------------------------

static const struct {
    const char *patch, *generation;
    int stops[3], count;
    double temperature;
    int top_k;
    double top_p;
} generations[] = {
    {"{}", NULL, {151643}, 1, 0, 0, 1},
    {"{}", "{}", {151643}, 1, 0, 0, 1},
    {"{}",
     "{\"eos_token_id\": [151645, 151643], \"do_sample\": true, \"temperature\": 0.6,"
     " \"top_k\": 20, \"top_p\": 0.95}",
     {151645, 151643},
     2,
     0.6,
     20,
     0.95},
    {"{}", "{\"eos_token_id\": 5, \"do_sample\": true}", {5}, 1, 1, 0, 1},
    {"{}",
     "{\"eos_token_id\": [5, 6, 5], \"do_sample\": false, \"temperature\": 0.6, \"top_k\": 20}",
     {5, 6},
     2,
     0,
     0,
     1},
    {"{\"eos_token_id\": [8, 9]}", "{\"eos_token_id\": null, \"top_k\": 3}", {8, 9}, 2, 0, 0, 1},
    {"{\"eos_token_id\": 5}",
     "{\"do_sample\": false, \"top_k\": -1, \"top_p\": 0}",
     {5},
     1,
     0,
     0,
     1},
    {"{\"eos_token_id\": 5}", "{\"do_sample\": true, \"top_k\": -1}", {5}, 1, 1, 0, 1},
    {"{\"eos_token_id\": null}", NULL, {151645, 151643}, 2, 0, 0, 1},
    {"{\"eos_token_id\": null, \"architectures\": [\"Fast_dLLM_QwenForCausalLM\"]}",
     NULL,
     {151645},
     1,
     0,
     0,
     1},
    {"{\"eos_token_id\": null, \"architectures\": [\"Qwen3ForCausalLM\"]}", NULL, {0}, 0, 0, 0, 1},
    {"{\"eos_token_id\": null, \"vocab_size\": 151644}", NULL, {151643}, 1, 0, 0, 1},
};

static void test_generation(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof generations / sizeof *generations; i++) {
        test_dir dir = test_dir_new();
        if (generations[i].generation)
            test_write_text(&dir, "generation_config.json", generations[i].generation);
        rt_model_config c = load(&dir, generations[i].patch);
        assert_int_equal(c.stop_count, generations[i].count);
        for (int s = 0; s < c.stop_count; s++)
            assert_int_equal(c.stop_ids[s], generations[i].stops[s]);
        assert_true(c.temperature == generations[i].temperature);
        assert_int_equal(c.top_k, generations[i].top_k);
        assert_true(c.top_p == generations[i].top_p);
        test_dir_remove(&dir);
    }
}

// Stop ids that can never come out are left out, and counted.
static void test_stops_outside(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config c = load(&dir, "{\"eos_token_id\": [151936, 9, -1]}");
    assert_true(c.stop_count == 1 && c.stop_ids[0] == 9 && c.stops_outside == 2);
    test_write_text(&dir, "generation_config.json", "{\"eos_token_id\": [151936, 151645]}");
    c = load(&dir, "{\"eos_token_id\": 9}");
    assert_true(c.stop_count == 1 && c.stop_ids[0] == 151645 && c.stops_outside == 1);
    test_write_text(&dir, "generation_config.json", "{\"eos_token_id\": 151936}");
    c = load(&dir, "{\"eos_token_id\": 9}");
    assert_true(c.stop_count == 1 && c.stop_ids[0] == 9 && c.stops_outside == 1);
    test_dir_remove(&dir);
}

static void test_generation_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *cause;
    } cases[] = {
        {"{\"eos_token_id\": [1, \"a\"]}", "'eos_token_id' is neither"},
        {"{\"do_sample\": true, \"temperature\": -0.1}", "'temperature' is -0.1"},
        {"{\"do_sample\": true, \"top_k\": 1.5}", "'top_k' is"},
        {"{\"do_sample\": true, \"top_p\": 1.5}", "'top_p' is 1.5"},
        {"{\"do_sample\": true, \"top_p\": 0}", "'top_p' is 0"},
        {"{\"do_sample\": 1}", "'do_sample' is an integer"},
        {"{\"temperature\": Infinity}", "line 1"},
    };
    test_dir dir = test_dir_new();
    rt_model_config c;
    write_config(&dir, "{}");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = test_write_text(&dir, "generation_config.json", cases[i].text);
        assert_fails(rt_config_load(dir.path, NULL, &c), RT_ERR_FORMAT, path, cases[i].cause);
    }
    test_dir_remove(&dir);
}

// As transformers writes it: Python's integers have no end.
static void test_integers_of_python(void **state)
{
#define BIG "1000000000000000019884624838656"
    (void)state;
    test_dir dir = test_dir_new();
    char text[sizeof base_text + 64];
    rt_model_config c;
    test_write_text(&dir, "tokenizer_config.json",
                    "{\"model_max_length\": " BIG ", \"mask_token\": \"<M>\"}");
    test_write_text(&dir, "tokenizer.json",
                    "{\"n\": " BIG ", \"added_tokens\": [{\"id\": 9, \"content\": \"<M>\"}]}");
    test_write_text(&dir, "generation_config.json",
                    "{\"max_length\": " BIG ", \"eos_token_id\": [7, 8]}");
    snprintf(text, sizeof text, "{\"unused\": " BIG ", %s", base_text + 1);
    test_write_text(&dir, "config.json", text);
    assert_ok(rt_config_load(dir.path, NULL, &c));
    assert_true(c.hidden == 2560 && c.vocab == 151936 && c.rms_eps == 1e-6 && c.mask_id == 9);
    assert_true(c.stop_count == 2 && c.stop_ids[0] == 7 && c.stop_ids[1] == 8);
    test_dir_remove(&dir);
#undef BIG
}

// Every allocation fails in turn: no leak, no crash, always a message.
static void test_out_of_memory(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    rt_model_config c;
    rt_status status = RT_ERR_NOMEM;
    write_config(&dir, "{}");
    test_write_text(&dir, "generation_config.json", "{}");
    test_write_text(&dir, "tokenizer_config.json", "{\"mask_token\": \"<MASK>\"}");
    test_write_text(&dir, "tokenizer.json",
                    "{\"added_tokens\": [{\"id\": 1, \"content\": \"<MASK>\"}]}");
    long n = 0;
    while (status != RT_OK) {
        rt_mem_fail_at(++n);
        status = rt_config_load(dir.path, NULL, &c);
        if (status != RT_OK)
            assert_fails(status, RT_ERR_NOMEM, "out of memory", "");
    }
    rt_mem_fail_at(0);
    assert_int_equal(n, 6); // four files and the mask token's name fail before
    test_dir_remove(&dir);
}

// ---- shipped files ---------------------------------------------------------

static void test_goldens(void **state)
{
    (void)state;
    const char *source = getenv("LOSA_SOURCE");
    char dir[PATH_MAX];
    rt_model_config c;
    if (!source)
        skip();
    snprintf(dir, sizeof dir, "%s/tests/golden/logits/yarn_v5", source);
    assert_ok(rt_config_load(dir, NULL, &c));
    assert_true(c.rope.kind == RT_ROPE_YARN && c.rope.attention_factor == 1.25);
    assert_true(!c.rope.truncate && c.max_positions == 128);
    snprintf(dir, sizeof dir, "%s/tests/golden/logits/qwen2_kv2_bf16", source);
    assert_ok(rt_config_load(dir, NULL, &c));
    assert_true(c.qkv_bias && c.shifted && c.block_length == 16 && c.default_sub_block == 8);
}

// ---- published models ----------------------------------------------------------

static size_t find_published(const char *name)
{
    size_t i = 0;
    while (rt_config_published_name(i) && strcmp(rt_config_published_name(i), name) != 0)
        i++;
    assert_non_null(rt_config_published_name(i));
    return i;
}

// What config.json of SDAR-4B says, and nothing else.
static void test_published(void **state)
{
    (void)state;
    test_dir dir = test_dir_new();
    const rt_config_overrides none = {.mask_id = -1};
    const rt_model_config want = load(&dir, "{}");
    rt_model_config c;
    assert_ok(rt_config_published(find_published("sdar-4b"), &none, &c));
    assert_string_equal(c.architecture, want.architecture);
    assert_true(c.hidden == want.hidden && c.ffn == want.ffn && c.layers == want.layers);
    assert_true(c.heads == want.heads && c.kv_heads == want.kv_heads && c.vocab == want.vocab);
    assert_true(c.head_dim == want.head_dim && c.max_positions == want.max_positions);
    assert_true(c.rms_eps == want.rms_eps && c.rope.kind == want.rope.kind);
    assert_true(c.rope.theta == want.rope.theta && c.rope.factor == want.rope.factor);
    assert_true(c.qkv_bias == want.qkv_bias && c.qk_norm == want.qk_norm);
    assert_true(c.tied_head == want.tied_head && c.shifted == want.shifted);
    assert_true(c.block_length == want.block_length && c.mask_id == want.mask_id);
    test_dir_remove(&dir);
}

static void test_published_overrides(void **state)
{
    (void)state;
    const size_t v2 = find_published("fast-dllm-v2-7b");
    rt_model_config c;
    assert_ok(rt_config_published(v2, &(rt_config_overrides){.mask_id = -1}, &c));
    assert_true(c.qkv_bias && !c.qk_norm && c.shifted && c.mask_id == 151665);
    assert_true(c.block_length == 32 && c.default_sub_block == 8);
    assert_ok(rt_config_published(v2, &(rt_config_overrides){12, 7}, &c));
    assert_true(c.block_length == 12 && c.default_sub_block == 0 && c.mask_id == 7);
    assert_string_equal(c.block_source, "the command line");
    assert_fails(rt_config_published(v2, &(rt_config_overrides){-1, -1}, &c), RT_ERR_INVALID,
                 "block length -1", "outside");
    assert_fails(rt_config_published(v2, &(rt_config_overrides){0, 152064}, &c), RT_ERR_INVALID,
                 "mask id 152064", "vocabulary");
    assert_fails(rt_config_published(99, &(rt_config_overrides){0, -1}, &c), RT_ERR_INVALID, "i <",
                 "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_absent_keys),
        cmocka_unit_test(test_architectures),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_switched_off),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_yarn),
        cmocka_unit_test(test_block_sources),
        cmocka_unit_test(test_folder_name),
        cmocka_unit_test(test_folder_links),
        cmocka_unit_test(test_mask_sources),
        cmocka_unit_test(test_mask_refused),
        cmocka_unit_test(test_mask_unknown),
        cmocka_unit_test(test_mask_outside),
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_stops_outside),
        cmocka_unit_test(test_integers_of_python),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_generation_refused),
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_published_overrides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
