// SPDX-License-Identifier: Apache-2.0
// A set of 64-bit hashes, for names that must not come twice. Two names of a million have
// the same hash with a probability of 3e-8.
#ifndef LAUNCHER_ID_SET_H
#define LAUNCHER_ID_SET_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct app_id_set app_id_set;

rt_status app_id_set_open(uint64_t most, app_id_set **out); // holds up to `most`
void app_id_set_close(app_id_set *set);
// *known: it was there.
rt_status app_id_set_add(app_id_set *set, uint64_t hash, bool *known);

#endif
