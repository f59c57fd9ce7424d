#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a model like the shipped one on one GPU (README.md beside this file).

    tools/needle/train.py --minutes 20 --out DIR

DIR then holds the model. DIR/latest holds it as it was a few minutes ago, or after --stop-after
minutes; --resume DIR/latest goes on from there, with the same --minutes.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import time

import torch

import decode
import export
from bpe import Bpe
from data import Batches, Shape
from model import CONFIG, Model, add_noise, loss, masks
from muon import Muon

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "models", "needle-11m")
HELD_OUT = 900  # seed of the documents that are asked at the end
WARM_UP, DECAY = 60, 0.35  # steps; share of the time in which the learning rate falls to 0
SAVE_EVERY = 150  # seconds

SHAPES = [Shape(512, 384, 128), Shape(2048, 768, 48), Shape(8192, 1024, 14), Shape(32768, 1024, 3)]
TINY = [Shape(512, 256, 2), Shape(768, 256, 1)]


def curriculum(progress):
    """Shares of the time, by shape."""
    if progress < 0.1:
        return 1, 0, 0, 0
    if progress < 0.35:
        return 0.2, 0.8, 0, 0
    return 0.07, 0.2, 0.6, 0.13


def tiny_curriculum(progress):
    return (1, 0) if progress < 0.5 else (0.5, 0.5)


class Training:
    def __init__(self, args):
        self.args, self.device = args, args.device
        self.shapes = TINY if args.tiny else SHAPES
        self.config = dict(CONFIG, num_hidden_layers=2) if args.tiny else CONFIG
        torch.manual_seed(args.seed)
        self.model = Model(self.config)
        self.record = {"seeds": [], "seconds": 0.0, "steps": 0}
        if args.resume:
            self.record = export.load(self.model, args.resume)
        self.start = self.record["steps"]
        self.record["seeds"].append(f"train/{args.seed}/{self.start}")
        torch.manual_seed(args.seed + self.start)
        self.model.to(self.device)
        matrices = [p for p in self.model.model.layers.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if not any(p is m for m in matrices)]
        self.optimizers = [(Muon(matrices), 0.02), (torch.optim.AdamW(
            others, betas=(0.9, 0.98), weight_decay=0, fused=self.device == "cuda"), 3e-3)]
        self.masks, self.loss = {}, loss
        if self.device == "cuda":
            torch._dynamo.config.recompile_limit = 64
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
            self.loss = torch.compile(loss, dynamic=False)

    def autocast(self):
        return torch.autocast("cuda", torch.bfloat16) if self.device == "cuda" else contextlib.nullcontext()

    def loader(self, batches):
        return torch.utils.data.DataLoader(batches, batch_size=None, num_workers=self.args.workers,
                                           pin_memory=self.device == "cuda")

    def compile(self, batches):
        """Makes all shapes' kernels, and measures a batch of each."""
        for shape in self.shapes:
            batch = batches.batch(random.Random(f"{batches.seed}/compile"), shape)
            for _ in range(2):
                began = time.monotonic()
                self.gradients(batch)[1].sum().item()
            batches.seconds.append(time.monotonic() - began)
        self.zero()
        print("seconds per batch:", *(f"{shape.length}: {s:.3f}" for shape, s in
                                      zip(self.shapes, batches.seconds)), flush=True)

    def rate(self, progress):
        """Of the learning rates: a warm-up, then constant, then a straight line to 0."""
        return min(1, (self.record["steps"] - self.start + 1) / WARM_UP, max(0, 1 - progress) / DECAY)

    def gradients(self, batch):
        index, ids, kinds, positions = [batch[0]] + [t.to(self.device, non_blocking=True) for t in batch[1:]]
        if index not in self.masks:
            shape = self.shapes[index]
            self.masks[index] = masks(shape.length, shape.tail, self.args.copies, self.device)
        noisy, weights = add_noise(ids, kinds, self.args.copies)
        with self.autocast():
            value, right = self.loss(self.model, self.model(ids, noisy, positions, self.masks[index]),
                                     ids, weights)
        value.backward()
        return index, torch.stack((value.detach(), right))

    def zero(self):
        for optimizer, _ in self.optimizers:
            optimizer.zero_grad()

    def step(self, batch, rate):
        out = self.gradients(batch)
        for optimizer, lr in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
            optimizer.step()
        self.zero()
        return out

    def run(self):
        """True when it came to its end."""
        total, done = 60 * self.args.minutes, self.record["seconds"]
        progress = multiprocessing.Value("d", done / total)
        batches = Batches(os.path.join(SHIPPED, "tokenizer.json"), self.record["seeds"][-1], self.shapes, [],
                          tiny_curriculum if self.args.tiny else curriculum,
                          CONFIG["max_position_embeddings"], progress)
        self.compile(batches)
        source = iter(self.loader(batches))
        began = told = saved = now = time.monotonic()
        waited, seen = 0.0, []
        while progress.value < 1 and now - began < 60 * self.args.stop_after:
            asked = time.monotonic()
            batch = next(source)
            waited += time.monotonic() - asked
            seen.append(self.step(batch, self.rate(progress.value)))
            self.record["steps"] += 1
            if self.record["steps"] % 4 == 0:
                seen[-1][1].sum().item()  # the clock is the GPU's
            now = time.monotonic()
            self.record["seconds"] = done + now - began
            progress.value = self.record["seconds"] / total
            if now - saved > SAVE_EVERY:
                self.save("latest")
                saved = now
            if now - told > self.args.tell:
                self.tell(seen, waited)
                told, waited, seen = now, 0.0, []
        self.save("latest" if progress.value < 1 else ".")
        return progress.value >= 1

    def tell(self, seen, waited):
        line = f"{self.record['seconds']:6.1f} s, step {self.record['steps']}"
        for index, shape in enumerate(self.shapes):
            values = [v for i, v in seen if i == index]
            if values:
                value, right = torch.stack(values).nanmean(0).tolist()
                line += f" | {shape.length} x{len(values)}: loss {value:.3f}, right {right:.3f}"
        print(f"{line} | waited {waited:.1f} s", flush=True)

    def save(self, name):
        export.save(self.model, self.config, os.path.join(self.args.out, name), SHIPPED, self.record)

    def evaluate(self):
        self.model.eval()
        bpe = Bpe(os.path.join(SHIPPED, "tokenizer.json"))
        with self.autocast(), open(os.path.join(self.args.out, "failures.jsonl"), "w") as failures:
            for length, count in self.args.evaluate:
                began = time.monotonic()
                score, steps = decode.evaluate(self.model, bpe, HELD_OUT, length, count, failures)
                print(f"{length} tokens, {count} documents a task: {score}, {steps:.2f} steps per block, "
                      f"{time.monotonic() - began:.0f} s", flush=True)


def cells(text):
    return [tuple(map(int, part.split("x"))) for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", required=True)
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="MINUTES",
                        help="stop before the end, to be resumed")
    parser.add_argument("--resume", help="a folder of an earlier training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--copies", type=int, default=2, help="noisy copies of every tail [%(default)s]")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--tell", type=float, default=10, help="seconds between two lines [%(default)s]")
    parser.add_argument("--evaluate", type=cells, default="2048x10,8192x10,32768x3",
                        help="LENGTHxDOCUMENTS of each task, asked at the end [%(default)s]")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two layers, short documents: to try it on a CPU")
    args = parser.parse_args()
    training = Training(args)
    if training.run():
        training.evaluate()


if __name__ == "__main__":
    main()
