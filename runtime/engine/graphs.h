// SPDX-License-Identifier: Apache-2.0
// The forwards an engine has recorded. What decides the sequence of calls of a forward is
// its shape; all else lies in buffers on the device. A shape that comes back is recorded
// the second time and replayed from then on: the first run lets libraries set themselves
// up, and shapes that come once cost nothing.
#ifndef RUNTIME_ENGINE_GRAPHS_H
#define RUNTIME_ENGINE_GRAPHS_H

#include "comm/comm.h"
#include "kernels/kern.h"
#include "runtime/engine/denoise.h"

typedef struct rt_forward_shape {
    int rows, segs, scan_segs, sparse_segs, mass_segs, write_rows, max_pages;
    rt_denoise_work head;
} rt_forward_shape;

// Forwards that are kept. A batch of R requests has about R shapes (so many open a block, the
// others are in later steps); what is used least recently makes room.
enum { RT_GRAPHS_MAX = 128 };

typedef struct rt_graphs rt_graphs;

// Enqueues the calls of a forward; the same ones for the same shape.
typedef rt_status rt_forward_fn(void *ctx);

rt_status rt_graphs_open(kern_dev *dev, comm *c, rt_graphs **out);
void rt_graphs_close(rt_graphs *g); // NULL is allowed

// Enqueues a forward of this shape: by `run`, or as it was recorded. A failure leaves
// nothing recorded. Ranks that call with the same shapes in the same order decide alike.
rt_status rt_graphs_run(rt_graphs *g, const rt_forward_shape *shape, rt_forward_fn *run, void *ctx);

#endif
