# SPDX-License-Identifier: Apache-2.0
"""Prefix attention of an SDAR-8B layer with PyTorch's flash SDPA, to set beside
`test_gpu_parity --bench attention`: the query heads of a group and the tokens of a block
are folded into one head's rows, so that K and V are read once per KV head.

    python tools/bench/torch_sdpa.py
"""
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

GROUP, KV_HEADS, DIM = 4, 8, 128
L2_BYTES, CALLS, SAMPLES = 200 << 20, 16, 15


def measure(call):
    """Median microseconds of a call, from replays of a graph of CALLS of them."""
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            call(i)
    times = []
    for sample in range(-3, SAMPLES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if sample >= 0:
            times.append(begin.elapsed_time(end) * 1000 / CALLS)
    return sorted(times)[len(times) // 2]


def attention(requests, rows, keys, heads, causal=False):
    """Microseconds of attention of [requests, heads, rows, DIM] to `keys` keys."""
    sets = min(16, L2_BYTES // (4 * requests * keys * heads * DIM) + 2)
    shape = (requests, heads, keys, DIM)
    kv = [[torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
          for _ in range(sets)]
    q = torch.randn((requests, heads, rows, DIM), dtype=torch.bfloat16, device="cuda")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return measure(lambda i: F.scaled_dot_product_attention(q, *kv[i % sets], is_causal=causal))


def main():
    for block in (16, 32):
        for prefix in (4, 16, 32, 64, 128):
            us = attention(1, GROUP * block, prefix << 10, KV_HEADS)
            print(f"sdpa, 1 x block {block}, {prefix}K: {us:.1f} us", flush=True)
        us = attention(8, GROUP * block, 32 << 10, KV_HEADS)
        print(f"sdpa, 8 x block {block}, 32K: {us:.1f} us", flush=True)
    for rows in (512, 2048):
        us = attention(1, GROUP * rows, 16 << 10, KV_HEADS)
        flops = 4 * rows * GROUP * KV_HEADS * (16 << 10) * DIM
        print(f"sdpa, {rows} rows behind 16K: {us:.1f} us, {flops / us * 1e-6:.1f} TFLOP/s")
    us = attention(1, 32 << 10, 32 << 10, GROUP * KV_HEADS, causal=True)
    flops = 2 * (32 << 10) ** 2 * GROUP * KV_HEADS * DIM
    print(f"sdpa, prompt of 32K, causal: {us:.1f} us, {flops / us * 1e-6:.1f} TFLOP/s")


if __name__ == "__main__":
    main()
