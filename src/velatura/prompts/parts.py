"""Prompts joined by AND, each with a weight: what they ask for is added up, not mixed as words."""

import re
from typing import NamedTuple

from velatura.prompts.passage import prompt_error

AND_PATTERN = re.compile(r"\bAND\b")
WEIGHT_PATTERN = re.compile(r"[+-]?(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)")
MAX_SUBPROMPT_WEIGHT = 1e6  # latents that are pushed further are no numbers soon


class Subprompt(NamedTuple):
    """One of the prompts between ANDs, how much it counts, and where in the whole it starts."""

    words: str
    weight: float = 1.0
    start: int = 0


def split_at_and(text: str) -> list[Subprompt]:
    """The prompts that are joined by AND, the weight at each one's end taken off; empty ones are prompts too.

    Raises BadPrompt for a weight beyond all measure.
    """
    subprompts: list[Subprompt] = []
    start = 0
    for words in AND_PATTERN.split(text):
        subprompt = _parse_subprompt(words, start)
        if abs(subprompt.weight) > MAX_SUBPROMPT_WEIGHT:
            position = start + words.rindex(":") + 1
            raise prompt_error(
                text,
                position,
                f"a weight of {subprompt.weight:g} is beyond {MAX_SUBPROMPT_WEIGHT:g}; write one such as 0.5",
            )
        subprompts.append(subprompt)
        start += len(words) + len("AND")
    return subprompts


def _parse_subprompt(text: str, start: int) -> Subprompt:
    words, colon, weight = text.rstrip().rpartition(":")
    if colon and WEIGHT_PATTERN.fullmatch(weight.lstrip()):
        return Subprompt(words.rstrip(), float(weight), start)
    return Subprompt(text.rstrip(), start=start)
