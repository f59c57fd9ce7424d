# SPDX-License-Identifier: Apache-2.0
"""A folder in SDAR's format, which `losa` and Hugging Face's Qwen3 load: weights in bf16."""

import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

GENERATION = {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": False, "temperature": 1.0, "top_k": 1}


def save(model, config, folder, shipped, record):
    """The shipped model gives the tokenizer; `record` tells how the weights came to be."""
    os.makedirs(folder, exist_ok=True)
    weights = {name: w.to("cpu", torch.bfloat16) for name, w in model.state_dict().items()}
    save_file(weights, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    shutil.copy(os.path.join(shipped, "tokenizer.json"), folder)
    with open(os.path.join(shipped, "tokenizer_config.json"), encoding="utf-8") as f:
        tokenizer = dict(json.load(f), model_max_length=config["max_position_embeddings"])
    for name, content in (("config.json", config), ("generation_config.json", GENERATION),
                          ("tokenizer_config.json", tokenizer), ("training.json", record)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(content, f, indent=2)


def load(model, folder):
    model.load_state_dict(load_file(os.path.join(folder, "model.safetensors")))
    with open(os.path.join(folder, "training.json"), encoding="utf-8") as f:
        return json.load(f)
