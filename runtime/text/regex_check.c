// SPDX-License-Identifier: Apache-2.0
// The regexes of tokenizer.json are written for Oniguruma in Ruby's syntax, and PCRE2
// accepts many of its constructs with another meaning: [a&&b] and [a[b]] literally, \h
// as a blank, a{2}+ as possessive, \p{Han} with script extensions. So only the part
// that both read alike is let through; anything else is refused by name.
// (^ and $ match at line ends in Ruby: the pattern is compiled as multi-line.)
#include "runtime/text/tokenizer_int.h"

#include <ctype.h>
#include <string.h>

enum { PATTERN_MAX = 16384 };

typedef struct scan {
    const char *pattern, *name;
    const char *at;
} scan;

static rt_status refuse(const scan *s, const char *start, size_t len, const char *why)
{
    return RT_FAIL(RT_ERR_UNSUPPORTED, "%s: regex, at byte %zu: '%.*s': %s", s->name,
                   (size_t)(start - s->pattern), (int)len, start, why);
}

// \p{L}, \p{^Lu}: general categories only. \pL is a p and an L in Oniguruma, and refused.
// `at` is on the p.
static rt_status check_property(scan *s)
{
    const char *start = s->at - 1, *p = s->at + 1;
    bool known = *p == '{';
    if (known && *++p == '^')
        p++;
    known = known && *p && strchr("LMNPSZC", *p);
    if (known && *++p != '}') {
        known = *p && strchr("ulmotcednskifp", *p);
        p++;
    }
    if (!known || *p != '}') {
        size_t len = strcspn(start, "}");
        return refuse(s, start, len < 32 ? len + (start[len] == '}') : 32,
                      "a property other than a general category in braces");
    }
    s->at = p + 1;
    return RT_OK;
}

// \x41 or \x{4E00}. `at` is on the x.
static rt_status check_hex(scan *s)
{
    const char *start = s->at - 1, *p = s->at + 1;
    if (*p == '{') {
        size_t digits = strspn(p + 1, "0123456789abcdefABCDEF");
        if (digits == 0 || digits > 6 || p[1 + digits] != '}')
            return refuse(s, start, 3, "malformed");
        s->at = p + digits + 2;
        return RT_OK;
    }
    if (!isxdigit((unsigned char)p[0]) || !isxdigit((unsigned char)p[1]) || p[0] > '7')
        return refuse(s, start, 2, "a byte that is not ASCII");
    s->at = p + 2;
    return RT_OK;
}

// `at` is on the backslash.
static rt_status check_escape(scan *s, bool in_class)
{
    const char *start = s->at;
    char c = *++s->at;
    if (c == 'p' || c == 'P')
        return check_property(s);
    if (c == 'x')
        return check_hex(s);
    bool plain = c && !isalnum((unsigned char)c);
    if (!plain && (!c || !strchr(in_class ? "nrtfaesSdD" : "nrtfaesSdDAzZ", c)))
        return refuse(s, start, c ? 2 : 1, "not read alike by Oniguruma and PCRE2");
    s->at++;
    return RT_OK;
}

// `at` is on the opening bracket.
static rt_status check_class(scan *s)
{
    const char *start = s->at++;
    if (*s->at == '^')
        s->at++;
    if (*s->at == ']')
        return refuse(s, start, 2, "an empty class, or one that begins with ']'");
    while (*s->at && *s->at != ']') {
        if (*s->at == '\\') {
            RT_TRY(check_escape(s, true));
            continue;
        }
        if (*s->at == '[')
            return refuse(s, s->at, 1, "a class inside a class");
        if (s->at[0] == '&' && s->at[1] == '&')
            return refuse(s, s->at, 2, "a class intersection");
        s->at++;
    }
    if (!*s->at)
        return refuse(s, start, 1, "the class does not end");
    s->at++;
    return RT_OK;
}

// `at` is on the opening parenthesis.
static rt_status check_group(scan *s)
{
    static const char *const known[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    const char *start = s->at;
    if (start[1] != '?' && start[1] != '*') {
        s->at++;
        return RT_OK;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strncmp(start, known[i], strlen(known[i])) == 0) {
            s->at += strlen(known[i]);
            return RT_OK;
        }
    }
    return refuse(s, start, strnlen(start, 4), "this kind of group");
}

// `at` is on the opening brace: a repeat count, or a literal.
static rt_status check_repeat(scan *s)
{
    const char *start = s->at, *p = start + 1;
    size_t low = strspn(p, "0123456789");
    p += low;
    size_t high = 0;
    bool comma = *p == ',';
    if (comma) {
        high = strspn(p + 1, "0123456789");
        p += 1 + high;
    }
    if (*p != '}' || (low == 0 && high == 0)) {
        s->at++;
        return RT_OK;
    }
    if (low == 0)
        return refuse(s, start, (size_t)(p - start) + 1, "a repeat without a lower bound");
    p++;
    if (*p == '+' || (*p == '?' && !comma))
        return refuse(s, start, (size_t)(p - start) + 1, "not read alike by Oniguruma and PCRE2");
    s->at = p;
    return RT_OK;
}

rt_status rt_tok_regex_check(const char *pattern, const char *name)
{
    if (strlen(pattern) > PATTERN_MAX)
        return RT_FAIL(RT_ERR_LIMIT, "%s: regex of %zu bytes, the limit is %d", name,
                       strlen(pattern), PATTERN_MAX);
    scan s = {.pattern = pattern, .name = name, .at = pattern};
    while (*s.at) {
        switch (*s.at) {
        case '\\':
            RT_TRY(check_escape(&s, false));
            break;
        case '[':
            RT_TRY(check_class(&s));
            break;
        case '(':
            RT_TRY(check_group(&s));
            break;
        case '{':
            RT_TRY(check_repeat(&s));
            break;
        default:
            s.at++;
        }
    }
    return RT_OK;
}
