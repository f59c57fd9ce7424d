// SPDX-License-Identifier: Apache-2.0
// Inside of the tokenizer. The order of work, as in Hugging Face's `tokenizers`:
//   added tokens (added.c) -> NFC (nfc.c) -> added tokens with "normalized"
//   -> split by regex (pretokenize.c) -> words of bytes -> merges (bpe.c)
// A rt_tokenizer is const once loaded (tokenizer_load.c, model_load.c); what one
// call of encode needs besides lives in a rt_tok_encoder of that call.
#ifndef RUNTIME_TEXT_TOKENIZER_INT_H
#define RUNTIME_TEXT_TOKENIZER_INT_H

#define PCRE2_CODE_UNIT_WIDTH 8

#include "runtime/base/json.h"
#include "runtime/base/utf8.h"
#include "runtime/text/tokenizer.h"

#include <pcre2.h>

enum {
    RT_TOK_TEXT_MAX = 8192,        // bytes of one token's text in tokenizer.json
    RT_TOK_ID_MAX = (1 << 22) - 1, // highest id accepted
    RT_TOK_STAGES_MAX = 16,
};

// --- unicode.c -------------------------------------------------------------

// HF's regexes know a newer Unicode than PCRE2: a character of the same UTF-8
// length for which PCRE2 gives the right classes; `cp` itself nearly always.
int32_t rt_tok_proxy(int32_t cp);
// A starter in HF's older NFC that neither composes nor decomposes there.
bool rt_tok_inert(int32_t cp);
bool rt_tok_is_space(int32_t cp); // White_Space
bool rt_tok_is_word(int32_t cp);  // \w of UTS #18

// --- vocab.c: id <-> bytes ---------------------------------------------------

enum {
    RT_TOK_BYTES = 1,   // text in the byte-level alphabet; stored decoded
    RT_TOK_LITERAL = 2, // any other text; no merge makes it, decodes to itself
    RT_TOK_SPECIAL = 4, // an added token that RT_SPECIAL_TEXT never gives
    RT_TOK_WHOLE = 8,   // the merges of its bytes give just this id
};

typedef struct rt_tok_entry {
    uint32_t off, len; // in rt_tok_vocab.pool
    int32_t added;     // index in rt_tokenizer.added, or -1
    uint32_t flags;    // 0: not in the model's vocabulary
} rt_tok_entry;

typedef struct rt_tok_slot {
    uint32_t hash;
    int32_t id; // -1: free
} rt_tok_slot;

typedef struct rt_tok_vocab {
    rt_tok_entry *entries; // [size], by id
    size_t size;
    rt_str pool;
    rt_tok_slot *slots; // open addressing, [mask + 1]
    size_t mask;
} rt_tok_vocab;

rt_status rt_tok_vocab_init(rt_tok_vocab *v, size_t size, size_t count);
void rt_tok_vocab_free(rt_tok_vocab *v);
// Adds a token in the spelling of tokenizer.json; the id must be free.
rt_status rt_tok_vocab_put(rt_tok_vocab *v, int32_t id, const char *text, size_t len);
// The byte-level token of just these bytes, or -1.
int32_t rt_tok_vocab_bytes(const rt_tok_vocab *v, const char *bytes, size_t len);
// The token of a text in the spelling of tokenizer.json, or -1.
int32_t rt_tok_vocab_text(const rt_tok_vocab *v, const char *text, size_t len);

// --- bpe.c -------------------------------------------------------------------

typedef struct rt_tok_merge {
    uint64_t pair; // left id << 32 | right id; UINT64_MAX: free
    uint32_t rank; // lower merges first
    int32_t id;    // of the merged token
} rt_tok_merge;

typedef struct rt_tok_merges {
    rt_tok_merge *slots; // open addressing, [mask + 1]
    size_t mask;
} rt_tok_merges;

rt_status rt_tok_merges_init(rt_tok_merges *m, size_t count);
// A pair put twice keeps its last rank, as in HF.
void rt_tok_merges_put(rt_tok_merges *m, int32_t left, int32_t right, uint32_t rank, int32_t id);

typedef struct rt_tok_symbols { // scratch for long words
    int32_t *id, *prev, *next;  // a linked list; id -1 once merged away
    uint64_t *heap;             // rank << 32 | position
    size_t heap_len, cap;
} rt_tok_symbols;
void rt_tok_symbols_free(rt_tok_symbols *s);

