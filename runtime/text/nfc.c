// SPDX-License-Identifier: Apache-2.0
// Normal form C (Unicode Standard Annex #15) on utf8proc's tables. Only stretches that
// can change are worked on; the ordering of marks is a stable sort here, since
// utf8proc's own is quadratic in the length of a run of marks; and characters newer
// than the tables of HF's normaliser are left alone (rt_tok_inert).
#include "runtime/text/tokenizer_int.h"

#include "runtime/base/mem.h"

#include <string.h>
#include <utf8proc.h>

enum { FIRST_THAT_CHANGES = 0x300, SHORT_RUN = 32, CLASSES = 256 };

static rt_status reserve(rt_tok_nfc_scratch *s, size_t used, size_t more)
{
    if (used + more <= s->cap)
        return RT_OK;
    size_t cap = s->cap ? s->cap * 2 : 256;
    while (cap < used + more)
        cap *= 2;
    int32_t *grown = rt_mem_grow(s->cps, used, cap, sizeof *grown, "text to normalise");
    if (!grown)
        return RT_ERR_NOMEM;
    s->cps = grown;
    s->cap = cap;
    return RT_OK;
}

// Appends the canonical decomposition of a character.
static rt_status decompose(rt_tok_nfc_scratch *s, int32_t cp, size_t *used)
{
    enum { ROOM = 8 };
    RT_TRY(reserve(s, *used, ROOM));
    utf8proc_ssize_t room = (utf8proc_ssize_t)(s->cap - *used);
    utf8proc_ssize_t n =
        utf8proc_decompose_char(cp, s->cps + *used, room, UTF8PROC_DECOMPOSE, NULL);
    if (n > room && n > 0) {
        RT_TRY(reserve(s, *used, (size_t)n));
        n = utf8proc_decompose_char(cp, s->cps + *used, n, UTF8PROC_DECOMPOSE, NULL);
    }
    if (n < 0)
        return RT_FAIL(RT_ERR_INTERNAL, "normaliser: U+%04X: %s", (unsigned)cp, utf8proc_errmsg(n));
    *used += (size_t)n;
    return RT_OK;
}

static int combining_class(int32_t cp)
{
    return (int)utf8proc_get_property(cp)->combining_class;
}

static void insertion_sort(int32_t *marks, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        int32_t mark = marks[i];
        int class = combining_class(mark);
        size_t k = i;
        for (; k > 0 && combining_class(marks[k - 1]) > class; k--)
            marks[k] = marks[k - 1];
        marks[k] = mark;
    }
}

static rt_status counting_sort(int32_t *marks, size_t n)
{
    size_t start[CLASSES + 1] = {0};
    int32_t *sorted;
    RT_TRY(RT_ALLOC(sorted, n, "run of combining marks"));
    for (size_t i = 0; i < n; i++)
        start[combining_class(marks[i]) + 1]++;
    for (size_t c = 1; c < CLASSES; c++)
        start[c] += start[c - 1];
    for (size_t i = 0; i < n; i++)
        sorted[start[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, sorted, n * sizeof *marks);
    rt_free(sorted);
    return RT_OK;
}

static rt_status order_marks(int32_t *cps, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && combining_class(cps[end]) != 0)
            end++;
        if (end - i > SHORT_RUN)
            RT_TRY(counting_sort(cps + i, end - i));
        else
            insertion_sort(cps + i, end - i);
        i = end + 1;
    }
    return RT_OK;
}

// Composes the n characters of the scratch and appends them as UTF-8.
static rt_status compose(rt_tok_nfc_scratch *s, size_t n, rt_str *out)
{
    RT_TRY(order_marks(s->cps, n));
    utf8proc_ssize_t m =
        utf8proc_normalize_utf32(s->cps, (utf8proc_ssize_t)n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t i = 0; i < m; i++) {
        utf8proc_uint8_t bytes[4];
        utf8proc_ssize_t len = utf8proc_encode_char(s->cps[i], bytes);
        RT_TRY(rt_str_append(out, (const char *)bytes, (size_t)len));
    }
    return m < 0 ? RT_FAIL(RT_ERR_INTERNAL, "normaliser: %s", utf8proc_errmsg(m)) : RT_OK;
}

// Where the next stretch begins that NFC may change: the last unchangeable character
// before one that is not, for it may take marks.
static size_t stable_end(const char *text, size_t len, size_t at)
{
    size_t last = at;
    while (at < len) {
        int32_t cp;
        size_t n = rt_utf8_next(text + at, len - at, &cp);
        if (cp >= FIRST_THAT_CHANGES)
            return last;
        last = at;
        at += n;
    }
    return len;
}

rt_status rt_tok_nfc(rt_tok_nfc_scratch *scratch, const char *text, size_t len, rt_str *out)
{
    for (size_t at = 0; at < len;) {
        size_t stable = stable_end(text, len, at);
        RT_TRY(rt_str_append(out, text + at, stable - at));
        size_t used = 0;
        bool first = true;
        for (at = stable; at < len; first = false) {
            int32_t cp;
            size_t n = rt_utf8_next(text + at, len - at, &cp);
            if (cp < FIRST_THAT_CHANGES && !first)
                break;
            at += n;
            if (!rt_tok_inert(cp)) {
                RT_TRY(decompose(scratch, cp, &used));
                continue;
            }
            RT_TRY(compose(scratch, used, out));
            RT_TRY(rt_str_append(out, text + at - n, n));
            used = 0;
        }
        RT_TRY(compose(scratch, used, out));
    }
    return RT_OK;
}
