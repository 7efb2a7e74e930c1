# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""Formats for tests of the operators: options of a layer, and the sides beside int and fp16, which pack parameters.

A side is called with the packer, a random generator and the layer, whose spread and mean describe its keys.
"""
import dataclasses

import numpy as np

from cuda_cache import SCHEDULES


@dataclasses.dataclass(frozen=True)
class Rotated:
    """RotateKV: rotated over groups of heads, codes with scales and zeros."""
    bits: int = 2
    heads: int = 1
    group: int = 64
    clip: float = 0.95
    float_zero: bool = False
    order: bool | str = False
    pre_rope: bool = True

    def __call__(self, packer, rng, layer):
        """order: of channels across the layer or, if "group", within the heads that are rotated together; group: 0: a
        head."""
        channels = layer.kv_heads * layer.head_dim
        heads = next(h for h in (self.heads, 2, 1) if layer.kv_heads % max(h, 1) == 0)
        size = max(heads, 1) * layer.head_dim if self.order == "group" else channels
        order = packer.table(np.concatenate([first + rng.permutation(size) for first in range(0, channels, size)]),
                             "<i2") if self.order else 0
        group = int(np.gcd(self.group or layer.head_dim, channels))
        return packer.side(2, self.bits, rotation=heads, group=group, clip=self.clip, zero=int(self.float_zero),
                           order=order)


@dataclasses.dataclass(frozen=True)
class Latent:
    """Static codes before RoPE in a basis over each head or all, or in an order of channels."""
    widths: tuple = (8, 4, 4, 4, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0)
    whole_layer: bool = False
    basis: bool = True
    pre_rope: bool = True

    @property
    def per_head(self):
        return self.basis and not self.whole_layer

    def __call__(self, packer, rng, layer):
        heads = layer.kv_heads if self.whole_layer else 1
        size, groups = heads * layer.head_dim, layer.kv_heads // heads
        matrices = np.stack([np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(groups)])
        matrices *= 1 + 0.2 * rng.random((groups, size, 1))  # not orthogonal: the inverse is no transpose
        widths = np.tile(np.repeat(self.widths, layer.head_dim // 16), layer.kv_heads)
        reach = 1.5 * (0.5 + rng.random(widths.shape))
        steps = np.stack([-reach, 2 * reach / np.maximum(2.0 ** widths - 1, 1)], 1)
        tables = {"mean": packer.table(layer.mean, "<f4"), "steps": packer.table(steps, "<f4")}
        if self.basis:
            tables.update(basis_heads=heads, basis=packer.table(matrices, "<f4"),
                          inverse=packer.table(np.linalg.inv(matrices), "<f4"))
        else:
            order = np.concatenate([h * layer.head_dim + rng.permutation(layer.head_dim)
                                    for h in range(layer.kv_heads)])
            tables["order"] = packer.table(order, "<i2")
        return packer.side(3, 0, widths=self.widths, **tables)


@dataclasses.dataclass(frozen=True)
class Codebook:
    """KVQuant: levels within ranges of channels (keys) or tokens (values), outliers apart.

    outliers: of a token; or, less than 1, the share that CodebookFormat.java has slots for.
    """
    bits: int = 2
    outliers: float = 4
    keys: bool = True
    reach: float = 1.5
    pre_rope: bool = True

    def __call__(self, packer, rng, layer):
        levels = np.sort(rng.uniform(-1, 1, 1 << self.bits))
        steps = packer.table(np.stack([layer.mean, self.reach * layer.spread], 1), "<f4") if self.keys else 0
        both = packer.table(np.concatenate([levels, levels + 0.01 * np.arange(1 << self.bits)]), "<f4")
        slots = self.outliers
        if 0 < slots < 1:
            channels = layer.kv_heads * layer.head_dim
            slots = int(1.5625 * slots * channels + 1e-9) if self.keys else 2 * max(1, round(slots * channels / 2))
        return packer.side(5, self.bits, steps=steps, levels=both, outliers=slots)


# The paper's schedules, in pairs of runs.
SVDQ = {name: Latent(whole_layer=True, widths=widths + (0,) * (16 - len(widths)))
        for name, widths in (("svdq2.25", (8, 8, 4, 4, 4, 4, 2, 2)), ("svdq1.25", (4, 4, 4, 4, 2, 2)))}
KVQUANT_VALUES = {bits: Codebook(bits, keys=False) for bits in (2, 3, 4)}
FORMATS = {
    "int2": {}, "int2 flat": {"schedule": "flat"}, "int2 odd widths": {"schedule": "odd"},
    "int8": {"schedule": "eight", "values": 8}, "int3/4": {"schedule": "odd", "values": 4},
    "int4": {"schedule": "four", "values": 4}, "int3": {"schedule": "three", "values": 3},
    "int2, uneven levels": {"levels": [0.4528, 1.5104]},
    "int3/4, uneven levels": {"schedule": "odd", "values": 4, "levels": [0.13, 0.39, 0.66, 0.94, 1.26, 1.62, 2.07, 2.73]},
    "int2, no window": {"window": 0, "sinks": 0},
    "int2, base 10000": {"base": 1e4}, "int2, base 300": {"base": 300.0},
    "int2, natural order": {"order": False, "noise": False, "schedule": "two"},
    "int2, 20 sinks": {"sinks": 20, "window": 32}, "int2/3": {"values": 3},
    "fp16": {"keys": "fp16", "values": 16, "window": 0, "sinks": 0},
    "fp16 with window": {"keys": "fp16", "values": 16}, "fp32": {"keys": "fp32", "values": 32, "window": 0, "sinks": 0},
    "int2/fp16": {"values": 16}, "fp16/int2": {"keys": "fp16", "window": 32},
    "rotatekv2": {"keys": Rotated(heads=4), "values": Rotated(clip=0.8)},
    "rotatekv3, grouped order": {"keys": Rotated(3, 2, 128, order=True), "values": Rotated(3, clip=1.0)},
    "rotatekv4, float zero": {"keys": Rotated(4, 1, 64, 1.0, True, True), "values": Rotated(4, float_zero=True)},
    "rotatekv2 after RoPE": {"keys": Rotated(pre_rope=False), "values": Rotated(group=32)},
    "rotatekv2 without rotation": {"keys": Rotated(heads=0, group=16), "values": Rotated(heads=0)},
    "rotatekv8/fp16": {"keys": Rotated(8, 3, 32), "values": 16, "window": 0},
    "rotatekv2, massive sinks": {"keys": Rotated(heads=2, order=True), "values": Rotated(), "sinks": 24, "massive": True},
    "int2, massive sinks": {"sinks": 20, "massive": True},
    "latent2": {"keys": Latent()}, "latent4": {"keys": Latent(SCHEDULES["four"]), "values": 4},
    "latent in an order": {"keys": Latent(basis=False), "window": 32},
    "svdq": {"keys": Latent(whole_layer=True, widths=(8, 4, 4, 2, 2, 2) + (0,) * 10)},
    "latent2/kvquant2": {"keys": Latent(), "values": KVQUANT_VALUES[2]},
    "kvquant2": {"keys": Codebook(2), "values": KVQUANT_VALUES[2]},
    "kvquant3, no outliers": {"keys": Codebook(3, 0), "values": Codebook(3, 0, False)},
    "kvquant4, many outliers": {"keys": Codebook(4, 9, reach=0.5), "values": Codebook(4, 7, False), "window": 0},
    "kvquant2/int2": {"keys": Codebook(2)}, "fp16/kvquant4": {"keys": "fp16", "values": KVQUANT_VALUES[4]},
    "int2/rotatekv2": {"values": Rotated()},
}
