# SPDX-License-Identifier: Apache-2.0
"""A byte-level BPE tokenizer.json, for ASCII text; no dependencies."""

import functools
import json
import re

# The Split of the shipped tokenizer, for ASCII.
SPLIT = re.compile(r"[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# Tokens that text never makes; the chat and the decoder put them there.
END, IM_START, IM_END, MASK = range(4)


class Bpe:
    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            model = json.load(f)["model"]
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        self.rank = {pair: i for i, pair in enumerate(pairs)}
        self.vocab = model["vocab"]
        self.token = {i: token for token, i in self.vocab.items()}
        self.ids = functools.lru_cache(maxsize=None)(self._ids)

    def _ids(self, word):
        parts = list(word.replace(" ", "Ġ").replace("\n", "Ċ"))
        while len(parts) > 1:
            ranks = [self.rank.get(pair, len(self.rank)) for pair in zip(parts, parts[1:])]
            best = min(ranks)
            if best == len(self.rank):
                break
            at = ranks.index(best)
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        return tuple(self.vocab[part] for part in parts)

    def words(self, text):
        """The text in parts that are tokenised on their own."""
        return SPLIT.findall(text)

    def pieces(self, word):
        return len(self.ids(word))

    def count(self, text):
        return sum(self.pieces(word) for word in self.words(text))

    def encode(self, text):
        return [i for word in self.words(text) for i in self.ids(word)]

    def decode(self, ids):
        return "".join(self.token[i] for i in ids if i > MASK).replace("Ġ", " ").replace("Ċ", "\n")

    def chat(self, user):
        """A user's message, and the opening of the answer."""
        return [IM_START, *self.encode("user\n" + user), IM_END, *self.encode("\n"), IM_START,
                *self.encode("assistant\n")]
