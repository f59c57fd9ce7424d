#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Many questions about a few documents, as a batch of requests: the load of docs/BENCHMARKS.md.

Usage: batch_questions.py TOKENS QUESTIONS < models/needle-11m/documents.jsonl > in.jsonl
For every document of TOKENS tokens (by its id, KIND-TOKENS-N), up to QUESTIONS of the facts
that it states; the questions of different documents alternate.
"""
import json
import re
import sys

FACT = re.compile(r"The ((?:[a-z]+ ){1,3}of the [a-z]+ in [A-Z][a-z]+) is ")


def questions(user, most):
    document, _, _ = user.rpartition(" Question: ")
    subjects = list(dict.fromkeys(FACT.findall(document)))[:most]
    return [f"{document} Question: What is the {subject}?" for subject in subjects]


def main():
    tokens, most = sys.argv[1], int(sys.argv[2])
    asked = []
    for line in sys.stdin:
        document = json.loads(line)
        if document["id"].split("-")[1] == tokens:
            asked += [(n, document["id"], q) for n, q in enumerate(questions(document["user"], most))]
    for n, name, question in sorted(asked):
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 32}
        print(json.dumps({"custom_id": f"{name}-{n}", "method": "POST",
                          "url": "/v1/chat/completions", "body": body}))


main()
