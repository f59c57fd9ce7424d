#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes test documents for the shipped model, in the form of models/needle-11m/documents.jsonl.

    tools/needle/generate_documents.py --lengths 512,2048 --count 20 --seed 1 > documents.jsonl

The same arguments write the same bytes, and a document depends on the seed, its task, its length
and its number alone: more of them, or other tasks beside it, leave it as it is.
"""

import argparse
import json
import os
import random
import sys

from bpe import Bpe
from tasks import TASKS, filler

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def prompt_tokens(bpe, user):
    """Of the ChatML turn: six markers and roles' newlines are tokens of their own."""
    return bpe.count("user\n") + bpe.count(user) + bpe.count("\n") + bpe.count("assistant\n") + 3


def cut_front(bpe, text, excess):
    """Drops words from the front that make at least `excess` tokens."""
    words = bpe.words(text)
    at = 0
    while excess > 0:
        excess -= bpe.pieces(words[at])
        at += 1
    return "".join(words[at:])


def document(bpe, seed, task, length, number):
    rng = random.Random(f"{seed}/{task}/{length}/{number}")
    sentences, question, accept = TASKS[task](rng, length)
    tail = f" Question: {question}"
    room = length - prompt_tokens(bpe, "Document:" + tail)
    hidden = sum(bpe.count(" " + s) for s in sentences)
    if hidden > room:
        raise ValueError(f"{task}: {length} tokens are too few for its {len(sentences)} sentences")
    around = []
    while hidden < room:
        around.append(filler(rng))
        hidden += bpe.count(" " + around[-1])
    first, body = around[:1], around[1:] + sentences
    rng.shuffle(body)
    text = cut_front(bpe, "".join(" " + s for s in first + body), hidden - room)
    user = "Document:" + text + tail
    return {"id": f"{task}-{length}-{number}", "task": task, "prompt_tokens": prompt_tokens(bpe, user),
            "user": user, "accept": accept}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="512,2048", help="in tokens, the question included")
    parser.add_argument("--tasks", default=",".join(TASKS), help="[%(default)s]")
    parser.add_argument("--count", type=int, default=4, help="of each task and length [%(default)s]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", default=os.path.join(ROOT, "models/needle-11m/tokenizer.json"))
    args = parser.parse_args()
    bpe = Bpe(args.tokenizer)
    for length in map(int, args.lengths.split(",")):
        for task in args.tasks.split(","):
            if task not in TASKS:
                parser.error(f"--tasks: '{task}' is not one of {', '.join(TASKS)}")
            for number in range(args.count):
                json.dump(document(bpe, args.seed, task, length, number), sys.stdout)
                print()


if __name__ == "__main__":
    main()
