# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""Every format at every shape, and what all of them share: types, many steps, few tokens under a sanitizer."""
import itertools

from cases_codebook import FIRST_EXACT, kvquant
from cases_rotated import rotatekv
from cuda_checks import LENGTHS, ORDERED, TOLERANCE, TURNED, Case, check_invariants, lengths, tokens
from cuda_formats import FORMATS, SVDQ, Latent

SHAPES = [(8, 2, 128), (4, 4, 128), (8, 1, 128), (6, 3, 64), (7, 1, 128), (4, 1, 64)]


def cases():
    for (name, options), (heads, kv_heads, head_dim) in itertools.product(FORMATS.items(), SHAPES):
        yield tokens(f"{name} {heads}/{kv_heads}x{head_dim}",
                     {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **options},
                     [[70, 1, 200], [17, 300, 0], [1, 1, 1]])
    for name, dtype in itertools.product(("int2", "fp16"), TOLERANCE):
        yield lengths(f"{name} {dtype}", FORMATS[name], dtype=dtype)
        yield tokens(f"{name} {dtype} steps", FORMATS[name], [[1, 2, 3]], 150, dtype=dtype, values=False)
    yield from steps()
    yield Case("fp16 invariants", check_invariants, FORMATS["fp16"], {})
    yield tokens("int2, a past of 100000 tokens", {"heads": 4, "kv_heads": 1}, [[100000]], 1, values=False)


def small_cases():
    """Every kernel with few tokens."""
    counts = [[150, 300, 20], [3, 0, 40]]
    for name in ("int2", "int2 odd widths", "int3/4", "int3/4, uneven levels", "int8", "int2/3", "fp16",
                 "fp16 with window", "rotatekv2, massive sinks", "kvquant2", "latent2"):
        yield tokens(name, {"heads": 4, "kv_heads": 1, **FORMATS[name]}, counts)
    yield tokens("svdq2.25", {"heads": 2, "kv_heads": 2, "keys": SVDQ["svdq2.25"], "values": 4, "window": 0}, counts)
    for order in (False, "group", True):
        options = {"heads": 8, "kv_heads": 8 if order is True else 4, "window": 16, **rotatekv(2, 4, order)}
        yield tokens(f"rotatekv2, order {order}", options, counts, allowed=ORDERED if order else TURNED)
    for name in ("int2", "int3", "fp16"):
        yield tokens(f"{name}, heads of 64", {"heads": 3, "kv_heads": 3, "head_dim": 64, **FORMATS[name], "window": 16},
                     counts)
    for bits, heads, head_dim in ((3, 16, 128), (4, 16, 64), (3, 4, 64), (4, 4, 128)):
        options = {"heads": heads, "kv_heads": 4, "head_dim": head_dim, "window": 16, **rotatekv(bits, 4)}
        yield tokens(f"rotatekv{bits} {heads}/4x{head_dim}", options, counts, allowed=TURNED)
    yield tokens("kvquant2, heads together", {"heads": 8, "kv_heads": 4, "window": 16, "sinks": 1, **kvquant(2)}, counts)


def steps():
    """Appends of about one token per sequence have kernels of their own: also where a sequence gets several."""
    counts = [[40, 3, 20], [2, 1, 0], [0, 3, 0], [1, 0, 2], [3, 0, 0], [1, 1, 1]]
    formats = {
        "int2": {"window": 16}, "int2, no window": {"window": 0}, "int4": {"window": 16, **FORMATS["int4"]},
        "latent2": {"keys": Latent(), "window": 16},
        "latent2, no window": {"keys": Latent(), "window": 0, "sinks": 0},
        "latent4": {**FORMATS["latent4"], "window": 16},
        "svdq2.25": {"keys": SVDQ["svdq2.25"], "values": 4, "window": 0},
        "svdq1.25/int2, 20 sinks": {"keys": SVDQ["svdq1.25"], "window": 0, "sinks": 20},
        "svdq2.25, massive sinks": {"keys": SVDQ["svdq2.25"], "values": 4, "window": 0, "sinks": 40, "massive": True},
        "rotatekv2, massive sinks": {**rotatekv(2, 2), "window": 0, "sinks": 24, "massive": True},
        "rotatekv2, 40 heads": {**rotatekv(2, 4), "kv_heads": 40, "heads": 40},
        "rotatekv2, 12 heads in an order": {**rotatekv(2, 2, "group"), "window": 0, "kv_heads": 12, "heads": 12},
        "kvquant2": {**kvquant(2), **FIRST_EXACT},
        "kvquant3, 24 heads": {**kvquant(3), "window": 16, "kv_heads": 24, "heads": 24},
        "kvquant2, 40 heads": {**kvquant(2), **FIRST_EXACT, "kv_heads": 40, "heads": 40},
        "kvquant4, 64 heads": {**kvquant(4), "window": 16, "kv_heads": 64, "heads": 64},
    }
    for (name, options), dtype in itertools.product(formats.items(), TOLERANCE):
        yield tokens(f"{name} {dtype}, several tokens of a sequence", {"heads": 6, "kv_heads": 6, **options}, counts, 0,
                     dtype=dtype, values=False)
