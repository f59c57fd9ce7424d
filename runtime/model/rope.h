// SPDX-License-Identifier: Apache-2.0
// Tables of cos and sin for rotary position embedding (Su et al. 2021), with the
// scalings that transformers knows: linear, and YaRN (Peng et al. 2023).
#ifndef RUNTIME_MODEL_ROPE_H
#define RUNTIME_MODEL_ROPE_H

#include "runtime/io/config.h"

// Fills cos and sin, f32 [positions, head_dim / 2] each; both carry the attention
// factor. Frequencies and angles are rounded to f32, as transformers rounds them.
rt_status rt_rope_tables(const rt_rope_config *rope, int head_dim, int positions, float *cos_out,
                         float *sin_out);

#endif
