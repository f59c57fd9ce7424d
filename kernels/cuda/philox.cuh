// SPDX-License-Identifier: Apache-2.0
// runtime/base/rng.h on the device, bit for bit.
#ifndef KERNELS_CUDA_PHILOX_CUH
#define KERNELS_CUDA_PHILOX_CUH

// Philox4x32-10.
__device__ inline uint4 philox(uint2 key, uint4 x)
{
    for (int round = 0; round < 10; round++) {
        const unsigned a_high = __umulhi(0xD2511F53u, x.x), a_low = 0xD2511F53u * x.x;
        const unsigned b_high = __umulhi(0xCD9E8D57u, x.z), b_low = 0xCD9E8D57u * x.z;
        x = make_uint4(b_high ^ x.y ^ key.x, b_low, a_high ^ x.w ^ key.y, a_low);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return x;
}

// To (0, 1): the centres of 2^23 equal cells.
__device__ inline float uniform_open(unsigned word)
{
    return ((float)(word >> 9) + 0.5f) * 0x1p-23f;
}

#endif
