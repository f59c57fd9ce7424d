// SPDX-License-Identifier: Apache-2.0
// The memory part of `losa info`: what every rank of an engine would take.
#ifndef LAUNCHER_INFO_MEMORY_H
#define LAUNCHER_INFO_MEMORY_H

#include "runtime/base/json.h"
#include "runtime/engine/engine.h"

// Plans an engine of `ranks` ranks: out [ranks].
rt_status app_memory_plan(const rt_engine_options *options, int ranks, rt_memory *out);

// One rank's as a JSON object. `kv_memory`: bytes whose sessions are counted; 0: none.
json_t *app_memory_json(const rt_memory *m, uint64_t kv_memory);

// A table of all ranks, and how many sessions of `context` tokens are in kv_memory.
rt_status app_memory_print(const rt_memory *plans, int ranks, kern_kind device, int context,
                           uint64_t kv_memory);

#endif
