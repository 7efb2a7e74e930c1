#!/usr/bin/env python3
# Copyright 2026 The djl-kvquant authors.
# Licensed under the Apache License, Version 2.0. See LICENSE.
"""Writes two small TorchScript models as users of DJL's TextGenerator trace them.

    make_traced_models.py

Both take (input_ids, position_ids, attention_mask, past_key_values) and return logits, new keys and
values and the last hidden state, and have random weights. gpt2.pt is as GPT-2: learned positions,
layer norms, one projection for query, key and value. llama.pt is as LLaMA: rotary positions, RMS
norms, SwiGLU, fewer key and value heads than query heads.
"""

import io
import zipfile
from pathlib import Path

import torch
from torch import nn

GOLDEN = Path(__file__).parents[1] / "resources" / "golden"
VOCABULARY = 256
LAYERS = 2
HEADS = 2
HEAD_DIM = 32
WIDTH = 64
POSITIONS = 160
STD = 0.2  # large: continuations are varied


def attend(query, key, value, mask):
    """Of queries [batch, heads, new, dim]; mask [batch, past + new] hides padding."""
    # Columns are counted by a sum, which a trace keeps for every length.
    columns = torch.cumsum(torch.ones_like(mask), 1)
    own = columns[:, key.size(2) - query.size(2) :]
    seen = (columns[:, None, :] <= own[:, :, None]) & (mask[:, None, :] > 0)
    scores = query @ key.transpose(2, 3) / HEAD_DIM**0.5
    scores = scores.masked_fill(~seen[:, None], -1e9)
    return scores.softmax(-1) @ value


def heads(x, count):
    return x.view(x.size(0), x.size(1), count, HEAD_DIM).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).reshape(x.size(0), x.size(2), -1)


class Gpt2Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD_DIM)
        self.out = nn.Linear(HEADS * HEAD_DIM, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, mask, past):
        query, key, value = (heads(y, HEADS) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        x = x + self.out(merged(attend(query, key, value, mask)))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x)))), (key, value)


class Gpt2(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.layers = nn.ModuleList(Gpt2Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, input_ids, position_ids, attention_mask, past_key_values):
        x = self.tokens(input_ids) + self.positions(position_ids)
        caches = []
        for layer, past in zip(self.layers, past_key_values):
            x, cache = layer(x, attention_mask, past)
            caches.append(cache)
        x = self.norm(x)
        return x @ self.tokens.weight.T, tuple(caches), x


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class LlamaLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = RmsNorm(), RmsNorm()
        self.query = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        self.key = nn.Linear(WIDTH, HEAD_DIM, bias=False)
        self.value = nn.Linear(WIDTH, HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x, angles, mask, past):
        y = self.norm1(x)
        query, key = turned(heads(self.query(y), HEADS), angles), turned(heads(self.key(y), 1), angles)
        key = torch.cat([past[0], key], 2)
        value = torch.cat([past[1], heads(self.value(y), 1)], 2)
        x = x + self.out(merged(attend(query, key, value, mask)))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y)), (key, value)


def turned(x, angles):
    """Rotary positions, channels i and i + HEAD_DIM / 2 a pair."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(LAYERS))
        self.norm = RmsNorm()
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        steps = torch.arange(0, HEAD_DIM, 2) / HEAD_DIM
        self.register_buffer("frequencies", 10000.0**-steps)

    def forward(self, input_ids, position_ids, attention_mask, past_key_values):
        x = self.tokens(input_ids)
        angles = position_ids[..., None] * self.frequencies
        caches = []
        for layer, past in zip(self.layers, past_key_values):
            x, cache = layer(x, angles, attention_mask, past)
            caches.append(cache)
        x = self.norm(x)
        return self.output(x), tuple(caches), x


def example(kv_heads, batch, new, past):
    mask = torch.ones(batch, past + new, dtype=torch.int64)
    mask[:, 0] = 0
    positions = torch.arange(past - 1, past - 1 + new).expand(batch, new)
    shape = (batch, kv_heads, past, HEAD_DIM)
    caches = tuple((torch.randn(shape), torch.randn(shape)) for _ in range(LAYERS))
    return torch.randint(VOCABULARY, (batch, new)), positions, mask, caches


@torch.inference_mode()
def write(name, model, kv_heads):
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=STD)
    model.eval()
    traced = torch.jit.trace(model, example(kv_heads, 2, 3, 4), check_trace=False)
    # A trace holds for every batch, prompt and past.
    for sizes in [(1, 1, 9), (3, 7, 1), (4, 1, 40)]:
        inputs = example(kv_heads, *sizes)
        expected, actual = model(*inputs), traced(*inputs)
        torch.testing.assert_close(actual, expected)
    path = GOLDEN / "traced" / f"{name}.pt"
    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    # Without what it says of the source files of this machine.
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                record = zipfile.ZipInfo(entry.filename.replace("archive/", f"{name}/", 1))
                target.writestr(record, source.read(entry))
    torch.testing.assert_close(torch.jit.load(path)(*inputs), expected)
    print(path.name, path.stat().st_size)


def main():
    torch.manual_seed(0)
    write("gpt2", Gpt2(), HEADS)
    write("llama", Llama(), 1)


if __name__ == "__main__":
    main()
