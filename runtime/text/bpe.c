// SPDX-License-Identifier: Apache-2.0
// Byte-pair merges of one word: the pair of lowest rank first, the leftmost of equal
// ones (Sennrich et al., "Neural Machine Translation of Rare Words with Subword
// Units", 2016). Short words by a linear scan; long ones with a heap, so that a
// hostile word of n bytes costs n log n.
#include "runtime/text/tokenizer_int.h"

#include "runtime/base/mem.h"

#include <string.h>

enum { SHORT_WORD = 40 };
static const uint32_t no_rank = UINT32_MAX;
static const rt_tok_merge no_merge = {.pair = UINT64_MAX, .rank = UINT32_MAX, .id = -1};

static uint64_t pair_key(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static size_t pair_slot(const rt_tok_merges *m, uint64_t pair)
{
    uint64_t h = (pair ^ pair >> 29) * 0x9E3779B97F4A7C15u;
    return (size_t)(h >> 32) & m->mask;
}

static const rt_tok_merge *lookup(const rt_tok_merges *m, int32_t left, int32_t right)
{
    uint64_t pair = pair_key(left, right);
    for (size_t i = pair_slot(m, pair); m->slots[i].pair != UINT64_MAX; i = (i + 1) & m->mask) {
        if (m->slots[i].pair == pair)
            return &m->slots[i];
    }
    return &no_merge;
}

rt_status rt_tok_merges_init(rt_tok_merges *m, size_t count)
{
    size_t slots = 64;
    while (slots < count + count / 2)
        slots *= 2;
    RT_TRY(RT_ALLOC(m->slots, slots, "merges"));
    m->mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        m->slots[i] = no_merge;
    return RT_OK;
}

void rt_tok_merges_put(rt_tok_merges *m, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    uint64_t pair = pair_key(left, right);
    size_t i = pair_slot(m, pair);
    while (m->slots[i].pair != UINT64_MAX && m->slots[i].pair != pair)
        i = (i + 1) & m->mask;
    m->slots[i] = (rt_tok_merge){.pair = pair, .rank = rank, .id = id};
}

// The ids of the bytes that have one, and their number. What is left out leaves no gap: its
// neighbours may merge.
static size_t byte_ids(const rt_tokenizer *tok, const char *word, size_t n, int32_t *id)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t each = tok->byte_id[(unsigned char)word[i]];
        if (each >= 0)
            id[count++] = each;
    }
    return count;
}

// n <= SHORT_WORD. merge[i] is what the symbols i and i + 1 would make.
static rt_status merge_short(const rt_tokenizer *tok, const char *word, size_t n, rt_ids *out)
{
    int32_t id[SHORT_WORD];
    const rt_tok_merge *merge[SHORT_WORD];
    n = byte_ids(tok, word, n, id);
    for (size_t i = 0; i + 1 < n; i++)
        merge[i] = lookup(&tok->merges, id[i], id[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (merge[i]->rank < merge[best]->rank)
                best = i;
        }
        if (merge[best]->rank == no_rank)
            break;
        id[best] = merge[best]->id;
        n--;
        for (size_t i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            merge[i - 1] = merge[i];
        }
        if (best > 0)
            merge[best - 1] = lookup(&tok->merges, id[best - 1], id[best]);
        if (best + 1 < n)
            merge[best] = lookup(&tok->merges, id[best], id[best + 1]);
    }
    return rt_ids_append(out, id, n);
}

static void heap_push(rt_tok_symbols *s, uint64_t item)
{
    size_t i = s->heap_len++;
    while (i > 0 && s->heap[(i - 1) / 2] > item) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = item;
}

static uint64_t heap_pop(rt_tok_symbols *s)
{
    uint64_t top = s->heap[0], last = s->heap[--s->heap_len];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= s->heap_len)
            break;
        if (child + 1 < s->heap_len && s->heap[child + 1] < s->heap[child])
            child++;
        if (s->heap[child] >= last)
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return top;
}

