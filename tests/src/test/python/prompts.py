# Copyright 2026 The djl-kvquant authors.
# Licensed under the Apache License, Version 2.0. See LICENSE.
"""Texts that the default model continues in default_model.json."""

_CHAT = """\
<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
Why is the sky blue?<|im_end|>
<|im_start|>assistant
"""

_CODE = '''\
import math


class Circle:
    """A circle in the plane."""

    def __init__(self, x: float, y: float, radius: float):
        self.x = x
        self.y = y
        self.radius = radius

    def area(self) -> float:
        return math.pi * self.radius**2

    def circumference(self) -> float:
        return 2 * math.pi * self.radius

    def contains(self, x: float, y: float) -> bool:
        return (x - self.x) ** 2 + (y - self.y) ** 2 <= self.radius**2


class Rectangle:
    """A rectangle with sides parallel to the axes."""

    def __init__(self, x: float, y: float, width: float, height: float):
        self.x = x
        self.y = y
'''

_WEATHER = ("clear", "windy", "foggy", "rainy", "stormy", "calm", "cold")
_VISITORS = ("a gull", "two seals", "the mail boat", "nobody", "a painter", "the doctor")
_DUTIES = (
    "cleaned the great lens and oiled the gears",
    "painted the railing white",
    "repaired the roof of the shed",
    "wrote three letters to the mainland",
    "counted the barrels of oil in the cellar",
)


def _diary():
    lines = ["The lighthouse keeper's diary.", ""]
    for day in range(1, 22):
        weather = _WEATHER[day * 3 % len(_WEATHER)]
        visitor = _VISITORS[day * 5 % len(_VISITORS)]
        duty = _DUTIES[day * 2 % len(_DUTIES)]
        lines.append(
            f"Day {day}. The morning was {weather}. I {duty}, and {visitor} came by before noon. "
            f"In the evening I lit the lamp at {5 + day % 4} o'clock."
        )
    return "\n".join(lines) + "\nDay 22."


TEXTS = {
    "five words": "The capital of France is",
    "chat": _CHAT,
    "code": _CODE,
    "diary": _diary(),
}
