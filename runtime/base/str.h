// SPDX-License-Identifier: Apache-2.0
// A growing byte string.
#ifndef RT_BASE_STR_H
#define RT_BASE_STR_H

#include "runtime/base/status.h"

#include <stddef.h>

// Zero-initialise to start empty. `data` is NUL-terminated once anything was
// appended (NULL before); `len` does not count the NUL; bytes may hold NULs.
typedef struct rt_str {
    char *data;
    size_t len;
    size_t cap;
} rt_str;

rt_status rt_str_append(rt_str *s, const char *bytes, size_t n);
rt_status rt_str_puts(rt_str *s, const char *text);
rt_status rt_str_printf(rt_str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void rt_str_free(rt_str *s); // back to empty

#endif
