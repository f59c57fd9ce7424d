// SPDX-License-Identifier: Apache-2.0
// Token ids from a JSON file.
#ifndef RUNTIME_IO_IDS_H
#define RUNTIME_IO_IDS_H

#include "runtime/base/status.h"

#include <stddef.h>
#include <stdint.h>

// Reads a JSON array of token ids, each in [0, vocab), from a file ("-" = standard
// input). An empty array is allowed. Free *out with rt_free.
rt_status rt_token_ids_load(const char *path, int vocab, int32_t **out, size_t *count);

#endif
