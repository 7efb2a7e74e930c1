#!/usr/bin/env python3
# Copyright 2026 The djl-kvquant authors.
# Licensed under the Apache License, Version 2.0. See LICENSE.
"""Writes two texts on which caches are evaluated that were calibrated on other text.

    evaluation_texts.py DIRECTORY

source-code.txt: Java sources of this repository as they once were, from its git objects.
word-problems.txt: arithmetic word problems with solutions, made of the templates in
word_problems.txt.

The bytes are always the same: the sources have a fixed git tree, and numbers come from a generator
of our own with a fixed seed.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

SOURCES_TREE = "93f19660dd6981cfd0eaecb8824817e5a47bf043"  # djl-kvquant/src/main/java
SOURCES_CHARACTERS = 88_000
PROBLEMS = 228
SEED = 20260601

PEOPLE = {
    "he him his": "Amir Ben Carlos Daniel Emil Farid George Hiro Ivan Jonas Kofi Liam Mateo Noah"
    " Omar Pavel Rafael Samuel Tariq Victor",
    "she her her": "Alice Bella Chen Dina Elena Fatima Grace Hana Ines Julia Kira Leila Maya Nora"
    " Olga Priya Rosa Sofia Tanja Zoe",
}

INTRODUCTIONS = ("Question", "Problem", "Exercise")


class TextError(Exception):
    """What cannot be written, and what to do."""


class Numbers:
    """SplitMix64: the same numbers in every version of Python."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        return (z ^ (z >> 31)) % n

    def choice(self, items):
        return items[self.below(len(items))]

    def shuffled(self, items):
        rest, shuffled = list(items), []
        while rest:
            shuffled.append(rest.pop(self.below(len(rest))))
        return shuffled


class Person:
    def __init__(self, name, pronouns):
        self.name = name
        self.he, self.him, self.his = pronouns.split()
        self.He = self.he.capitalize()

    def __str__(self):
        return self.name


def cents(amount):
    return f"${amount // 100}.{amount % 100:02d}"


def plural(count, noun):
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


FUNCTIONS = {"__builtins__": {}, "cents": cents, "plural": plural, "max": max, "str": str}


class Template:
    """A block of word_problems.txt."""

    def __init__(self, lines):
        self.draws, self.question, self.steps = [], None, []
        for line in lines:
            if line.startswith("Q: "):
                self.question = line[3:]
            elif line.startswith("S: "):
                self.steps.append(line[3:])
            else:
                self.draws.append(re.fullmatch(r"(\w+) (:?=) (.+)", line).groups())

    def write(self, numbers):
        values = dict(zip("ABC", people(numbers)))
        for name, sign, text in self.draws:
            values[name] = evaluate(text, values) if sign == ":=" else draw(text, values, numbers)
        lines = [fill(text, values, numbers) for text in [self.question, *self.steps]]
        return lines[0], lines[1:]


def people(numbers):
    names = [(name, p) for p, group in PEOPLE.items() for name in group.split()]
    return [Person(*pair) for pair in numbers.shuffled(names)[:3]]


def evaluate(expression, values):
    # The templates are part of this program.
    return eval(expression, FUNCTIONS, values)


def draw(text, values, numbers):
    if "|" in text:
        return numbers.choice(text.split(" | "))
    low, high, step = re.fullmatch(r"(.+)\.\.([^/]+)(?:/(\d+))?", text).groups()
    low, high, step = evaluate(low, values), evaluate(high, values), int(step or 1)
    low += -low % step
    return low + step * numbers.below((high - low) // step + 1)


def fill(text, values, numbers):
    worded = re.sub(
        r"\{[^}]*\}|\[([^\]]*)\]",
        lambda match: numbers.choice(match[1].split("|")) if match[1] else match[0],
        text,
    )
    return re.sub(r"\{([^}]*)\}", lambda match: str(evaluate(match[1], values)), worded)


def templates(path):
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    return [Template(block.splitlines()) for block in re.split(r"\n\n+", text.strip())]


def word_problems():
    numbers = Numbers(SEED)
    known = templates(Path(__file__).with_name("word_problems.txt"))
    order = []
    while len(order) < PROBLEMS:
        order += numbers.shuffled(known)
    problems, asked = [], set()
    for template in order[:PROBLEMS]:
        question, steps = template.write(numbers)
        while question in asked:
            question, steps = template.write(numbers)
        asked.add(question)
        answer = (" " if numbers.below(2) else "\n").join(steps)
        problems.append(f"{numbers.choice(INTRODUCTIONS)}: {question}\nAnswer: {answer}\n")
    return "\n".join(problems)


def git(*arguments):
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    result = subprocess.run(command, capture_output=True)
    if result.returncode != 0:
        raise TextError(
            f"git has no sources {SOURCES_TREE}: run this in a full clone of the repository"
            f" (git fetch --unshallow). git says: {result.stderr.decode().strip()}"
        )
    return result.stdout.decode()


def source_code():
    """The sources without their licence headers, in the order of their paths."""
    files, length = [], 0
    for line in git("ls-tree", "-r", "--full-tree", SOURCES_TREE).splitlines():
        kind, name = line.split()[1:3]
        path = line.split("\t")[1]
        if kind == "blob" and path.endswith(".java") and length < SOURCES_CHARACTERS:
            files.append(git("cat-file", "blob", name).split("\n", 1)[1])
            length += len(files[-1])
    return "\n".join(files)


def main():
    parser = argparse.ArgumentParser(
        prog="evaluation-texts", description="Writes source-code.txt and word-problems.txt."
    )
    parser.add_argument("directory", type=Path, help="where they go; made if it does not exist")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in (("word-problems", word_problems), ("source-code", source_code)):
        data = make().encode()
        path = directory / f"{name}.txt"
        path.write_bytes(data)
        print(f"{hashlib.sha256(data).hexdigest()}  {path}")


if __name__ == "__main__":
    try:
        main()
    except (TextError, OSError) as error:
        sys.exit(f"evaluation-texts: {error}")
