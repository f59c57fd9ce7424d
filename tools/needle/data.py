# SPDX-License-Identifier: Apache-2.0
"""Documents to train on, made as they are needed, by processes beside the training.

A document is made for a length and ends in a tail of question and answer turns about what is
hidden in it. Its random generator is seeded by "train/SEED/START/WORKER/NUMBER", where START is
the step at which the training began or went on; generate_documents.py seeds by
"SEED/TASK/LENGTH/NUMBER", so no document of an evaluation is ever trained on.
"""

import collections
import random

import numpy
import torch

import tasks
from bpe import END, IM_END, IM_START, Bpe

BLOCK = 16
# What a token of the tail is: text that is given, an answer, or what fills the block after it
# (without which the visible text would betray the answer's length).
GIVEN, ANSWER, FILL = range(3)

Shape = collections.namedtuple("Shape", "length tail batch")


def mostly_in_order(rng, items):
    """A fifth in any order: then no order is certain, and one is the likeliest for every token."""
    return rng.sample(items, len(items)) if rng.random() < 0.2 else list(items)


def shuffled(rng, items):
    return rng.sample(items, len(items))


def merged(rng, *lists):
    """All items in one list, those of each list in their order."""
    sources = [iter(items) for items in lists]
    return [next(source) for source in shuffled(rng, [s for s, items in zip(sources, lists) for _ in items])]


def listed(values):
    return f"{', '.join(values[:-1])} and {values[-1]}"


def dealer(rng, items):
    """Draws without repetition until too few are left: an answer given before is easy to find."""
    left = []

    def deal(count):
        if len(left) < count:
            left[:] = rng.sample(items, len(items))
        return [left.pop() for _ in range(count)]
    return deal


# ---- what is hidden: (sentences in their order, a function that asks about them) ------


