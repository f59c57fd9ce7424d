// SPDX-License-Identifier: Apache-2.0
// Turns the segments of a step command into the device arrays of a kern_batch.
// The arrays lie in one buffer, which one copy fills; their places do not change from step
// to step, so that recorded forwards find them. Host copies of all arrays are kept: the
// engine reads rows and segments back.
#ifndef RUNTIME_ENGINE_BATCH_H
#define RUNTIME_ENGINE_BATCH_H

#include "kernels/kern.h"
#include "losa/attention.h"
#include "runtime/engine/slot.h"

enum {
    RT_BATCH_IDS,       // a step changes this
    RT_BATCH_ROW_STATE, // and this
    RT_BATCH_POS,
    RT_BATCH_ROW_SEG,
    RT_BATCH_SEG_ROW0,
    RT_BATCH_SEG_KIND,
    RT_BATCH_SEG_SLOT,
    RT_BATCH_SEG_MASS,
    RT_BATCH_KV_SLOT,
    RT_BATCH_CACHE_SLOT,
    RT_BATCH_PAGE_TABLE, // last: the only long one, filled as far as it is used
    RT_BATCH_ARRAYS
};

typedef struct rt_batch {
    int max_rows, max_segs, max_pages; // capacities; max_pages of one request
    int32_t *memory;                   // of `host`
    kern_buf *arena;                   // of `device`
    kern_buf *outcome;                 // shared: ids and row_state as the step left them
    int32_t *host[RT_BATCH_ARRAYS];    // parts of `memory`
    kern_buf *device[RT_BATCH_ARRAYS]; // views of `arena`
    kern_batch kern;                   // points at `device`
} rt_batch;

rt_status rt_batch_open(kern_dev *dev, int max_rows, int max_segs, int max_pages, rt_batch *out);
void rt_batch_close(rt_batch *b); // safe on a zero struct

// Rows at the end of a segment that are being denoised: one block, or none. The
// rows before them are committed: a FIRST segment may begin with the finished
// block, whose K,V are then written by the same forward.
int rt_segment_denoised(const Pb__Segment *s, int block);
// Whether a segment is the first step of a block.
bool rt_segment_opens(const Pb__Segment *s);
// Whether it is another step of a block.
bool rt_segment_later(const Pb__Segment *s);

typedef struct rt_batch_args {
    const Pb__Segment *const *segments; // in losa_kind_order
    int count, scan, sparse;            // all; the first that scan; that follow a plan
    const losa_config *attention;
    const rt_slot *slots;
    int block, page;
    bool use_cache; // rows being denoised get a row of the prefix cache
    bool recorded;  // widths come in few sizes, so that recorded forwards fit again
} rt_batch_args;
rt_status rt_batch_build(rt_batch *b, const rt_batch_args *args);

// Enqueues the way back of ids and row_state. Once the device is idle, rt_batch_outcome is the
// array as the step left it: [rows] of RT_BATCH_IDS or RT_BATCH_ROW_STATE.
rt_status rt_batch_return(rt_batch *b);
const int32_t *rt_batch_outcome(const rt_batch *b, int array);

#endif
