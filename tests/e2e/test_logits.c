// SPDX-License-Identifier: Apache-2.0
// `losa logits` against Hugging Face's logits of tiny random checkpoints, on the ranks
// that each golden lists (tests/golden/logits, made by tools/golden).
#include "tests/e2e/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double LIMIT = 60.0; // seconds; a run takes about one

typedef struct matrix {
    char *file; // owns the data
    const char *data;
    size_t rows, cols;
} matrix;

// .npy format 1.0: magic, version, header length, a Python dict, padding, data.
static matrix read_npy(const char *path)
{
    size_t len;
    matrix m = {.file = run_read(path, &len)};
    if (len < 10 || memcmp(m.file, "\x93NUMPY\x01\x00", 8) != 0)
        fail_msg("%s: not a .npy file of version 1.0", path);
    const size_t header = (unsigned char)m.file[8] + 256U * (unsigned char)m.file[9];
    if (len < 10 + header || (10 + header) % 64 != 0)
        fail_msg("%s: header of %zu bytes", path, header);
    char dict[512];
    snprintf(dict, sizeof dict, "%.*s", (int)header, m.file + 10);
    const char *shape = strstr(dict, "'shape': (");
    if (!strstr(dict, "'descr': '<f4'") || !strstr(dict, "'fortran_order': False") || !shape ||
        sscanf(shape, "'shape': (%zu, %zu)", &m.rows, &m.cols) != 2)
        fail_msg("%s: unexpected header %s", path, dict);
    if (len - 10 - header != m.rows * m.cols * sizeof(float))
        fail_msg("%s: %zu bytes of data for %zu x %zu", path, len - 10 - header, m.rows, m.cols);
    m.data = m.file + 10 + header;
    return m;
}

static float element(const matrix *m, size_t i)
{
    float value;
    memcpy(&value, m->data + i * sizeof value, sizeof value);
    return value;
}

static void compare(const char *name, int ranks, const matrix *got, const matrix *want,
                    double tolerance)
{
    if (got->rows != want->rows || got->cols != want->cols)
        fail_msg("%s: %zu x %zu, not %zu x %zu", name, got->rows, got->cols, want->rows,
                 want->cols);
    double worst = 0;
    size_t where = 0;
    for (size_t i = 0; i < got->rows * got->cols; i++) {
        const double error = fabs((double)element(got, i) - (double)element(want, i));
        if (!(error <= worst)) { // a NaN counts
            worst = error;
            where = i;
        }
    }
    print_message("           %s, %d ranks: largest error %.1e\n", name, ranks, worst);
    if (!(worst < tolerance))
        fail_msg("%s on %d ranks: row %zu, token %zu: %g, not %g (largest error %g)", name, ranks,
                 where / got->cols, where % got->cols, (double)element(got, where),
                 (double)element(want, where), worst);
}

static void check(const char *name, int ranks, int block_length, const matrix *want,
                  double tolerance)
{
    run_args args = {0};
    const char *out = run_temp("%s.npy", name);
    run_arg(&args, "logits");
    run_arg(&args, "--model");
    run_arg(&args, "%s", run_source("tests/golden/logits/%s", name));
    run_arg(&args, "--ids");
    run_arg(&args, "%s", run_source("tests/golden/logits/%s/ids.json", name));
    run_arg(&args, "--out");
    run_arg(&args, "%s", out);
    if (block_length) {
        run_arg(&args, "--block-length");
        run_arg(&args, "%d", block_length);
    }
    run_result result = run_ok(ranks, &args, LIMIT);
    matrix got = read_npy(out);
    compare(name, ranks, &got, want, tolerance);
    remove(out);
    free(got.file);
    run_result_free(&result);
    run_args_free(&args);
}

static void test_case(void **state)
{
    const json_t *golden = *state;
    const char *name = run_text(golden, "name");
    const json_t *ranks = run_get(golden, "ranks");
    matrix want = read_npy(run_source("tests/golden/logits/%s/logits.npy", name));
    for (size_t i = 0; i < json_array_size(ranks); i++)
        check(name, (int)json_integer_value(json_array_get(ranks, i)),
              (int)run_number(golden, "block_length"), &want, run_number(golden, "tolerance"));
    free(want.file);
}

// ---- memory ------------------------------------------------------------------------

// KV pages are for the ids: at half a MB a token, those of the model's whole length would
// take 600 GB.
static void test_long_context(void **state)
{
    (void)state;
    const run_shape wide = {.vocab = 8, .heads = 128, .head_dim = 512};
    run_zero_model("wide", &wide, "\"max_position_embeddings\": 1048576");
    run_write(run_temp("ids.json"), "[1, 2, 3]", 9);
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        run_args args = {0};
        run_arg(&args, "logits");
        run_arg(&args, "--model=%s", run_temp("wide"));
        run_arg(&args, "--ids=%s", run_temp("ids.json"));
        run_arg(&args, "--out=%s", run_temp("wide.npy"));
        run_result result = run_ok(ranks, &args, LIMIT);
        matrix got = read_npy(run_temp("wide.npy"));
        assert_true(got.rows == 3 && got.cols == 8);
        free(got.file);
        run_result_free(&result);
        run_args_free(&args);
    }
}

int main(void)
{
    if (run_ready())
        return RUN_SKIP;
    json_t *cases = run_load(run_source("tests/golden/logits/cases.json"));
    const size_t count = json_array_size(cases);
    struct CMUnitTest *tests = calloc(count + 1, sizeof *tests);
    if (!tests || count == 0)
        return 1;
    for (size_t i = 0; i < count; i++) {
        json_t *golden = json_array_get(cases, i);
        tests[i].name = json_string_value(json_object_get(golden, "name"));
        tests[i].test_func = test_case;
        tests[i].initial_state = golden;
    }
    tests[count] = (struct CMUnitTest)cmocka_unit_test(test_long_context);
    const int failed = _cmocka_run_group_tests("logits", tests, count + 1, NULL, NULL);
    free(tests);
    json_decref(cases);
    return failed;
}
