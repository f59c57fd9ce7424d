// SPDX-License-Identifier: Apache-2.0
// The end of a denoising step: head, confidences and samples from statistics that
// the ranks exchange, and the choice of the positions that take their token. All
// ranks end with the same tokens; full logits never leave a rank.
#ifndef RUNTIME_ENGINE_DENOISE_H
#define RUNTIME_ENGINE_DENOISE_H

#include "runtime/engine/batch.h"
#include "runtime/model/model.h"

typedef struct rt_denoise rt_denoise;

typedef struct rt_denoise_shape {
    int max_rows, max_segs; // head rows and segments of one step
    int block, mask_id;
    bool shifted;    // row i predicts token i + 1
    par_range vocab; // of this rank
} rt_denoise_shape;

rt_status rt_denoise_open(const par_group *group, const rt_denoise_shape *shape, rt_denoise **out);
void rt_denoise_close(rt_denoise *d);

// A step in three parts, of which the middle one can be recorded: rt_denoise_prepare tells
// the device what to sample, rt_denoise_enqueue runs after the forward of the batch, and
// rt_denoise_take, once the device is idle, updates tokens, states and step counts of the
// slots. All get the batch and the arguments it was built from.
rt_status rt_denoise_prepare(rt_denoise *d, const rt_batch *batch, const rt_batch_args *args);
rt_status rt_denoise_enqueue(rt_denoise *d, rt_model *model, rt_batch *batch);
void rt_denoise_take(const rt_denoise *d, const rt_batch *batch, const rt_batch_args *args,
                     rt_slot *slots);

// What of the prepared step decides the calls of rt_denoise_enqueue.
typedef struct rt_denoise_work {
    int rows, windows; // of the head; blocks
    int filtered;      // some row has top-k or top-p
} rt_denoise_work;
rt_denoise_work rt_denoise_prepared(const rt_denoise *d);

#endif
