// SPDX-License-Identifier: Apache-2.0
// Streaming detokeniser: joins the bytes of tokens and gives out whole characters;
// what may be the beginning of one (at most 3 bytes) waits for the next token.
#include "runtime/text/tokenizer_int.h"

#include "runtime/base/mem.h"

#include <string.h>

enum { HELD_MAX = 3 };

struct rt_detok {
    const rt_tokenizer *tok;
    bool keep_special;
    char held[HELD_MAX];
    size_t n_held;
    rt_str bytes; // scratch: held back and new
};

// The bytes of an id; false when it gives none.
static bool token_bytes(const rt_detok *d, int32_t id, const char **bytes, size_t *len)
{
    const rt_tok_vocab *v = &d->tok->vocab;
    if (id < 0 || (size_t)id >= v->size)
        return false;
    const rt_tok_entry *e = &v->entries[id];
    const rt_tok_added *added = e->added >= 0 ? &d->tok->added[e->added] : NULL;
    if (added && !(e->flags & RT_TOK_BYTES)) {
        *bytes = added->text;
        *len = added->len;
    } else {
        *bytes = v->pool.data + e->off;
        *len = e->len;
    }
    return added ? !added->special || d->keep_special : e->flags != 0;
}

rt_status rt_detok_open(const rt_tokenizer *tok, bool keep_special, rt_detok **out)
{
    RT_CHECK_ARG(tok && out);
    rt_detok *d;
    RT_TRY(RT_ALLOC(d, 1, "detokeniser"));
    d->tok = tok;
    d->keep_special = keep_special;
    *out = d;
    return RT_OK;
}

void rt_detok_close(rt_detok *d)
{
    if (!d)
        return;
    rt_str_free(&d->bytes);
    rt_free(d);
}

rt_status rt_detok_push(rt_detok *d, const int32_t *ids, size_t n, rt_str *out)
{
    RT_CHECK_ARG(d && (ids || n == 0) && out);
    d->bytes.len = 0;
    RT_TRY(rt_str_append(&d->bytes, d->held, d->n_held));
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t len;
        if (token_bytes(d, ids[i], &bytes, &len))
            RT_TRY(rt_str_append(&d->bytes, bytes, len));
    }
    size_t before = out->len, rest = 0;
    rt_status status = rt_utf8_append(out, d->bytes.data, d->bytes.len, &rest);
    if (status != RT_OK) {
        out->len = before;
        return status;
    }
    d->n_held = d->bytes.len - rest;
    memcpy(d->held, d->bytes.data + rest, d->n_held);
    return RT_OK;
}

rt_status rt_detok_flush(rt_detok *d, rt_str *out)
{
    RT_CHECK_ARG(d && out);
    if (d->n_held > 0)
        RT_TRY(rt_str_puts(out, RT_UTF8_REPLACEMENT));
    d->n_held = 0;
    return RT_OK;
}
