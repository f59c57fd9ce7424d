// SPDX-License-Identifier: Apache-2.0
// The trace of a run: rank 0 writes every mask and page list of all ranks to a file
// (proto/trace.h).
// Prefill reads everything and is left out. A failure of writing ends no step, where the
// other ranks would wait; it is kept until the end.
#ifndef RUNTIME_ENGINE_TRACE_H
#define RUNTIME_ENGINE_TRACE_H

#include "losa/attention.h"
#include "proto/frame.h"
#include "runtime/engine/batch.h"

typedef struct rt_trace rt_trace;

// Starts the file with `head`, over whatever it held.
rt_status rt_trace_open(const char *path, const Pb__TraceHead *head, rt_trace **out);
// A forward begins; the arguments are borrowed until the next one. NULL: it is not of the run,
// and its layers are not written.
void rt_trace_forward(rt_trace *t, uint64_t number, const rt_batch_args *args);
void rt_trace_layer(rt_trace *t, const losa_view *view);
// Completes the file, to which nothing is added afterwards; the first failure there was.
rt_status rt_trace_end(rt_trace *t);
void rt_trace_close(rt_trace *t); // a file without an end is refused by its reader

#endif
