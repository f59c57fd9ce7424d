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

// After the forward of `batch`, which was built from the same arguments: updates
// the tokens, states and step counts of the slots.
rt_status rt_denoise_run(rt_denoise *d, rt_model *model, rt_batch *batch, const rt_batch_args *args,
                         rt_slot *slots);

#endif
