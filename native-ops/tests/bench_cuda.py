# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""Decode attention and append on CUDA against the best fp16 attention of torch and a device copy, in one run.

    python bench_cuda.py DIRECTORY [--json FILE] [--shapes 0,1] [--only int2,rotatekv2] [--reference]

DIRECTORY holds libkvquant_cpu.so and libkvquant_cuda.so. Times are per launch, of CUDA graphs of many launches that
rotate among caches larger than L2 together, the median of several replays after a warm-up. Caches hold random tokens
that went through append; the window and sinks are part of int2. `best` is the faster of torch's flash and cuDNN
attention with contiguous fp16 keys and values.
"""
import argparse
import itertools
import json
import math
import statistics
import time

import torch

import cuda_formats
from cuda_cache import Cache, Layer
from cuda_formats import SVDQ, Codebook, Latent, Rotated

OPS = torch.ops.kvquant
SHAPES = [(32, 32, 8, 128, 32768), (16, 32, 32, 128, 4096), (1, 32, 8, 128, 131072), (8, 40, 40, 128, 8192),
          (1, 32, 8, 128, 32768), (1, 32, 8, 128, 4096), (32, 32, 8, 64, 32768), (16, 32, 32, 64, 4096),
          (1, 32, 8, 64, 131072)]
FORMATS = {"int2": {}, "int2 flat": {"schedule": "flat"},
           "rotatekv2": {"keys": Rotated(2, 4, 0), "values": Rotated(2, 1, 0, 0.8), "window": 0, "sinks": 0},
           "rotatekv2 sinks": {"keys": Rotated(2, 4, 0), "values": Rotated(2, 1, 0, 0.8), "window": 0, "sinks": 20,
                               "massive": True},
           "rotatekv2 ordered": {"keys": Rotated(2, 4, 0, order="group"), "values": Rotated(2, 1, 0, 0.8),
                                 "window": 0, "sinks": 0},
           "latent2": {"keys": Latent()},
           "fp16": {"keys": "fp16", "values": 16, "window": 0, "sinks": 0}}
DEFAULT = ",".join(FORMATS)
# On request.
FORMATS.update({f"kvquant{bits}": {"keys": Codebook(bits, 0.01), "values": Codebook(bits, 0.01, keys=False), "window": 0,
                                   "sinks": 1} for bits in (2, 3, 4)})
# Key sparsity, 1/32 of the tokens of the longest shape; without it every token's keys are rebuilt.
for svdq, keys in SVDQ.items():
    FORMATS[svdq] = {"keys": keys, "values": 4, "window": 0}
    FORMATS[f"{svdq} sparse"] = {**FORMATS[svdq], "sparse": 1024}
FORMATS.update({f"rotatekv{bits}": {"keys": Rotated(bits, 4, 0), "values": Rotated(bits, 1, 0), "window": 0, "sinks": 0}
                for bits in (3, 4)})
FORMATS.update({name: cuda_formats.FORMATS[name] for name in ("int3", "int4", "int8", "latent4")})
FORMATS["int2 sparse"] = {"sparse": 1024}
L2_BYTES = 64 << 20


def timed(launches, replays=9, warm_up=0.15):
    """Median microseconds of one launch: a graph of all launches in order, replayed."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for launch in launches[:3]:
            launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for launch in launches:
            launch()
    begin = time.time()
    while time.time() - begin < warm_up:
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(replays):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) * 1e3 / len(launches))
    return statistics.median(times)


def copies_for(size):
    """How many caches of a size rotate, and how many launches a graph has."""
    copies = max(1, math.ceil(4 * L2_BYTES / size) + (1 if size < 4 * L2_BYTES else 0))
    return copies, math.ceil(20 / copies) * copies


