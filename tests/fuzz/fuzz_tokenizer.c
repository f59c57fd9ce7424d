// SPDX-License-Identifier: Apache-2.0
// The first byte chooses. 0: the rest is a tokenizer.json. 1: the rest is members of a
// tokenizer.json, a NUL, and a text; the members replace those of a small tokenizer.
// Others: a text for that small tokenizer, with or without NFC.
// Whatever is accepted must encode or refuse a text, and ids of a text must decode to
// its normal form when nothing splits by removal (checked for the fixed tokenizer). No
// token stands for more bytes than rt_tokenizer_token_bytes says.
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char sample[] = "Hi  there\n\n12 e\xCC\x81 <|im_end|>\xE4\xBD\xA0 \xF0\x9F\x98\x80'LL";

static void must(int holds)
{
    if (!holds)
        abort();
}

// All 256 bytes in GPT-2's spelling, a few merges, two added tokens.
static json_t *small_tokenizer(void)
{
    json_t *vocab = json_object();
    for (int b = 0, other = 0x100; b < 256; b++) {
        int cp = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD) ? b : other++;
        char text[3] = {(char)cp};
        if (cp >= 0x80) {
            text[0] = (char)(0xC0 | cp >> 6);
            text[1] = (char)(0x80 | (cp & 0x3F));
        }
        json_object_set_new(vocab, text, json_integer(b));
    }
    json_object_set_new(vocab, "th", json_integer(256));
    json_object_set_new(vocab, "the", json_integer(257));
    json_object_set_new(vocab, "aa", json_integer(258));
    json_object_set_new(vocab, "aaaa", json_integer(259));
    return json_pack("{s:o?, s:{s:s, s:b, s:b}, s:{s:s}, s:[{s:i, s:s, s:b, s:b}, {s:i, s:s, s:b}],"
                     " s:{s:s, s:o, s:[[s,s],[s,s],[s,s],[s,s]]}}",
                     "normalizer", NULL, "pre_tokenizer", "type", "ByteLevel", "add_prefix_space",
                     0, "use_regex", 1, "decoder", "type", "ByteLevel", "added_tokens", "id", 260,
                     "content", "<|im_end|>", "special", 1, "normalized", 0, "id", 261, "content",
                     "<x>", "lstrip", 1, "model", "type", "BPE", "vocab", vocab, "merges", "t", "h",
                     "th", "e", "a", "a", "aa", "aa");
}

static rt_tokenizer *open_json(json_t *root)
{
    rt_tokenizer *tok = NULL;
    char *text = json_dumps(root, JSON_COMPACT);
    must(text != NULL);
    if (rt_tokenizer_parse(text, strlen(text), "fuzz", &tok) != RT_OK)
        must(rt_last_error()[0] != '\0');
    free(text);
    return tok;
}

static void decode(const rt_tokenizer *tok, const rt_ids *ids, rt_str *out)
{
    rt_detok *d;
    must(rt_detok_open(tok, true, &d) == RT_OK);
    for (size_t i = 0; i < ids->len; i++)
        must(rt_detok_push(d, &ids->data[i], 1, out) == RT_OK);
    must(rt_detok_flush(d, out) == RT_OK);
    rt_detok_close(d);
}

static void try_text(const rt_tokenizer *tok, const char *text, size_t len, bool same)
{
    for (int mode = RT_SPECIAL_TEXT; mode <= RT_SPECIAL_PARSE; mode++) {
        rt_ids ids = {0};
        rt_str back = {0};
        if (rt_tokenizer_encode(tok, text, len, (rt_special)mode, &ids) == RT_OK) {
            for (size_t i = 0; i < ids.len; i++)
                must(ids.data[i] >= 0 && ids.data[i] < rt_tokenizer_size(tok));
            must(len / rt_tokenizer_token_bytes(tok) <= ids.len);
            decode(tok, &ids, &back);
            bool stripped = memmem(text, len, "<x>", 3) != NULL;
            must(!same || stripped || (back.len == len && (!len || !memcmp(back.data, text, len))));
        }
        rt_ids_free(&ids);
        rt_str_free(&back);
    }
}

static void fuzz_members(const char *data, size_t size)
{
    const char *end = memchr(data, '\0', size);
    size_t len = end ? (size_t)(end - data) : size;
    json_t *members;
    if (rt_json_parse(data, len, "fuzz", &members) != RT_OK)
        return;
    json_t *root = small_tokenizer();
    json_t *model = json_incref(json_object_get(root, "model"));
    json_object_update(model, json_object_get(members, "model")); // member by member
    json_object_update(root, members);
    json_object_set_new(root, "model", model);
    rt_tokenizer *tok = open_json(root);
    if (tok && end)
        try_text(tok, end + 1, size - len - 1, false);
    if (tok)
        try_text(tok, sample, sizeof sample - 1, false);
    rt_tokenizer_close(tok);
    json_decref(root);
    json_decref(members);
}

static rt_tokenizer *open_fixed(bool nfc)
{
    json_t *root = small_tokenizer();
    if (nfc)
        json_object_set_new(root, "normalizer", json_pack("{s:s}", "type", "NFC"));
    rt_tokenizer *tok = open_json(root);
    must(tok != NULL);
    json_decref(root);
    return tok;
}

static void fuzz_text(const char *data, size_t size, bool nfc)
{
    static rt_tokenizer *fixed[2]; // kept: opening takes longer than most texts
    if (!fixed[nfc])
        fixed[nfc] = open_fixed(nfc);
    try_text(fixed[nfc], data, size, !nfc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const char *rest = (const char *)data + 1;
    rt_tokenizer *tok = NULL;
    switch (data[0]) {
    case '0':
        if (rt_tokenizer_parse(rest, size - 1, "fuzz", &tok) == RT_OK)
            try_text(tok, sample, sizeof sample - 1, false);
        rt_tokenizer_close(tok);
        break;
    case '1':
        fuzz_members(rest, size - 1);
        break;
    default:
        fuzz_text(rest, size - 1, data[0] & 1);
    }
    return 0;
}
