// SPDX-License-Identifier: Apache-2.0
// Running the built program as a user does, with a limit on everything.
//
// LOSA_BINARY names the program and LOSA_SOURCE the source folder (ctest sets them).
// A helper that cannot do its work fails the running cmocka test.
#ifndef TESTS_E2E_RUN_H
#define TESTS_E2E_RUN_H

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>

enum { RUN_SKIP = 77, RUN_MAX_ARGS = 64 };

// 0, or RUN_SKIP after saying what is missing: main() returns it.
int run_ready(void);

// A path under the source folder, in one of a few rotating buffers.
const char *run_source(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
// A path under this process's temporary folder, which goes when the process ends.
const char *run_temp(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void run_write(const char *path, const void *bytes, size_t len);
// The whole file, with a NUL after it; free() it.
char *run_read(const char *path, size_t *len);

// A checkpoint of one layer of zeros in the temporary folder `name`, whose file is small on
// the disk whatever its shapes are; `more` are further members of its config.json.
typedef struct run_shape {
    int vocab, heads, head_dim;
} run_shape;
void run_zero_model(const char *name, const run_shape *shape, const char *more);

typedef struct run_args { // zero-initialise; strings are copied
    char *word[RUN_MAX_ARGS + 1];
    int count;
} run_args;
void run_arg(run_args *args, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void run_args_free(run_args *args);

// A job while it runs.
typedef struct run_live {
    pid_t child; // mpirun, or the program itself
    const char *marker;
    int out; // file that gets its standard output
} run_live;
// The process of a rank; -1 while there is none.
pid_t run_rank(const run_live *live, int rank);

typedef struct run_job {
    int ranks; // 0: the program itself, without mpirun
    const run_args *args;
    const char *input; // file for standard input, or NULL
    bool hold_input;   // instead: standard input stays open and gives nothing
    double limit;      // seconds
    double interrupt;  // SIGINT after so many seconds; 0 = never
    void (*during)(void *ctx, const run_live *live); // called often while it runs, or NULL
    void *ctx;
} run_job;

typedef struct run_result {
    int status;     // exit status; 128 + N when signal N ended it
    bool timed_out; // and was killed
    int left;       // processes that were still there 5 s after the end (and killed)
    double seconds;
    char *out, *err; // what it wrote; mpirun's own words are taken out of `err`
    size_t out_len;
    int err_lines; // lines in `err`
} run_result;
run_result run_losa(const run_job *job);
void run_result_free(run_result *result);

// The usual case: must end with status 0 and leave nobody; else the test fails with
// the command and its standard error.
run_result run_ok(int ranks, const run_args *args, double limit);
// run_ok, and standard output must be one JSON object; json_decref() it.
json_t *run_json(int ranks, const run_args *args, double limit);

// Every line of a JSON-lines file, as an array.
json_t *run_load_lines(const char *path);
json_t *run_load(const char *path);
// "a.b" of an object; fails the test when absent.
const json_t *run_get(const json_t *object, const char *path);
double run_number(const json_t *object, const char *path);
const char *run_text(const json_t *object, const char *path);

#endif
