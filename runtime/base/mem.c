// SPDX-License-Identifier: Apache-2.0
// Checked, zeroed, 64-byte aligned allocation. The word before the returned
// pointer holds what free() wants, so small and large blocks are freed alike.
#include "runtime/base/mem.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, LARGE = 1 << 20 };

static atomic_long fail_countdown;

static bool must_fail(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) <= 0)
        return false;
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

// The block's end is the allocation's end, so that a sanitizer sees an overrun.
static void *small_alloc(size_t bytes)
{
    void *base = NULL;
    if (posix_memalign(&base, ALIGNMENT, ALIGNMENT + bytes) != 0)
        return NULL;
    memset(base, 0, ALIGNMENT + bytes);
    char *user = (char *)base + ALIGNMENT;
    memcpy(user - sizeof base, &base, sizeof base);
    return user;
}

// calloc takes fresh pages from the kernel for large blocks, and then need not
// touch them; it aligns to 16 bytes, so up to 64 are given to alignment.
static void *large_alloc(size_t bytes)
{
    void *base = calloc(1, ALIGNMENT + bytes);
    if (!base)
        return NULL;
    char *user = (char *)base + (ALIGNMENT - (uintptr_t)base % ALIGNMENT);
    memcpy(user - sizeof base, &base, sizeof base);
    return user;
}

void *rt_mem_alloc(size_t count, size_t size, const char *what)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > PTRDIFF_MAX - ALIGNMENT) {
        (void)RT_FAIL(RT_ERR_NOMEM, "out of memory: %s: %zu x %zu bytes", what, count, size);
        return NULL;
    }
    void *user = NULL;
    if (!must_fail())
        user = bytes < LARGE ? small_alloc(bytes) : large_alloc(bytes);
    if (!user)
        (void)RT_FAIL(RT_ERR_NOMEM, "out of memory: %s: %zu bytes", what, bytes);
    return user;
}

void *rt_mem_grow(void *old, size_t old_count, size_t count, size_t size, const char *what)
{
    void *grown = rt_mem_alloc(count, size, what);
    if (!grown || !old)
        return grown;
    memcpy(grown, old, (old_count < count ? old_count : count) * size);
    rt_free(old);
    return grown;
}

char *rt_mem_strdup(const char *text, const char *what)
{
    size_t bytes = strlen(text) + 1;
    char *copy = rt_mem_alloc(bytes, 1, what);
    if (copy)
        memcpy(copy, text, bytes);
    return copy;
}

void rt_free(void *ptr)
{
    if (!ptr)
        return;
    void *base;
    memcpy(&base, (char *)ptr - sizeof base, sizeof base);
    free(base);
}

void rt_mem_fail_at(long n)
{
    atomic_store(&fail_countdown, n);
}