static rt_status symbols_reserve(rt_tok_symbols *s, size_t n)
{
    if (n <= s->cap)
        return RT_OK;
    rt_tok_symbols grown = {0};
    rt_status status = RT_ALLOC(grown.id, n, "long word");
    if (status == RT_OK)
        status = RT_ALLOC(grown.prev, n, "long word");
    if (status == RT_OK)
        status = RT_ALLOC(grown.next, n, "long word");
    if (status == RT_OK) // n - 1 pairs at first; each merge takes one and adds two at most
        status = RT_ALLOC(grown.heap, 2 * n, "long word");
    if (status != RT_OK) {
        rt_tok_symbols_free(&grown);
        return status;
    }
    rt_tok_symbols_free(s);
    *s = grown;
    s->cap = n;
    return RT_OK;
}

static void push_pair(const rt_tokenizer *tok, rt_tok_symbols *s, int32_t left)
{
    uint32_t rank = lookup(&tok->merges, s->id[left], s->id[s->next[left]])->rank;
    if (rank != no_rank)
        heap_push(s, (uint64_t)rank << 32 | (uint32_t)left);
}

static rt_status merge_long(const rt_tokenizer *tok, rt_tok_symbols *s, const char *word, size_t n,
                            rt_ids *out)
{
    if (n > INT32_MAX)
        return RT_FAIL(RT_ERR_LIMIT, "%s: a word of %zu bytes", tok->name, n);
    RT_TRY(symbols_reserve(s, n));
    const int32_t end = (int32_t)byte_ids(tok, word, n, s->id);
    for (int32_t i = 0; i < end; i++) {
        s->prev[i] = i - 1;
        s->next[i] = i + 1;
    }
    s->heap_len = 0;
    for (int32_t i = 0; i + 1 < end; i++)
        push_pair(tok, s, i);
    while (s->heap_len > 0) {
        uint64_t top = heap_pop(s);
        int32_t at = (int32_t)(uint32_t)top, right = s->next[at];
        if (s->id[at] < 0 || right == end)
            continue;
        const rt_tok_merge *merge = lookup(&tok->merges, s->id[at], s->id[right]);
        if (merge->rank != top >> 32)
            continue; // one of the two has been merged since
        s->id[at] = merge->id;
        s->id[right] = -1;
        s->next[at] = s->next[right];
        if (s->next[at] < end) {
            s->prev[s->next[at]] = at;
            push_pair(tok, s, at);
        }
        if (s->prev[at] >= 0)
            push_pair(tok, s, s->prev[at]);
    }
    for (int32_t i = 0; i < end; i = s->next[i])
        RT_TRY(rt_ids_append(out, &s->id[i], 1));
    return RT_OK;
}

void rt_tok_symbols_free(rt_tok_symbols *s)
{
    rt_free(s->id);
    rt_free(s->prev);
    rt_free(s->next);
    rt_free(s->heap);
    *s = (rt_tok_symbols){0};
}

rt_status rt_tok_bpe(const rt_tokenizer *tok, rt_tok_symbols *scratch, const char *word, size_t len,
                     rt_ids *out)
{
    int32_t id = rt_tok_vocab_bytes(&tok->vocab, word, len);
    uint32_t flags = id < 0 ? 0 : tok->vocab.entries[id].flags;
    if (id >= 0 && !(flags & RT_TOK_SPECIAL) && (tok->ignore_merges || (flags & RT_TOK_WHOLE)))
        return rt_ids_append(out, &id, 1);
    if (len <= SHORT_WORD)
        return merge_short(tok, word, len, out);
    return merge_long(tok, scratch, word, len, out);
}

rt_status rt_tok_bpe_mark_whole(rt_tokenizer *tok)
{
    rt_status status = RT_OK;
    rt_tok_symbols scratch = {0};
    rt_ids ids = {0};
    for (size_t i = 0; i < tok->vocab.size && status == RT_OK; i++) {
        rt_tok_entry *e = &tok->vocab.entries[i];
        if (!(e->flags & RT_TOK_BYTES) || e->len == 0)
            continue;
        ids.len = 0;
        status = rt_tok_bpe(tok, &scratch, tok->vocab.pool.data + e->off, e->len, &ids);
        if (status == RT_OK && ids.len == 1 && ids.data[0] == (int32_t)i)
            e->flags |= RT_TOK_WHOLE;
    }
    rt_ids_free(&ids);
    rt_tok_symbols_free(&scratch);
    return status;
}