def facts(rng, room):
    drawn = tasks.draw_facts(rng, min(1000, 1 + room // 18))
    deal = dealer(rng, drawn)

    def answer(task, asked):
        values = [found for _, found in asked]
        stated = [rng.choice(tasks.forms(*fact)) for fact in asked]
        if task == "ml":
            return f"The list is {listed(values)}."
        if task == "mq":
            return tasks.sentence(listed(stated))
        report = [tasks.sentence(form) for form in stated]
        return " ".join(report + [tasks.filler(rng)] if task == "rpt" else report)

    def ask():
        task = rng.choices(("single", "mq", "ml", "rpt"), (2, 5, 2, 2))[0]
        count = {"single": 1, "mq": 3, "ml": 4, "rpt": 2}[task]
        if count > len(drawn):
            task, count = "single", 1
        asked = deal(count)
        return (tasks.question(task, [tasks.named(fact) for fact, _ in asked]),
                answer(task, mostly_in_order(rng, asked)))
    return tasks.state(drawn), ask


def groups(rng, room):
    names = [fact for fact, _ in tasks.draw_facts(rng, min(30, 1 + room // 54))]
    stated = shuffled(rng, [(fact, value) for fact in names
                            for value in tasks.draw_values(rng, fact, lambda: rng.choice([2, 3, 3, 4]))])
    deal = dealer(rng, names)

    def ask():
        fact, = deal(1)
        values = [value for other, value in stated if other == fact]
        return (tasks.question("mv", [tasks.named(fact)]),
                f"They are {listed(mostly_in_order(rng, values))}.")
    return tasks.state(stated, "One"), ask


def chains(rng, room):
    drawn = tasks.draw_chains(rng, min(40, 1 + room // 28), first=4)
    deal = dealer(rng, drawn)

    def ask():
        chain, = deal(1)
        return tasks.question("vt", chain[:1]), rng.choice(tasks.chain_forms(chain))
    return shuffled(rng, tasks.links(drawn)), ask


def people(rng, room):
    drawn = [(person, tasks.filler(rng, person)) for person in tasks.draw_people(rng, min(40, 1 + room // 24))]
    deal = dealer(rng, drawn)

    def ask():
        (person, said), = deal(1)
        return tasks.question("rep", [person]), rng.choice(tasks.repeat_forms(said))
    return [said for _, said in drawn], ask


# How often each is asked about where it is present.
KINDS = {facts: 11, groups: 5, chains: 3, people: 5}


def hide(rng, room):
    """Some kinds of things, few or many, that take at most about `room` tokens."""
    kinds = rng.sample(list(KINDS), min(rng.randint(1, 4), max(1, room // 100)))
    parts = [make(rng, int(rng.random() ** 2 * room / len(kinds))) for make in kinds]
    asks, weights = [ask for _, ask in parts], [KINDS[kind] for kind in kinds]
    return merged(rng, *(part for part, _ in parts)), lambda: rng.choices(asks, weights)[0]()


# ---- documents ----------------------------------------------------------------------


def body(bpe, rng, room):
    """(exactly `room` tokens of sentences, how to ask about them)"""
    hidden = None
    while hidden is None or sum(map(len, hidden)) > room:
        sentences, ask = hide(rng, room)
        hidden = [bpe.encode(" " + s) for s in sentences]
    around, size = [], sum(map(len, hidden))
    while size < room or not around:
        around.append(bpe.encode(" " + tasks.filler(rng)))
        size += len(around[-1])
    parts = around[:1] + merged(rng, around[1:], hidden)
    return [i for part in parts for i in part][size - room:], ask


def document(bpe, rng, length, tail):
    """Token ids and what they are, `length` of each; all turns are in the last `tail`."""
    ids = [IM_START, *bpe.encode("user\nDocument:")]
    text, ask = body(bpe, rng, length - tail + rng.randrange(BLOCK) - len(ids))
    ids += text
    kinds = [GIVEN] * len(ids)
    opening = [], " Question: "
    while True:
        question, answer = ask()
        asked = [*opening[0], *bpe.encode(opening[1] + question), IM_END, *bpe.encode("\n"), IM_START,
                 *bpe.encode("assistant\n")]
        reply = [*bpe.encode(answer), IM_END]
        if len(ids) + len(asked) + len(reply) > length:
            break
        fill = -(len(ids) + len(asked) + len(reply)) % BLOCK
        ids += asked + reply + [END] * fill
        kinds += [GIVEN] * len(asked) + [ANSWER] * len(reply) + [FILL] * fill
        opening = [IM_START], "user\nQuestion: "
    rest = length - len(ids)
    return ids + [END] * rest, kinds + [GIVEN] * rest


def positions(rng, length, tail, span):
    """0, 1, 2, ...; half of the time with gaps before the tail, up to `span` in all, so that far
    positions are learnt at the price of short documents (Zhu et al. 2024, PoSE)."""
    out = numpy.arange(length, dtype=numpy.int32)
    if span > length and rng.random() < 0.5:
        cuts = rng.randint(1, 4)
        total = rng.randrange(span - length)
        gaps = numpy.diff([0] + sorted(rng.randrange(total + 1) for _ in range(cuts - 1)) + [total])
        for gap in gaps:
            out[rng.randrange(BLOCK, length - tail - BLOCK):] += gap
    return out


class Batches(torch.utils.data.IterableDataset):
    """Endless batches; `curriculum(progress)` gives a share of the time for each shape, of which a
    batch takes `seconds`."""

    def __init__(self, tokenizer, seed, shapes, seconds, curriculum, span, progress):
        self.bpe, self.seed, self.span = Bpe(tokenizer), seed, span
        self.shapes, self.seconds, self.curriculum, self.progress = shapes, seconds, curriculum, progress

    def __iter__(self):
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        number = 0
        while True:
            rng = random.Random(f"{self.seed}/{info.id if info else 0}/{number}")
            number += 1
            shares = self.curriculum(self.progress.value)
            counts = [share / seconds for share, seconds in zip(shares, self.seconds)]
            yield self.batch(rng, rng.choices(self.shapes, counts)[0])

    def batch(self, rng, shape):
        made = [document(self.bpe, rng, shape.length, shape.tail) for _ in range(shape.batch)]
        return (self.shapes.index(shape), torch.tensor([ids for ids, _ in made]),
                torch.tensor([kinds[-shape.tail:] for _, kinds in made], dtype=torch.uint8),
                torch.from_numpy(numpy.stack([positions(rng, shape.length, shape.tail, self.span)
                                              for _ in made])))
