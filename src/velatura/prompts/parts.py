"""Prompts joined by AND, each with a weight: what they ask for is added up, not mixed as words."""

import re
from typing import NamedTuple

from velatura.prompts.passage import misread

AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r"[+-]?(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)")
STRONGEST = 1e6  # latents that are pushed further are no numbers soon


class Part(NamedTuple):
    """One of the prompts between ANDs, how much it counts, and where in the whole it starts."""

    words: str
    weight: float = 1.0
    start: int = 0


def split_at_and(text: str) -> list[Part]:
    """The prompts that are joined by AND, the weight at each one's end taken off; empty ones are prompts too.

    Raises BadPrompt for a weight beyond all measure.
    """
    parts: list[Part] = []
    start = 0
    for words in AND.split(text):
        part = _part(words, start)
        if abs(part.weight) > STRONGEST:
            place = start + words.rindex(":") + 1
            raise misread(text, place, f"a weight of {part.weight:g} is beyond {STRONGEST:g}; write one such as 0.5")
        parts.append(part)
        start += len(words) + len("AND")
    return parts


def _part(text: str, start: int) -> Part:
    words, colon, weight = text.rstrip().rpartition(":")
    if colon and WEIGHT.fullmatch(weight.lstrip()):
        return Part(words.rstrip(), float(weight), start)
    return Part(text.rstrip(), start=start)
