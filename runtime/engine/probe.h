// SPDX-License-Identifier: Apache-2.0
// How far reading less moves the logits of single steps. On a step that is probed the same
// blocks go through a second forward that reads the whole prefix. It writes nothing that
// the request will read: no K and V, no caches, no tokens.
#ifndef RUNTIME_ENGINE_PROBE_H
#define RUNTIME_ENGINE_PROBE_H

#include "runtime/engine/batch.h"
#include "runtime/engine/engine.h"

typedef struct rt_probe rt_probe;

// Whether a session's step as a segment of this kind is probed: one in options.probe_every
// of those that do not read everything. It depends on the request alone.
bool rt_probe_samples(const rt_engine *e, int prompt_len, int steps, int kind);

// Collective. Room for the blocks of all sessions.
rt_status rt_probe_open(rt_engine *e, int max_pages, rt_probe **out);
void rt_probe_close(rt_probe *p); // NULL is allowed

// Collective. After the forward of `args`, before its tokens are taken: compares the logits of
// the masked positions of segments with `probe`, and books them for their sessions on rank 0.
rt_status rt_probe_run(rt_engine *e, const rt_batch_args *args);

#endif
