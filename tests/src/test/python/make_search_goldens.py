#!/usr/bin/env python3
# Copyright 2026 The djl-kvquant authors.
# Licensed under the Apache License, Version 2.0. See LICENSE.
"""Writes what greedy, beam and contrastive search answer on the small golden checkpoints.

    make_search_goldens.py [--only NAME]

The searches are written here from their definition, as DJL's TextGenerator has them (a beam's score
is the product of its probabilities, each beam offers its best BEAMS tokens; contrastive search takes
of the K best tokens the one with the largest (1 - ALPHA) probability - ALPHA similarity), on logits
and last hidden states of HuggingFace transformers in fp32, computed anew for every token: no cache.
A prompt is kept if every choice is made by more than MARGIN.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers

GOLDEN = Path(__file__).parents[1] / "resources" / "golden"
NEW_TOKENS = 24
BEAMS = 3
K = 4
ALPHA = 0.6
MARGIN = 1e-3
LENGTHS = (13, 8)  # of the two prompts: in one batch, the second is padded
PADDING = 0  # no prompt begins with it


class Undecided(Exception):
    """Rounding could change this answer."""


def require_apart(scores):
    """Scores in falling order, of which all but the last are used."""
    if float((scores[:-1] - scores[1:]).min()) <= MARGIN:
        raise Undecided


def states(model, rows):
    """Logits of the last token and hidden states of all, for rows of one length."""
    output = model(torch.tensor(rows), use_cache=False, output_hidden_states=True)
    return output.logits[:, -1], output.hidden_states[-1]


def greedy(model, prompt):
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        best = states(model, [tokens])[0][0].topk(2)
        require_apart(best.values)
        tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :]


def beam(model, prompt):
    beams = [(0.0, list(prompt))]
    for _ in range(NEW_TOKENS):
        logits = states(model, [tokens for _, tokens in beams])[0]
        best = logits.log_softmax(-1).topk(BEAMS + 1)
        offers = [
            (score + float(best.values[i, j]), tokens + [int(best.indices[i, j])])
            for i, (score, tokens) in enumerate(beams)
            for j in range(BEAMS + 1)
        ]
        offers.sort(key=lambda offer: -offer[0])
        require_apart(torch.tensor([score for score, _ in offers[: BEAMS + 1]]))
        beams = offers[:BEAMS]
    return [tokens[len(prompt) :] for _, tokens in beams]


def contrastive(model, prompt):
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        logits, past = states(model, [tokens])
        best = logits[0].softmax(-1).topk(K + 1)
        require_apart(logits[0].topk(K + 1).values)
        candidates = [tokens + [int(token)] for token in best.indices[:K]]
        new = states(model, candidates)[1][:, -1]
        similarity = torch.cosine_similarity(new[:, None], past, dim=-1).max(-1).values
        score = (1 - ALPHA) * best.values[:K] - ALPHA * similarity
        order = score.argsort(descending=True)
        require_apart(score[order[:2]])
        tokens = candidates[int(order[0])]
    return tokens[len(prompt) :]


@torch.inference_mode()
def make(name):
    directory = GOLDEN / "checkpoints" / name
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    expected = json.loads((GOLDEN / "expected" / f"{name}.json").read_text())
    source = expected["prompt"] + expected["continuation"]
    lines = []
    begin = 0
    for length in LENGTHS:
        while True:
            prompt = source[begin : begin + length]
            if len(prompt) < length:
                raise SystemExit(f"{name}: no prompt decides")
            begin += 1
            if prompt[0] == PADDING:
                continue
            try:
                answers = {
                    "prompt": prompt,
                    "greedy": greedy(model, prompt),
                    "beam": beam(model, prompt),
                    "contrastive": contrastive(model, prompt),
                }
            except Undecided:
                continue
            lines.append(json.dumps(answers))
            break
    (GOLDEN / "searches").mkdir(exist_ok=True)
    path = GOLDEN / "searches" / f"{name}.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="ascii")
    print(name, begin, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    names = sorted(path.name for path in (GOLDEN / "checkpoints").iterdir())
    parser.add_argument("--only", choices=names)
    only = parser.parse_args().only
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in names:
        if only in (None, name):
            make(name)


if __name__ == "__main__":
    main()
