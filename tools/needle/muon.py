# SPDX-License-Identifier: Apache-2.0
"""Muon (Jordan et al. 2024): momentum, made orthogonal, for the weight matrices of the layers.

Matrices of one shape are stacked and made orthogonal together."""

import collections

import torch


def orthogonal(g, steps=5):
    """Every singular value of the stacked matrices near 1, by Newton-Schulz."""
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr=0.02, momentum=0.95):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = collections.defaultdict(list)
            for p in group["params"]:
                alike[min(p.shape), max(p.shape)].append(p)
            for parameters in alike.values():
                self.update(parameters, group["lr"], group["momentum"])

    def update(self, parameters, lr, momentum):
        """Of matrices of one shape, some of them transposed."""
        wide = [p.mT if p.shape[0] > p.shape[1] else p for p in parameters]
        grads = torch.stack([p.grad.mT if p.shape[0] > p.shape[1] else p.grad for p in parameters])
        state = self.state[parameters[0]]
        if not state:
            state["momentum"] = torch.zeros_like(grads)
        state["momentum"].lerp_(grads, 1 - momentum)
        made = orthogonal(grads.lerp(state["momentum"], momentum)).float()
        for p, original, change in zip(wide, parameters, made):
            p.sub_(change, alpha=lr * max(1, original.shape[0] / original.shape[1]) ** 0.5)
