# SPDX-License-Identifier: Apache-2.0
"""The model in PyTorch, its parameters named as in SDAR's checkpoints, and what it is trained on.

A training sequence is [clean text of L tokens | noisy copies of its last R tokens]. A clean block
sees itself and the clean blocks before it; a noisy block sees itself and the clean blocks before
it: what it sees when it is generated. Only noisy tokens are predicted, each at its own position
(no shift), so the last layer computes nothing but keys and values of the clean text.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bpe import MASK
from data import ANSWER, BLOCK, FILL, GIVEN

CONFIG = {
    "architectures": ["SDARForCausalLM"], "model_type": "sdar", "vocab_size": 2304, "hidden_size": 384,
    "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000, "rope_scaling": None, "attention_bias": False, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "block_size": BLOCK, "mask_token_id": MASK,
}


class RMSNorm(nn.Module):
    def __init__(self, size, epsilon, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), gain))
        self.epsilon = epsilon

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.epsilon)


def linear(inputs, outputs, zero=False):
    out = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(out.weight) if zero else nn.init.normal_(out.weight, std=inputs ** -0.5)
    return out


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend(q, k, v, mask):
    if torch.is_tensor(mask):
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.head_dim = c["head_dim"]
        q, kv = c["num_attention_heads"] * self.head_dim, c["num_key_value_heads"] * self.head_dim
        self.q_proj, self.k_proj = linear(c["hidden_size"], q), linear(c["hidden_size"], kv)
        self.v_proj, self.o_proj = linear(c["hidden_size"], kv), linear(q, c["hidden_size"], zero=True)
        self.q_norm = RMSNorm(self.head_dim, c["rms_norm_eps"], 1.5)
        self.k_norm = RMSNorm(self.head_dim, c["rms_norm_eps"], 1.5)

    def heads(self, x):
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def project(self, x, cos, sin, first=0):
        """q of the rows from `first` on, k and v of all: [batch, heads, rows, head_dim]."""
        v = self.heads(self.v_proj(x))
        q = rotate(self.q_norm(self.heads(self.q_proj(x[:, first:]))), cos[:, :, first:], sin[:, :, first:])
        k = rotate(self.k_norm(self.heads(self.k_proj(x))), cos, sin)
        return q.to(v.dtype), k.to(v.dtype), v

    def output(self, o):
        return self.o_proj(o.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = linear(c["hidden_size"], c["intermediate_size"])
        self.up_proj = linear(c["hidden_size"], c["intermediate_size"])
        self.down_proj = linear(c["intermediate_size"], c["hidden_size"], zero=True)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def after(self, x, o):
        x = x + self.self_attn.output(o)
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward(self, x, cos, sin, mask, first):
        q, k, v = self.self_attn.project(self.input_layernorm(x), cos, sin, first)
        return self.after(x[:, first:], attend(q, k, v, mask))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Model(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.model = Decoder(c)
        frequencies = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"])
        self.register_buffer("frequencies", frequencies, persistent=False)

    def angles(self, positions):
        """cos and sin, [batch, 1, rows, head_dim / 2]"""
        angles = positions[:, None, :, None].float() * self.frequencies
        return angles.cos(), angles.sin()

    def logits(self, x):
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def forward(self, ids, noisy, positions, masks):
        """What the last layer makes of the noisy copies: [batch, copies * R, hidden]."""
        clean, tail = ids.shape[1], noisy.shape[2]
        x = self.model.embed_tokens(torch.cat((ids, noisy.flatten(1)), 1))
        cos, sin = self.angles(torch.cat((positions, positions[:, -tail:].repeat(1, noisy.shape[1])), 1))
        for layer in self.model.layers[:-1]:
            x = layer(x, cos, sin, masks[0], 0)
        return self.model.layers[-1](x, cos, sin, masks[1], clean)


def masks(clean, tail, copies, device):
    """Of all rows, and of the noisy rows alone."""
    rows = clean + copies * tail

    def visible(q, k):
        q_noisy, k_noisy = q >= clean, k >= clean
        q_block = torch.where(q_noisy, clean - tail + (q - clean) % tail, q) // BLOCK
        k_block = torch.where(k_noisy, clean - tail + (k - clean) % tail, k) // BLOCK
        same = ((q - clean) // tail == (k - clean) // tail) & (q_block == k_block)
        before = (k_block < q_block) | (~q_noisy & (k_block == q_block))
        return torch.where(k_noisy, q_noisy & same, before)

    if device == "cpu":  # where FlexAttention has no backward pass
        every = torch.arange(rows)
        mask = visible(every[:, None], every)
        return mask, mask[clean:]
    return (create_block_mask(lambda b, h, q, k: visible(q, k), None, None, rows, rows, device=device),
            create_block_mask(lambda b, h, q, k: visible(q + clean, k), None, None, copies * tail, rows,
                              device=device))


def add_noise(ids, kinds, copies):
    """Noisy copies of the tail and the loss's weights, [batch, copies, R].

    A block's ratio of masks is uniform, a fifth of the blocks is all masks; a quarter is masked from
    its end, as when it is generated from left to right. Of blocks without an answer 30 % are noisy
    too, at a small weight.
    """
    batch, tail = kinds.shape
    shape = batch, copies, tail // BLOCK, BLOCK
    text = ids[:, -tail:].view(batch, 1, *shape[2:]).expand(shape)
    kinds = kinds.view(batch, 1, *shape[2:]).expand(shape)
    ratio, order, plain = torch.rand(3, *shape[:3], 1, device=ids.device)
    full = torch.rand(*shape[:3], 1, device=ids.device) < 0.2
    draw = torch.rand(shape, device=ids.device)
    from_end = (BLOCK - 1 - torch.arange(BLOCK, device=ids.device) + draw) / BLOCK
    hidden = full | (torch.where(order < 0.25, from_end, draw) < ratio)
    answers = (kinds != GIVEN).any(-1, keepdim=True)
    hidden &= torch.where(answers, kinds != GIVEN, plain < 0.3)
    weights = 1.0 * (kinds == ANSWER) + 0.2 * (kinds == FILL) + 0.1 * (kinds == GIVEN)
    return (torch.where(hidden, MASK, text).flatten(2), (hidden * weights).flatten(2))


def loss(model, x, ids, weights):
    """Mean cross entropy, and the share of answers' tokens that are guessed right."""
    target = ids[:, None, -weights.shape[2]:].expand(weights.shape).flatten()
    weights = weights.flatten()
    logits = model.logits(x.flatten(0, 1)).float()
    right = (logits.argmax(-1) == target) & (weights == 1)
    mean = (F.cross_entropy(logits, target, reduction="none") * weights).sum() / weights.sum()
    return mean, right.sum() / (weights == 1).sum()
