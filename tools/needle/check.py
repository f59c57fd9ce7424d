#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what the training rests on, on a CPU in seconds: tools/needle/check.py"""

import os
import random
import re
import unittest

import torch

import data
import decode
import muon
from bpe import IM_END, MASK, Bpe
from model import CONFIG, Model, add_noise, masks

TOKENIZER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../models/needle-11m/tokenizer.json")
BPE = Bpe(TOKENIZER)


def visible(clean, tail, q, k):
    """The rule of model.py's first lines, for one pair of rows."""
    copy, block = zip(*((None, i // data.BLOCK) if i < clean else
                        ((i - clean) // tail, (clean - tail + (i - clean) % tail) // data.BLOCK) for i in (q, k)))
    if copy[1] is None:
        return block[1] < block[0] or (copy[0] is None and block[1] == block[0])
    return copy[0] == copy[1] and block[0] == block[1]


class Check(unittest.TestCase):
    def test_masks(self):
        clean, tail, copies = 96, 64, 2
        rows = clean + copies * tail
        expected = torch.tensor([[visible(clean, tail, q, k) for k in range(rows)] for q in range(rows)])
        every, noisy = masks(clean, tail, copies, "cpu")
        self.assertTrue((every == expected).all())
        self.assertTrue((noisy == expected[clean:]).all())

    def test_training_sees_what_decoding_sees(self):
        torch.manual_seed(1)
        clean, tail = 256, 128
        model = Model(dict(CONFIG, num_hidden_layers=3))
        for p in model.parameters():  # output projections start at 0
            torch.nn.init.normal_(p, std=0.05)
        ids, kinds = data.document(BPE, random.Random("check"), clean, tail)
        noisy, _ = add_noise(torch.tensor([ids]), torch.tensor([kinds[-tail:]]), 2)
        with torch.no_grad():
            trained = model(torch.tensor([ids]), noisy, torch.arange(clean)[None], masks(clean, tail, 2, "cpu"))
            trained = model.logits(trained[0]).view(2, tail, -1)
            session = decode.Session(model, clean)
            session.forward(ids[:clean - tail], 0)
            for at in range(0, tail, data.BLOCK):
                for copy in range(2):
                    block = noisy[0, copy, at:at + data.BLOCK].tolist()
                    decoded = session.forward(block, clean - tail + at)
                    torch.testing.assert_close(decoded, trained[copy, at:at + data.BLOCK], rtol=0, atol=1e-4)
                session.forward(ids[clean - tail + at:][:data.BLOCK], clean - tail + at)

    def test_documents(self):
        rng = random.Random("check")
        for length, tail in ((512, 384), (2048, 768), (8192, 1024)) * 5:
            ids, kinds = data.document(BPE, rng, length, tail)
            self.assertEqual((len(ids), len(kinds)), (length, length))
            self.assertFalse(any(kinds[:-tail]))
            ends = [at for at in range(length) if ids[at] == IM_END and kinds[at] == data.ANSWER]
            self.assertTrue(ends and all(-(at + 1) % data.BLOCK == sum(
                k == data.FILL for k in kinds[at + 1:at + data.BLOCK]) for at in ends))
            text = BPE.decode(ids)
            for key, value in re.findall(r"assistant\nThe (\w+ \w+ of the \w+ in \w+) is (\d{5})\.", text):
                self.assertIn(f"The {key} is {value}.", text[:text.index("Question:")])

    def test_noise(self):
        torch.manual_seed(1)
        ids = torch.randint(4, 2304, (64, 256))
        kinds = torch.randint(0, 3, (64, 128))
        noisy, weights = add_noise(ids, kinds, 2)
        tail = ids[:, None, -128:].expand(noisy.shape)
        self.assertTrue(((noisy == MASK) == (weights > 0)).all())
        self.assertTrue((noisy[weights == 0] == tail[weights == 0]).all())
        answers = (kinds == data.ANSWER)[:, None].expand(noisy.shape)
        self.assertAlmostEqual((weights[answers] == 1).double().mean().item(), 0.6, delta=0.02)

    def test_positions(self):
        rng = random.Random("check")
        made = [data.positions(rng, 512, 384, 32768) for _ in range(200)]
        self.assertTrue(all((p[1:] > p[:-1]).all() and p[-1] < 32768 for p in made))
        self.assertTrue(all((p[-384:] - p[-384] == range(384)).all() for p in made))
        self.assertGreater(max(p[-1] for p in made), 30000)

    def test_orthogonal(self):
        singular = torch.linalg.svdvals(muon.orthogonal(torch.randn(3, 64, 128)).float())
        self.assertTrue(0.6 < singular.min() and singular.max() < 1.25)


if __name__ == "__main__":
    unittest.main()
