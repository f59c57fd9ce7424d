// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10; the constants are those of Salmon et al., SC 2011, section 3.
#include "runtime/base/rng.h"

enum { ROUNDS = 10 };

static const uint32_t multiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
static const uint32_t weyl[2] = {0x9E3779B9u, 0xBB67AE85u}; // golden ratio, sqrt(3) - 1

rt_philox rt_philox4x32(uint64_t key, const uint32_t counter[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    rt_philox x = {{counter[0], counter[1], counter[2], counter[3]}};
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t a = (uint64_t)multiplier[0] * x.v[0];
        uint64_t b = (uint64_t)multiplier[1] * x.v[2];
        x = (rt_philox){{(uint32_t)(b >> 32) ^ x.v[1] ^ k0, (uint32_t)b,
                         (uint32_t)(a >> 32) ^ x.v[3] ^ k1, (uint32_t)a}};
        k0 += weyl[0];
        k1 += weyl[1];
    }
    return x;
}

float rt_uniform_open(uint32_t word)
{
    // The centres of 2^23 equal cells: each is exact in a float's 24 bits.
    return ((float)(word >> 9) + 0.5f) * 0x1p-23f;
}
