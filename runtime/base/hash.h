// SPDX-License-Identifier: Apache-2.0
// FNV-1a, to tell files apart; no protection against a forger.
#ifndef RT_BASE_HASH_H
#define RT_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define RT_HASH_START UINT64_C(14695981039346656037)

static inline uint64_t rt_hash(uint64_t h, const void *bytes, size_t n)
{
    const unsigned char *at = bytes;
    for (size_t i = 0; i < n; i++)
        h = (h ^ at[i]) * UINT64_C(1099511628211);
    return h;
}

#endif
