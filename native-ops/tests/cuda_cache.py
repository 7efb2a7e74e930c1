# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""Layers and cache state for tests and benchmarks of the operators: what Java builds, in Python.

A Layer holds packed parameters (core/layout.h) and knows how its keys are distributed; a Cache holds the tensors that
operators work on, for several sequences, on one device.
"""
import struct

import numpy as np
import torch

PAGE, RUN = 64, 16
MASSIVE = 20
# Upper halves, equally spaced as Java has them.
LEVELS = {bits: [float(np.float32(step) * np.float32(i + 0.5)) for i in range(1 << bits >> 1)]
          for bits, step in ((2, 0.9958), (3, 0.586), (4, 0.3352), (8, 10 / 255))}
# Widths of runs of channels; the first two are typical of int2.
SCHEDULES = {"wide": [8, 4, 4, 4, 4, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0], "flat": [4] * 3 + [2] * 7 + [1] * 6,
             "odd": [2, 3, 8, 1, 0, 4, 3, 3, 1, 2, 2, 8, 0, 1, 1, 3], "eight": [8] * 16,
             "four": [8] * 3 + [4] * 8 + [2] * 4 + [0], "three": [8] * 2 + [4] * 5 + [2] * 6 + [0] * 3, "two": [2] * 16,
             "few": [4] * 3 + [2] * 8 + [0] * 5, "one": [4] + [0] * 15, "none": [0] * 16,
             "by ones": [8, 4, 3, 2, 1] + [0] * 11, "unaligned": [8] + [1] * 15}


def rope_table(frequencies, positions):
    """The table of core/rope.h."""
    steps = np.arange(PAGE)[None, :] * frequencies[:, None]
    bases = np.arange((positions + PAGE - 1) // PAGE + 1)[:, None] * PAGE * frequencies[None, :]
    base_rows = np.stack([np.cos(bases), np.sin(bases)], 1).reshape(-1)
    table = np.concatenate([np.cos(steps).reshape(-1), np.sin(steps).reshape(-1), base_rows])
    return torch.tensor(table, dtype=torch.float32).reshape(-1, 2, len(frequencies))


class Packer:
    """LayerFormat.java and ParamsWriter.java."""

    def __init__(self):
        self.tables = b""

    def table(self, values, dtype):
        if values is None:
            return 0
        while len(self.tables) % 64 != 48:  # the header takes 208 bytes
            self.tables += b"\0"
        self.tables += np.ascontiguousarray(values, dtype=dtype).tobytes()
        return 208 + len(self.tables) - np.asarray(values).size * np.dtype(dtype).itemsize

    @staticmethod
    def side(format, bits, rotation=0, group=0, clip=1.0, zero=0, order=0, mean=0, steps=0, levels=0, basis_heads=0,
             basis=0, inverse=0, noise=0, outliers=0, widths=(0,) * 16):
        return struct.pack("<4if11i16B", format, bits, rotation, group, clip, zero, order, mean, steps, levels,
                           basis_heads, basis, inverse, 0, noise, outliers, *widths)


class Layer:
    def __init__(self, keys="int", values=2, heads=8, kv_heads=2, head_dim=128, window=128, sinks=4, schedule="wide",
                 base=5e5, positions=1 << 17, levels=None, mean=2.0, seed=0, order=True, noise=True, massive=False,
                 sparse=0):
        """keys: int, fp16, fp32 or a side of cuda_formats.py; values: bits of a norm format, 16, 32 or such a side;
        sparse: tokens that a step chooses to read, 0: all."""
        rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.head_dim, self.window, self.sinks = heads, kv_heads, head_dim, window, sinks
        self.massive, self.sparse = massive, sparse
        # Kv heads whose keys are read together: they read the same pages.
        self.together = kv_heads if getattr(keys, "whole_layer", False) else 1
        # Whether attention has a kernel that turns keys of the window while it reads them.
        own_kernel = keys == "int" or (getattr(keys, "per_head", False) and head_dim == 128)
        self.turned = own_kernel and window > 0
        # Whether it has one that makes halves of codes and turns those.
        self.halved = head_dim == 128 and all(type(side).__name__ == "Codebook" for side in (keys, values))
        self.frequencies = base ** (-2.0 * np.arange(head_dim // 2) / head_dim)
        self.rope = rope_table(self.frequencies, positions)
        channels, packer = kv_heads * head_dim, Packer()
        # Typical keys: few channels vary much, some have a large mean.
        spread = np.exp(rng.standard_normal(channels)) * 0.7
        self.spread, self.mean = spread, rng.standard_normal(channels) * mean * (rng.random(channels) < 0.3)
        if keys == "int":
            half = head_dim // 2
            turned = np.sqrt((spread.reshape(-1, 2, half) ** 2).mean(1, keepdims=True)).repeat(2, 1).reshape(kv_heads, -1)
            widths = np.repeat(SCHEDULES[schedule], head_dim // 16)
            steps, orders, noises = np.zeros((kv_heads, head_dim, 2)), [], np.zeros((kv_heads, head_dim))
            for h in range(kv_heads):
                ranked = np.argsort(-turned[h], kind="stable") if order else np.arange(head_dim)
                places = np.empty(head_dim, int)
                places[np.argsort(-widths, kind="stable")] = ranked  # wider codes for channels that vary more
                if not order:
                    places = ranked
                orders.append(places + h * head_dim)
                reach = turned[h][places] * np.where(widths == 1, 0.8, np.where(widths == 2, 1.5, 2.5))
                steps[h, :, 1] = 2 * reach / np.maximum(2.0 ** widths - 1, 1)
                steps[h, :, 0] = -reach + 0.05 * rng.standard_normal(head_dim)
                noises[h, places] = np.where(widths == 0, turned[h][places] ** 2, steps[h, :, 1] ** 2 / 12)
            key_side = Packer.side(
                3, 0, order=packer.table(np.concatenate(orders), "<i2") if order else 0,
                mean=packer.table(self.mean, "<f4"), steps=packer.table(steps.astype("<f4"), "<f4"),
                noise=packer.table(noises * 0.3, "<f4") if noise else 0, widths=SCHEDULES[schedule])
        elif callable(keys):
            key_side = keys(packer, rng, self)
        else:
            key_side = Packer.side(*((1, 16) if keys == "fp16" else (0, 32)))
        if isinstance(values, int) and values in LEVELS:
            upper = LEVELS[values] if levels is None else levels
            value_side = Packer.side(4, values, rotation=1,
                                     levels=packer.table([-x for x in reversed(upper)] + list(upper), "<f4"))
        elif callable(values):
            value_side = values(packer, rng, self)
        else:
            value_side = Packer.side(*((1, 16) if values == 16 else (0, 32)))
        header = struct.pack("<2i3i3iif2i", 0x3151564B, 208 + len(packer.tables), heads, kv_heads, head_dim, window,
                             (2 if massive else 1) if sinks else 0, sinks, int(getattr(keys, "pre_rope", False)),
                             1 / np.sqrt(head_dim), sparse, 0)
        self.params = torch.frombuffer(bytearray(header + key_side + value_side + packer.tables), dtype=torch.uint8)
        self.page_bytes, self.exact_bytes = (int(x) for x in torch.ops.kvquant.layout(self.params))
        self.sink_pages = (sinks + RUN - 1) // RUN
        self.ring = (window + RUN - 1) // RUN + 1 if window else 0

    def random_rows(self, count, dtype, device="cpu", scale=1.0, generator=None):
        """Fused projections [count, (heads + 2 kv_heads) head_dim], keys distributed as the layer expects."""
        q = torch.randn(count, self.heads * self.head_dim, device=device, generator=generator) * scale
        k = torch.randn(count, self.kv_heads * self.head_dim, device=device, generator=generator)
        k = k * torch.tensor(self.spread, device=device, dtype=torch.float32) + torch.tensor(
            self.mean, device=device, dtype=torch.float32)
        v = torch.randn(count, self.kv_heads * self.head_dim, device=device, generator=generator)
        return torch.cat([q, k, v], 1).to(dtype)


class Cache:
    """Sequences of one layer. Pages are shuffled and start as garbage: every byte is 0xff, NaN in every format."""

    def __init__(self, layer, capacity, device="cpu", seed=1, ops=None):
        self.layer, self.ops, self.device = layer, ops or torch.ops.kvquant, device
        batch, rng = len(capacity), np.random.default_rng(seed)
        pages = [(c + PAGE - 1) // PAGE for c in capacity]
        ids = rng.permutation(sum(pages) + 3)
        table = np.full((batch, max(1, max(pages))), -1)
        for b, n in enumerate(pages):
            table[b, :n] = ids[sum(pages[:b]): sum(pages[: b + 1])]
        columns = max(1, layer.sink_pages + layer.ring)
        exact_ids = rng.permutation(batch * columns + 1)[: batch * columns].reshape(batch, columns)
        to = lambda x: torch.tensor(x, dtype=torch.int32, device=device)
        self.page_table, self.exact_table = to(table), to(exact_ids)
        full = lambda n, size: torch.full((n, size), 0xFF, dtype=torch.uint8, device=device)
        self.pages = full(sum(pages) + 3, layer.page_bytes)
        self.exact = full(batch * columns + 1, layer.exact_bytes) if columns and layer.exact_bytes else full(1, 1)
        self.lengths = to(np.zeros((batch, 2)))
        self.rope = layer.rope.to(device)

    def state(self):
        return (self.lengths, self.page_table, self.exact_table, self.pages, self.exact, self.rope, self.layer.params)

    def append(self, rows, counts, hidden=None):
        """Appends and counts the tokens; hidden: the layer's input, by whose entries massive sinks are chosen."""
        starts = torch.tensor(np.concatenate([[0], np.cumsum(counts)]), dtype=torch.int32, device=self.device)
        massive = [torch.empty(0, device=self.device)] * 2
        if self.layer.massive:
            massive = self.ops.massive_entries(hidden, starts)
        self.ops.append(rows, starts, *massive, *self.state())
        self.lengths[:, 0] += torch.tensor(counts, dtype=torch.int32, device=self.device)
        return massive

    def decode(self, rows):
        """Appends one token per sequence and returns attention."""
        starts = torch.arange(rows.shape[0] + 1, dtype=torch.int32, device=self.device)
        none = torch.empty(0, device=self.device)
        self.ops.append(rows, starts, none, none, *self.state())
        out = self.ops.attend(rows, *self.state())
        self.lengths[:, 0] += 1
        return out

    def to(self, device, ops):
        """A copy on another device, with other operators."""
        other = Cache.__new__(Cache)
        other.layer, other.ops, other.device = self.layer, ops, device
        for name in ("page_table", "exact_table", "pages", "exact", "lengths", "rope"):
            setattr(other, name, getattr(self, name).clone().to(device))
        return other
