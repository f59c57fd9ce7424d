# SPDX-License-Identifier: Apache-2.0
"""Block diffusion with a KV cache and the policies dense, quest-init and losa, from the
equations: QUEST (arXiv 2406.10774) page bounds, LoSA (arXiv 2604.12056) active sets, union
lists, reuse and merge. First steps of blocks and commits are dense. f32, PyTorch, one
sequence, no code shared with the program.
"""

import json
import math
import pathlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


@dataclass
class Policy:
    name: str = "dense"  # dense, quest-init, losa
    budget: int = 128
    page: int = 16
    active: str = "unsettled"  # all, topk:K, new+K, unsettled
    scope: str = "shared"  # shared, head
    locality: str = "query"  # query, hidden


class Model:
    """Qwen3 decoder layers over explicit weights."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        c = json.loads((folder / "config.json").read_text())
        self.w = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        self.layers, self.heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.kv_heads, self.dim = c["num_key_value_heads"], c["head_dim"]
        self.eps, self.block, self.mask_id = c["rms_norm_eps"], c["block_size"], c["mask_token_id"]
        self.scale = self.dim ** -0.5
        freq = 1.0 / c["rope_theta"] ** (torch.arange(0, self.dim, 2).float() / self.dim)
        angle = torch.arange(c["max_position_embeddings"]).float()[:, None] * freq
        self.cos, self.sin = angle.cos(), angle.sin()

    def norm(self, x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight

    def rotate(self, x, first):  # [n, heads, dim]
        cos = self.cos[first:first + len(x), None]
        sin = self.sin[first:first + len(x), None]
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def qkv(self, layer, h, first):
        p = f"model.layers.{layer}.self_attn."
        q = (h @ self.w[p + "q_proj.weight"].T).view(len(h), self.heads, self.dim)
        k = (h @ self.w[p + "k_proj.weight"].T).view(len(h), self.kv_heads, self.dim)
        v = (h @ self.w[p + "v_proj.weight"].T).view(len(h), self.kv_heads, self.dim)
        q = self.rotate(self.norm(q, self.w[p + "q_norm.weight"]), first)
        k = self.rotate(self.norm(k, self.w[p + "k_norm.weight"]), first)
        return q, k, v

    def forward(self, ids, first, attention):
        """attention(layer, x, q, k, v) -> [n, heads, dim]. Returns the last hidden states."""
        x = self.w["model.embed_tokens.weight"][torch.tensor(ids)]
        for i in range(self.layers):
            p = f"model.layers.{i}."
            h = self.norm(x, self.w[p + "input_layernorm.weight"])
            o = attention(i, x, *self.qkv(i, h, first)).reshape(len(ids), -1)
            x = x + o @ self.w[p + "self_attn.o_proj.weight"].T
            h = self.norm(x, self.w[p + "post_attention_layernorm.weight"])
            gate = F.silu(h @ self.w[p + "mlp.gate_proj.weight"].T)
            x = x + (gate * (h @ self.w[p + "mlp.up_proj.weight"].T)) @ self.w[p + "mlp.down_proj.weight"].T
        return x

    def logits(self, x):
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return self.norm(x, self.w["model.norm.weight"]) @ head.T


class Cache:
    """Keys and values of the committed tokens of every layer: [tokens, kv_heads, dim]."""

    def __init__(self, model, capacity):
        shape = (capacity, model.kv_heads, model.dim)
        self.k = [torch.empty(shape) for _ in range(model.layers)]
        self.v = [torch.empty(shape) for _ in range(model.layers)]
        self.len = 0

    def fork(self):
        other = object.__new__(Cache)
        other.k, other.v = [k.clone() for k in self.k], [v.clone() for v in self.v]
        other.len = self.len
        return other


def attend(q, k, v, scale, bias=None):
    """q [n, H, d] over k, v [t, KV, d] -> normalised output [n, H, d], log-sum-exp [n, H]."""
    n, heads, dim = q.shape
    if len(k) == 0:
        return torch.zeros_like(q), torch.full((n, heads), -math.inf)
    kv = k.shape[1]
    grouped = q.view(n, kv, heads // kv, dim).permute(1, 2, 0, 3).reshape(kv, -1, dim)
    s = (grouped @ k.permute(1, 2, 0) * scale).view(kv, heads // kv, n, len(k))
    if bias is not None:
        s = s + bias
    lse = torch.logsumexp(s, dim=-1)
    p = torch.exp(s - lse[..., None]).view(kv, -1, len(k))
    o = (p @ v.transpose(0, 1)).view(kv, heads // kv, n, dim)
    return (o.permute(2, 0, 1, 3).reshape(n, heads, dim), lse.permute(2, 0, 1).reshape(n, heads))


def merge(o_p, l_p, o_b, l_b):
    m = torch.maximum(l_p, l_b)
    a, b = torch.exp(l_p - m)[..., None], torch.exp(l_b - m)[..., None]
    return (a * o_p + b * o_b) / (a + b)


@dataclass
class Counts:
    read: int = 0
    prefix: int = 0
    active: int = 0
    rows: int = 0
    union: int = 0
    budget: int = 0


class Run:
    """One request: its cache, and per layer the previous queries or inputs and (o_p, L_p)."""

    def __init__(self, model, cache, policy):
        self.m, self.cache, self.policy = model, cache, policy
        self.prev = [None] * model.layers
        self.o_p = [None] * model.layers
        self.l_p = [None] * model.layers
        self.counts = Counts()

    def prefill(self, ids, chunk=512):
        for first in range(0, len(ids), chunk):
            part = ids[first:first + chunk]
            query = (first + torch.arange(len(part))) // self.m.block
            key = torch.arange(first + len(part)) // self.m.block
            bias = torch.where(query[:, None] >= key[None], 0.0, -math.inf)

            def attention(layer, _x, q, k, v):
                self.store(layer, first, k, v)
                t = first + len(k)
                return attend(q, self.cache.k[layer][:t], self.cache.v[layer][:t], self.m.scale, bias)[0]

            self.m.forward(part, first, attention)
            self.cache.len = first + len(part)

    def store(self, layer, first, k, v):
        self.cache.k[layer][first:first + len(k)] = k
        self.cache.v[layer][first:first + len(v)] = v

    def commit(self, start, tokens):
        def attention(layer, _x, q, k, v):
            self.store(layer, start, k, v)
            t = start + len(k)
            return attend(q, self.cache.k[layer][:t], self.cache.v[layer][:t], self.m.scale)[0]

        self.m.forward(tokens, start, attention)
        self.cache.len = start + len(tokens)

    def step(self, start, tokens, step, fresh):
        assert start == self.cache.len

        def attention(layer, x, q, k, v):
            o_b, l_b = attend(q, k, v, self.m.scale)
            if step == 0 or self.policy.name == "dense":
                pk, pv = self.cache.k[layer][:start], self.cache.v[layer][:start]
                self.o_p[layer], self.l_p[layer] = attend(q, pk, pv, self.m.scale)
            else:
                self.sparse(layer, x, q, tokens, fresh)
            self.prev[layer] = (q.reshape(len(q), -1) if self.policy.locality == "query" else x).clone()
            return merge(self.o_p[layer], self.l_p[layer], o_b, l_b)

        return self.m.logits(self.m.forward(tokens, start, attention))

    def active_rows(self, layer, x, q, tokens, fresh):
        rule = self.policy.active if self.policy.name == "losa" else "all"
        masked = [i for i, t in enumerate(tokens) if t == self.m.mask_id]
        if rule == "all":
            return list(range(len(tokens)))
        if rule == "unsettled":
            return sorted(set(masked) | set(fresh))
        now = q.reshape(len(q), -1) if self.policy.locality == "query" else x
        delta = (now - self.prev[layer]).pow(2).mean(-1).tolist()
        base = set(fresh) if rule.startswith("new+") else set()
        count = int(rule.replace("new+", "topk:").split(":")[1])
        others = sorted((i for i in range(len(tokens)) if i not in base), key=lambda i: (-delta[i], i))
        return sorted(base | set(others[:count]))

    def page_shares(self, layer, q, length):
        """Softmax over pages of QUEST's bound: [rows, heads, pages]."""
        k, page = self.cache.k[layer][:length], self.policy.page
        parts = k.split(page)
        low = torch.stack([p.amin(0) for p in parts])  # [pages, kv, d]
        high = torch.stack([p.amax(0) for p in parts])
        group = self.m.heads // self.m.kv_heads
        low, high = low.repeat_interleave(group, 1), high.repeat_interleave(group, 1)
        bound = torch.maximum(q[:, None] * low[None], q[:, None] * high[None]).sum(-1)
        return torch.softmax(bound * self.m.scale, dim=1).transpose(1, 2)

    def page_lists(self, layer, q, length):
        """Union of the rows' best pages; one list for all heads, or one per KV head."""
        share = self.page_shares(layer, q, length)
        if self.policy.scope == "shared":
            share = share.sum(1, keepdim=True)
        else:
            share = share.view(len(q), self.m.kv_heads, -1, share.shape[-1]).sum(2)
        pages = share.shape[-1]
        top = min(math.ceil(self.policy.budget / self.policy.page), pages)
        share[..., 0] = share[..., pages - 1] = math.inf
        order = torch.sort(share, dim=-1, descending=True, stable=True).indices[..., :top]
        lists = [sorted(set(order[:, j].flatten().tolist())) for j in range(share.shape[1])]
        self.counts.union += sum(len(x) for x in lists)
        self.counts.budget += top * len(lists)
        return lists

    def sparse(self, layer, x, q, tokens, fresh):
        length, page = self.cache.len, self.policy.page
        rows = self.active_rows(layer, x, q, tokens, fresh)
        self.counts.rows += len(tokens)
        self.counts.active += len(rows)
        if length == 0:
            return
        lists = self.page_lists(layer, q[rows], length)
        group = self.m.heads // len(lists)
        per_list = self.m.kv_heads // len(lists)
        for j, pages in enumerate(lists):
            index = torch.cat([torch.arange(g * page, min((g + 1) * page, length)) for g in pages])
            kv = slice(j * per_list, (j + 1) * per_list)
            heads = slice(j * group, (j + 1) * group)
            o, lse = attend(q[rows][:, heads], self.cache.k[layer][index][:, kv],
                            self.cache.v[layer][index][:, kv], self.m.scale)
            self.o_p[layer][rows, heads], self.l_p[layer][rows, heads] = o, lse
            self.counts.read += len(index)
            self.counts.prefix += length