// Appends the ids of one word.
rt_status rt_tok_bpe(const rt_tokenizer *tok, rt_tok_symbols *scratch, const char *word, size_t len,
                     rt_ids *out);
// Sets RT_TOK_WHOLE, so that encode can look up most words instead of merging.
rt_status rt_tok_bpe_mark_whole(rt_tokenizer *tok);

// --- added.c -------------------------------------------------------------------

typedef struct rt_tok_added {
    char *text;
    size_t len;
    int32_t id;
    bool special; // as the file says
    bool guarded; // special, or a spelling of the mask: see rt_special
    bool single_word, lstrip, rstrip, normalized;
} rt_tok_added;

typedef struct rt_tok_pattern {
    char *text; // owned; the token's text after the normaliser
    size_t len;
    int32_t added;
} rt_tok_pattern;

typedef struct rt_tok_matcher { // patterns in the order of their bytes
    rt_tok_pattern *patterns;
    size_t n;
    bool first[256];
} rt_tok_matcher;

rt_status rt_tok_matcher_init(const rt_tokenizer *tok, bool normalized, rt_tok_matcher *m);
void rt_tok_matcher_free(rt_tok_matcher *m);
bool rt_tok_is_mask_spelling(const char *text);

typedef struct rt_tok_encoder rt_tok_encoder;
typedef rt_status rt_tok_plain_fn(rt_tok_encoder *enc, const char *text, size_t len);
// Appends the ids of the added tokens in the text; calls `plain` between them.
rt_status rt_tok_added_split(rt_tok_encoder *enc, const rt_tok_matcher *m, const char *text,
                             size_t len, rt_tok_plain_fn *plain);

// --- nfc.c -----------------------------------------------------------------------

typedef struct rt_tok_nfc_scratch {
    int32_t *cps;
    size_t cap;
} rt_tok_nfc_scratch;

// Appends the NFC form of valid UTF-8 to `out`.
rt_status rt_tok_nfc(rt_tok_nfc_scratch *scratch, const char *text, size_t len, rt_str *out);

// --- regex_check.c, pretokenize.c ----------------------------------------------------

// Refuses a pattern outside what Oniguruma (HF) and PCRE2 read alike, naming the part.
rt_status rt_tok_regex_check(const char *pattern, const char *name);

typedef struct rt_tok_stage { // of the pre-tokeniser
    pcre2_code *code;         // NULL: no split
    bool jit, literal;        // literal: a plain string
    bool removed, invert;     // removed: drop the matches (or, inverted, the rest)
    bool prefix_space;
} rt_tok_stage;

rt_status rt_tok_stages_load(const json_t *pre, const char *name, rt_tokenizer *tok);
void rt_tok_stages_free(rt_tokenizer *tok);
// Splits a normalised text into words and appends their ids.
rt_status rt_tok_pretokenize(rt_tok_encoder *enc, const char *text, size_t len);

// --- the tokenizer and one call of encode ----------------------------------------------

struct rt_tokenizer {
    char *name; // of the file, for messages
    rt_tok_vocab vocab;
    rt_tok_merges merges;
    int32_t byte_id[256]; // -1: not there
    bool drops;           // bytes that UTF-8 has are not there
    bool ignore_merges, nfc;
    rt_tok_added *added;
    size_t n_added;
    rt_tok_matcher raw, normalized;
    rt_tok_stage stages[RT_TOK_STAGES_MAX];
    size_t n_stages;
};

struct rt_tok_encoder {
    const rt_tokenizer *tok;
    rt_special special;
    bool proxies; // the text holds characters that rt_tok_proxy changes
    rt_ids *out;
    rt_tok_symbols symbols;
    rt_tok_nfc_scratch nfc;
    rt_str normal, shadow;
    pcre2_match_data *match;
    pcre2_match_context *limits;
    pcre2_jit_stack *stack;
};

// "model" (vocabulary and merges) and "added_tokens" of tokenizer.json.
rt_status rt_tok_model_load(const json_t *model, const json_t *added, const char *name,
                            rt_tokenizer *tok);
// Refuses members other than the listed ones (NULL-terminated).
rt_status rt_tok_only_keys(const json_t *obj, const char *where, const char *name,
                           const char *const *keys);
// The sections of tokenizer.json into a zeroed `tok`; on error the caller closes it.
rt_status rt_tok_load(const json_t *root, const char *name, rt_tokenizer *tok);

#endif
