// SPDX-License-Identifier: Apache-2.0
// The vocabulary: tokens by id, and ids by bytes. tokenizer.json spells a token in
// GPT-2's byte-level alphabet, where each byte is a printable character; here it is
// stored as bytes. A token with a character outside of it is kept as it is written.
#include "runtime/text/tokenizer_int.h"

#include "runtime/base/mem.h"

#include <string.h>

// The byte that a character of the alphabet stands for, or -1: printable bytes of
// Latin-1 are themselves, the others count up from U+0100.
static int alphabet_byte(int32_t cp)
{
    if (cp < 0x100)
        return cp >= 0xAE || (cp >= 0xA1 && cp <= 0xAC) || (cp >= 0x21 && cp <= 0x7E) ? cp : -1;
    int32_t nth = cp - 0x100;
    if (nth < 0x21)
        return nth; // 00..20
    if (nth < 0x21 + 0x22)
        return nth - 0x21 + 0x7F; // 7F..A0
    return nth == 0x21 + 0x22 ? 0xAD : -1;
}

// Decodes into `out` [len], which may be `text` itself; false when not of the alphabet.
static bool decode(const char *text, size_t len, char *out, size_t *out_len)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        int32_t cp;
        i += rt_utf8_next(text + i, len - i, &cp);
        int byte = cp < 0 ? -1 : alphabet_byte(cp);
        if (byte < 0)
            return false;
        out[n++] = (char)byte;
    }
    *out_len = n;
    return true;
}

static uint64_t load(const char *p, size_t n)
{
    uint64_t v = 0;
    memcpy(&v, p, n);
    return v;
}

static uint32_t hash(const char *bytes, size_t len)
{
    const uint64_t odd = 0x9E3779B97F4A7C15u;
    uint64_t h = len * odd;
    size_t left = len;
    for (; left >= 8; left -= 8, bytes += 8)
        h = (h ^ load(bytes, 8)) * odd, h ^= h >> 29;
    if (left >= 4)
        h ^= load(bytes, 4) | load(bytes + left - 4, 4) << 32;
    else if (left > 0)
        h ^= (uint64_t)(unsigned char)bytes[0] | (uint64_t)(unsigned char)bytes[left / 2] << 8 |
             (uint64_t)(unsigned char)bytes[left - 1] << 16;
    h *= odd;
    h ^= h >> 32;
    return (uint32_t)(h * odd >> 32);
}

static int32_t find(const rt_tok_vocab *v, const char *bytes, size_t len, uint32_t kind)
{
    uint32_t h = hash(bytes, len);
    for (size_t i = h & v->mask; v->slots[i].id >= 0; i = (i + 1) & v->mask) {
        if (v->slots[i].hash != h)
            continue;
        const rt_tok_entry *e = &v->entries[v->slots[i].id];
        if (e->len == len && (e->flags & kind) && memcmp(v->pool.data + e->off, bytes, len) == 0)
            return v->slots[i].id;
    }
    return -1;
}

rt_status rt_tok_vocab_init(rt_tok_vocab *v, size_t size, size_t count)
{
    size_t slots = 64;
    while (slots < count + count / 2)
        slots *= 2;
    RT_TRY(RT_ALLOC(v->entries, size, "vocabulary"));
    v->size = size;
    for (size_t i = 0; i < size; i++)
        v->entries[i].added = -1;
    RT_TRY(RT_ALLOC(v->slots, slots, "vocabulary index"));
    v->mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        v->slots[i].id = -1;
    return rt_str_append(&v->pool, "", 0);
}

void rt_tok_vocab_free(rt_tok_vocab *v)
{
    rt_free(v->entries);
    rt_free(v->slots);
    rt_str_free(&v->pool);
}

rt_status rt_tok_vocab_put(rt_tok_vocab *v, int32_t id, const char *text, size_t len)
{
    size_t off = v->pool.len;
    if (off + len > UINT32_MAX)
        return RT_FAIL(RT_ERR_LIMIT, "vocabulary: over 4 GiB of text");
    RT_TRY(rt_str_append(&v->pool, text, len));
    size_t bytes = len;
    bool level = decode(text, len, v->pool.data + off, &bytes);
    if (!level)
        memcpy(v->pool.data + off, text, len);
    v->pool.len = off + bytes;
    v->entries[id] = (rt_tok_entry){.off = (uint32_t)off,
                                    .len = (uint32_t)bytes,
                                    .added = -1,
                                    .flags = level ? RT_TOK_BYTES : RT_TOK_LITERAL};
    uint32_t h = hash(v->pool.data + off, bytes);
    size_t i = h & v->mask;
    while (v->slots[i].id >= 0)
        i = (i + 1) & v->mask;
    v->slots[i] = (rt_tok_slot){.hash = h, .id = id};
    return RT_OK;
}

int32_t rt_tok_vocab_bytes(const rt_tok_vocab *v, const char *bytes, size_t len)
{
    return find(v, bytes, len, RT_TOK_BYTES);
}

int32_t rt_tok_vocab_text(const rt_tok_vocab *v, const char *text, size_t len)
{
    char bytes[2 * RT_TOK_TEXT_MAX];
    size_t n;
    if (len > sizeof bytes)
        return -1;
    if (decode(text, len, bytes, &n))
        return find(v, bytes, n, RT_TOK_BYTES);
    return find(v, text, len, RT_TOK_LITERAL);
}
