# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""CUDA operators against numpy in double precision. Needs torch 2.7 or later, numpy and a GPU.

    python test_cuda.py DIRECTORY    # that holds libkvquant_cpu.so and libkvquant_cuda.so
"""
import struct
import sys

import numpy as np
import torch

PAGE = 64
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def layer_params(heads, kv_heads, head_dim):
    """LayerParams of core/layout.h for a cache of plain fp16 keys and values."""
    side = struct.pack("<4if15i", 1, 16, 0, 0, 1.0, *[0] * 15)
    header = struct.pack("<2i3i3iif2i", 0x3151564B, 208, heads, kv_heads, head_dim, 0, 0, 0, 0, 1.0, 0, 0)
    return torch.frombuffer(bytearray(header + side + side), dtype=torch.uint8)


def rope_table(frequencies, positions):
    """The table of core/rope.h."""
    half = len(frequencies)
    steps = np.arange(PAGE)[None, :] * frequencies[:, None]
    bases = np.arange(positions // PAGE + 1)[:, None] * PAGE * frequencies[None, :]
    base_rows = np.stack([np.cos(bases), np.sin(bases)], 1).reshape(-1)
    table = np.concatenate([np.cos(steps).reshape(-1), np.sin(steps).reshape(-1), base_rows])
    return torch.tensor(table, dtype=torch.float32).reshape(-1, 2, half)


def expected(qkv, starts, lengths, heads, kv_heads, head_dim, frequencies):
    x = qkv.astype(np.float64).reshape(len(qkv), heads + 2 * kv_heads, head_dim)
    sequence = np.searchsorted(starts, np.arange(len(qkv)), side="right") - 1
    position = lengths[sequence, 0] + np.arange(len(qkv)) - starts[sequence]
    angle = (position[:, None] * frequencies[None, :])[:, None, :]
    a, b = x[..., : head_dim // 2], x[..., head_dim // 2 :]
    turned = np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)
    turned[:, heads + kv_heads :] = x[:, heads + kv_heads :]
    return np.split(turned.transpose(1, 0, 2), [heads, heads + kv_heads])


def cache_state(device, lengths, frequencies, positions, params):
    """The state of a cache without pages."""
    table = torch.full((len(lengths), 1), -1, dtype=torch.int32)
    pool = torch.zeros((1, 1), dtype=torch.uint8)
    tensors = (torch.tensor(lengths), table, table, pool, pool, rope_table(frequencies, positions))
    return (*(x.to(device) for x in tensors), params)


def check_rope_heads(device, dtype, heads, kv_heads, head_dim, counts, past):
    rng = np.random.default_rng(heads + head_dim + sum(counts))
    frequencies = 1e5 ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    tokens = sum(counts)
    qkv = torch.tensor(rng.standard_normal((tokens, (heads + 2 * kv_heads) * head_dim))).to(dtype)
    starts = np.concatenate([[0], np.cumsum(counts)])
    lengths = np.stack([past, np.zeros(len(past))], 1).astype(np.int32)
    outputs = torch.ops.kvquant.rope_heads(
        qkv.to(device), torch.tensor(starts, dtype=torch.int32).to(device),
        *cache_state(device, lengths, frequencies, max(past) + tokens, layer_params(heads, kv_heads, head_dim)))
    wanted = expected(qkv.float().numpy(), starts, lengths, heads, kv_heads, head_dim, frequencies)
    for name, out, want in zip("qkv", outputs, wanted):
        error = np.linalg.norm(out.float().cpu().numpy() - want) / np.linalg.norm(want)
        assert error < TOLERANCE[dtype], f"{name}: {error} {dtype} {heads}/{kv_heads}x{head_dim}"


def main():
    for library in ("libkvquant_cpu.so", "libkvquant_cuda.so"):
        torch.ops.load_library(f"{sys.argv[1]}/{library}")
    passed = 0
    for dtype in TOLERANCE:
        for heads, kv_heads, head_dim in ((9, 3, 64), (32, 8, 128), (8, 8, 64), (4, 1, 128)):
            for counts, past in (([1], [0]), ([17], [0]), ([3, 1, 64], [0, 130_000, 63]), ([1] * 7, list(range(60, 67)))):
                check_rope_heads("cuda", dtype, heads, kv_heads, head_dim, counts, past)
                passed += 1
    try:
        wrong, starts = torch.zeros(1, device="cuda"), torch.tensor([0, 1], dtype=torch.int32, device="cuda")
        state = cache_state("cuda", np.zeros((1, 2), np.int32), np.ones(64), 1, layer_params(4, 1, 128))
        torch.ops.kvquant.rope_heads(wrong, starts, *state)
        raise AssertionError("a wrong qkv was accepted")
    except RuntimeError as error:
        assert "kvquant::rope_heads: qkv must" in str(error), error
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{passed + 1} passed, 0 failed")


if __name__ == "__main__":
    main()
