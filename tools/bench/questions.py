#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Many questions about one text, the load of docs/BENCHMARKS.md: reads documents as
models/needle-11m/documents.jsonl has them, and asks for facts that they state.

    questions.py --length 2048 --count 12 < documents.jsonl > in.jsonl          # for losa batch
    questions.py --id mq-2048-0 --count 16 --folder F < documents.jsonl         # F/0.txt, ...

Documents are those of an id, or of a length (KIND-LENGTH-N is an id); the questions of
different ones alternate.
"""
import argparse
import json
import pathlib
import re
import sys

FACT = re.compile(r"The ((?:[a-z]+ ){1,3}of the [a-z]+ in [A-Z][a-z]+) is ")


def questions(user, most):
    text, _, _ = user.rpartition(" Question: ")
    subjects = list(dict.fromkeys(FACT.findall(text)))[:most]
    return [f"{text} Question: What is the {subject}?" for subject in subjects]


def request(name, question):
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 32}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--id")
    parser.add_argument("--length")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--folder", type=pathlib.Path)
    args = parser.parse_args()
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    asked = []
    for line in sys.stdin:
        document = json.loads(line)
        name = document["id"]
        if name == args.id or name.split("-")[1] == args.length:
            asked += [(n, name, q) for n, q in enumerate(questions(document["user"], args.count))]
    for i, (n, name, question) in enumerate(sorted(asked)):
        if args.folder:
            (args.folder / f"{i}.txt").write_text(question, encoding="utf-8")
        else:
            print(json.dumps(request(f"{name}-{n}", question)))


main()
