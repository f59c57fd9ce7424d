# SPDX-License-Identifier: Apache-2.0
"""The shipped model's documents: reading them, and what counts as a right answer."""

import json
import re


def load(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def prompt_ids(tokenizer, user):
    text = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(text, add_special_tokens=False).ids


def right(accept, text):
    text = text.strip()
    if "any" in accept:
        return text in accept["any"]
    if "all" in accept:
        low = text.lower()
        return all(any(form.lower() in low for form in forms) for forms in accept["all"])
    prefix = accept["prefix"]
    if not text.startswith(prefix) or not text.endswith("."):
        return False
    return sorted(re.split(", | and ", text[len(prefix):-1])) == sorted(accept["values"])
