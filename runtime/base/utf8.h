// SPDX-License-Identifier: Apache-2.0
// Strict UTF-8.
#ifndef RT_BASE_UTF8_H
#define RT_BASE_UTF8_H

#include "runtime/base/str.h"

#include <stdint.h>

#define RT_UTF8_REPLACEMENT "\xEF\xBF\xBD" // U+FFFD

enum {
    RT_UTF8_BAD = -1,   // the bytes consumed are a maximal ill-formed subpart
    RT_UTF8_SHORT = -2, // the text ends inside a character that may be valid
};

// Reads one character of the n > 0 bytes at `s`: returns the bytes consumed (>= 1),
// and in *cp the code point or one of the two above.
size_t rt_utf8_next(const char *s, size_t n, int32_t *cp);

// Bytes of the byte order mark with which some editors begin a text; 0: it has none.
size_t rt_utf8_mark(const char *s, size_t n);

// Appends a text; bytes that cannot be UTF-8 become U+FFFD. What begins at *rest, n if there is
// none, is left out: a character that the next bytes may complete.
rt_status rt_utf8_append(rt_str *out, const char *bytes, size_t n, size_t *rest);

#endif
