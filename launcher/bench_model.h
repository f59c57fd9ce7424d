// SPDX-License-Identifier: Apache-2.0
// What the benchmarks of whole models share: an engine on random token ids.
#ifndef LAUNCHER_BENCH_MODEL_H
#define LAUNCHER_BENCH_MODEL_H

#include "launcher/bench.h"

// What rank 0 measures with: an open engine and random ids.
typedef struct bench_model {
    rt_engine *engine;
    const bench_args *args;
    const int32_t *ids; // [tokens], without the mask
    int tokens;
    json_t *rows;
} bench_model;

typedef rt_status bench_model_fn(const bench_model *m);

// Collective: opens the engine, and lets rank 0 measure.
rt_status bench_in_engine(comm *c, const bench_args *args, const rt_engine_options *options,
                          int tokens, bench_model_fn *measure, json_t *rows);

// Collective: opens an engine for `args->batch` requests of `tokens` tokens that grow by
// `blocks` blocks (0: by a token), and lets rank 0 measure; refused where the model's context
// is too short for that. Random weights have as long a context as it takes; their prompts are
// not read, if `skip_prefill`.
rt_status bench_with_engine(comm *c, const bench_args *args, int tokens, int blocks,
                            bool skip_prefill, bench_model_fn *measure, json_t *rows);

#endif
