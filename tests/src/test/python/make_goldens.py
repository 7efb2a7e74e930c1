#!/usr/bin/env python3
# Copyright 2026 The djl-kvquant authors.
# Licensed under the Apache License, Version 2.0. See LICENSE.
"""Writes golden values that HuggingFace transformers computes in fp32 with eager attention.

    make_goldens.py checkpoints [--only NAME]   small checkpoints and what they answer
    make_goldens.py model MODEL_DIRECTORY       the default model's answers to four prompts

A golden is kept only if it decides: at every step of the greedy continuation the best logit leads
the second by more than MARGIN, a forward pass without a cache chooses the same tokens, and fp32
logits lie within SMALL_NOISE or MODEL_NOISE of fp64's. For small checkpoints seeds are tried in
order until that holds.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

import prompts
import tiny_checkpoints

GOLDEN = Path(__file__).parents[1] / "resources" / "golden"
NEW_TOKENS = 64
MARGIN = 1e-2
SMALL_NOISE = 1e-4
MODEL_NOISE = 3e-4
DISTINCT = 20  # different tokens in a small checkpoint's continuation, so that it is no mere loop
TOP = 64
COLUMN_STEP = 96  # every 96th of the default model's 49,152 logits


class Undecided(Exception):
    """This golden would not tell a right implementation from a wrong one."""


def load(directory, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()


@torch.inference_mode()
def greedy(model, prompt):
    """Decodes with transformers' own cache; an end-of-sequence token does not end it."""
    ids, cache, tokens = torch.tensor([prompt]), None, []
    for _ in range(NEW_TOKENS):
        output = model(ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        tokens.append(int(output.logits[0, -1].argmax()))
        ids = torch.tensor([tokens[-1:]])
    return tokens


@torch.inference_mode()
def all_logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()


def answer(directory, prompt, allowed_noise, distinct=0):
    """Returns (continuation, fp32 logits of every position but the last, smallest margin)."""
    model = load(directory)
    tokens = greedy(model, prompt)
    if len(set(tokens)) < distinct:
        raise Undecided(f"{len(set(tokens))} different tokens only")
    ids = prompt + tokens[:-1]
    logits = all_logits(model, ids)
    decided = logits[len(prompt) - 1 :]
    if decided.argmax(axis=1).tolist() != tokens:
        raise Undecided("a forward pass without a cache chooses other tokens")
    best = np.sort(decided, axis=1)
    margin = float((best[:, -1] - best[:, -2]).min())
    if margin <= MARGIN:
        raise Undecided(f"smallest margin {margin:.1e}")
    noise = float(np.abs(all_logits(load(directory, torch.float64), ids) - logits).max())
    if noise > allowed_noise:
        raise Undecided(f"fp32 and fp64 differ by {noise:.1e}")
    return tokens, logits.astype(np.float32), margin


def make_checkpoint(name, spec):
    """Writes checkpoints/NAME and expected/NAME.{json,f32} for the first seed that decides."""
    directory = GOLDEN / "checkpoints" / name
    for seed in range(1000):
        shutil.rmtree(directory, ignore_errors=True)
        prompt = tiny_checkpoints.write_checkpoint(spec, seed, directory)
        try:
            tokens, logits, margin = answer(directory, prompt, SMALL_NOISE, DISTINCT)
        except Undecided:
            continue
        break
    else:
        raise SystemExit(f"{name}: no seed decides; change its std or size")
    # The prompt's positions, then the last decoded one, which a cache must have reached.
    rows = np.concatenate([logits[: len(prompt)], logits[-1:]])
    expected = GOLDEN / "expected"
    expected.mkdir(parents=True, exist_ok=True)
    rows.astype("<f4").tofile(expected / f"{name}.f32")
    record = {
        "about": spec.about,
        "seed": seed,
        "margin": round(margin, 4),
        "prompt": prompt,
        "continuation": tokens,
    }
    (expected / f"{name}.json").write_text(one_line_per_key(record), encoding="ascii")
    kilobytes = sum(file.stat().st_size for file in directory.iterdir()) / 1000
    print(f"{name}: seed {seed}, margin {margin:.3f}, {len(set(tokens))} tokens, {kilobytes:.0f} kB")


def make_model_goldens(directory):
    """Writes default_model.json: four prompts, their continuations and some logits."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    cases = []
    for name, text in prompts.TEXTS.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens, logits, margin = answer(directory, ids, MODEL_NOISE)
        last = logits[len(ids) - 1]
        top = np.argsort(-last, kind="stable")[:TOP]
        cases.append(
            {
                "name": name,
                "text": text,
                "margin": round(margin, 4),
                "prompt": ids,
                "continuation": tokens,
                "continuation_text": tokenizer.decode(tokens),
                "top_ids": top.tolist(),
                "top_logits": decimals(last[top]),
                "column_step": COLUMN_STEP,
                "column_logits": decimals(last[::COLUMN_STEP]),
            }
        )
        print(f"{name}: {len(ids)} tokens, margin {margin:.3f}: {tokenizer.decode(tokens)!r}")
    body = ",\n".join(one_line_per_key(case).rstrip() for case in cases)
    (GOLDEN / "default_model.json").write_text(f"[\n{body}\n]\n", encoding="ascii")


def decimals(values):
    """fp32 values as the shortest decimals that read back the same."""
    return [float(str(value)) for value in values.astype(np.float32)]


def one_line_per_key(record):
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(record[key])}" for key in record)
    return "{\n" + lines + "\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    small = commands.add_parser("checkpoints", help="small checkpoints")
    small.add_argument("--only", choices=sorted(tiny_checkpoints.SPECS))
    model = commands.add_parser("model", help="the default model")
    model.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.command == "model":
        make_model_goldens(arguments.directory)
        return
    for name, spec in tiny_checkpoints.SPECS.items():
        if arguments.only in (None, name):
            make_checkpoint(name, spec)


if __name__ == "__main__":
    main()
