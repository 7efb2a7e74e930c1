#!/usr/bin/env python3
# Copyright 2026 The djl-kvquant authors.
# Licensed under the Apache License, Version 2.0. See LICENSE.
"""Writes golden/tokenizer.json: texts and the token ids that Python tokenizers gives for them.

    make_tokenizer_golden.py MODEL_DIRECTORY [OUTPUT]
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

DEFAULT_OUTPUT = Path(__file__).parents[1] / "resources" / "golden" / "tokenizer.json"

CODE = """\
#include <cstdint>

template <typename T>
T clamp(T x, T low, T high) {
\treturn x < low ? low : (x > high ? high : x);   // 3-way, no branches?
}

def f(n: int = 0x1F) -> list[float]:
    return [1e-05 * i ** 2 for i in range(n) if i % 3 != 0]
"""

CHAT = """\
<|im_start|>system
You answer in one sentence.<|im_end|>
<|im_start|>user
Why is the sky blue?<|im_end|>
<|im_start|>assistant
"""

TEXTS = {
    "empty": "",
    "sentence": "The keys of a long context fill the memory before the weights do.",
    "leading and trailing space": "  two before, three after   ",
    "digits": "0 7 42 1984 65536 3.14159 1,234,567 2026-01-31 10:15:30 v0.35.1 x86_64 ½ ² ٣ ௪",
    "digits inside words": "int8 h2o 4th 100th B2B 12abc34 a1b2c3",
    "contractions": "I'm sure they'll say it's what we've done; you'd agree, don't you? WE'RE",
    "whitespace": "a  b   c\td\t\te\n\nf\r\ng \n \n  h\u00a0i\u2003j\u200bk",
    "only whitespace": " \n\t  \n",
    "punctuation": "“Quoted” — dashes – and… ellipses!? (round) [square] {curly} <a/> #@$%^&*~`|\\",
    "markdown": "# Title\n\n* **bold**, _italic_\n- [link](a/b.html)\n\n| a | b |\n|---|---|\n|",
    "code": CODE,
    "json": '{"kv_cache_dtype": "rotatekv4", "bits": [4.25, 2.25], "ok": true, "none": null}',
    "accents": "Žluťoučký kůň, déjà vu, Größe, naïve façade, e\u0301 combined, İstanbul, ſ",
    "cyrillic and greek": "Быстрая лиса. Καλημέρα κόσμε. Съешь ещё 10 булок!",
    "right to left": "שלום עולם 123 مرحبا بالعالم",
    "cjk": "天空为什么是蓝色的？東京の天気は晴れ。안녕하세요 세계! 量化键值缓存2比特",
    "indic and thai": "नमस्ते दुनिया สวัสดีชาวโลก",
    "emoji": "😀 🚀🚀 👩‍👩‍👧‍👦 👍🏽 🇨🇿 ❤️ ☃ 🤖2️⃣",
    "beyond the basic plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎",
    "control characters": "nul \x00 bell \x07 escape \x1b[0m delete \x7f byte order \ufeff end",
    "replacement character": "broken \ufffd text",
    "long word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamten" * 2,
    "repeated": "a" * 100 + " " + "=" * 70 + "-" * 33 + "\n" * 9,
    "special tokens": "<|im_start|><|im_end|><|endoftext|> <repo_name>x<file_sep> <|im_start |>",
    "chat": CHAT,
}


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    tokenizer = Tokenizer.from_file(str(Path(sys.argv[1]) / "tokenizer.json"))
    cases = []
    for name, text in TEXTS.items():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text, name
        cases.append({"name": name, "text": text, "ids": ids})
    output = Path(sys.argv[2]) if len(sys.argv) == 3 else DEFAULT_OUTPUT
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    output.write_text(f"[\n{lines}\n]\n", encoding="ascii")


if __name__ == "__main__":
    main()
