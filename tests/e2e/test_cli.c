// SPDX-License-Identifier: Apache-2.0
// Wrong input ends with a non-zero status, one line on standard error that names the
// file or parameter and the cause, nothing on standard output and nobody left behind:
// started by hand, and under mpirun on 2 ranks. Also --help, streams and Ctrl-C.
#include "tests/e2e/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const double LIMIT = 20.0; // seconds for anything that is refused

enum { USAGE = 2, FAILED = 1 };

// ---- broken checkpoints ------------------------------------------------------------

static const char TINY[] = "tests/golden/logits/gqa_b4_tied";
static const char SHARDED[] = "tests/golden/logits/sharded";

static void copy_file(const char *from, const char *to)
{
    size_t len;
    char *bytes = run_read(from, &len);
    run_write(to, bytes, len);
    free(bytes);
}

// A copy of a golden checkpoint under the temporary folder.
static void make_copy(const char *name, const char *golden, const char *const *files)
{
    mkdir(run_temp("%s", name), 0777);
    for (int i = 0; files[i]; i++)
        copy_file(run_source("%s/%s", golden, files[i]), run_temp("%s/%s", name, files[i]));
}

static void make_tiny(const char *name)
{
    static const char *const files[] = {"config.json", "model.safetensors", "ids.json", NULL};
    make_copy(name, TINY, files);
}

static void make_sharded(const char *name)
{
    static const char *const files[] = {"config.json",
                                        "model.safetensors.index.json",
                                        "model-00001-of-00003.safetensors",
                                        "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors",
                                        "ids.json",
                                        NULL};
    make_copy(name, SHARDED, files);
}

static void write_text(const char *path, const char *text)
{
    run_write(path, text, strlen(text));
}

// Replaces the first occurrence of `from` in a text file.
static void replace(const char *path, const char *from, const char *to)
{
    size_t len;
    char *text = run_read(path, &len), *at = strstr(text, from);
    if (!at)
        fail_msg("%s: no '%s'", path, from);
    char *changed = NULL;
    if (asprintf(&changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from)) < 0)
        fail_msg("no memory");
    write_text(path, changed);
    free(changed);
    free(text);
}

static void change_config(const char *name, const char *from, const char *to)
{
    make_tiny(name);
    replace(run_temp("%s/config.json", name), from, to);
}

static void patch_weights(const char *name, size_t at, const char *bytes, size_t n)
{
    make_tiny(name);
    const char *path = run_temp("%s/model.safetensors", name);
    size_t len;
    char *file = run_read(path, &len);
    memcpy(file + at, bytes, n);
    run_write(path, file, len);
    free(file);
}

static void cut_weights(const char *name, double keep)
{
    make_tiny(name);
    const char *path = run_temp("%s/model.safetensors", name);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(truncate(path, (off_t)((double)info.st_size * keep)), 0);
}

static void make_prompts(void)
{
    json_t *documents = run_load_lines(run_source("tests/golden/decode/documents.jsonl"));
    const char *user = "";
    size_t i;
    const json_t *document;
    json_array_foreach(documents, i, document) if (strcmp(run_text(document, "id"), "mq-2048-0") ==
                                                   0) user = run_text(document, "user");
    const size_t len = strlen(user);
    assert_true(len > 0);
    char *text = calloc(17 * len + 1, 1);
    assert_non_null(text);
    for (int k = 0; k < 17; k++)
        memcpy(text + (size_t)k * len, user, len);
    run_write(run_temp("too-long.txt"), text, 17 * len);
    run_write(run_temp("long.txt"), text, 7 * len);
    run_write(run_temp("normal.txt"), text, len);
    write_text(run_temp("empty.txt"), "");
    run_write(run_temp("not-utf8.txt"), "abc \xff def", 9);
    free(text);
    json_decref(documents);
}

