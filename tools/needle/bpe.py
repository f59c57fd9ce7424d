# SPDX-License-Identifier: Apache-2.0
"""Counts the tokens of a byte-level BPE tokenizer.json, for ASCII text; no dependencies."""

import functools
import json
import re

# The Split of the shipped tokenizer, for ASCII.
SPLIT = re.compile(r"[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


class Bpe:
    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            merges = json.load(f)["model"]["merges"]
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
        self.rank = {pair: i for i, pair in enumerate(pairs)}
        self.pieces = functools.lru_cache(maxsize=None)(self._pieces)

    def _pieces(self, word):
        parts = list(word.replace(" ", "Ġ").replace("\n", "Ċ"))
        while len(parts) > 1:
            ranks = [self.rank.get(pair, len(self.rank)) for pair in zip(parts, parts[1:])]
            best = min(ranks)
            if best == len(self.rank):
                break
            at = ranks.index(best)
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        return len(parts)

    def words(self, text):
        """The text in parts that are tokenised on their own."""
        return SPLIT.findall(text)

    def count(self, text):
        return sum(self.pieces(word) for word in self.words(text))
