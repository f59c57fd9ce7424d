#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tokenizer/{qwen3,needle,variants}.jsonl with Hugging Face's
`tokenizers` (0.23.3 made the committed files).

    make_tokenizer_golden.py QWEN3_TOKENIZER_JSON NEEDLE_TOKENIZER_JSON OUT_DIR

Lines: {"text", "ids", "ids_text"}: encode, without and with the special tokens as
plain text; {"decode": ids, "skip", "keep"}: decode, without and with the special
tokens; in variants.jsonl {"name", "set", "model_set", "vocab_del", "cases"}: needle's
tokenizer.json with some members replaced and tokens left out, and its cases."""

import copy
import json
import os
import random
import sys
import unicodedata

import tokenizers
from tokenizers import Tokenizer

SEED = 20250214

HAND = [
    "", " ", "  ", "   x", "\n", "\r\n", "\t", "\n\n\n", " \n \n ", "a\r\nb\rc\n\rd", "\x00", "a\x00b", "\x7f",
    "Hello world", "Hello world 12345 你好 don't\n\n  x", "The quick brown fox jumps over the lazy dog.",
    "it's I'M you'RE we'Ve they'LL he'D can'T 'S's'ſ 'K don’t ’s 'reX 'tis", "I'll've 'LL'VE'rE", "'", "''s", "'s", "a's b'S",
    "0 1 12 123 1234 1,234,567.89 -3.14e-10 0x1F 1_000 ½ Ⅻ ² ٣٤ ४५ 五 𝟙𝟚 ①", "2024-01-31T12:34:56Z +49 (0)30 1234567",
    "https://example.com/a/b?c=d&e=%20f#g mailto:a.b+c@d.org www.x.co.uk", "foo_bar-baz.qux/quux\\corge",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "...!!!???\n\n\n---\r\n===", " !? .\n", "a.b,c;d:e", "#include <stdio.h>\n",
    "int main(void)\n{\n\treturn 0;\n}\n", "def f(x):\n    return {k: v for k, v in x.items() if v}\n\n\nclass A: pass\n",
    "fn main() -> Result<(), Box<dyn Error>> { println!(\"{:?}\", x?); Ok(()) }", "SELECT * FROM t WHERE a='b' -- c\n",
    "<div class=\"a\">&nbsp;</div>\n<!-- x -->", "x = [i**2 for i in range(10)]  # ok", "λx.x → ∀x∈ℝ: x²≥0 ∑∫√∞ ≠ ≈",
    "\\begin{equation}\n  e^{i\\pi} + 1 = 0\n\\end{equation}", "{\"a\": [1, 2.5, null, true], \"b\": \"\\u00e9\"}",
    "    indented\n\t\ttabs\n  \t mixed \t\n", "trailing   ", "   leading", "a  b   c    d     e", " " * 7 + "\n" + " " * 9 + "x",
    " " * 200, "\t" * 33 + "x", "\n" * 70, " \n" * 40, " \r\n" * 17, "a" + " " * 130 + "b",
    "你好，世界！这是一个测试。", "繁體中文測試，標點符號「引號」", "日本語のテキスト、カタカナとひらがな。ﾊﾝｶｸ", "한국어 텍스트입니다. 안녕하세요?",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣", "שלום עולם, מה שלומך? שָׁלוֹם", "नमस्ते दुनिया, कैसे हो? क्षत्रिय", "สวัสดีชาวโลก นี่คือการทดสอบ",
    "Привет, мир! Ёлка ёжик", "Γειά σου Κόσμε ΐ ΰ", "Chào thế giới, tiếng Việt có dấu", "Çok güzel İstanbul ığüşöç", "ሰላም ልዑል", "გამარჯობა",
    "Բարեւ", "வணக்கம் உலகம்", "ಕನ್ನಡ ಲಿಪಿ", "മലയാളം", "বাংলা ভাষা", "မြန်မာ", "ខ្មែរ", "བོད་སྐད", "ᠮᠣᠩᠭᠣᠯ", "ᏣᎳᎩ", "ꦗꦮ", "𐌰𐌱𐌲 𒀀𒁀 𓀀𓁐 𝔘𝔫𝔦 𐐷",
    "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈 ❤️ 🇩🇪🇯🇵 1️⃣ ☃︎ ☃️ 🫠🫡", "😀😃😄😁", "text😀text 😀 text", "👩🏾‍🚀👩🏾‍🚀", "⛹🏿‍♀️",
    "é e\u0301 \u00e9 E\u0301", "a\u0308\u0323 a\u0323\u0308 \u1e69 s\u0323\u0307 s\u0307\u0323", "\u212b \u2126 \u212a \u00c5 A\u030a",
    "\u1100\u1161 \u1100\u1161\u11a8 \uac00\u11a8 \uac01\u11a8 \u1112\u1161\u11ab\u1100\u1173\u11af", "\uac00\u11a7 \u1100\u1161\u11a7 \u11a7 \u11c3\uac00\u11c3",
    "ｶﾞ カ\u3099 か\u3099 ハ\u309a", "\u0958 \u095f \u0928\u093c \u09c7\u09be", "\u0344 \u0340 \u0341 \u0343 \u0374 \u037e \u0387", "\u1f71 \u1fbb \u03b1\u0301\u0345 \u03b1\u0345\u0301",
    "\u2adc \u0f73 \u0f75 \u0f81 \ufb1d \ufb2a \ufb4e", "\uf900 \ufa10 \u2f800 \U0002f800 \U0002fa1d", "\U0001d15e \U0001d1c0", "ﬁ ﬀ ﬆ 'ﬆ ß ẞ ŉ",
    "\u0301abc", "\u0301\u0300\u0323", "x" + "\u0301\u0323" * 40, "a" + "\u0323" * 33 + "\u0301", "q\u0307\u0323\u031b\u0321\u0345\u0334",
    "a\u0085b\u00a0c\u180ed\u1680e\u2028f\u2029g\u3000h\u200bi\ufeffj\u2000k\u202fl\u205fm\u000bn\u000co\u001cp\u001dq\u001er\u001fs",
    "\u0085\u0085", "\u00a0\u00a0x", "\u180e\u180ex \u180e", " \u180e \n", "\u3000\u3000\n", "\u2028\u2028", "\ufeffBOM", "\u200b \u200b", "zero\u200dwidth\u200cjoin\u2060er",
    "\u00ad soft\u00adhyphen", "\ufffd \ufffe \uffff \U0010ffff \ue000 \U000f0000", "\U0001f1e6\U0001f1e7", "①②③ ㊀ ㍿ ㎏",
    # Letters, digits and marks newer than Unicode 14 (PCRE2 10.42) and 15 (utf8proc 2.8).
    "\ua7cba \ua7da\ua7dc x\u1c89y \u1c8a's", "a\u0897b \u0897", "\U00010d40\U00010d49 \U000105c0x\U000105d2\u0307", "\U00031350\U000323af字", "\U0001e030\U0001e06d\U0001e08f a\U0001e08fb",
    "\U00016d67\U00016d67 \U00016d63\U00016d67", "\U00011382\U000113c9 \U00011f02\U00011f34", "\U0001fae8\U0001fae9\U0001fadf x\U0001cc00y", "\U00011935\U00011930 \U00011938", "\u31ef\u2ffc\u2427 \u1b4e",
    "e\u08d3\u0301 e\u07fd\u0301 e\u1ac1\u0323 e\u1dfa\u0301", "\u0c3c\u0c4d \u0eba \u0ece", "\U0002ebf0\U0002ee5d \U0001e5d0\U0001e5f1 \U00016130",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|", "<|im_start|>>", "<<|im_start|>", "<|im_end|><|im_end|>", " <|endoftext|> ", "a<|endoftext|>b",
    "<think>\n\nhm\n</think>\n\nok", "<tool_call>{}</tool_call><tool_response></tool_response>", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", "<|MASK|> <|mask|> <MASK> |<MASK>|",
    "e<think>\u0301", "e<|im_end|>\u0301x", "<|im_\u200bstart|>", "x<think>y<|im_end|>z</think>", "<|vision_start|><|image_pad|><|vision_end|>",
    "Document: The code of Anna is 4711. Question: What is the code of Anna?", "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababababababababababababababababab", "AaBbCcDdEeFf", "camelCaseAndSNAKE_CASE_and-kebab-case",
    "thethethethethethethethethethethethethethethethethe", "\u4e00" * 100, "é" * 41, "😀" * 30, "=" * 100, "-" * 77 + "\n", "." * 41, "1" * 50, "_" * 13 + "a",
    "".join(map(chr, range(128))), "".join(map(chr, range(128, 256))), "".join(map(chr, range(0x370, 0x400))), "".join(map(chr, range(0x600, 0x700))), "".join(map(chr, range(0x2000, 0x2070))),
]


def is_char(c):
    return not 0xD800 <= c < 0xE000


def random_texts(rng, specials):
    blocks = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00), (0xE00, 0x1000),
              (0x1100, 0x1200), (0x1AB0, 0x1B80), (0x1E00, 0x2070), (0x2100, 0x2C00), (0x3000, 0x3100), (0x4E00, 0x4F00), (0xA700, 0xAC00),
              (0xAC00, 0xAD00), (0xF900, 0xFB50), (0x10D00, 0x11400), (0x11F00, 0x11F60), (0x16100, 0x16E00), (0x1D100, 0x1D200),
              (0x1E000, 0x1E950), (0x1F300, 0x1FB00), (0x31300, 0x31400)]
    glue = [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", ".", "12", "\u0301", "\u0323", "\u00a0", "\u3000", "\u200d", "\ufe0f"] + specials
    for _ in range(130):  # words of one or two blocks, joined by separators
        out = []
        for _ in range(rng.randint(1, 12)):
            low, high = rng.choice(blocks)
            out.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 8))))
            out.append(rng.choice(glue))
        yield "".join(out)
    for _ in range(40):  # anything at all
        yield "".join(chr(c) for c in (rng.randrange(0x110000) for _ in range(40)) if is_char(c))
    marks = [c for c in range(0x300, 0x1E950) if is_char(c) and unicodedata.category(chr(c))[0] == "M"]
    for _ in range(40):  # runs of marks on letters, decomposed at random
        text = "".join(chr(rng.choice([0x61, 0x41, 0x3B1, 0x915, 0x5D0, 0x628, 0xAC00, 0x1100, 0x1161, 0xE9, 0x1EAD])) +
                       "".join(chr(rng.choice(marks)) for _ in range(rng.randint(0, 4))) for _ in range(10))
        yield rng.choice([text, unicodedata.normalize("NFD", text)])
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for n in (30, 39, 40, 41, 42, 60, 200, 1000, 10000):  # long words
        yield "".join(rng.choice(letters) for _ in range(n))
    yield "".join(rng.choice("the of and in ".replace(" ", "")) for _ in range(3000))
    yield "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(700))


def encode_case(tok, text):
    tok.encode_special_tokens = False
    ids = tok.encode(text, add_special_tokens=False).ids
    tok.encode_special_tokens = True
    plain = tok.encode(text, add_special_tokens=False).ids
    tok.encode_special_tokens = False
    return {"text": text, "ids": ids, "ids_text": plain}


def decode_cases(tok, rng, texts, size, n):
    specials = [i for i, t in tok.get_added_tokens_decoder().items()]
    for k in range(n):
        kind = k % 4
        if kind == 0:  # any ids: bytes that are no UTF-8, unknown ids
            ids = [rng.randrange(size + 5) for _ in range(rng.randint(1, 30))]
        elif kind == 1:  # single bytes
            ids = [tok.token_to_id(c) for c in rng.choices(BYTE_ALPHABET, k=rng.randint(1, 30))]
            ids = [i for i in ids if i is not None]
        elif kind == 2:  # a text with ids dropped and special ones thrown in
            ids = [i for i in tok.encode(rng.choice(texts)).ids[:200] if rng.random() < 0.8]
            for _ in range(3):
                ids.insert(rng.randint(0, len(ids)), rng.choice(specials))
        else:  # a text
            ids = tok.encode(rng.choice(texts)).ids[:300]
        yield {"decode": ids, "skip": tok.decode(ids, skip_special_tokens=True),
               "keep": tok.decode(ids, skip_special_tokens=False)}


def byte_alphabet():
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in own]
    return [chr(b) for b in own] + [chr(0x100 + i) for i in range(len(others))]


BYTE_ALPHABET = byte_alphabet()

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(*items):
    return {"type": "Sequence", "pretokenizers": list(items)}


def added(base, *tokens):
    out = copy.deepcopy(base["added_tokens"])
    next_id = max(max(base["model"]["vocab"].values()), max(t["id"] for t in out)) + 1
    for token in tokens:
        token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False, **token}
        known = base["model"]["vocab"].get(token["content"])
        out.append({"id": next_id if known is None else known, **token})
        next_id += known is None
    return out


def variants(base):
    nfc = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}
    # In no merge: the bytes 0xC3, 0xA9, 0xBC and 0x00, and a stop.
    missing = ["\u00c3", "\u00a9", "\u00bc", "\u0100", "."]
    assert not any(c in part for merge in base["model"]["merges"] for part in merge for c in missing)
    yield "gpt2", {"pre_tokenizer": byte_level(regex=True)}, {}
    yield "gpt2 with a space first", {"pre_tokenizer": byte_level(prefix=True, regex=True)}, {}
    yield "a space before each piece", {"pre_tokenizer": sequence(split(r"\s+"), byte_level(prefix=True))}, {}
    yield "nfc in a sequence", nfc, {}
    yield "llama3", {"pre_tokenizer": sequence(split(LLAMA3), byte_level())}, {}
    yield "o200k", {"pre_tokenizer": sequence(split(O200K), byte_level())}, {}
    yield "cl100k, inverted", {"pre_tokenizer": sequence(split(CL100K, "Removed", True), byte_level())}, {}
    yield "deepseek", {"pre_tokenizer": sequence(split(r"\p{N}{1,3}"), split("[一-龥\u3040-\u309f\u30a0-\u30ff]+"), split(DEEPSEEK), byte_level())}, {}
    yield "blanks removed", {"pre_tokenizer": sequence(split(r"\s+", "Removed"), byte_level())}, {}
    yield "string", {"pre_tokenizer": sequence(split("a", kind="String"), split(".", "Removed", kind="String"), byte_level())}, {}
    yield "string, inverted", {"pre_tokenizer": sequence(split("the", "Removed", True, kind="String"), byte_level())}, {}
    yield "empty matches", {"pre_tokenizer": sequence(split(r"(?=[A-Z\x{4E00}-\x{9FFF}])|(?<=\.)|x*"), byte_level())}, {}
    yield "line anchors", {"pre_tokenizer": sequence(split(r"^.|.$|\A\s|\n\z|[^\n]+?$"), byte_level())}, {}
    yield "categories", {"pre_tokenizer": sequence(split(r"\p{Lu}+|\p{Ll}+|\p{Lt}|\p{Lm}+|\p{Lo}+|\p{Mn}+|\p{Mc}+|\p{Nd}+|\p{Nl}|\p{No}+|\p{Po}+|\p{Pd}|\p{So}+|\p{Sm}+|\p{Cf}+|\p{Cn}+|\P{^Zs}"), byte_level())}, {}
    yield "atomic, lazy, nested", {"pre_tokenizer": sequence(split(r"(?>a+|b+?)(?<!aaaa)(?:c{2,3}?|d{2,})?|[\d\-_]+|\D"), byte_level())}, {}
    yield "ignore_merges", {}, {"ignore_merges": True}
    yield "merges as strings", {}, {"merges": ["#version: 0.2"] + [" ".join(m) for m in base["model"]["merges"]]}
    yield "some merges", {}, {"merges": base["model"]["merges"][::-1][::2] + base["model"]["merges"][::2]}
    tokens = added(base, {"content": "<left>", "lstrip": True}, {"content": "<right>", "rstrip": True}, {"content": "<both>", "lstrip": True, "rstrip": True, "special": True},
                   {"content": "word", "single_word": True}, {"content": "ab"}, {"content": "abc"}, {"content": "abcde"}, {"content": "bcd"}, {"content": "  "},
                   {"content": "cafe\u0301", "normalized": True}, {"content": "n\u0303", "normalized": True, "lstrip": True}, {"content": "\u00fc", "normalized": False},
                   {"content": "no", "normalized": True, "special": True}, {"content": "one word", "normalized": True, "single_word": True, "rstrip": True})
    yield "added tokens", {"added_tokens": tokens, **nfc}, {}
    yield "added tokens, no normaliser", {"added_tokens": tokens}, {}
    yield "options that do not matter", {}, {"unk_token": "<|endoftext|>", "fuse_unk": True, "byte_fallback": True}
    yield "bytes left out", {}, {}, missing
    yield "bytes left out, ignore_merges", {}, {"ignore_merges": True}, missing


VARIANT_TEXTS = [
    "", " ", "a", "Hello world, it's THE end...  of\n\n it all. ", "  two  spaces\t\ttabs \r\n\r\n x", "1234567 12,345.67", "don't DON'T 'S", "Abc.DEF.x.xx.yxxy", "你好 世界ab天 かな カナ 字",
    "the there then", "aaaabcccdddd aab abbb", "\n\nline one\nline two\n", "\n", "x\n", "e\u0301 cafe\u0301 caf\u00e9 n\u0303 \u00f1 u\u0308 \u00fc", "word words sword word. _word word_ wörd-word éword",
    "  <left>  x  <right>  y  <both>  z<both><left>  <right>   <left>", "abcdef abcd bcd abc ab a", "no one word nono word  one word   next", "<|im_end|> no <|im_start|>ab", "<both>  ab  <both>", "\u3000<left>\u3000\u00a0<right>\u2028x",
    "\u00aaword word\u0301 word\u200d ⓦword word٣ word²", "x\u180ey \u180e", "\u1c89\u1c8a\ua7cb \U00010d40 \U0001cc00 \u0897 \U00011f02", "Ǆǅ ʰʲ Ⅻ ½ – — ∑ ☃ \u00ad\u200b\u0378", "snake_case-and 10-20--30", "😀 x 😀", "Document: The code of Anna is 4711. Question: What is it?",
    "théeé caféteria, éthe é éé \x00 a\x00b naïve über Ãé . .. éthe étéhée" + "theé" * 30, "trailing spaces   ", "... !!! ?? a.b.c", "mixedCASE WordsAndCamelCase HTTPServer", "تجربة ١٢٣ हिन्दी ไทย",
]


def write(path, lines):
    with open(path, "w", encoding="ascii") as f:
        for line in lines:
            f.write(json.dumps(line, separators=(",", ":")) + "\n")


def main():
    qwen_path, needle_path, out = sys.argv[1:]
    print("tokenizers", tokenizers.__version__, "unicodedata", unicodedata.unidata_version)
    for name, path in (("qwen3", qwen_path), ("needle", needle_path)):
        rng = random.Random(SEED)
        tok = Tokenizer.from_file(path)
        specials = [t.content for t in tok.get_added_tokens_decoder().values()][:24]
        texts = HAND + [chr(c) for c in range(256)] * (name == "qwen3") + list(random_texts(rng, specials))
        lines = [encode_case(tok, text) for text in texts]
        lines += decode_cases(tok, rng, texts, tok.get_vocab_size(), 240)
        write(os.path.join(out, name + ".jsonl"), lines)
    with open(needle_path, encoding="utf-8") as f:
        base = json.load(f)
    lines = []
    for name, members, model, *left_out in variants(base):
        spec = {**copy.deepcopy(base), **members}
        spec["model"].update(model)
        for token in left_out[0] if left_out else []:
            del spec["model"]["vocab"][token]
        tok = Tokenizer.from_str(json.dumps(spec))
        assert all(tok.token_to_id(t["content"]) == t["id"] for t in spec["added_tokens"])
        cases = [encode_case(tok, text) for text in VARIANT_TEXTS]
        lines.append({"name": name, "set": members, "model_set": model, "vocab_del": left_out[0] if left_out else [], "cases": cases})
    write(os.path.join(out, "variants.jsonl"), lines)


main()