static void make_ids(void)
{
    write_text(run_temp("object.json"), "{\"ids\": [1]}");
    write_text(run_temp("broken.json"), "[1, 2");
    write_text(run_temp("text.json"), "[1, \"2\"]");
    write_text(run_temp("range.json"), "[1, 2, 96]");
    write_text(run_temp("none.json"), "[]");
    FILE *file = fopen(run_temp("many.json"), "w");
    assert_non_null(file);
    for (int i = 0; i < 200; i++)
        fprintf(file, "%s%d", i ? ", " : "[", i % 90);
    fprintf(file, "]\n");
    fclose(file);
}

static int make_files(void **state)
{
    (void)state;
    make_prompts();
    make_ids();
    make_tiny("tiny");
    mkdir(run_temp("nothing"), 0777);
    make_tiny("no-weights");
    unlink(run_temp("no-weights/model.safetensors"));
    make_tiny("bad-json");
    write_text(run_temp("bad-json/config.json"), "{\"architectures\": [");
    make_tiny("bad-tokenizer");
    write_text(run_temp("bad-tokenizer/tokenizer.json"), "{\"version\": \"1.0\"}");
    change_config("unknown-arch", "SDARForCausalLM", "LlamaForCausalLM");
    change_config("wrong-type", "\"num_attention_heads\": 8", "\"num_attention_heads\": \"8\"");
    change_config("wrong-heads", "\"num_key_value_heads\": 4", "\"num_key_value_heads\": 3");
    change_config("wrong-shape", "\"intermediate_size\": 64", "\"intermediate_size\": 128");
    change_config("more-layers", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    change_config("rope-type", "\"rope_scaling\": null",
                  "\"rope_scaling\": {\"rope_type\": \"longrope\", \"factor\": 2}");
    change_config("quantized", "\"rope_scaling\": null",
                  "\"rope_scaling\": null, \"quantization_config\": {\"quant_method\": \"awq\"}");
    cut_weights("cut", 0.5);
    cut_weights("cut-header", 0.001);
    cut_weights("cut-all", 0);
    patch_weights("header-size", 0, "\xff\xff\xff\xff\xff\xff\xff\x7f", 8);
    patch_weights("header-json", 8, "x", 1);
    make_sharded("shard-missing");
    unlink(run_temp("shard-missing/model-00002-of-00003.safetensors"));
    make_sharded("shard-outside");
    replace(run_temp("shard-outside/model.safetensors.index.json"),
            "\"model-00002-of-00003.safetensors\"", "\"../tiny/model.safetensors\"");
    make_sharded("shard-wrong");
    replace(run_temp("shard-wrong/model.safetensors.index.json"),
            "\"model-00002-of-00003.safetensors\"", "\"model-00003-of-00003.safetensors\"");
    return 0;
}

// ---- what is refused ---------------------------------------------------------------

// Words of a command line after `losa`, separated by blanks. @NAME: a path in the
// temporary folder; %NEEDLE: the shipped model; '': an empty word.
typedef struct refusal {
    const char *line;
    int status;
    const char *says[3]; // all of them stand in the message
} refusal;

static const refusal refusals[] = {
    // Usage.
    {"generat --model @tiny", USAGE, {"generat", "generate"}},
    {"generate --model @tiny --promt hello", USAGE, {"--promt", "--prompt"}},
    {"generate --model @tiny --prompt hello --atention dense", USAGE, {"--attention"}},
    {"generate --prompt hello", USAGE, {"--model"}},
    {"generate --prompt hello --model", USAGE, {"--model", "value"}},
    {"generate --model @tiny", USAGE, {"--prompt"}},
    {"generate --model @tiny --prompt a --prompt-file @normal.txt", USAGE, {"--prompt-file"}},
    {"generate --model @tiny --prompt a more", USAGE, {"more"}},
    {"generate --model @tiny --prompt a --system b", USAGE, {"--system", "--chat"}},
    {"generate --model @tiny --prompt a --max-tokens 0", USAGE, {"--max-tokens", "0"}},
    {"generate --model @tiny --prompt a --max-tokens ten", USAGE, {"--max-tokens", "ten"}},
    {"generate --model @tiny --prompt a --attention flash",
     USAGE,
     {"--attention", "flash", "losa"}},
    {"generate --model @tiny --prompt a --active topk:x", USAGE, {"--active", "topk:x"}},
    {"generate --model @tiny --prompt a --active newest", USAGE, {"--active", "unsettled"}},
    {"generate --model @tiny --prompt a --page-size 24", USAGE, {"page", "24", "power of two"}},
    {"generate --model @tiny --prompt a --budget 0", USAGE, {"--budget", "0"}},
    {"generate --model @tiny --prompt a --plan-scope all", USAGE, {"--plan-scope", "shared"}},
    {"generate --model @tiny --prompt a --locality key", USAGE, {"--locality", "query"}},
    {"generate --model @tiny --prompt a --strategy best", USAGE, {"--strategy", "sequential"}},
    {"generate --model @tiny --prompt a --steps -2", USAGE, {"--steps", "-2"}},
    {"generate --model @tiny --prompt a --temperature -1", USAGE, {"--temperature"}},
    {"generate --model @tiny --prompt a --top-p 2", USAGE, {"--top-p"}},
    {"generate --model @tiny --prompt a --top-p 0", USAGE, {"--top-p"}},
    {"generate --model @tiny --prompt a --threshold 2", USAGE, {"--threshold 2", "at most 1"}},
    {"generate --model @tiny --prompt a --block-length 1025", USAGE, {"--block-length", "1024"}},
    {"generate --model @tiny --prompt a --budget 2147483647", USAGE, {"budget", "2147483391"}},
    {"generate --model @tiny --prompt a --seed x", USAGE, {"--seed", "x"}},
    {"generate --model @tiny --prompt a --stop ''", USAGE, {"--stop", "empty"}},
    {"generate --model @tiny --prompt a --device abacus", USAGE, {"--device", "cpu"}},
    {"generate --model @tiny --prompt a --threads 99999", USAGE, {"--threads"}},
    {"generate --model @tiny --prompt a --json=yes", USAGE, {"--json"}},
    {"batch --model @tiny -i @in -o @out --threshold 2", USAGE, {"--threshold 2", "at most 1"}},
    {"logits --model @tiny --ids @many.json", USAGE, {"--out"}},
    {"logits --model @tiny --ids @many.json --out @x.npy -v -q", USAGE, {"--verbose", "--quiet"}},
    {"logits --model @tiny --out @x.npy", USAGE, {"--ids"}},
    {"tokenize", USAGE, {"--tokenizer"}},
    {"info", USAGE, {"--model"}},
    // Checkpoints.
    {"generate --model @absent --prompt a", FAILED, {"absent/config.json", "No such file"}},
    {"generate --model @nothing --prompt a", FAILED, {"nothing/config.json", "No such file"}},
    {"generate --model @bad-json --prompt a", FAILED, {"bad-json/config.json"}},
    {"generate --model @unknown-arch --prompt a",
     FAILED,
     {"unknown-arch/config.json", "LlamaForCausalLM", "SDARForCausalLM"}},
    {"generate --model @wrong-type --prompt a",
     FAILED,
     {"wrong-type/config.json", "num_attention_heads"}},
    {"generate --model @wrong-heads --prompt a",
     FAILED,
     {"wrong-heads/config.json", "num_key_value_heads"}},
    {"generate --model @rope-type --prompt a", FAILED, {"rope-type/config.json", "longrope"}},
    {"generate --model @quantized --prompt a", FAILED, {"quantized/config.json", "awq"}},
    {"logits --model @no-weights --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"no-weights", "model.safetensors"}},
    {"logits --model @wrong-shape --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"wrong-shape/model.safetensors", "mlp.", "128"}},
    {"logits --model @more-layers --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"more-layers", "model.layers.2", "missing"}},
    {"logits --model @cut --ids @tiny/ids.json --out @x.npy", FAILED, {"cut/model.safetensors"}},
    {"logits --model @cut-header --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"cut-header/model.safetensors", "header"}},
    {"logits --model @cut-all --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"cut-all/model.safetensors"}},
    {"logits --model @header-size --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"header-size/model.safetensors", "header"}},
    {"logits --model @header-json --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"header-json/model.safetensors"}},
    {"logits --model @shard-missing --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"model-00002-of-00003.safetensors"}},
    {"logits --model @shard-outside --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"shard-outside/model.safetensors.index.json", "tensor"}},
    {"logits --model @shard-wrong --ids @tiny/ids.json --out @x.npy",
     FAILED,
     {"tensor", "model-00003-of-00003.safetensors"}},
    {"generate --model @tiny --prompt a", FAILED, {"tiny/tokenizer.json"}},
    {"generate --model @bad-tokenizer --prompt a", FAILED, {"bad-tokenizer/tokenizer.json"}},
    {"info --model @cut", FAILED, {"cut/model.safetensors"}},
    // Files and prompts.
    {"logits --model @tiny --ids @absent.json --out @x.npy", FAILED, {"absent.json"}},
    {"logits --model @tiny --ids @object.json --out @x.npy", FAILED, {"object.json", "array"}},
    {"logits --model @tiny --ids @broken.json --out @x.npy", FAILED, {"broken.json"}},
    {"logits --model @tiny --ids @text.json --out @x.npy", FAILED, {"text.json", "1"}},
    {"logits --model @tiny --ids @range.json --out @x.npy", FAILED, {"range.json", "96"}},
    {"logits --model @tiny --ids @none.json --out @x.npy", FAILED, {"none.json"}},
    {"logits --model @tiny --ids @many.json --out @x.npy", FAILED, {"200", "128"}},
    {"logits --model @tiny --ids @tiny/ids.json --out @no/x.npy", FAILED, {"no/x.npy"}},
    {"generate --model %NEEDLE --prompt-file @absent.txt", FAILED, {"absent.txt"}},
    {"generate --model %NEEDLE --prompt-file @empty.txt", FAILED, {"empty.txt", "empty"}},
    {"generate --model %NEEDLE --prompt ''", FAILED, {"prompt", "empty"}},
    {"generate --model %NEEDLE --document @empty.txt --prompt a",
     FAILED,
     {"empty.txt", "document is empty"}},
    {"generate --model %NEEDLE --prompt-file @not-utf8.txt", FAILED, {"UTF-8", "4"}},
    {"generate --model %NEEDLE --prompt-file @too-long.txt", FAILED, {"32768", "context"}},
    {"generate --model %NEEDLE --prompt-file @normal.txt --context 1024",
     FAILED,
     {"pages", "2", "needed"}},
    {"generate --model %NEEDLE --prompt a --context 2000000000", FAILED, {"memory"}},
    {"generate --model %NEEDLE --prompt a --mask-id 4000", FAILED, {"4000", "2304"}},
    {"generate --model %NEEDLE --prompt-file @normal.txt --prompt-file @bad\xff",
     FAILED,
     {"bad\xff", "UTF-8"}},
    {"bench decode 120 --model @tiny", FAILED, {"120", "20", "128"}},
    {"bench prefill 128 --model @tiny", FAILED, {"128", "1 to answer"}},
    {"bench prefill 3 --model @tiny", FAILED, {"3 tokens", "a block"}},
    {"generate --model %NEEDLE --prompt a --max-tokens 4 -q --stats-file @no/x.json",
     FAILED,
     {"no/x.json"}},
    {"tokenize --tokenizer @absent.json", FAILED, {"absent.json"}},
};
enum { REFUSALS = sizeof refusals / sizeof refusals[0] };

static void split(const char *line, run_args *args)
{
    char *copy = strdup(line), *rest = NULL;
    assert_non_null(copy);
    for (char *w = strtok_r(copy, " ", &rest); w; w = strtok_r(NULL, " ", &rest)) {
        if (w[0] == '@')
            run_arg(args, "%s", run_temp("%s", w + 1));
        else if (strcmp(w, "%NEEDLE") == 0)
            run_arg(args, "%s", run_source("models/needle-11m"));
        else
            run_arg(args, "%s", strcmp(w, "''") == 0 ? "" : w);
    }
    free(copy);
}

static bool is_one_line(const char *text)
{
    const char *end = strchr(text, '\n');
    return end && end != text && end[1] == '\0';
}

static void check_refusal(const refusal *r, int ranks)
{
    run_args args = {0};
    split(r->line, &args);
    const run_job job = {.ranks = ranks, .args = &args, .limit = LIMIT};
    run_result got = run_losa(&job);
    bool good = got.status == r->status && !got.timed_out && got.left == 0;
    good &= is_one_line(got.err);
    for (int i = 0; i < 3 && r->says[i]; i++)
        good &= strstr(got.err, r->says[i]) != NULL;
    // A text that was given out before the statistics failed is no fault.
    good &= got.out_len == 0 || strstr(r->line, "--stats-file");
    if (!good)
        fail_msg("on %d ranks: losa %s\nstatus %d, expected %d%s; %d left after %.1f s; "
                 "standard output %zu bytes; standard error, expected one line with '%s' '%s' "
                 "'%s':\n%s",
                 ranks, r->line, got.status, r->status, got.timed_out ? " (timed out)" : "",
                 got.left, got.seconds, got.out_len, r->says[0], r->says[1] ? r->says[1] : "",
                 r->says[2] ? r->says[2] : "", got.err);
    run_result_free(&got);
    run_args_free(&args);
}

// Usage is refused before MPI is up: under mpirun a few of them will do.
static void test_refusal(void **state)
{
    const refusal *r = *state;
    check_refusal(r, 0);
    if (r->status != USAGE || (r - refusals) % 4 == 0)
        check_refusal(r, 2);
}

// Shapes that do not divide.
static void test_ranks(void **state)
{
    (void)state;
    const refusal three = {
        "logits --model @tiny --ids @tiny/ids.json --out @x.npy", FAILED, {"8", "3 ranks"}};
    check_refusal(&three, 3);
}

// ---- what is not refused -----------------------------------------------------------

static run_result run_line(const char *line, int ranks, const char *input)
{
    run_args args = {0};
    split(line, &args);
    const run_job job = {.ranks = ranks, .args = &args, .input = input, .limit = 60};
    run_result got = run_losa(&job);
    if (got.status != 0 || got.timed_out || got.left)
        fail_msg("losa %s: status %d\n%s", line, got.status, got.err);
    run_args_free(&args);
    return got;
}

static void test_help(void **state)
{
    (void)state;
    static const char *const lines[] = {"--help",      "generate --help", "batch --help",
                                        "eval --help", "info --help",     "tokenize --help",
                                        "logits -h",   "report --help",   "bench --help"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        for (int ranks = 0; ranks <= 2; ranks += 2) {
            run_result got = run_line(lines[i], ranks, NULL);
            assert_int_equal(got.err_lines, 0);
            const char *usage = strstr(got.out, "usage: losa");
            assert_non_null(usage);
            assert_null(strstr(usage + 1, "\nusage: losa")); // rank 0 alone prints
            run_result_free(&got);
        }
    }
    run_result version = run_line("--version", 2, NULL);
    assert_true(is_one_line(version.out));
    run_result_free(&version);
}

static void test_info(void **state)
{
    (void)state;
    run_result got = run_line("info --model %NEEDLE --ranks 2", 0, NULL);
    assert_non_null(strstr(got.out, "SDARForCausalLM"));
    assert_non_null(strstr(got.out, "config.json")); // where the block length came from
    run_result_free(&got);
}

// Text -> ids -> the same text; special tokens in the text count as such.
static void test_tokenize(void **state)
{
    (void)state;
    static const char text[] = "<|im_start|>user\nGr\xc3\xbc\xc3\x9f Gott, 42  times \xe2\x9c\x93\n"
                               "<|im_end|>\n";
    write_text(run_temp("text.txt"), text);
    char *input = strdup(run_temp("text.txt")), *ids_file = strdup(run_temp("text-ids.json"));
    run_result ids = run_line("tokenize --model %NEEDLE", 0, input);
    json_t *array = json_loadb(ids.out, ids.out_len, 0, NULL);
    assert_true(json_is_array(array) && json_array_size(array) > 10);
    assert_int_equal(json_integer_value(json_array_get(array, 0)), 1); // <|im_start|>
    run_write(ids_file, ids.out, ids.out_len);
    run_result back = run_line("tokenize --model %NEEDLE --decode", 0, ids_file);
    assert_string_equal(back.out, text);
    run_result_free(&back);
    // As generate writes them: past the tokenizer's largest, which a model's vocabulary may be.
    json_array_insert_new(array, 3, json_integer(INT32_MAX));
    json_array_insert_new(array, 5, json_integer(2304));
    assert_int_equal(json_dump_file(array, ids_file, 0), 0);
    back = run_line("tokenize --model %NEEDLE --decode", 0, ids_file);
    assert_string_equal(back.out, text);
    json_decref(array);
    run_result_free(&ids);
    run_result_free(&back);
    free(input);
    free(ids_file);
}

// `-` is standard input; under mpirun rank 0 has it. A byte order mark is not of the text.
static void test_standard_input(void **state)
{
    (void)state;
    size_t len;
    char *input = strdup(run_temp("marked.txt")), *text = run_read(run_temp("normal.txt"), &len);
    char *marked = calloc(len + 4, 1);
    assert_non_null(marked);
    sprintf(marked, "\xef\xbb\xbf%s", text);
    write_text(input, marked);
    free(marked);
    free(text);
    run_result first = run_line(
        "generate --model %NEEDLE --chat -q --max-tokens 20 --prompt-file @normal.txt", 0, NULL);
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        run_result got = run_line("generate --model %NEEDLE --chat -q --max-tokens 20 "
                                  "--prompt-file -",
                                  ranks, input);
        assert_string_equal(got.out, first.out);
        run_result_free(&got);
    }
    run_result_free(&first);
    free(input);
}

static void test_interrupt(void **state)
{
    (void)state;
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        run_args args = {0};
        split("generate --model %NEEDLE --prompt-file @long.txt --ignore-stop -n 8000", &args);
        const run_job job = {.ranks = ranks, .args = &args, .limit = LIMIT, .interrupt = 2.5};
        run_result got = run_losa(&job);
        if (got.timed_out || got.left || got.status == 0 || got.seconds < 2.5)
            fail_msg("on %d ranks: status %d after %.1f s, %d left\n%s", ranks, got.status,
                     got.seconds, got.left, got.err);
        if (ranks == 0)
            assert_int_equal(got.status, 130);
        run_result_free(&got);
        run_args_free(&args);
    }
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    const struct CMUnitTest more[] = {
        cmocka_unit_test(test_ranks),          cmocka_unit_test(test_help),
        cmocka_unit_test(test_info),           cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_standard_input), cmocka_unit_test(test_interrupt),
    };
    enum { EXTRA = sizeof more / sizeof more[0] };
    static struct CMUnitTest tests[REFUSALS + EXTRA];
    for (size_t i = 0; i < REFUSALS; i++) {
        union { // cmocka hands the state out as it came in: not const
            const refusal *in;
            void *out;
        } state = {&refusals[i]};
        tests[i].name = refusals[i].line;
        tests[i].test_func = test_refusal;
        tests[i].initial_state = state.out;
    }
    memcpy(tests + REFUSALS, more, sizeof more);
    return _cmocka_run_group_tests("cli", tests, REFUSALS + EXTRA, make_files, NULL);
}