def copy_speed():
    source = torch.empty(1 << 29, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / timed([lambda: target.copy_(source)] * 10) / 1e6


def best_attention(batch, heads, kv_heads, head_dim, tokens):
    """Microseconds of torch's backends."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    size = 4 * batch * kv_heads * tokens * head_dim
    copies, launches = copies_for(size)
    make = lambda n, t: torch.randn(batch, n, t, head_dim, device="cuda", dtype=torch.float16)
    q, ks, vs = make(heads, 1), [make(kv_heads, tokens) for _ in range(copies)], [make(kv_heads, tokens) for _ in range(copies)]
    times = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        try:
            with sdpa_kernel(backend):
                attend = lambda i: torch.nn.functional.scaled_dot_product_attention(
                    q, ks[i % copies], vs[i % copies], enable_gqa=heads != kv_heads)
                times[name] = timed([(lambda i=i: attend(i)) for i in range(launches)])
        except RuntimeError as error:
            print(f"  {name} did not run: {str(error).splitlines()[0][:100]}")
    return times, size


def filled_cache(layer, batch, tokens):
    """A cache of random tokens; one sequence is filled by append and the others copy its pages."""
    cache = Cache(layer, [tokens + 1] * batch, "cuda", ops=OPS)
    cache.pages.zero_(), cache.exact.zero_()
    one = Cache(layer, [tokens + 1], "cuda", ops=OPS, seed=5)
    one.pages.zero_(), one.exact.zero_()
    generator = torch.Generator(device="cuda").manual_seed(11)
    for begin in range(0, tokens, 8192):
        count = min(8192, tokens - begin)
        rows = layer.random_rows(count, torch.float16, "cuda", generator=generator)
        one.append(rows, [count], torch.randn(count, 64, device="cuda", generator=generator))
    for b in range(batch):
        n = one.page_table.shape[1]
        # Rolled by some pages, so that sequences differ.
        source = torch.roll(one.page_table[0], 3 * b) if b else one.page_table[0]
        cache.pages[cache.page_table[b, :n].long()] = one.pages[source.long()]
        cache.exact[cache.exact_table[b].long()] = one.exact[one.exact_table[0].long()]
    cache.lengths[:, 0] = tokens
    return cache


def clone(cache):
    other = cache.to("cuda", cache.ops)
    return other


def read_pages(layer, cache, q, stored):
    """Of sequence 0, whether each kv head reads each page (core/landmarks.h); q [heads, 1, head_dim] after RoPE."""
    pages, candidates, wanted = -(-stored // 64), max(0, stored - 64) // 64, -(-layer.sparse // 64)
    read = torch.ones(layer.kv_heads, pages, dtype=torch.bool, device="cuda")
    if layer.sparse == 0 or wanted >= candidates:
        return read
    size = 2 * layer.kv_heads * layer.head_dim
    landmarks = cache.pages[cache.page_table[0, :candidates].long(), -size:].contiguous().view(torch.bfloat16)
    landmarks = landmarks.double().reshape(candidates, layer.kv_heads, 1, layer.head_dim)
    queries = q.double().reshape(1, layer.kv_heads, -1, layer.head_dim)
    shares = torch.softmax((landmarks * queries).sum(-1) / math.sqrt(layer.head_dim), 0)
    worth = shares.reshape(candidates, layer.kv_heads // layer.together, -1).amax(-1)
    read[:, :candidates] = False
    for head in range(layer.kv_heads):
        read[head, worth[:, head // layer.together].topk(wanted).indices] = True
    return read


def check(layer, cache, rows, out):
    """Attention of sequence 0 against dequantized tokens in double precision."""
    length = int(cache.lengths[0, 0])
    one = cache.to("cuda", cache.ops)
    one.lengths, one.page_table, one.exact_table = one.lengths[:1] + 0, one.page_table[:1].contiguous(), one.exact_table[:1].contiguous()
    one.lengths[:, 0] = length + 1
    k, v = OPS.dequantize(0, 0, length + 1, *one.state())
    starts = torch.tensor([0, 1], dtype=torch.int32, device="cuda")
    q, _, _ = OPS.rope_heads(rows[:1].float().contiguous(), starts, *cache_at(one, length).state())
    group = layer.heads // layer.kv_heads
    stored = length + 1 - layer.window
    read = read_pages(layer, one, q, stored)
    bias = OPS.score_bias(q.float().contiguous(), layer.params) if layer.window else torch.zeros(layer.heads, 1, device="cuda")
    worst = 0.0
    for h in range(layer.heads):
        s = (k[h // group].double() @ q[h, 0].double()) / math.sqrt(layer.head_dim)
        s[layer.sinks:stored] += bias[h, 0].double()
        skipped = ~read[h // group].repeat_interleave(64)[:stored]
        skipped[:layer.sinks] = False
        s[:stored][skipped] = -math.inf
        want = torch.softmax(s, 0) @ v[h // group].double()
        got = out[0].reshape(layer.heads, -1)[h].double()
        worst = max(worst, float((got - want).norm() / want.norm()))
    return worst


def cache_at(cache, length):
    cache.lengths[:, 0] = length
    return cache


def bench_format(name, options, shape, best, reference):
    batch, heads, kv_heads, head_dim, tokens = shape
    layer = Layer(heads=heads, kv_heads=kv_heads, head_dim=head_dim, positions=tokens + 64, **options)
    cache = filled_cache(layer, batch, tokens)
    rows = layer.random_rows(batch, torch.float16, "cuda")
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
    none = torch.empty(0, device="cuda")
    tables = (layer.sink_pages + layer.ring) * batch * layer.exact_bytes
    size = batch * ((tokens + 63) // 64) * layer.page_bytes + tables
    copies, launches = copies_for(size)
    caches = [cache] + [clone(cache) for _ in range(copies - 1)]
    OPS.append(rows, starts, none, none, *cache.state())
    error = check(layer, cache, rows, OPS.attend(rows, *cache.state())) if reference else float("nan")
    for other in caches[1:]:
        OPS.append(rows, starts, none, none, *other.state())
    state = [c.state() for c in caches]
    attend = timed([(lambda i=i: OPS.attend(rows, *state[i % copies])) for i in range(launches)])
    append = timed([(lambda i=i: OPS.append(rows, starts, none, none, *state[i % copies])) for i in range(launches)])
    return {"format": name, "attend_us": attend, "append_us": append, "bytes": size, "tbs": size / attend / 1e6,
            "ratio": best / attend, "error": error}


def bench_prefill(name, copy_tbs, head_dim=128, kv_heads=8, tokens=8192):
    """Append of a prompt's chunk and dequantize of as many tokens. Bytes that must move: k and v as FLOAT16, and pages;
    queries between the keys are not read. Inputs, caches and results rotate, so that none of them stays in L2."""
    layer = Layer(heads=32, kv_heads=kv_heads, head_dim=head_dim, **FORMATS[name])
    moved = tokens * (4 * layer.kv_heads * layer.head_dim + layer.page_bytes / 64)
    copies, launches = copies_for(moved)
    caches = [Cache(layer, [tokens + 64], "cuda", ops=OPS) for _ in range(copies)]
    rows = [layer.random_rows(tokens, torch.float16, "cuda") for _ in range(copies)]
    starts = torch.tensor([0, tokens], dtype=torch.int32, device="cuda")
    massive = [torch.empty(0, device="cuda")] * 2
    if layer.massive:
        massive = OPS.massive_entries(torch.randn(tokens, 64, device="cuda"), starts)
    state = [cache.state() for cache in caches]
    append = timed([lambda i=i: OPS.append(rows[i % copies], starts, *massive, *state[i % copies])
                    for i in range(launches)])
    for cache in caches:
        cache.lengths[:, 0] = tokens
    results = []
    read = timed([lambda i=i: results.append(OPS.dequantize(0, 0, tokens, *state[i % copies]))
                  for i in range(launches)])
    return {"format": name, "kv_heads": kv_heads, "head_dim": head_dim, "append_us": append,
            "append_of_copy": moved / append / 1e6 / copy_tbs, "dequantize_us": read,
            "dequantize_of_copy": moved / read / 1e6 / copy_tbs}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--json")
    parser.add_argument("--shapes", default=",".join(str(i) for i in range(len(SHAPES))))
    parser.add_argument("--only", default=DEFAULT)
    parser.add_argument("--prompts", default="8x128,8x64", help="kv heads x head_dim of prompts and dequantized tokens")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--once", action="store_true", help="one launch of each, for a profiler")
    arguments = parser.parse_args()
    for library in ("libkvquant_cpu.so", "libkvquant_cuda.so"):
        torch.ops.load_library(f"{arguments.directory}/{library}")
    if arguments.once:
        for i in arguments.shapes.split(","):
            batch, heads, kv_heads, head_dim, tokens = SHAPES[int(i)]
            for name in arguments.only.split(","):
                layer = Layer(heads=heads, kv_heads=kv_heads, head_dim=head_dim, positions=tokens + 64, **FORMATS[name])
                cache, rows = filled_cache(layer, batch, tokens), layer.random_rows(batch, torch.float16, "cuda")
                for _ in range(3):
                    cache_at(cache, tokens).decode(rows)
        torch.cuda.synchronize()
        return
    copy_tbs = copy_speed()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {copy_tbs:.2f} TB/s (read and written)")
    results = {"copy_tbs": copy_tbs, "shapes": []}
    for i in filter(None, arguments.shapes.split(",")):
        shape = SHAPES[int(i)]
        times, size = best_attention(*shape)
        torch.cuda.empty_cache()
        best = min(times.values())
        print(f"{shape}: " + ", ".join(f"{n} {t:.1f} us" for n, t in times.items()) + f", best {size / best / 1e6:.2f} TB/s")
        entry = {"shape": shape, "fp16": times, "formats": []}
        for name in arguments.only.split(","):
            result = bench_format(name, FORMATS[name], shape, best, arguments.reference)
            entry["formats"].append(result)
            print("  {format:16} attend {attend_us:8.1f} us {tbs:.2f} TB/s ratio {ratio:.2f}, append {append_us:.1f} us, "
                  "error {error:.1e}".format(**result), flush=True)
            torch.cuda.empty_cache()
        results["shapes"].append(entry)
    results["prefill"] = []
    for name, prompt in itertools.product(arguments.only.split(","), arguments.prompts.split(",")):
        kv_heads, head_dim = (int(x) for x in prompt.split("x"))
        result = bench_prefill(name, copy_tbs, head_dim, kv_heads)
        results["prefill"].append(result)
        torch.cuda.empty_cache()
        print("  {format:16} {kv_heads}x{head_dim} append of 8192 tokens {append_us:.1f} us ({append_of_copy:.0%} of "
              "copy), dequantize {dequantize_us:.1f} us ({dequantize_of_copy:.0%})".format(**result))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
