// SPDX-License-Identifier: Apache-2.0
// A number that tells checkpoints apart: over the JSON and Jinja files of the folder and, for every
// weight file, its size and up to 1024 evenly spaced pieces of 4 KiB.
#ifndef RUNTIME_IO_MODEL_HASH_H
#define RUNTIME_IO_MODEL_HASH_H

#include "runtime/base/status.h"

#include <stdint.h>

rt_status rt_model_hash(const char *folder, uint64_t *out);
// Over the weight files alone, which are what every rank computes with.
rt_status rt_weights_hash(const char *folder, uint64_t *out);

#endif
