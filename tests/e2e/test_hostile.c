// SPDX-License-Identifier: Apache-2.0
// Hostile checkpoints, prompts and devices, from outside: a non-zero status, one line
// that names file and cause, nobody left behind, on 1 rank and on 2. test_cli.c has the
// mistakes that users make; here is what only damage or malice brings.
#include "tests/e2e/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const double LIMIT = 30.0; // seconds for anything that is refused
enum { FAILED = 1 };

static const char TINY[] = "tests/golden/logits/gqa_b4_tied";
static const char NEEDLE[] = "models/needle-11m";

// ---- files ---------------------------------------------------------------------------

static void link_file(const char *folder, const char *name, const char *to)
{
    mkdir(run_temp("%s", to), 0777);
    if (symlink(run_source("%s/%s", folder, name), run_temp("%s/%s", to, name)) != 0)
        fail_msg("%s/%s: cannot link", to, name);
}

// A folder `to` with links to the files of a checkpoint, but for `own`.
static void make_folder(const char *folder, const char *to, const char *own)
{
    static const char *const names[] = {"config.json", "generation_config.json",
                                        "model.safetensors", "tokenizer.json",
                                        "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i], own) != 0 && access(run_source("%s/%s", folder, names[i]), F_OK) == 0)
            link_file(folder, names[i], to);
}

// Writes the file `name` of a checkpoint into the folder `to`, with the first `from` of
// it replaced; the other files are links.
static void damage_text(const char *folder, const char *to, const char *name, const char *from,
                        const char *with)
{
    size_t len;
    make_folder(folder, to, name);
    char *text = run_read(run_source("%s/%s", folder, name), &len), *changed;
    const char *at = strstr(text, from);
    if (!at)
        fail_msg("%s/%s: no '%s'", folder, name, from);
    const int n = asprintf(&changed, "%.*s%s%s", (int)(at - text), text, with, at + strlen(from));
    assert_true(n > 0);
    run_write(run_temp("%s/%s", to, name), changed, (size_t)n);
    free(changed);
    free(text);
}

// Overwrites 4 bytes of the tensor `tensor` of TINY, at its element `at` (f32).
static void damage_weight(const char *to, const char *tensor, size_t at, const char *bytes)
{
    size_t len;
    make_folder(TINY, to, "model.safetensors");
    char *file = run_read(run_source("%s/model.safetensors", TINY), &len);
    size_t header = 0;
    memcpy(&header, file, 8); // little endian
    json_t *json = json_loadb(file + 8, header, 0, NULL);
    const json_t *offsets = json_object_get(json_object_get(json, tensor), "data_offsets");
    assert_non_null(offsets);
    const size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    memcpy(file + 8 + header + begin + 4 * at, bytes, 4);
    run_write(run_temp("%s/model.safetensors", to), file, len);
    json_decref(json);
    free(file);
}

static void write_header(const char *to, const char *header, size_t data)
{
    make_folder(TINY, to, "model.safetensors");
    const size_t len = strlen(header);
    char *file = calloc(8 + len + data, 1);
    assert_non_null(file);
    memcpy(file, &len, 8);
    memcpy(file + 8, header, len);
    run_write(run_temp("%s/model.safetensors", to), file, 8 + len + data);
    free(file);
}

// 100 MB that take no room on the disk.
static void make_huge(const char *name)
{
    run_write(run_temp("%s", name), "x", 1);
    assert_int_equal(truncate(run_temp("%s", name), 100000000), 0);
}

#define A "\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]}"

static int make_files(void **state)
{
    (void)state;
    make_folder(TINY, "tiny", "");
    link_file(TINY, "ids.json", "tiny");
    damage_weight("nan", "model.layers.1.mlp.up_proj.weight", 0, "\0\0\xc0\x7f");
    damage_weight("inf", "model.norm.weight", 3, "\0\0\x80\xff");
    // A row of the vocabulary that the last rank alone reads.
    damage_weight("nan-last", "model.embed_tokens.weight", 95 * 32, "\1\0\x80\x7f");
    write_header("overlap", "{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
                 8);
    make_folder(TINY, "header", "model.safetensors");
    run_write(run_temp("header/model.safetensors"), "\0\0\0\0\0\0\0\x10{}", 10);
    damage_text(TINY, "zero", "config.json", "\"hidden_size\": ", "\"hidden_size\": 0, \"x\": ");
    damage_text(TINY, "huge", "config.json",
                "\"num_hidden_layers\": ", "\"num_hidden_layers\": 9223372036854775807, \"x\": ");
    damage_text(NEEDLE, "merges", "tokenizer.json", "\"merges\": [",
                "\"merges\": [[\"q\", \"~~\"], ");
    damage_text(NEEDLE, "classes", "tokenizer.json", "\"(?i:", "\"[a-z&&[^b]]|(?i:");
    make_huge("zeros.txt");
    make_huge("zeros.json");
    return 0;
}

// ---- refusals ------------------------------------------------------------------------

// Words of a command line after `losa`. @NAME: a path in the temporary folder; %NEEDLE:
// the shipped model.
typedef struct refusal {
    const char *line;
    int ranks; // 0: both alone and on 2
    const char *says[3];
} refusal;

#define LOGITS(model) "logits --ids @tiny/ids.json --out @x.npy --model @" model

static const refusal refusals[] = {
    {LOGITS("nan"), 0, {"nan/model.safetensors", "layers.1.mlp.up_proj.weight", "NaN at [0, 0]"}},
    {LOGITS("inf"), 0, {"inf/model.safetensors", "'model.norm.weight'", "infinity at [3]"}},
    {LOGITS("nan-last"), 0, {"nan-last/model.safetensors", "embed_tokens", "NaN at [95, 0]"}},
    {LOGITS("overlap"), 0, {"overlap/model.safetensors", "'b' begins at 4", "ends at 5"}},
    {LOGITS("header"), 0, {"header/model.safetensors", "1152921504606846976"}},
    {LOGITS("zero"), 0, {"zero/config.json", "'hidden_size' is 0"}},
    {LOGITS("huge"), 0, {"huge/config.json", "'num_hidden_layers' is 9223372036854775807"}},
    {LOGITS("tiny"), 16, {"8 query heads", "16 ranks"}},
    {"generate --prompt a --model @merges", 0, {"merges/tokenizer.json", "merge"}},
    {"generate --prompt a --model @classes", 0, {"classes/tokenizer.json", "&&"}},
    {"generate --model %NEEDLE --prompt-file @zeros.txt", 0, {"100000000 bytes", "32768"}},
    {"logits --model %NEEDLE --out @x.npy --ids @zeros.json", 0, {"zeros.json", "33554432"}},
};
enum { REFUSALS = sizeof refusals / sizeof refusals[0] };

static void split(const char *line, run_args *args)
{
    char *copy = strdup(line), *rest = NULL;
    assert_non_null(copy);
    for (char *w = strtok_r(copy, " ", &rest); w; w = strtok_r(NULL, " ", &rest)) {
        if (w[0] == '@')
            run_arg(args, "%s", run_temp("%s", w + 1));
        else
            run_arg(args, "%s", strcmp(w, "%NEEDLE") == 0 ? run_source("%s", NEEDLE) : w);
    }
    free(copy);
}

static void check_refusal(const refusal *r, int ranks)
{
    run_args args = {0};
    split(r->line, &args);
    const run_job job = {.ranks = ranks, .args = &args, .limit = LIMIT};
    run_result got = run_losa(&job);
    bool good = got.status == FAILED && !got.timed_out && got.left == 0 && got.err_lines == 1;
    for (int i = 0; i < 3 && r->says[i]; i++)
        good &= strstr(got.err, r->says[i]) != NULL;
    if (!good)
        fail_msg("on %d ranks: losa %s\nstatus %d%s; %d left after %.1f s; %d lines, expected one "
                 "with '%s' '%s' '%s':\n%s",
                 ranks, r->line, got.status, got.timed_out ? " (timed out)" : "", got.left,
                 got.seconds, got.err_lines, r->says[0], r->says[1] ? r->says[1] : "",
                 r->says[2] ? r->says[2] : "", got.err);
    run_result_free(&got);
    run_args_free(&args);
}

static void test_refusal(void **state)
{
    const refusal *r = *state;
    if (r->ranks > 0) {
        check_refusal(r, r->ranks);
    } else {
        check_refusal(r, 0);
        check_refusal(r, 2);
    }
}

// ---- what is allowed on request --------------------------------------------------------

// The program must not trust a number that a NaN reached: no crash, no hang.
static void test_allow_nonfinite(void **state)
{
    (void)state;
    damage_text(NEEDLE, "nan-needle", "config.json", "{", "{");
    unlink(run_temp("nan-needle/model.safetensors"));
    size_t len;
    char *file = run_read(run_source("%s/model.safetensors", NEEDLE), &len);
    size_t header = 0;
    memcpy(&header, file, 8);
    memset(file + 8 + header, 0xff, len - 8 - header); // every weight is NaN
    run_write(run_temp("nan-needle/model.safetensors"), file, len);
    free(file);
    static const char *const lines[] = {
        "generate --allow-nonfinite --model @nan-needle --prompt a --max-tokens 8 --json",
        "generate --allow-nonfinite --model @nan-needle --prompt a --max-tokens 8 --json "
        "--temperature 1 --top-k 5 --top-p 0.9 --strategy entropy_bounded",
        "logits --allow-nonfinite --model @nan --ids @tiny/ids.json --out @nan.npy",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        for (int ranks = 1; ranks <= 2; ranks++) {
            run_args args = {0};
            split(lines[i], &args);
            run_result got = run_ok(ranks, &args, LIMIT);
            run_result_free(&got);
            run_args_free(&args);
        }
    }
}

// ---- full disks, closed files -------------------------------------------------------------

// Redirects the standard output of every rank, as a shell does.
static void redirect_output(const char *redirection)
{
    const char *wrapper = run_temp("losa-redirected");
    char script[2048];
    const int n = snprintf(script, sizeof script, "#!/bin/sh\nexec '%s' \"$@\" %s\n",
                           getenv("LOSA_BINARY"), redirection);
    run_write(wrapper, script, (size_t)n);
    assert_int_equal(chmod(wrapper, 0755), 0);
    setenv("LOSA_BINARY", wrapper, 1);
}

static const refusal full[] = {
    {"generate -q --model %NEEDLE --prompt a --max-tokens 4", 0, {"standard output", "No space"}},
    {"generate -q --model %NEEDLE --prompt a --max-tokens 4 --json",
     0,
     {"standard output", "No space"}},
    {"logits -q --model %NEEDLE --ids @tiny/ids.json --out /dev/full",
     0,
     {"/dev/full", "No space"}},
    {"generate -q --model %NEEDLE --prompt a --max-tokens 4 --stats-file /dev/full",
     0,
     {"/dev/full", "No space"}},
    {"info --model %NEEDLE", 0, {"standard output"}},
    {"tokenize --model %NEEDLE", 0, {"standard output"}},
    {"--help", 0, {"standard output"}},
    {"generate --help", 0, {"standard output"}},
};
enum { FULL = sizeof full / sizeof full[0] };

static void test_full_disk(void **state)
{
    (void)state;
    char *const binary = strdup(getenv("LOSA_BINARY"));
    for (int i = 0; i < FULL; i++) {
        setenv("LOSA_BINARY", binary, 1);
        if (!strstr(full[i].line, "/dev/full"))
            redirect_output(">/dev/full");
        check_refusal(&full[i], 0);
        check_refusal(&full[i], 2);
    }
    setenv("LOSA_BINARY", binary, 1);
    free(binary);
}

// A file that losa opens does not become the standard output that is missing.
static void test_closed_output(void **state)
{
    (void)state;
    static const refusal closed = {
        "generate -q --model %NEEDLE --prompt a --max-tokens 40 --trace-plans @closed.trace",
        0,
        {"standard output", "Bad file"}};
    char *const binary = strdup(getenv("LOSA_BINARY"));
    redirect_output(">&-");
    check_refusal(&closed, 0);
    check_refusal(&closed, 2);
    setenv("LOSA_BINARY", binary, 1);
    free(binary);
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    const struct CMUnitTest more[] = {
        cmocka_unit_test(test_allow_nonfinite),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_closed_output),
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
    return _cmocka_run_group_tests("hostile", tests, REFUSALS + EXTRA, make_files, NULL);
}
