#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint of random weights in SDAR's format, to time loading.

    tools/bench/make_checkpoint.py --layers 36 --out DIR    # SDAR-8B's shapes: 16.4 GB in shards of 4 GB
    losa logits --model DIR --ids DIR/ids.json --out logits.npy --device cuda
"""

import argparse
import json
import os

import torch
from safetensors.torch import save_file

VOCAB, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 151936, 4096, 12288, 32, 8, 128
SHARD_BYTES = 4 << 30


def shapes(layers):
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name, rows, columns in (("q_proj", HEADS * HEAD_DIM, HIDDEN), ("k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
                                    ("v_proj", KV_HEADS * HEAD_DIM, HIDDEN), ("o_proj", HIDDEN, HEADS * HEAD_DIM)):
            yield f"{layer}self_attn.{name}.weight", (rows, columns)
        for name in ("q_norm", "k_norm"):
            yield f"{layer}self_attn.{name}.weight", (HEAD_DIM,)
        for name, rows, columns in (("gate_proj", INNER, HIDDEN), ("up_proj", INNER, HIDDEN), ("down_proj", HIDDEN, INNER)):
            yield f"{layer}mlp.{name}.weight", (rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{name}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def shards(layers):
    group, size = [], 0
    for name, shape in shapes(layers):
        size += 2 * torch.Size(shape).numel()
        if group and size > SHARD_BYTES:
            yield group
            group, size = [], 2 * torch.Size(shape).numel()
        group.append((name, shape))
    yield group


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = {}
    for i, group in enumerate(shards(args.layers)):
        name = f"model-{i + 1:05}.safetensors"
        save_file({key: (0.02 * torch.randn(shape, device=device)).to(torch.bfloat16).cpu() for key, shape in group},
                  os.path.join(args.out, name))
        where.update({key: name for key, _ in group})
    config = dict(architectures=["SDARForCausalLM"], model_type="sdar", vocab_size=VOCAB, hidden_size=HIDDEN,
                  intermediate_size=INNER, num_hidden_layers=args.layers, num_attention_heads=HEADS,
                  num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, hidden_act="silu", max_position_embeddings=32768,
                  rms_norm_eps=1e-6, rope_theta=1000000, rope_scaling=None, attention_bias=False,
                  tie_word_embeddings=False, torch_dtype="bfloat16", block_size=4, mask_token_id=151669)
    for name, value in (("config.json", config), ("model.safetensors.index.json", {"weight_map": where}),
                        ("ids.json", list(range(1, 9)))):
        with open(os.path.join(args.out, name), "w") as file:
            json.dump(value, file)


if __name__ == "__main__":
    main()
