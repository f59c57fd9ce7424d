// SPDX-License-Identifier: Apache-2.0
// The places where HF's Unicode version differs from the one of PCRE2 or utf8proc.
#include "runtime/text/tokenizer_int.h"

#include "runtime/text/unicode_tables.inc"

#include <utf8proc.h>

enum { FIRST_IN_TABLES = 0x7FD };

int32_t rt_tok_proxy(int32_t cp)
{
    if (cp < FIRST_IN_TABLES)
        return cp;
    size_t low = 0, high = sizeof proxy_ranges / sizeof *proxy_ranges;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (cp > proxy_ranges[mid][1])
            low = mid + 1;
        else if (cp < proxy_ranges[mid][0])
            high = mid;
        else
            return proxy_ranges[mid][2];
    }
    return cp;
}

bool rt_tok_inert(int32_t cp)
{
    if (cp < FIRST_IN_TABLES)
        return false;
    size_t low = 0, high = sizeof inert_ranges / sizeof *inert_ranges;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (cp > inert_ranges[mid][1])
            low = mid + 1;
        else if (cp < inert_ranges[mid][0])
            high = mid;
        else
            return true;
    }
    return false;
}

bool rt_tok_is_space(int32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0D) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F ||
           cp == 0x205F || cp == 0x3000;
}

bool rt_tok_is_word(int32_t cp)
{
    // Join_Control, and the circled letters: Alphabetic though of category So.
    if (cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9) ||
        (cp >= 0x1F130 && cp <= 0x1F149) || (cp >= 0x1F150 && cp <= 0x1F169) ||
        (cp >= 0x1F170 && cp <= 0x1F189))
        return true;
    switch (utf8proc_category(rt_tok_proxy(cp))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}
