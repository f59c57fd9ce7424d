// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 counter-based random numbers (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). Stateless: the same key and counter
// give the same numbers on any rank, thread or device.
#ifndef RT_BASE_RNG_H
#define RT_BASE_RNG_H

#include <stdint.h>

typedef struct rt_philox {
    uint32_t v[4];
} rt_philox;

// Four uniform 32-bit words for (key, counter).
rt_philox rt_philox4x32(uint64_t key, const uint32_t counter[4]);

// Maps a word to (0, 1): never 0, never 1, so that log() of it is finite.
float rt_uniform_open(uint32_t word);

#endif
