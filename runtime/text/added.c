// SPDX-License-Identifier: Apache-2.0
// Added tokens: found in the text before anything else, leftmost first and the longest
// of those, as HF's Aho-Corasick with LeftmostLongest. The patterns are sorted by
// their bytes; a match narrows the range of patterns byte by byte.
#include "runtime/text/tokenizer_int.h"

#include "runtime/base/mem.h"

#include <stdlib.h>
#include <string.h>

static int compare_patterns(const void *a, const void *b)
{
    const rt_tok_pattern *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    if (order != 0)
        return order;
    if (x->len != y->len)
        return x->len < y->len ? -1 : 1;
    return x->added < y->added ? -1 : x->added > y->added;
}

static rt_status add_pattern(const rt_tokenizer *tok, size_t nth, rt_tok_matcher *m)
{
    const rt_tok_added *token = &tok->added[nth];
    rt_str text = {0};
    rt_tok_nfc_scratch scratch = {0};
    rt_status status = token->normalized && tok->nfc
                           ? rt_tok_nfc(&scratch, token->text, token->len, &text)
                           : rt_str_append(&text, token->text, token->len);
    rt_free(scratch.cps);
    if (status != RT_OK) {
        rt_str_free(&text);
        return status;
    }
    m->patterns[m->n++] =
        (rt_tok_pattern){.text = text.data, .len = text.len, .added = (int32_t)nth};
    m->first[(unsigned char)text.data[0]] = true;
    return RT_OK;
}

// First pattern in [low, high) whose byte at `depth` is >= `byte`; all of them agree
// before `depth`, and one that ends there sorts first.
static size_t lower_bound(const rt_tok_matcher *m, size_t low, size_t high, size_t depth, int byte)
{
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const rt_tok_pattern *p = &m->patterns[mid];
        if (depth >= p->len || (unsigned char)p->text[depth] < byte)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

// The longest pattern that `text` begins with, or NULL.
static const rt_tok_pattern *longest(const rt_tok_matcher *m, const char *text, size_t len)
{
    const rt_tok_pattern *best = NULL;
    size_t low = 0, high = m->n;
    for (size_t depth = 0; depth < len && low < high; depth++) {
        int byte = (unsigned char)text[depth];
        low = lower_bound(m, low, high, depth, byte);
        high = lower_bound(m, low, high, depth, byte + 1);
        if (low < high && m->patterns[low].len == depth + 1)
            best = &m->patterns[low];
    }
    return best;
}

// The character that ends at text + end, and its length.
static size_t char_before(const char *text, size_t end, int32_t *cp)
{
    size_t n = 1;
    while (n < end && n < 4 && ((unsigned char)text[end - n] & 0xC0) == 0x80)
        n++;
    rt_utf8_next(text + end - n, n, cp);
    return n;
}

static bool stands_alone(const char *text, size_t len, size_t start, size_t end)
{
    int32_t cp;
    if (start > 0) {
        char_before(text, start, &cp);
        if (rt_tok_is_word(cp))
            return false;
    }
    if (end < len) {
        rt_utf8_next(text + end, len - end, &cp);
        if (rt_tok_is_word(cp))
            return false;
    }
    return true;
}

static size_t strip_left(const char *text, size_t floor, size_t start)
{
    while (start > floor) {
        int32_t cp;
        size_t n = char_before(text, start, &cp);
        if (!rt_tok_is_space(cp))
            break;
        start -= n;
    }
    return start;
}

static size_t strip_right(const char *text, size_t len, size_t end)
{
    while (end < len) {
        int32_t cp;
        size_t n = rt_utf8_next(text + end, len - end, &cp);
        if (!rt_tok_is_space(cp))
            break;
        end += n;
    }
    return end;
}

rt_status rt_tok_matcher_init(const rt_tokenizer *tok, bool normalized, rt_tok_matcher *m)
{
    RT_TRY(RT_ALLOC(m->patterns, tok->n_added, "added tokens"));
    for (size_t i = 0; i < tok->n_added; i++) {
        if (tok->added[i].normalized == normalized)
            RT_TRY(add_pattern(tok, i, m));
    }
    qsort(m->patterns, m->n, sizeof *m->patterns, compare_patterns);
    return RT_OK;
}

void rt_tok_matcher_free(rt_tok_matcher *m)
{
    for (size_t i = 0; i < m->n; i++)
        rt_free(m->patterns[i].text);
    rt_free(m->patterns);
}

bool rt_tok_is_mask_spelling(const char *text)
{
    static const char *const spellings[] = {"<|MASK|>", "<MASK>", "|<MASK>|", "<|mask|>"};
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        if (strcmp(text, spellings[i]) == 0)
            return true;
    }
    return false;
}

rt_status rt_tok_added_split(rt_tok_encoder *enc, const rt_tok_matcher *m, const char *text,
                             size_t len, rt_tok_plain_fn *plain)
{
    size_t done = 0; // everything before is given out
    for (size_t at = 0; at < len && m->n > 0;) {
        const rt_tok_pattern *p =
            m->first[(unsigned char)text[at]] ? longest(m, text + at, len - at) : NULL;
        if (!p) {
            at++;
            continue;
        }
        const rt_tok_added *token = &enc->tok->added[p->added];
        size_t start = at, end = at + p->len;
        at = end; // as in HF, a match that is passed over hides others inside of it
        if (token->guarded && enc->special == RT_SPECIAL_TEXT)
            continue;
        if (token->single_word && !stands_alone(text, len, start, end))
            continue;
        if (token->lstrip)
            start = strip_left(text, done, start);
        if (token->rstrip)
            end = strip_right(text, len, end);
        if (done < start)
            RT_TRY(plain(enc, text + done, start - done));
        RT_TRY(rt_ids_append(enc->out, &token->id, 1));
        done = end;
    }
    return done < len ? plain(enc, text + done, len - done) : RT_OK;
}
