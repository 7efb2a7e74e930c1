# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""The kernels of rotatekv: heads rotated together, orders of channels, windows and sinks. Keys are turned in halves,
scores are off by some 4e-4 of their size."""
import itertools

import torch

from cuda_checks import ODD, ORDERED, TOLERANCE, TURNED, Case, check_invariants, check_odd, lengths, tokens
from cuda_formats import Rotated

PLAIN = {"window": 0, "sinks": 0}
MASSIVE = {"window": 0, "sinks": 20, "massive": True}


def rotatekv(bits, together, order=False, group=0, **other):
    """Options of a layer; together: heads that are rotated as one; order, group: see Rotated."""
    return {"keys": Rotated(bits, together, group, order=order, **other), "values": Rotated(bits, 1, group, **other)}


def cases():
    yield from two_bits()
    yield from other_widths()
    yield from prompts()


def two_bits():
    """rotatekv2 at head_dim 128."""
    shapes = [(16, 4), (4, 4), (16, 8), (12, 4)]
    for (heads, kv_heads), together, other in itertools.product(shapes, (4, 2, 1), ({"window": 32}, PLAIN, MASSIVE)):
        yield tokens(f"rotatekv2 {heads}/{kv_heads}, {together} heads together, {other}",
                     {"heads": heads, "kv_heads": kv_heads, **rotatekv(2, together), **other}, allowed=TURNED)
    yield from orders()
    options = {"heads": 16, "kv_heads": 4, **rotatekv(2, 4), **PLAIN}
    yield tokens("rotatekv2, small scores", options, [[900, 2000]], scale=0.3)
    yield tokens("rotatekv2, flat scores", options, [[900, 2000]], scale=0.0, dtype=torch.float32)
    yield lengths("rotatekv2, lengths", options, allowed=TURNED)
    yield tokens("rotatekv2, long", options, [[33000]], 1, values=False, allowed=TURNED)


def orders():
    """Channels in an order across the layer (True) or within the heads that are rotated together (group)."""
    counts = [[300, 20, 129], [17, 2, 400]]
    shapes = [((32, 8), 4, True), ((16, 8), 1, True), ((32, 32), 4, True), ((32, 8), 4, "group"), ((4, 4), 4, "group"),
              ((12, 4), 2, "group"), ((16, 8), 1, "group")]
    for ((heads, kv_heads), together, order), other in itertools.product(shapes, ({"window": 32}, PLAIN, MASSIVE)):
        if order != True or other["window"] != 0:
            yield tokens(f"rotatekv2 {heads}/{kv_heads} in an order ({order}), {other}",
                         {"heads": heads, "kv_heads": kv_heads, **rotatekv(2, together, order), **other}, counts,
                         allowed=ORDERED)
    for heads, kv_heads, together in ((32, 8, 4), (12, 12, 2), (40, 40, 4), (3, 3, 1)):
        yield tokens(f"rotatekv2 {heads}/{kv_heads} in an order, no window",
                     {"heads": heads, "kv_heads": kv_heads, **rotatekv(2, together, True), **PLAIN}, allowed=ORDERED)
    yield Case("rotatekv2 in an order, invariants", check_invariants,
               {"heads": 16, "kv_heads": 4, **rotatekv(2, 4, "group"), "window": 32}, {"allowed": ORDERED})


def other_widths():
    """Attention over rotatekv3 and rotatekv4, and over rotatekv2 at head_dim 64."""
    shapes = [(16, 4, 4, PLAIN), (4, 4, 2, {"window": 32}), (16, 8, 1, MASSIVE), (12, 4, 4, {"window": 32}),
              (28, 4, 4, PLAIN), (32, 4, 2, MASSIVE), (8, 8, 4, MASSIVE)]
    for bits, head_dim in ((4, 128), (3, 128), (4, 64), (3, 64), (2, 64)):
        name, grouped = f"rotatekv{bits} of {head_dim}", {"heads": 16, "kv_heads": 4, "head_dim": head_dim}
        for heads, kv_heads, together, other in shapes:
            yield tokens(f"{name} {heads}/{kv_heads}, {together} heads together, {other}",
                         {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **rotatekv(bits, together), **other},
                         values=False, allowed=TURNED)
        for group in (32, 64, 128, 256):  # of fewer channels than a head or more than four: another kernel
            yield tokens(f"{name}, groups of {group}",
                         {**grouped, **rotatekv(bits, 4, group=group, float_zero=group == 128), **PLAIN}, values=False,
                         allowed=TURNED)
        yield from attention(name, {**grouped, **rotatekv(bits, 4), **PLAIN})
        yield Case(f"{name} invariants", check_invariants, {**grouped, **rotatekv(bits, 4), "window": 32},
                   {"allowed": TURNED})


def attention(name, options):
    for dtype in TOLERANCE:
        yield lengths(f"{name} {dtype}", options, dtype=dtype, allowed=TURNED)
    yield tokens(f"{name}, small scores", options, [[900, 2000]], scale=0.3, values=False)
    # Scores reach 40, off by 4e-4 of their size.
    yield tokens(f"{name}, large scores", options, [[900, 2000]], scale=6.0, values=False, allowed=3e-2)
    yield tokens(f"{name}, flat scores", options, [[900, 2000]], scale=0.0, dtype=torch.float32, values=False)
    yield tokens(f"{name}, long", options, [[20000]], 1, values=False, allowed=TURNED)


def prompts():
    """Prompts of rotatekv3 and 4, and of rotatekv at head_dim 64: ragged chunks, windows, sinks, orders, types."""
    counts = [[300, 20, 129], [17, 2, 200], [9, 0, 1]]
    sides = [(2, 64), (3, 64), (4, 64), (3, 128), (4, 128)]
    others = (({"window": 20, "sinks": 24}, torch.bfloat16), (PLAIN, torch.float16), (MASSIVE, torch.float32))
    shapes = [(8, 4, False), (8, 4, "group"), (6, 2, False), (3, 1, False)]
    for (bits, head_dim), (kv_heads, together, order), (other, dtype) in itertools.product(sides, shapes, others):
        yield tokens(f"rotatekv{bits} {kv_heads}x{head_dim}, order {order}, {other}, {dtype}",
                     {"heads": kv_heads, "kv_heads": kv_heads, "head_dim": head_dim, **rotatekv(bits, together, order),
                      **other}, counts, 1, dtype=dtype, allowed=ORDERED if order else TURNED)
    for bits, (kv_heads, together), (other, dtype) in itertools.product((3, 4), ((8, 4), (12, 2), (3, 1), (40, 4)), others[1:]):
        yield tokens(f"rotatekv{bits} {kv_heads}x128 in an order, {other}, {dtype}",
                     {"heads": kv_heads, "kv_heads": kv_heads, **rotatekv(bits, together, True), **other}, counts, 0,
                     dtype=dtype, allowed=ORDERED)
    for (bits, head_dim), order, odd in itertools.product(sides, (False, True), ODD):
        yield Case(f"rotatekv{bits} 8x{head_dim}, order {order}, {odd}", check_odd,
                   {"heads": 8, "kv_heads": 8, "head_dim": head_dim, **rotatekv(bits, 4, order), **PLAIN},
                   {"odd": odd, "keys": True})
