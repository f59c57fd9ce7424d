// SPDX-License-Identifier: Apache-2.0
// Row arithmetic shared by the dense layers of the CPU backend.
#ifndef KERNELS_CPU_DENSE_H
#define KERNELS_CPU_DENSE_H

#include <math.h>
#include <stddef.h>

enum { KERN_CPU_LANES = 16 };

// Sum of KERN_CPU_LANES partial sums, as a tree. Overwrites them.
static inline float kern_cpu_lane_sum(float lanes[KERN_CPU_LANES])
{
    for (int width = KERN_CPU_LANES / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; i++)
            lanes[i] += lanes[i + width];
    }
    return lanes[0];
}

// 1 / sqrt(mean(x^2) + eps). Independent partial sums let the loop vectorise and
// fix the order of additions.
static inline float kern_cpu_rms_scale(const float *x, size_t count, float eps)
{
    float lanes[KERN_CPU_LANES] = {0};
    size_t i = 0;
    for (; i + KERN_CPU_LANES <= count; i += KERN_CPU_LANES) {
        for (size_t j = 0; j < KERN_CPU_LANES; j++)
            lanes[j] += x[i + j] * x[i + j];
    }
    for (size_t j = 0; i + j < count; j++)
        lanes[j] += x[i + j] * x[i + j];
    return 1.0f / sqrtf(kern_cpu_lane_sum(lanes) / (float)count + eps);
}

#endif
