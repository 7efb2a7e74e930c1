# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""The kernels of latent2 and latent4, with a basis per head, and of svdq, with one over all heads."""
import itertools

import torch

from cuda_cache import SCHEDULES
from cuda_checks import TOLERANCE, Case, check_invariants, lengths, scores, tokens
from cuda_formats import SVDQ, Latent

WIDTHS = {"all runs": (8, 8, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1), "odd": SCHEDULES["odd"],
          "one": (4,) + (0,) * 15}
PER_HEAD = {**WIDTHS, "few": SCHEDULES["few"], "none": SCHEDULES["none"]}


def cases():
    yield from per_head()
    yield from whole_layer()


def per_head():
    """Every width, columns of 1 to 12 queries, parts, exact tokens."""
    for name, widths in PER_HEAD.items():
        yield tokens(f"latent2 {name}", {"heads": 4, "kv_heads": 2, "keys": Latent(widths), "window": 20}, values=False)
    for heads, bits in itertools.product((1, 4, 12), (3, 4)):
        yield tokens(f"latent4/int{bits}, {heads} heads",
                     {"heads": 2 * heads, "kv_heads": 2, "keys": Latent(SCHEDULES["four"]), "values": bits, "window": 20},
                     values=False)
    for heads, other in itertools.product((1, 3, 8, 12), ({"window": 0, "sinks": 0}, {"sinks": 20, "window": 40})):
        yield tokens(f"latent2 {heads}/1, {other}", {"heads": heads, "kv_heads": 1, "keys": Latent(), **other},
                     values=False)
    options = {"keys": Latent()}
    for dtype in TOLERANCE:
        yield lengths(f"latent2 {dtype}", options, dtype=dtype)
    yield from scores("latent2", options)
    yield tokens("latent2 long", options, [[33000]], 1, values=False)
    yield Case("latent2 invariants", check_invariants, options, {})


def whole_layer():
    """Prompts without a window: every width, tiles of runs of several heads, types, sinks, chunks of few tokens."""
    sides = {**{name: Latent(widths, whole_layer=True) for name, widths in WIDTHS.items()}, **SVDQ}
    others = ((8, torch.float16, {"values": 4}), (3, torch.bfloat16, {"values": 2, "sinks": 20}),
              (2, torch.float16, {"values": 16, "sinks": 0}),
              (4, torch.float32, {"values": 4, "sinks": 40, "massive": True}))
    for (name, keys), (kv_heads, dtype, other) in itertools.product(sides.items(), others):
        yield tokens(f"svdq {name} of {kv_heads} heads {dtype} {other}",
                     {"heads": kv_heads, "kv_heads": kv_heads, "window": 0, "keys": keys, **other},
                     [[300, 2, 129], [17, 3, 200], [1, 0, 9]], dtype=dtype)
