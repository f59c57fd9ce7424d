# SPDX-License-Identifier: Apache-2.0
"""Reference answers of the shipped model: tests/golden/decode/{documents,needle}.jsonl.

Records with source `hf`: Hugging Face's Qwen3 over the whole sequence at every step, a
block-causal mask and no cache. Records with source `policy`: policy_reference.py, the
attention policies with a cache. Both f32 on the CPU; dense must agree between them.
"""

import argparse
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM
from safetensors.torch import load_file

import answers
from decode_rules import STRATEGIES, Request, Rules, decode
from policy_reference import Cache, Model, Policy, Run

STOP_IDS = (2, 0)  # generation_config.json
MAX_TOKENS = 160

DYNAMIC, STATIC, ENTROPY = STRATEGIES[2], STRATEGIES[1], STRATEGIES[3]
# document, strategy, steps, threshold, max_tokens. P % 16 is 0 or 15. Static runs were
# chosen for confidences that do not tie near 1; `margin` tells how near a run comes.
HF_RUNS = [
    ("single-512-1", "sequential", 0, 0.9, MAX_TOKENS),
    ("mk-512-0", "sequential", 5, 0.9, MAX_TOKENS),
    ("mq-512-0", "sequential", 16, 0.9, 48),
    ("single-512-1", STATIC, 2, 0.9, MAX_TOKENS),
    ("mv-512-0", STATIC, 2, 0.9, MAX_TOKENS),
    ("rpt-512-0", STATIC, 4, 0.9, 14),
    ("rpt-512-1", STATIC, 3, 0.9, 14),
    ("single-512-1", DYNAMIC, 0, 0.9, MAX_TOKENS),
    ("mk-512-0", DYNAMIC, 0, 0.9, MAX_TOKENS),
    ("mq-512-0", DYNAMIC, 0, 0.9, MAX_TOKENS),
    ("mq-512-0", DYNAMIC, 4, 0.97, MAX_TOKENS),
    ("mq-512-0", DYNAMIC, 0, 0.9, 32),
    ("mq-512-0", DYNAMIC, 0, 0.9, 10),
    ("single-512-1", ENTROPY, 0, 0.35, MAX_TOKENS),
    ("mq-512-0", ENTROPY, 0, 0.35, MAX_TOKENS),
    ("mk-512-0", ENTROPY, 0, 1.0, MAX_TOKENS),
    ("mq-2048-0", DYNAMIC, 0, 0.9, MAX_TOKENS),
]

POLICY_DOCUMENTS = ["mq-512-0", "vt-512-1", "mk-2048-0", "mq-2048-0"]
POLICIES = [
    Policy("dense"),
    Policy("quest-init", 128, active="all"),
    Policy("losa", 128, active="unsettled"),
    Policy("losa", 128, active="topk:5"),
    Policy("losa", 128, active="new+4"),
    Policy("losa", 128, active="topk:8", locality="hidden"),
]
EXTRA_RUNS = [  # other scopes, pages and budgets
    ("mq-512-0", Policy("losa", 64, active="unsettled", scope="head")),
    ("mq-512-0", Policy("losa", 256, page=64, active="new+4", scope="head", locality="hidden")),
    ("mq-2048-0", Policy("quest-init", 256, active="all", scope="head")),
    ("mq-2048-0", Policy("losa", 256, active="topk:8", scope="head")),
    ("mq-2048-0", Policy("losa", 128, page=32, active="unsettled")),
    ("mq-2048-0", Policy("losa", 128, page=8, active="unsettled", scope="head")),
]


def load_hf(folder):
    config = json.loads((folder / "config.json").read_text())
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
            "rms_norm_eps", "tie_word_embeddings")
    rope = dict(rope_type="default", rope_theta=config["rope_theta"])
    model = Qwen3ForCausalLM(Qwen3Config(**{k: config[k] for k in keep}, rope_parameters=rope,
                                         attn_implementation="eager"))
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval().float()


