# SPDX-License-Identifier: Apache-2.0
"""A small block-diffusion decoder, low_confidence_dynamic, one document at a time: it tells during
training what `losa eval` will find."""

import collections
import json

import torch
import torch.nn.functional as F

from bpe import IM_END, MASK
from data import BLOCK
from generate_documents import document
from tasks import TASKS

CHUNK = 1024


class Session:
    def __init__(self, model, capacity):
        self.model, self.device = model, model.frequencies.device
        self.cache = [None] * len(model.model.layers)
        self.capacity = capacity

    def attend(self, layer, at, q, k, v):
        if self.cache[layer] is None:
            self.cache[layer] = k.new_zeros(2, 1, k.shape[1], self.capacity, k.shape[3])
        end = at + q.shape[2]
        self.cache[layer][:, :, :, at:end] = torch.stack((k, v))
        k, v = self.cache[layer][:, :, :, :end]
        rows, columns = (torch.arange(n, device=self.device) // BLOCK for n in (end, end))
        return F.scaled_dot_product_attention(q, k, v, rows[at:, None] >= columns, enable_gqa=True)

    def forward(self, ids, at):
        """Logits of ids at positions at, at + 1, ...; their keys and values replace older ones."""
        x = self.model.model.embed_tokens(torch.tensor([ids], device=self.device))
        cos, sin = self.model.angles(torch.arange(at, at + len(ids), device=self.device)[None])
        for i, layer in enumerate(self.model.model.layers):
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            x = layer.after(x, self.attend(i, at, q, k, v))
        return self.model.logits(x[0]).float()

    def block(self, given, at, threshold):
        """A block that begins with `given`, and its steps."""
        ids, steps = given + [MASK] * (BLOCK - len(given)), 0
        while MASK in ids:
            best, token = self.forward(ids, at).softmax(-1).max(-1)
            sure = [p if i == MASK else -1.0 for p, i in zip(best.tolist(), ids)]
            least = min(threshold, max(sure))
            ids = [t if p >= least else i for t, p, i in zip(token.tolist(), sure, ids)]
            steps += 1
        self.forward(ids, at)
        return ids, steps


@torch.no_grad()
def answer(model, prompt, threshold=0.9, tokens=160):
    """(ids of the answer without its end, steps of every block)"""
    session = Session(model, len(prompt) + tokens + BLOCK)
    at = len(prompt) // BLOCK * BLOCK
    for start in range(0, at, CHUNK):
        session.forward(prompt[start:min(start + CHUNK, at)], start)
    given, out, steps = prompt[at:], [], []
    while len(out) < tokens and IM_END not in out:
        ids, taken = session.block(given, at, threshold)
        out += ids[len(given):]
        steps.append(taken)
        given, at = [], at + BLOCK
    return out[:out.index(IM_END)] if IM_END in out else out, steps


def right(accept, text):
    if "any" in accept:
        return text in accept["any"]
    if "all" in accept:
        return all(any(form.lower() in text.lower() for form in forms) for forms in accept["all"])
    values = text.removeprefix(accept["prefix"]).removesuffix(".").replace(" and ", ", ").split(", ")
    return text.startswith(accept["prefix"]) and text.endswith(".") and sorted(values) == sorted(accept["values"])


def evaluate(model, bpe, seed, length, count, failures):
    """Shares of right answers to `count` held-out documents of every task, and mean steps per
    block; the others are written to the file `failures`."""
    score, steps = collections.Counter(), []
    for task in TASKS:
        for number in range(count):
            made = document(bpe, seed, task, length, number)
            ids, taken = answer(model, bpe.chat(made["user"]))
            text = bpe.decode(ids)
            score[task] += right(made["accept"], text)
            steps += taken
            if not right(made["accept"], text):
                print(json.dumps(dict(made, answer=text)), file=failures)
    return {task: score[task] / count for task in TASKS}, sum(steps) / len(steps)
