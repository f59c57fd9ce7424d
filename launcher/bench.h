// SPDX-License-Identifier: Apache-2.0
// What the benchmarks of `losa bench` share. Each runs on all ranks and appends the
// rows of its table on rank 0.
#ifndef LAUNCHER_BENCH_H
#define LAUNCHER_BENCH_H

#include "comm/comm.h"
#include "launcher/app.h"
#include "launcher/attention_options.h"
#include "runtime/base/json.h"
#include "runtime/engine/engine.h"

typedef struct bench_args {
    app_common common;
    const char *model;
    int dummy;                // index of a published model, or APP_NO_DUMMY
    rt_engine_options engine; // device, precision, threads, prefill_chunk
    int repeats, blocks;
    int block;                             // 0: the model's, or that of `attention`
    int heads, kv_heads, head_dim, active; // of `attention`, which has no model
    app_attention attention;
    bool json;
} bench_args;

typedef struct bench {
    const char *name;
    const char *summary;
    bool needs_model;
    // Measures for one number of prompt or prefix tokens. On rank 0 *out is an object of
    // numbers in the order of the table's columns; times in milliseconds, medians.
    rt_status (*run)(comm *c, const bench_args *args, int tokens, json_t **out);
} bench;

extern const bench bench_attention, bench_prefill, bench_decode;

// Sorts `n` >= 1 values; their median.
double bench_median(double *values, size_t n);

#endif