class WholeSequence:
    """Every step runs all tokens so far: nothing to get wrong in a cache."""

    def __init__(self, model, rules, prompt):
        self.model, self.block = model, rules.block
        self.done = list(prompt[:len(prompt) // rules.block * rules.block])

    def step(self, start, tokens, _step, _fresh):
        ids = torch.tensor(self.done + tokens)
        group = torch.arange(len(ids)) // self.block
        mask = torch.where(group[:, None] >= group[None], 0.0, torch.finfo(torch.float32).min)
        out = self.model(input_ids=ids[None], attention_mask=mask[None, None], use_cache=False,
                         logits_to_keep=len(tokens))
        return out.logits[0]

    def commit(self, start, tokens):
        self.done += tokens


def record(name, document, request, answer, tokenizer, **more):
    sure = round(answer.margin, 7)
    partial = answer.finish == "length" and (len(request.prompt) + request.max_tokens) % 16
    return dict(id=name, document=document, strategy=request.strategy, steps=request.steps,
                threshold=request.threshold, max_tokens=request.max_tokens, **more,
                token_ids=answer.ids, text=tokenizer.decode(answer.ids), finish=answer.finish,
                # Not defined by the answer when the limit cuts a block.
                forwards_without_commit=None if partial else answer.steps, margin=sure)


def hf_records(model_dir, rules, prompts, tokenizer):
    model = load_hf(model_dir)
    for i, (doc, strategy, steps, threshold, limit) in enumerate(HF_RUNS):
        request = Request(prompts[doc], limit, strategy, steps, threshold)
        whole = WholeSequence(model, rules, request.prompt)
        answer = decode(request, rules, whole.step, whole.commit)
        name = f"hf {doc} {strategy} steps {steps} threshold {threshold} max {limit}"
        yield record(name, doc, request, answer, tokenizer, source="hf", attention="dense",
                     ranks=[[1, 2, 4][i % 3]])


def run_policy(model, rules, prompt, cache, policy):
    run = Run(model, cache.fork(), policy)
    request = Request(prompt, MAX_TOKENS)
    return request, decode(request, rules, run.step, run.commit), run.counts


def policy_record(doc, policy, ranks, request, answer, counts, tokenizer):
    more = dict(source="policy", attention=policy.name, ranks=ranks)
    name = f"policy {doc} {policy.name}"
    if policy.name != "dense":
        more.update(budget=policy.budget, page_size=policy.page, plan_scope=policy.scope)
        name += f" {policy.budget} page {policy.page} {policy.scope}"
    if policy.name == "losa":
        more.update(active=policy.active, locality=policy.locality)
        name += f" {policy.active} {policy.locality}"
    if counts.prefix:
        more.update(density_later=counts.read / counts.prefix,
                    active_share=counts.active / counts.rows,
                    union_inflation=counts.union / counts.budget)
    return record(name, doc, request, answer, tokenizer, **more)


def policy_records(model_dir, rules, prompts, tokenizer):
    model = Model(model_dir)
    for d, doc in enumerate(POLICY_DOCUMENTS):
        prompt = prompts[doc]
        cache = Cache(model, len(prompt) + 2 * MAX_TOKENS)
        Run(model, cache, Policy()).prefill(prompt[:len(prompt) // rules.block * rules.block])
        runs = POLICIES + [p for name, p in EXTRA_RUNS if name == doc]
        for i, policy in enumerate(runs):
            request, answer, counts = run_policy(model, rules, prompt, cache, policy)
            yield policy_record(doc, policy, [[1, 2, 4][(d + i) % 3]], request, answer, counts,
                                tokenizer)


def check_agreement(records):
    """Dense, dynamic 0.9 by both implementations."""
    usual = [r for r in records if r["attention"] == "dense" and r["strategy"] == DYNAMIC
             and r["steps"] == 0 and r["threshold"] == 0.9 and r["max_tokens"] == MAX_TOKENS]
    by_hf = {r["document"]: r for r in usual if r["source"] == "hf"}
    for r in usual:
        other = by_hf.get(r["document"])
        if r["source"] == "policy" and other:
            for key in ("token_ids", "forwards_without_commit", "finish"):
                assert r[key] == other[key], (r["id"], key, r[key], other[key])
            print("both implementations agree on", r["document"])


def write_lines(path, objects):
    path.write_text("".join(json.dumps(o) + "\n" for o in objects), encoding="utf-8")


def verdict(document, text):
    if "accept" not in document:
        return ""
    return "right, " if answers.right(document["accept"], text) else "wrong, "


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=pathlib.Path, default=root / "models/needle-11m")
    parser.add_argument("--documents", type=pathlib.Path,
                        help="default: those of tests/golden/decode")
    parser.add_argument("--out", type=pathlib.Path, default=root / "tests/golden/decode")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    args.out.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    wanted = sorted({r[0] for r in HF_RUNS} | set(POLICY_DOCUMENTS))
    documents = answers.load(args.documents or root / "tests/golden/decode/documents.jsonl")
    documents = {d["id"]: d for d in documents if d["id"] in wanted}
    if set(wanted) - set(documents):
        sys.exit(f"documents not found: {sorted(set(wanted) - set(documents))}")
    prompts = {k: answers.prompt_ids(tokenizer, d["user"]) for k, d in documents.items()}

    rules = Rules(block=16, mask_id=3, stop_ids=STOP_IDS)
    records = []
    for make in (hf_records, policy_records):
        for r in make(args.model, rules, prompts, tokenizer):
            records.append(r)
            print(f"{r['id']}: {verdict(documents[r['document']], r['text'])}{r['finish']}, "
                  f"steps {r['forwards_without_commit']}, "
                  f"density {r.get('density_later', 1):.4f}, margin {r['margin']:.1e}", flush=True)
    check_agreement(records)
    write_lines(args.out / "needle.jsonl", records)
    write_lines(args.out / "documents.jsonl",
                [dict(id=k, user=documents[k]["user"], prompt_ids=prompts[k]) for k in wanted])


if __name__ == "__main__":
    main()
