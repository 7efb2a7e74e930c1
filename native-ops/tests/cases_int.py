# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""The presets of int: prompts and steps of every width of values, head_dim 64, large and flat scores."""
import itertools

import torch

from cuda_checks import ODD, TOLERANCE, TURNED, Case, check_invariants, check_odd, check_truncation, lengths, scores, tokens
from cuda_formats import FORMATS

# Sides of values with kernels of their own for prompts.
WIDE_VALUES = {**{name: FORMATS[name] for name in ("int3", "int4", "int8")},
               **{f"latent4/int{bits}": {**FORMATS["latent4"], "values": bits} for bits in (3, 4, 8)}}


def cases():
    for name in ("int2", "int2/3", "int4", "int8", "int2, uneven levels"):
        yield from preset(name, FORMATS[name])
    yield from wide_values()
    yield from narrow_heads()


def preset(name, options):
    yield from scores(name, options)
    yield tokens(f"{name} long", options, [[33000]], 1, values=False)
    yield Case(f"{name} invariants", check_invariants, options, {})
    yield Case(f"{name} truncation", check_truncation, options, {})


def wide_values():
    """Prompts whose values have 3, 4 or 8 bits, and steps: ragged chunks, windows, sinks, types."""
    others = ((3, torch.float16, {"window": 20, "sinks": 20}), (5, torch.bfloat16, {"window": 0, "sinks": 0}),
              (2, torch.float32, {"window": 128, "sinks": 24, "massive": True}))
    for (name, side), (kv_heads, dtype, other) in itertools.product(WIDE_VALUES.items(), others):
        yield tokens(f"{name} {dtype} {other}", {"heads": kv_heads, "kv_heads": kv_heads, **side, **other},
                     [[300, 20, 129], [17, 2, 200], [1, 0, 9]], dtype=dtype, values=False, allowed=TURNED)
    for name in ("int3", "int4", "int8"):
        yield tokens(f"{name}, heads of 64", {"heads": 4, "kv_heads": 4, "head_dim": 64, "window": 16, **FORMATS[name]},
                     [[300, 20, 129], [0, 2, 1], [3, 0, 0], [1, 1, 1]])
    for name, (kv_heads, dtype, other) in itertools.product(("int2", "int3", "int8"), others):
        yield tokens(f"{name}, heads of 64, {dtype} {other}",
                     {"heads": kv_heads, "kv_heads": kv_heads, "head_dim": 64, **FORMATS[name], **other},
                     [[300, 20, 129], [17, 2, 200], [1, 0, 9]], dtype=dtype, values=False, allowed=TURNED)
    sides = [(name, 128) for name in WIDE_VALUES] + [("int3", 64), ("int8", 64)]
    for (name, head_dim), odd in itertools.product(sides, ODD):
        yield Case(f"{name} of {head_dim}, {odd}", check_odd,
                   {"heads": 3, "kv_heads": 3, "head_dim": head_dim, **WIDE_VALUES[name], "window": 0, "sinks": 0},
                   {"odd": odd, "keys": False})


def narrow_heads():
    """The kernels at head_dim 64: every width, by ones and twos, MHA, GQA and MQA, parts, exact tokens."""
    presets = ("int2", "int2 flat", "int2 odd widths", "int2/3", "int3/4", "int4", "int8", "int2, no window",
               "int2, natural order", "int2, 20 sinks")
    for name, (heads, kv_heads) in itertools.product(presets, [(32, 8), (8, 8), (4, 1), (16, 2), (9, 1), (6, 3)]):
        yield tokens(f"{name} {heads}/{kv_heads}x64, two chunks",
                     {"heads": heads, "kv_heads": kv_heads, "head_dim": 64, **FORMATS[name]})
    for kv_heads, dtype, window in itertools.product((1, 8, 17), TOLERANCE, (0, 20)):
        yield tokens(f"fp16 {kv_heads}/{kv_heads}x64 {dtype}, window {window}",
                     {"heads": kv_heads, "kv_heads": kv_heads, "head_dim": 64, **FORMATS["fp16"], "window": window},
                     [[300, 20, 129], [17, 2, 200], [1, 0, 9]], dtype=dtype)
    for schedule in ("few", "one", "none", "by ones", "unaligned"):
        yield tokens(f"int2 of {schedule} x64",
                     {"heads": 4, "kv_heads": 2, "head_dim": 64, "schedule": schedule, "window": 20})
    for name in ("int2", "int2/3", "int4", "int8"):
        options = {"head_dim": 64, **FORMATS[name]}
        for dtype in TOLERANCE:
            yield lengths(f"{name}x64 {dtype}", options, dtype=dtype)
        yield tokens(f"{name}x64 steps", options, [[1, 2, 3]], 150, values=False)
        yield from preset(f"{name}x64", options)
