// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/str.h"

#include "runtime/base/mem.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { FIRST_CAPACITY = 64 };

// Room for `n` more bytes and the NUL.
static rt_status reserve(rt_str *s, size_t n)
{
    size_t need;
    if (__builtin_add_overflow(s->len, n, &need) || __builtin_add_overflow(need, 1, &need))
        return RT_FAIL(RT_ERR_NOMEM, "out of memory: string: %zu + %zu bytes", s->len, n);
    if (need <= s->cap)
        return RT_OK;
    size_t cap = s->cap ? s->cap : FIRST_CAPACITY;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    char *data = rt_mem_grow(s->data, s->len, cap, 1, "string");
    if (!data)
        return RT_ERR_NOMEM;
    s->data = data;
    s->cap = cap;
    return RT_OK;
}

rt_status rt_str_append(rt_str *s, const char *bytes, size_t n)
{
    RT_TRY(reserve(s, n));
    if (n > 0)
        memcpy(s->data + s->len, bytes, n);
    s->len += n;
    s->data[s->len] = '\0';
    return RT_OK;
}

rt_status rt_str_puts(rt_str *s, const char *text)
{
    return rt_str_append(s, text, strlen(text));
}

rt_status rt_str_printf(rt_str *s, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0)
        return RT_FAIL(RT_ERR_INTERNAL, "string: format '%s' failed", fmt);
    RT_TRY(reserve(s, (size_t)n));
    va_start(args, fmt);
    vsnprintf(s->data + s->len, (size_t)n + 1, fmt, args);
    va_end(args);
    s->len += (size_t)n;
    return RT_OK;
}

void rt_str_free(rt_str *s)
{
    rt_free(s->data);
    *s = (rt_str){0};
}
