# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""Key sparsity: landmarks in pages, the pages that are chosen by them, and attention over these, with every way of
reading keys back, of sinks and of windows."""
import itertools

from cuda_cache import PAGE
from cuda_checks import TOLERANCE, TURNED, Case, check_equal_pages, check_invariants, lengths, tokens
from cuda_formats import KVQUANT_VALUES, SVDQ, Codebook, Latent, Rotated

FORMATS = {
    "svdq2.25": {"keys": SVDQ["svdq2.25"], "values": 4, "window": 0},
    "svdq1.25/int2, 20 sinks": {"keys": SVDQ["svdq1.25"], "window": 20, "sinks": 20},
    "svdq/fp16, odd widths": {"keys": Latent(whole_layer=True, widths=(3, 1, 8, 0, 2, 4, 1) + (0,) * 9), "values": 16,
                              "window": 0},
    "svdq2.25/int8": {"keys": SVDQ["svdq2.25"], "values": 8, "window": 0, "sinks": 0},
    "latent2": {"keys": Latent(), "window": 20},
    "int2": {"window": 32}, "int2, no window": {"window": 0, "sinks": 0},
    "fp16": {"keys": "fp16", "values": 16, "window": 0, "sinks": 0},
    "rotatekv2, massive sinks": {"keys": Rotated(heads=4), "values": Rotated(), "sinks": 24, "massive": True, "window": 0},
    "rotatekv3, order": {"keys": Rotated(3, 2, order=True), "values": Rotated(3), "window": 20},
    "kvquant2": {"keys": Codebook(2), "values": KVQUANT_VALUES[2], "window": 0, "sinks": 1},
}


def cases():
    yield from every_format([(32, 8, 128), (20, 2, 128), (6, 3, 64)])
    for name, dtype in itertools.product(("svdq2.25", "int2"), TOLERANCE):
        options = {"sparse": 64, **FORMATS[name]}
        yield lengths(f"sparse {name} {dtype}", options, dtype=dtype, allowed=TURNED)
        yield tokens(f"sparse {name} {dtype} steps", options, [[61, 190, 300]], 150, dtype=dtype, values=False,
                     allowed=TURNED)
    svdq = FORMATS["svdq2.25"]
    yield tokens("sparse svdq2.25, long", {"heads": 32, "kv_heads": 8, "sparse": 1024, **svdq}, [[20000]], values=False,
                 allowed=TURNED)
    yield lengths("svdq2.25, all tokens", svdq, allowed=TURNED)
    yield Case("sparse svdq2.25 invariants", check_invariants, {"sparse": 128, **svdq}, {"allowed": TURNED})
    yield Case("sparse fp16, equal pages", check_equal_pages, {**FORMATS["fp16"], "sparse": 5 * PAGE}, {})


def small_cases():
    """The same with few tokens, for sanitizers."""
    yield from every_format([(4, 2, 128)])


def every_format(shapes):
    for (name, options), (heads, kv_heads, head_dim), sparse in itertools.product(FORMATS.items(), shapes, (1, 129)):
        yield tokens(f"sparse {name} {heads}/{kv_heads}x{head_dim}, {sparse} tokens",
                     {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "sparse": sparse, **options},
                     [[330, 1, 500], [130, 140, 0], [1, 1, 1]], 3, values=False, allowed=TURNED)
