// SPDX-License-Identifier: Apache-2.0
#include "runtime/model/rope.h"

#include "runtime/base/mem.h"

#include <math.h>

// The channel pair whose wavelength makes `rotations` turns over the original
// context (YaRN, arXiv 2309.00071, section 3.2).
static double yarn_channel(const rt_rope_config *rope, int head_dim, double rotations)
{
    const double tau = 6.283185307179586;
    return head_dim * log(rope->original_positions / (rotations * tau)) / (2.0 * log(rope->theta));
}

// Share of extrapolation (unscaled frequency) of channel pair i: 1 for fast
// channels, 0 for slow ones, a ramp between.
static double yarn_extrapolation(const rt_rope_config *rope, int head_dim, int i)
{
    double low = yarn_channel(rope, head_dim, rope->beta_fast);
    double high = yarn_channel(rope, head_dim, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0.0);
    high = fmin(high, head_dim - 1.0);
    if (high == low)
        high += 0.001;
    const double ramp = fmin(fmax((i - low) / (high - low), 0.0), 1.0);
    return 1.0 - ramp;
}

static double frequency(const rt_rope_config *rope, int head_dim, int i)
{
    const double plain = pow(rope->theta, -2.0 * i / head_dim);
    switch (rope->kind) {
    case RT_ROPE_PLAIN:
        return plain;
    case RT_ROPE_LINEAR:
        return plain / rope->factor;
    case RT_ROPE_YARN:
        break;
    }
    const double keep = yarn_extrapolation(rope, head_dim, i);
    return plain / rope->factor * (1.0 - keep) + plain * keep;
}

rt_status rt_rope_tables(const rt_rope_config *rope, int head_dim, int positions, float *cos_out,
                         float *sin_out)
{
    const int half = head_dim / 2;
    const float scale = rope->kind == RT_ROPE_YARN ? (float)rope->attention_factor : 1.0f;
    float *freq;
    RT_TRY(RT_ALLOC(freq, (size_t)half, "rotary frequencies"));
    for (int i = 0; i < half; i++)
        freq[i] = (float)frequency(rope, head_dim, i);
    for (int p = 0; p < positions; p++) {
        for (int i = 0; i < half; i++) {
            const float angle = (float)p * freq[i];
            cos_out[(size_t)p * (size_t)half + (size_t)i] = cosf(angle) * scale;
            sin_out[(size_t)p * (size_t)half + (size_t)i] = sinf(angle) * scale;
        }
    }
    rt_free(freq);
    return RT_OK;
}
