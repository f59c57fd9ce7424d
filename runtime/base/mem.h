// SPDX-License-Identifier: Apache-2.0
// Checked memory allocation. Everything in losa allocates through here, so that
// a size overflow or an exhausted machine becomes RT_ERR_NOMEM with a message,
// and a test can make the n-th allocation fail.
#ifndef RT_BASE_MEM_H
#define RT_BASE_MEM_H

#include "runtime/base/status.h"

#include <stddef.h>

// Zeroed array of `count` elements of `size` bytes, aligned to 64 bytes; count 0
// gives a unique non-NULL pointer. NULL on overflow or exhaustion, with the
// message set ("out of memory: WHAT: N bytes"). Free with rt_free.
void *rt_mem_alloc(size_t count, size_t size, const char *what);

// Grows an array from rt_mem_alloc to `count` elements, keeping the first
// `old_count`; the new part is zeroed. On failure NULL, and the old array stays.
void *rt_mem_grow(void *old, size_t old_count, size_t count, size_t size, const char *what);

// Copy of a string. Free with rt_free.
char *rt_mem_strdup(const char *text, const char *what);

void rt_free(void *ptr);

// Test hook: the n-th allocation from now fails (1 = the next); 0 = none does.
void rt_mem_fail_at(long n);

// RT_TRY(RT_ALLOC(array, count, "what it is")): typed, zeroed, checked.
#define RT_ALLOC(ptr, count, what)                                                                 \
    (((ptr) = rt_mem_alloc((count), sizeof *(ptr), (what))) ? RT_OK : RT_ERR_NOMEM)

#endif
