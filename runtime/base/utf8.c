// SPDX-License-Identifier: Apache-2.0
#include "runtime/base/utf8.h"

#include <string.h>

// The length that a leading byte announces (0: not one), and the bounds of the
// second byte, which rule out overlong forms, surrogates and > U+10FFFF.
static size_t lead_of(unsigned char lead, unsigned char *low, unsigned char *high)
{
    *low = 0x80;
    *high = 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return 0;
    if (lead < 0xE0)
        return 2;
    if (lead < 0xF0) {
        if (lead == 0xE0)
            *low = 0xA0;
        if (lead == 0xED)
            *high = 0x9F;
        return 3;
    }
    if (lead == 0xF0)
        *low = 0x90;
    if (lead == 0xF4)
        *high = 0x8F;
    return 4;
}

size_t rt_utf8_next(const char *s, size_t n, int32_t *cp)
{
    const unsigned char *u = (const unsigned char *)s;
    unsigned char low, high;
    size_t want = lead_of(u[0], &low, &high);
    if (want <= 1) {
        *cp = want ? u[0] : RT_UTF8_BAD;
        return 1;
    }
    int32_t value = u[0] & (0x7F >> want);
    for (size_t i = 1; i < want; i++) {
        if (i == n) {
            *cp = RT_UTF8_SHORT;
            return i;
        }
        if (u[i] < low || u[i] > high) {
            *cp = RT_UTF8_BAD;
            return i;
        }
        value = value << 6 | (u[i] & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    *cp = value;
    return want;
}

size_t rt_utf8_mark(const char *s, size_t n)
{
    static const char mark[] = "\xEF\xBB\xBF";
    const size_t len = sizeof mark - 1;
    return n >= len && memcmp(s, mark, len) == 0 ? len : 0;
}

rt_status rt_utf8_append(rt_str *out, const char *bytes, size_t n, size_t *rest)
{
    size_t done = 0, at = 0;
    while (at < n) {
        int32_t cp;
        const size_t used = rt_utf8_next(bytes + at, n - at, &cp);
        if (cp == RT_UTF8_SHORT)
            break;
        if (cp == RT_UTF8_BAD) {
            RT_TRY(rt_str_append(out, bytes + done, at - done));
            RT_TRY(rt_str_puts(out, RT_UTF8_REPLACEMENT));
            done = at + used;
        }
        at += used;
    }
    *rest = at;
    return rt_str_append(out, bytes + done, at - done);
}
