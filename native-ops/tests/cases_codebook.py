# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""The kernels of kvquant: outliers, heads and types, elements among which outliers are hard to tell."""
import itertools

import torch

from cuda_checks import ODD, ORDERED, TOLERANCE, Case, check_invariants, check_odd, lengths, tokens
from cuda_formats import Codebook

# The defaults of kvquant's options.
FIRST_EXACT = {"window": 0, "sinks": 1}


def kvquant(bits, share=0.01):
    """Options of a layer; share: of elements that are outliers."""
    return {"keys": Codebook(bits, share), "values": Codebook(bits, share, keys=False)}


def cases():
    shapes = ((32, 8), (8, 8), (16, 2), (10, 5), (18, 2), (40, 40))
    others = (FIRST_EXACT, {"window": 32, "sinks": 4}, {"window": 0, "sinks": 0})
    for (heads, kv_heads), other in itertools.product(shapes, others):
        yield tokens(f"kvquant2 {heads}/{kv_heads}, {other}",
                     {"heads": heads, "kv_heads": kv_heads, **kvquant(2), **other}, values=False)
    for bits, share in itertools.product((2, 3, 4), (0, 0.01, 0.05)):
        yield tokens(f"kvquant{bits}, {share} outliers",
                     {"heads": 16, "kv_heads": 8, **kvquant(bits, share), **FIRST_EXACT})
    yield from grouped({"heads": 16, "kv_heads": 4, **kvquant(2), **FIRST_EXACT})
    for (bits, share, kv_heads), odd in itertools.product(((2, 0.01, 4), (3, 0.05, 5), (4, 0.02, 1), (2, 0, 4)), ODD):
        yield Case(f"kvquant{bits} of {kv_heads} heads, {share} outliers, {odd}", check_odd,
                   {"heads": 2 * kv_heads, "kv_heads": kv_heads, **kvquant(bits, share), **FIRST_EXACT},
                   {"odd": odd, "keys": True})


def grouped(options):
    """Heads of four queries: lengths, steps, scores."""
    for dtype in TOLERANCE:
        yield lengths(f"kvquant2 {dtype}", options, dtype=dtype)
    yield tokens("kvquant2 steps", options, [[1, 2, 3]], 150, values=False)
    # Scores reach 40, off by 4e-4 of their size: weights by 1.6e-2, and by as much again where two tokens share most.
    yield tokens("kvquant2, large scores", options, [[900, 2000]], scale=6.0, values=False, allowed=3e-2)
    # Levels are rounded to halves, an error that all tokens share: a mean of many values is smaller than they, it is
    # not.
    yield tokens("kvquant2, flat scores", options, [[900, 2000]], scale=0.0, dtype=torch.float32, values=False,
                 allowed=ORDERED)
    yield tokens("kvquant2, long", options, [[33000]], 1, values=False, allowed=1.2e-2)
    yield Case("kvquant2 invariants", check_invariants, options, {})
