#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes one prompt per fact of a document of models/needle-11m/documents.jsonl: many
questions about one text, FOLDER/0.txt and so on.

    python tools/bench/questions.py models/needle-11m/documents.jsonl mq-2048-0 16 FOLDER
"""
import json
import pathlib
import re
import sys

FACT = re.compile(r"The ([a-z ]+ of the [a-z]+ in [A-Z][a-z]+) is ([a-z0-9 ]+)\.")


def main():
    path, name, count, folder = sys.argv[1:]
    documents = (json.loads(line) for line in open(path, encoding="utf-8"))
    user = next(d["user"] for d in documents if d["id"] == name)
    text = user[: user.rindex("Question:")]
    facts = FACT.findall(text)
    if len(facts) < int(count):
        sys.exit(f"{name}: {len(facts)} facts, {count} asked for")
    for i, (what, value) in enumerate(facts[: int(count)]):
        pathlib.Path(folder, f"{i}.txt").write_text(f"{text}Question: What is the {what}?")
        print(i, value)


if __name__ == "__main__":
    main()
