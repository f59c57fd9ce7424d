// SPDX-License-Identifier: Apache-2.0
// Opening an engine with a progress bar.
#ifndef LAUNCHER_LOADING_H
#define LAUNCHER_LOADING_H

#include "runtime/engine/engine.h"

// rt_engine_open; while the checkpoint is read, rank 0 draws how far it is, unless `quiet`.
rt_status app_engine_open(const rt_engine_options *options, comm *c, bool quiet, rt_engine **out);

#endif
