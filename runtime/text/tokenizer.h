// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE from a Hugging Face tokenizer.json, with the same ids as HF's
// `tokenizers`: NFC normaliser, Split by a regex (PCRE2) or GPT-2's, ByteLevel,
// added tokens, `ignore_merges`; a byte without a token is left out. What is not understood
// is refused by name. A tokenizer is const once open: threads may share it.
#ifndef RUNTIME_TEXT_TOKENIZER_H
#define RUNTIME_TEXT_TOKENIZER_H

#include "runtime/base/status.h"
#include "runtime/base/str.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct rt_tokenizer rt_tokenizer;

typedef struct rt_ids { // zero-initialise to start empty
    int32_t *data;
    size_t len, cap;
} rt_ids;
rt_status rt_ids_append(rt_ids *ids, const int32_t *data, size_t n);
void rt_ids_free(rt_ids *ids);

rt_status rt_tokenizer_open(const char *path, rt_tokenizer **out);
// As above from memory; `name` is for messages.
rt_status rt_tokenizer_parse(const char *json, size_t len, const char *name, rt_tokenizer **out);
void rt_tokenizer_close(rt_tokenizer *tok);

// Highest id + 1, over the vocabulary and the added tokens.
int rt_tokenizer_size(const rt_tokenizer *tok);
// The most bytes of text that one token can stand for; SIZE_MAX when this tokenizer
// drops text without limit.
size_t rt_tokenizer_token_bytes(const rt_tokenizer *tok);
// Id of a token's literal text ("<|im_end|>"), or -1.
int rt_tokenizer_id(const rt_tokenizer *tok, const char *text);

typedef enum rt_special {
    RT_SPECIAL_TEXT,  // a special token's literal text is plain text: user content
    RT_SPECIAL_PARSE, // it becomes the special token, as HF's encode does
} rt_special;

// Appends the ids of a UTF-8 text. With RT_SPECIAL_TEXT, added tokens marked
// special are matched nowhere; the others are matched in both modes. A spelling of
// the mask (<|MASK|>, <MASK>, |<MASK>|, <|mask|>) counts as special here even when
// the file does not say so (SDAR's does not): a mask in user content would become a
// place to fill. Invalid UTF-8 is RT_ERR_FORMAT with the byte offset; a text on
// which the regex exceeds its limits is RT_ERR_LIMIT. On error `out` is as before.
rt_status rt_tokenizer_encode(const rt_tokenizer *tok, const char *text, size_t len,
                              rt_special special, rt_ids *out);

// Streaming detokeniser: never gives out half of a UTF-8 character. Bytes that
// cannot be UTF-8 become U+FFFD, as HF's decode does. Added tokens give their text
// as it is; special ones are skipped unless `keep_special`. The tokenizer must
// outlive its detokenisers.
typedef struct rt_detok rt_detok;
rt_status rt_detok_open(const rt_tokenizer *tok, bool keep_special, rt_detok **out);
void rt_detok_close(rt_detok *d);
// Appends the text that is complete after these ids. An unknown id is skipped.
rt_status rt_detok_push(rt_detok *d, const int32_t *ids, size_t n, rt_str *out);
// Appends what was held back (as U+FFFD) and starts anew.
rt_status rt_detok_flush(rt_detok *d, rt_str *out);

#endif
