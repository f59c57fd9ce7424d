// SPDX-License-Identifier: Apache-2.0
// A number that tells checkpoints apart: over the JSON and Jinja files of the folder and, for every
// weight file, its size and up to 1024 evenly spaced pieces of 4 KiB.
#ifndef LAUNCHER_MODEL_HASH_H
#define LAUNCHER_MODEL_HASH_H

#include "runtime/base/status.h"

#include <stdint.h>

rt_status app_model_hash(const char *folder, uint64_t *out);

#endif
