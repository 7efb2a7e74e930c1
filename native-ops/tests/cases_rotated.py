# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""The kernels of rotatekv2: heads rotated together, orders of channels, windows and sinks. Keys are turned in halves,
scores are off by some 4e-4 of their size."""
import itertools

import torch

from cuda_checks import ORDERED, TURNED, Case, check_invariants, lengths, tokens
from cuda_formats import Rotated

PLAIN = {"window": 0, "sinks": 0}
MASSIVE = {"window": 0, "sinks": 20, "massive": True}


def rotatekv(bits, together, order=False):
    """Options of a layer; together: heads that are rotated as one; order: see Rotated."""
    return {"keys": Rotated(bits, together, 128, order=order), "values": Rotated(bits, 1, 128)}


def cases():
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
