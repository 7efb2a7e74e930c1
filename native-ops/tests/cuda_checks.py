# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""What is checked of a cache on CUDA, against the portable operators of the CPU, and the cases it is checked with.

Both sides start from the same tensors and get the same tokens: what append leaves must be the same in every byte, and
attention and dequantized tokens are compared with the portable operator, which sums in double precision.
"""
import dataclasses
import math
from typing import Callable

import torch

from cuda_cache import PAGE, Cache, Layer

DEVICE, OPS = "cuda", torch.ops.kvquant
# ||out - reference|| / ||reference|| of a head: rounding of the output, of queries, of products' operands.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 8e-3}
# The same where keys are turned while they are read (windows, rotatekv2, kvquant), whatever the type: scores are off by
# some 4e-4 of their size, which heads with few large scores magnify. Of 3600 heads of int2 the worst was off by 4.4e-3,
# the median by 4.5e-4; with an order of channels elements are rounded once more (5.2e-3).
TURNED, ORDERED = 6e-3, 8e-3
# Half of the heads are better than this; than twice as much where keys are rounded before they are turned (kvquant).
MEDIAN = {torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 3e-3}
# Lengths around the borders of tiles, pages and windows.
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 132, 133, 191, 193, 257, 1000]
# The largest error of each comparison.
worst = {}


def emulate():
    """From now on kernels run on the CPU, in native-ops/emulator."""
    global DEVICE, OPS
    DEVICE, OPS = "cpu", torch.ops.kvquant_emulated


@dataclasses.dataclass(frozen=True)
class Case:
    """A check with its arguments; options make the layer."""
    name: str
    check: Callable
    options: dict
    arguments: dict

    def run(self):
        self.check(self.name, Layer(**self.options), **self.arguments)


def tokens(name, options, counts=((300, 20, 129), (17, 2, 200)), steps=2, **other):
    """A case of check_tokens; without counts, two ragged chunks."""
    return Case(name, check_tokens, options, {"counts": counts, "steps": steps, **other})


def lengths(name, options, **other):
    """A case of check_tokens, attention after a prompt of every length."""
    return tokens(name, options, [LENGTHS], values=False, **other)


def scores(name, options, large=6.0, **other):
    """Cases of check_tokens: scores that are large, and ones that are all the same."""
    for size, scale in (("large", large), ("flat", 0.0)):
        yield tokens(f"{name} {size} scores", options, [[900, 2000]], scale=scale, **other)


def check_same(name, case, got, want):
    got, want = got.cpu(), want.cpu()
    assert torch.equal(got, want), f"{case}: {name} differs in {int((got != want).sum())} of {want.numel()} bytes"


def check_stored(case, gpu, cpu):
    check_same("pages", case, gpu.pages, cpu.pages)
    check_same("exact pages", case, gpu.exact, cpu.exact)


def check_close(name, case, got, want, tolerance, median=None):
    got, want = got.double().cpu(), want.double().cpu()
    error = (got - want).norm(dim=-1) / want.norm(dim=-1).clamp_min(1e-30)
    largest = float(error.max()) if not torch.isnan(error).any() else float("inf")
    worst[name] = max(worst.get(name, 0.0), largest)
    assert largest <= tolerance, f"{case}: {name} is off by {largest:.2e} at {int(error.argmax())}, allowed {tolerance}"
    if median is not None:
        middle = float(error.median())
        assert middle <= median, f"{case}: half of {name} is off by {middle:.2e} or more, allowed {median}"


def check_tokens(case, layer, counts, steps, dtype=torch.float16, scale=1.0, values=True, allowed=0.0):
    """Prefill of counts[i] tokens for each i in turn, then decoding; values: dequantizes too; allowed: an error beyond
    TOLERANCE. Returns both caches and the last rows."""
    batch = len(counts[0])
    capacity = [sum(c[b] for c in counts) + steps + 1 for b in range(batch)]
    torch.manual_seed(7)
    cpu = Cache(layer, capacity)
    gpu = cpu.to(DEVICE, OPS)
    for chunk in counts:
        rows = layer.random_rows(sum(chunk), dtype)
        hidden = (4 * torch.randn(sum(chunk), 96)).round()  # whole numbers: many entries are equal
        want = cpu.append(rows.float(), chunk, hidden)
        got = gpu.append(rows.to(DEVICE), chunk, hidden.to(DEVICE))
        for name, one, other in zip(("massive values", "massive rows"), got, want):
            check_same(name, case, one, other)
        check_stored(case, gpu, cpu)
    for _ in range(steps):
        rows = layer.random_rows(batch, dtype, scale=scale)
        check_step(case, layer, gpu, cpu, rows, scale, allowed)
    if values:
        check_dequantized(case, gpu, cpu)
    return cpu, gpu, rows


def check_step(case, layer, gpu, cpu, rows, scale, allowed):
    want = cpu.decode(rows.float()).reshape(len(rows) * layer.heads, -1)
    out = gpu.decode(rows.to(DEVICE)).reshape(len(rows) * layer.heads, -1)
    assert out.dtype == rows.dtype
    check_stored(case, gpu, cpu)
    usual = TOLERANCE[rows.dtype] if scale < 5 else 1e-2
    tolerance = max(allowed, TURNED if layer.turned or layer.halved else 0.0, usual)
    median = MEDIAN[rows.dtype] * (2 if layer.halved else 1) if allowed <= TURNED and scale < 5 else None
    check_close(f"attend {str(rows.dtype)[6:]}", case, out, want, tolerance, median)


def check_dequantized(case, gpu, cpu):
    for b in range(len(cpu.lengths)):
        end = int(cpu.lengths[b, 0])
        for begin in {0, end // 2, end}:
            for name, got, want in zip("kv", gpu.ops.dequantize(b, begin, end, *gpu.state()),
                                       cpu.ops.dequantize(b, begin, end, *cpu.state())):
                assert got.shape == want.shape
                if end > begin:
                    check_close(f"dequantize {name}", case, got, want, 1e-3)


def check_invariants(case, layer, allowed=0.0):
    """Bits repeat, whatever lies in unused slots and wherever pages lie."""
    cpu, gpu, rows = check_tokens(case, layer, [[777, 130, 1, 64]], 1, allowed=allowed)
    rows = rows.to(DEVICE)
    gpu.lengths[:, 0] -= 1  # attend wants the lengths before its token
    first = gpu.ops.attend(rows, *gpu.state()).clone()
    noise = torch.empty(1 << 22, device=DEVICE)
    for i in range(100):
        if i % 7 == 0:
            noise.normal_()
        assert torch.equal(first, gpu.ops.attend(rows, *gpu.state())), "repeated attention differs: a race"
    order = torch.randperm(gpu.pages.shape[0])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    moved = gpu.to(DEVICE, OPS)
    moved.pages = gpu.pages[order.to(DEVICE)].contiguous()
    table = gpu.page_table.cpu().long()
    moved.page_table = torch.where(table >= 0, place[table.clamp_min(0)], table).to(torch.int32).to(DEVICE)
    assert torch.equal(first, gpu.ops.attend(rows, *moved.state())), "attention depends on where pages lie"
    wide = gpu.to(DEVICE, OPS)  # more columns: other parts, the same attention
    extra = torch.full((len(table), 300), -1, dtype=torch.int32, device=DEVICE)
    wide.page_table = torch.cat([gpu.page_table, extra], 1)
    check_close("parts", "wide table", gpu.ops.attend(rows, *wide.state()).reshape(-1, layer.head_dim),
                first.reshape(-1, layer.head_dim), 2e-3)


def check_truncation(case, layer):
    """Tokens are taken back and others appended: sinks are forgotten, stored tokens stay in their codes."""
    torch.manual_seed(3)
    cpu = Cache(layer, [500, 500])
    gpu = cpu.to(DEVICE, OPS)
    check_append(case, layer, gpu, cpu, [300, 2])
    lengths = torch.tensor([[200, 172], [1, 0]], dtype=torch.int32)
    cpu.lengths, gpu.lengths = lengths.clone(), lengths.clone().to(DEVICE)
    for chunk in ([5, 3], [1, 1], [40, 0]):
        check_append(case, layer, gpu, cpu, chunk)
    rows = layer.random_rows(2, torch.float16)
    check_close("attend", case, gpu.decode(rows.to(DEVICE)).reshape(2 * layer.heads, -1),
                cpu.decode(rows.float()).reshape(2 * layer.heads, -1), 2e-3)


def check_append(case, layer, gpu, cpu, chunk, change=lambda rows: None):
    rows = layer.random_rows(sum(chunk), torch.float16)
    change(rows)
    cpu.append(rows.float(), chunk)
    gpu.append(rows.to(DEVICE), chunk)
    check_stored(case, gpu, cpu)


def some(x, share):
    return torch.rand(x.shape) < share


# Elements that are hard to code: equal ones, infinite ones, no numbers.
ODD = {"zeros": lambda x: 0 * x, "equal elements": torch.ones_like, "few numbers": lambda x: (2 * x).round() / 2,
       "zeros of both signs": lambda x: torch.copysign(0 * x, x), "mostly zeros": lambda x: x * some(x, 0.05),
       "no numbers": lambda x: x.masked_fill(some(x, 0.3), math.nan),
       "infinite ones": lambda x: torch.where(some(x, 0.02), x * math.inf, x), "far ones": lambda x: 50 * x}


def check_odd(case, layer, odd, keys):
    """What chunks leave in pages whose values, and keys if asked for, are of ODD."""
    torch.manual_seed(11)
    cpu = Cache(layer, [60])
    gpu = cpu.to(DEVICE, OPS)
    first = (layer.heads + (0 if keys else layer.kv_heads)) * layer.head_dim

    def change(rows):
        rows[:, first:] = ODD[odd](rows[:, first:])

    for count in (23, 1, 9):
        check_append(case, layer, gpu, cpu, [count], change)


def check_equal_pages(case, layer):
    """Of pages that promise equally much the earlier ones are read: here of 40 pages with the same keys."""
    cpu = Cache(layer, [41 * PAGE])
    torch.manual_seed(5)
    gpu = cpu.to(DEVICE, OPS)
    check_append(case, layer, gpu, cpu, [40 * PAGE + 7])
    landmarks = layer.page_bytes - 2 * layer.kv_heads * layer.head_dim
    for cache in (cpu, gpu):
        cache.pages[:, landmarks:] = cache.pages[int(cache.page_table[0, 0]), landmarks:].clone()
    rows = layer.random_rows(1, torch.float16)
    check_close("attend", case, gpu.decode(rows.to(DEVICE)).reshape(layer.heads, -1),
                cpu.decode(rows.float()).reshape(layer.heads, -1), 2e-3)
