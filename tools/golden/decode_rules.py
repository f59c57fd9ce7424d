# SPDX-License-Identifier: Apache-2.0
"""Block-diffusion decoding in terms of a function that gives a block's logits.

The rules of SDAR's evaluation code (JetAstra/SDAR, block_diffusion_generate), greedy:
only masked positions are written, the confidence is the probability before any filter,
and the mask is never chosen. A request ends as soon as a stop id stands at a generated
position with no mask before it in the block.
"""

import math
from dataclasses import dataclass, field

import torch

STRATEGIES = ("sequential", "low_confidence_static", "low_confidence_dynamic", "entropy_bounded")


@dataclass
class Request:
    prompt: list
    max_tokens: int
    strategy: str = "low_confidence_dynamic"
    steps: int = 0  # per block; 0 = block length
    threshold: float = 0.9


@dataclass
class Rules:
    block: int
    mask_id: int
    stop_ids: tuple


@dataclass
class Answer:
    ids: list
    finish: str
    steps: list = field(default_factory=list)  # denoising steps of every block
    margin: float = math.inf  # smallest distance of a decision from going the other way


def quota_of(step, steps, block):
    return block // steps + (1 if step < block % steps else 0)


def best_of(rows, count):
    """The `count` largest of {position: value}; ties: the lower position."""
    return sorted(rows, key=lambda i: (-rows[i], i))[:count]


def gap(values, taken):
    """How far the weakest value taken is from the strongest one left."""
    left = [v for i, v in values.items() if i not in taken]
    return min(values[i] for i in taken) - max(left) if left else math.inf


def choose(request, quota, masked, confidence, entropy):
    """Positions to write, and how near the decision was."""
    if request.strategy == "sequential":
        return masked[:quota], math.inf
    if request.strategy == "entropy_bounded":
        order = best_of({i: -entropy[i] for i in masked}, len(masked))
        total, taken, margin = 0.0, [], math.inf
        for i in order:
            total += entropy[i]
            margin = min(margin, abs(total - request.threshold)) if taken else margin
            if taken and total >= request.threshold:
                break
            taken.append(i)
            if total >= request.threshold:
                break
        return taken, min(margin, gap({i: -entropy[i] for i in masked}, taken))
    values = {i: confidence[i] for i in masked}
    margin = math.inf
    if request.strategy == "low_confidence_dynamic":
        sure = [i for i in masked if values[i] > request.threshold]
        margin = min(abs(v - request.threshold) for v in values.values())
        if len(sure) >= quota:
            return sure, margin
    taken = best_of(values, quota)
    return taken, min(margin, gap(values, taken))


def stop_at(tokens, first, rules):
    """Index of a stop id with no mask before it, from `first`; else None."""
    for i in range(first, len(tokens)):
        if tokens[i] == rules.mask_id:
            return None
        if tokens[i] in rules.stop_ids:
            return i
    return None


def decode(request, rules, forward, commit):
    """forward(block_start, tokens, step, fresh) -> logits [block, vocab], `fresh` = the
    positions written in the step before; commit(block_start, tokens) ends a block."""
    block, prompt = rules.block, list(request.prompt)
    steps = request.steps or block
    start = len(prompt) // block * block
    end = len(prompt) + request.max_tokens
    answer = Answer(ids=[], finish="length")
    generated = []
    while start < end:
        fixed = prompt[start:]
        tokens = fixed + [rules.mask_id] * (block - len(fixed))
        answer.steps.append(0)
        fresh, stop = [], None
        while rules.mask_id in tokens and stop is None:
            step = answer.steps[-1]
            logits = forward(start, tokens, step, fresh)
            answer.steps[-1] += 1
            log_p = torch.log_softmax(logits, dim=-1)
            entropy = (-log_p.exp() * log_p).sum(-1).tolist()
            allowed = logits.clone()
            allowed[:, rules.mask_id] = -math.inf
            top = allowed.topk(2, dim=-1)
            best = allowed.argmax(dim=-1).tolist()
            confidence = [log_p[i, t].exp().item() for i, t in enumerate(best)]
            masked = [i for i, t in enumerate(tokens) if t == rules.mask_id]
            fresh, margin = choose(request, quota_of(step, steps, block), masked, confidence, entropy)
            for i in fresh:
                tokens[i] = best[i]
                margin = min(margin, (top.values[i, 0] - top.values[i, 1]).item())
            answer.margin = min(answer.margin, margin)
            stop = stop_at(tokens, len(fixed), rules)
        if stop is not None:
            generated += tokens[len(fixed):stop]
            answer.finish = "stop"
            break
        generated += tokens[len(fixed):]
        start += block
        if start < end:
            commit(start - block, tokens)
    if len(generated) > request.max_tokens or answer.finish == "length":
        generated = generated[:request.max_tokens]
    if answer.finish == "stop" and len(generated) == request.max_tokens:
        answer.finish = "length"  # the stop id stands beyond the limit
    answer.ids = generated
    return answer
