// SPDX-License-Identifier: Apache-2.0
// What the benchmarks of `losa bench` share. Each runs on all ranks and appends the
// rows of its table on rank 0.
//
// A row is an object; its keys, in order, are the columns, the same in every row of a
// benchmark. Names carry the unit. null is a value that the row has not.
#ifndef LAUNCHER_BENCH_H
#define LAUNCHER_BENCH_H

#include "comm/comm.h"
#include "launcher/app.h"
#include "launcher/policy_spec.h"
#include "runtime/base/json.h"
#include "runtime/engine/engine.h"

typedef struct bench_args {
    app_common common;
    const char *model;
    int dummy;                // index of a published model, or APP_NO_DUMMY
    rt_engine_options engine; // device, precision, threads, prefill_chunk
    int repeats, blocks, steps, batch;
    int block;                             // 0: the model's, or that of `attention`
    int heads, kv_heads, head_dim, active; // of `attention`, which has no model
    const char *policies;
    const app_policy *policy; // of them, the one being measured
    double ceiling;           // what a rank can read from memory, bytes per second; measured first
    bool json, csv;
} bench_args;

typedef struct bench {
    const char *name;
    const char *summary;
    bool needs_model;
    bool compares; // runs once for each policy, and its floor is what memory can give
    // What a size is ("tokens" of prompt or prefix, "bytes", "requests"), and which are allowed.
    const char *unit;
    uint64_t least, most;
    const int64_t *sizes; // its own, ended by 0; NULL: they must be given
    // Measures for one size and appends to `rows`, which is NULL above rank 0. Times are
    // medians.
    rt_status (*run)(comm *c, const bench_args *args, int64_t size, json_t *rows);
} bench;

extern const bench bench_attention, bench_prefill, bench_decode, bench_scheduler, bench_comm;

// Sorts `n` >= 1 values; their median.
double bench_median(double *values, size_t n);

// Appends a row; takes it over, NULL too (no memory).
rt_status bench_add(json_t *rows, json_t *row);
// Prints the rows as --json and --csv want it, or as a table.
rt_status bench_print(const bench_args *args, const json_t *rows);

// Collective: what this rank can read from its device's memory, all ranks reading at the
// same time; bytes per second.
rt_status bench_ceiling(comm *c, const bench_args *args, double *out);

// A sequence of calls that is measured: eagerly, or as replays of a recording.
typedef rt_status bench_pass(void *ctx);

// Collective: runs `pass` once, then `repeats` times between two marks; the median in
// milliseconds.
rt_status bench_time(comm *c, kern_dev *dev, bool record, int repeats, bench_pass *pass, void *ctx,
                     double *ms);

#endif
