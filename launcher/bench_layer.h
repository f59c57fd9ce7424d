// SPDX-License-Identifier: Apache-2.0
// Layers of LoSA attention over random prefixes, without a model: what `losa bench
// attention` measures. There are as many layers as it takes for their pages not to fit
// into a cache; a forward goes through all of them.
#ifndef LAUNCHER_BENCH_LAYER_H
#define LAUNCHER_BENCH_LAYER_H

#include "launcher/bench.h"
#include "losa/attention.h"
#include "runtime/engine/batch.h"
#include "runtime/engine/kvcache.h"

// The forwards of a block: of a request's first block the first step; of a later one the
// first step with the commit of the block before it; a later step.
typedef enum bench_step { BENCH_OPEN, BENCH_FIRST, BENCH_LATER, BENCH_STEPS } bench_step;
const char *bench_step_name(bench_step step);

typedef struct bench_layer {
    par_group group;
    par_plan plan;
    losa_config config;
    losa_state *losa;
    int layers, block, requests, prefix, active;
    rt_kvcache kv;
    rt_slot *slots; // [requests]
    rt_batch batch;
    kern_buf *qkv, *x, *out;
} bench_layer;

// `group` has a device and a communicator. `prefix` is rounded down to whole blocks. Close
// it also after a failure.
rt_status bench_layer_open(bench_layer *l, const par_group *group, const bench_args *args,
                           int prefix);
void bench_layer_close(bench_layer *l);

// Makes the batch of a step of all requests.
rt_status bench_layer_prepare(bench_layer *l, bench_step step);
// One forward of it; a bench_pass.
rt_status bench_layer_pass(void *layer);

// What a layer of the last forward read, on this rank.
typedef struct bench_read {
    int64_t counts[KERN_COUNT_N]; // of all requests
    double bytes;                 // K, V and metadata
} bench_read;
rt_status bench_layer_read(const bench_layer *l, bench_read *out);

// Times of the stages, milliseconds a layer, medians over `repeats` forwards.
rt_status bench_layer_stages(bench_layer *l, bool recorded, int repeats, double ms[LOSA_STAGES]);

#endif
