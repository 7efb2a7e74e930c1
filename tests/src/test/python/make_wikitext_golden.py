# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""Writes ../resources/golden/wikitext2.json: two windows of WikiText-2's test split as token ids of the default model.

    python make_wikitext_golden.py MODEL_DIRECTORY wiki.test.raw
"""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

CONTEXT = 2048
WINDOWS = 2


def main():
    tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
    ids = tokenizer.encode(Path(sys.argv[2]).read_text(encoding="utf-8"), add_special_tokens=False).ids
    total = len(ids) // CONTEXT
    numbers = [total * i // WINDOWS for i in range(WINDOWS)]
    golden = {
        "about": "Windows of 2048 tokens of the test split of WikiText-2 (Merity et al. 2016), CC BY-SA 3.0",
        "numbers": numbers,
        "windows": [ids[n * CONTEXT : (n + 1) * CONTEXT] for n in numbers],
    }
    out = Path(__file__).parent.parent / "resources/golden/wikitext2.json"
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
    print(len(ids), total, numbers)


if __name__ == "__main__":
    main()
