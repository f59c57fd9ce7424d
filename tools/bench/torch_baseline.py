#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyTorch's CPU build on what `losa bench` times: the same checkpoint in Hugging Face's
Qwen3, with a block-causal 4-D mask, prefill of N tokens in one forward and one denoising
forward of a block over a cached prefix. Prints medians in milliseconds.

    python tools/bench/torch_baseline.py --model models/needle-11m --threads 2 4096 8192
"""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import DynamicCache


def load(folder, dtype):
    config = json.loads((folder / "config.json").read_text())
    block = config["block_size"]
    keys = ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
            "num_key_value_heads head_dim max_position_embeddings rms_norm_eps "
            "tie_word_embeddings").split()
    model = Qwen3ForCausalLM(
        Qwen3Config(**{k: config[k] for k in keys}, rope_theta=config["rope_theta"],
                    attn_implementation="sdpa"))
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"),
                                                strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype).eval(), block


def median_ms(work, repeats):
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


@torch.inference_mode()
def measure(model, block, tokens, repeats):
    ids = torch.randint(10, model.config.vocab_size, (1, tokens))
    order = torch.arange(tokens) // block
    mask = (order[:, None] >= order[None, :])[None, None]

    def prefill(cache):
        # The logits of one row: what a server needs of a prefill.
        return model(ids, attention_mask=mask, past_key_values=cache, use_cache=True,
                     logits_to_keep=1)

    cache = DynamicCache()
    prefill(cache)
    masks = torch.full((1, block), 3)
    see_all = torch.ones(1, 1, block, tokens + block, dtype=torch.bool)
    positions = torch.arange(tokens, tokens + block)[None]

    def step():
        model(masks, attention_mask=see_all, past_key_values=cache, use_cache=True,
              position_ids=positions)
        cache.crop(-block)

    return (median_ms(lambda: prefill(DynamicCache()), repeats),
            median_ms(step, 5 * repeats))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("tokens", type=int, nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"PyTorch {torch.__version__}, {args.threads} threads")
    for dtype in (torch.float32, torch.bfloat16):
        model, block = load(args.model, dtype)
        for tokens in args.tokens:
            prefill, step = measure(model, block, tokens, args.repeats)
            print(f"{str(dtype)[6:]:9} {tokens:6} tokens: prefill {prefill:9.1f} ms, "
                  f"denoising forward {step:7.2f} ms", flush=True)


if __name__ == "__main__":
    main()
