# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints and their logits by Hugging Face transformers.

Writes tests/golden/logits/<name>/: config.json, safetensors, ids.json and logits.npy,
f32 [n, vocab] of a block-causal prefill (query i sees key j iff i/B >= j/B) computed in
f32 with eager attention from the values as stored; and cases.json, the list of cases.
Every tensor is random, norms and biases too, so that none can be left out unseen.
"""

import argparse
import json
import math
import pathlib
import shutil

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

TOLERANCE = 1e-4

BASE = dict(family="qwen3", hidden=32, ffn=64, layers=2, heads=8, kv_heads=4, head_dim=16,
            vocab=96, block=4, n=50, tied=True, dtype="float32", shards=1, theta=10000.0,
            scaling=None, positions=128, spelling="old", block_key="block_size",
            flag=0, ranks=[1, 2], generation=False)

YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
CASES = {
    # Attention shapes of Qwen3 / SDAR.
    "gqa_b4_tied": dict(generation=True),
    "gqa_b16_untied": dict(block=16, tied=False, n=53, spelling="v5", ranks=[1, 2, 4]),
    "kv2_b16": dict(kv_heads=2, block=16, n=41, ranks=[1, 2, 4]),  # KV replicated on 4
    "kv2_b32_v5": dict(kv_heads=2, block=32, n=70, spelling="v5", tied=False),
    "mha_b4": dict(heads=4, kv_heads=4, tied=False, n=30, dtype="bfloat16"),
    "head128": dict(heads=2, kv_heads=2, head_dim=128, hidden=24, ffn=32, block=16, layers=2,
                    dtype="bfloat16", n=40),
    "one_kv_head": dict(heads=4, kv_heads=1, block=16, n=33, layers=3,
                        dtype="bfloat16", ranks=[1, 2, 4]),
    "vocab_odd": dict(vocab=101, block=4, n=90, tied=False, ranks=[1, 2, 4]),
    "short_prompt": dict(block=16, n=9, dtype="bfloat16"),  # less than one block
    "theta_1e6": dict(block=32, n=96, theta=1000000.0, heads=4, kv_heads=2),  # whole blocks
    # Storage.
    "bf16": dict(dtype="bfloat16", block=16, n=50),
    "f16": dict(dtype="float16", block=16, n=50, spelling="v5", tied=False),
    "sharded": dict(shards=3, dtype="bfloat16", tied=False, block=4, n=37),
    "no_block_size": dict(block_key=None, flag=8, block=8, n=44, dtype="bfloat16"),
    # Rotary scaling, past the original positions.
    "yarn_old": dict(scaling=YARN, positions=32, block=16, n=110, vocab=64),
    "yarn_v5": dict(scaling=dict(YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.25,
                                 truncate=False),
                    positions=128, block=16, n=110, vocab=64, spelling="v5"),
    "linear_old": dict(scaling=dict(rope_type="linear", factor=2.0), block=16, n=60, vocab=64),
    "linear_v5": dict(dtype="bfloat16", scaling=dict(rope_type="linear", factor=2.5), block=4, n=60,
                      vocab=64, spelling="v5"),
    # Qwen2.5 / Fast-dLLM v2: q/k/v biases, no q/k norm.
    "qwen2_tied_b32": dict(family="qwen2", hidden=64, ffn=48, head_dim=8, block=32, n=70,
                           block_key="bd_size", ranks=[1, 2, 4]),
    "qwen2_kv2_bf16": dict(family="qwen2", hidden=64, ffn=48, heads=4, kv_heads=2, block=16, n=45,
                           tied=False, dtype="bfloat16", spelling="v5", block_key="bd_size",
                           ranks=[1, 2, 4]),
}


def randomise(model, generator):
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("norm.weight"):
            p.data = 1.0 + 0.3 * noise
        elif name.endswith("bias"):
            p.data = 0.3 * noise
        elif "embed_tokens" in name:
            p.data = 0.5 * noise
        else:
            p.data = noise / math.sqrt(p.shape[1])


def rope_parameters(case):
    rope = dict(rope_type="default", rope_theta=case["theta"])
    rope.update(case["scaling"] or {})
    return rope


def build(case, generator):
    config_class, model_class = {"qwen3": (Qwen3Config, Qwen3ForCausalLM),
                                 "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[case["family"]]
    fields = dict(vocab_size=case["vocab"], hidden_size=case["hidden"],
                  intermediate_size=case["ffn"], num_hidden_layers=case["layers"],
                  num_attention_heads=case["heads"], num_key_value_heads=case["kv_heads"],
                  max_position_embeddings=case["positions"], rms_norm_eps=1e-6,
                  tie_word_embeddings=case["tied"], rope_parameters=rope_parameters(case),
                  attn_implementation="eager")
    if case["family"] == "qwen3":
        fields["head_dim"] = case["head_dim"]
    model = model_class(config_class(**fields)).eval()
    randomise(model, generator)
    stored = getattr(torch, case["dtype"])
    for p in model.parameters():
        p.data = p.data.to(stored).float()
    if case["tied"]:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def config_json(case):
    arch, kind = {"qwen3": ("SDARForCausalLM", "sdar"),
                  "qwen2": ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_Qwen")}[case["family"]]
    out = dict(architectures=[arch], model_type=kind, vocab_size=case["vocab"],
               hidden_size=case["hidden"], intermediate_size=case["ffn"],
               num_hidden_layers=case["layers"], num_attention_heads=case["heads"],
               num_key_value_heads=case["kv_heads"], hidden_act="silu",
               max_position_embeddings=case["positions"], rms_norm_eps=1e-6,
               tie_word_embeddings=case["tied"], use_sliding_window=False, sliding_window=None,
               bos_token_id=0, eos_token_id=0, mask_token_id=3)
    if case["family"] == "qwen3":
        out.update(head_dim=case["head_dim"], attention_bias=False)
    if case["block_key"]:
        out[case["block_key"]] = case["block"]
    if case["spelling"] == "v5":
        out.update(dtype=case["dtype"], rope_parameters=rope_parameters(case))
    else:
        out.update(torch_dtype=case["dtype"], rope_theta=case["theta"],
                   rope_scaling=case["scaling"])
    return out


def save_weights(model, case, folder):
    stored = getattr(torch, case["dtype"])
    tensors = {name: p.data.to(stored).clone() for name, p in model.named_parameters()}
    if case["tied"]:
        tensors.pop("lm_head.weight", None)
    if case["shards"] == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    names = sorted(tensors)
    for i in range(case["shards"]):
        part = {n: tensors[n] for n in names[i::case["shards"]]}
        file = f"model-{i + 1:05d}-of-{case['shards']:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update({n: file for n in part})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = dict(metadata=dict(total_size=total), weight_map=weight_map)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def block_causal(n, block):
    i = torch.arange(n) // block
    seen = i[:, None] >= i[None, :]
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


def make(name, case, seed, out):
    generator = torch.Generator().manual_seed(seed)
    model = build(case, generator)
    ids = torch.randint(0, case["vocab"], (case["n"],), generator=generator)
    ids[-3:] = 3  # masks at the end, as in a block being denoised
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=block_causal(case["n"], case["block"]),
                       use_cache=False).logits[0].float().numpy()
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_weights(model, case, folder)
    (folder / "config.json").write_text(json.dumps(config_json(case), indent=1) + "\n")
    if case["generation"]:
        (folder / "generation_config.json").write_text(json.dumps(
            dict(eos_token_id=[2, 0], do_sample=True, temperature=0.6, top_k=20, top_p=0.95)) + "\n")
    (folder / "ids.json").write_text(json.dumps(ids.tolist()) + "\n")
    np.save(folder / "logits.npy", np.ascontiguousarray(logits, dtype=np.float32))
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name:16s} {size / 1024:7.1f} KB  logits rms {logits.std():.2f} max {np.abs(logits).max():.2f}")


def main():
    here = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=here / "tests/golden/logits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    listed = []
    for seed, (name, changes) in enumerate(CASES.items()):
        case = dict(BASE, **changes)
        make(name, case, 1000 + seed, args.out)
        listed.append(dict(name=name, block_length=case["flag"], tolerance=TOLERANCE,
                           ranks=case["ranks"]))
    lines = ",\n".join(json.dumps(c) for c in listed)
    (args.out / "cases.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
