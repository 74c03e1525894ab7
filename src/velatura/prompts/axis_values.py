"""What the axes of a grid are written as: 1,2,3 or 1-10 (+3) or 0-1 [5], as in the webui's X/Y/Z plot."""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import permutations
from typing import Generic, TypeVar

from velatura.errors import BadRecipe
from velatura.prompts.passage import excerpt_at

MAX_AXIS_VALUES = 10_000  # values of one axis

AxisNumber = TypeVar("AxisNumber", int, float)


def whole_numbers(text: str) -> list[int]:
    """Whole numbers: 1,2,3; 1-5; 1-10 (+3) by steps of 3; 0-100 [5] for so many of them, evenly spread."""
    return [number for entry in texts(text) if entry for number in WHOLE_NUMBERS.parse(text, entry)]


def numbers(text: str) -> list[float]:
    """Numbers: 1,2.5; 0-1 (+0.25) by steps; 0-1 [5] for so many of them, evenly spread; 1-5 by steps of 1."""
    return [number for entry in texts(text) if entry for number in DECIMAL_NUMBERS.parse(text, entry)]


def texts(text: str) -> list[str]:
    """What stands between commas or line breaks, without the spaces around; double quotes keep a comma in."""
    try:
        rows = list(csv.reader(StringIO(text, newline=""), skipinitialspace=True))
    except csv.Error as error:
        raise BadRecipe(f"the values of a grid are no list ({error}); write them as 1,2,3 or a,b,c") from None
    entries = [entry.strip() for row in rows for entry in row]
    _refuse_too_many(len(entries), text)
    return entries


def prompt_values(text: str) -> list[str | float]:
    """Values for a word in a prompt: texts as they are written, but 0-1 (+0.25) and 0-1 [5] are numbers."""
    values: list[str | float] = []
    for entry in texts(text):
        is_range = re.fullmatch(r".*[0-9.]\s*[(\[]\s*[+-]?[0-9.]+\s*[)\]]", entry) and entry[0] in "+-.0123456789"
        values += _parse_range(entry) if is_range else [entry]
    return values


def orders(text: str) -> list[tuple[str, ...]]:
    """All orders that texts can be brought into, the written one first."""
    entries = texts(text)
    _refuse_too_many(math.factorial(min(len(entries), 20)), text)
    return list(permutations(entries))


def _parse_range(entry: str) -> list[int] | list[float]:
    if "[" in entry:
        return numbers(entry)
    try:
        return whole_numbers(entry)
    except BadRecipe:
        return numbers(entry)


def _whole_steps(first: int, last: int, step: int) -> Iterator[int]:
    yield from range(first, last + 1, step)


def _decimal_steps(first: float, last: float, step: float) -> Iterator[float]:
    """Up to a step beyond the last, not included, as numpy's arange reckons it: rounding may let one more in."""
    ends = last + step
    step_taken = (first + step) - first
    for i in range(math.ceil((ends - first) / step)):
        yield first + i * step_taken


def _spread(first: float, last: float, count: int) -> Iterator[float]:
    for i in range(count):
        yield last if 0 < i == count - 1 else first + i * ((last - first) / max(1, count - 1))


def _refuse_too_many(count: float, text: str) -> None:
    if count > MAX_AXIS_VALUES:
        raise _axis_error(text, "", f"that is more than {MAX_AXIS_VALUES:,} values; write fewer")


def _axis_error(text: str, entry: str, reason: str) -> BadRecipe:
    position = max(0, text.find(entry))
    return BadRecipe(f"{reason}; {excerpt_at(text, position)}")


@dataclass(frozen=True)
class _NumberKind(Generic[AxisNumber]):
    """How numbers of a kind are written, made, and counted up in steps."""

    name: str
    unsigned: str
    number: Callable[[str | float], AxisNumber]
    steps: Callable[[AxisNumber, AxisNumber, AxisNumber], Iterator[AxisNumber]]

    def parse(self, text: str, entry: str) -> Iterable[AxisNumber]:
        """The numbers that one entry of a text stands for."""
        number = f"[+-]?{self.unsigned}"
        if re.fullmatch(number, entry):
            return [self.number(entry)]
        step = rf"\s*(?:\(\s*([+-]{self.unsigned})\s*\)\s*)?"
        span = rf"({number})\s*-\s*({number})"
        if range_match := re.fullmatch(span + step, entry):
            return self._count_up(text, entry, *map(self.number, range_match.groups(default="1")))
        if range_match := re.fullmatch(rf"{span}\s*\[\s*([0-9]{{1,9}})\s*\]", entry):
            count = int(range_match[3])
            _refuse_too_many(count, text)
            return map(self.number, _spread(self.number(range_match[1]), self.number(range_match[2]), count))
        raise _axis_error(
            text, entry, f"{entry!r} is no {self.name}; write values as 1,2,3 or 1-5 or 1-10 (+3) or 0-1 [5]"
        )

    def _count_up(
        self, text: str, entry: str, first: AxisNumber, last: AxisNumber, step: AxisNumber
    ) -> Iterable[AxisNumber]:
        if step == 0:
            raise _axis_error(text, entry, "a step of 0 leads nowhere; write values as 1-10 (+3)")
        _refuse_too_many((last - first) / step + 1, text)
        return self.steps(first, last, step)


WHOLE_NUMBERS = _NumberKind[int]("whole number", "[0-9]{1,18}", int, _whole_steps)
DECIMAL_NUMBERS = _NumberKind[float](
    "number", r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})", float, _decimal_steps
)


def replace_words(prompt: str, negative: str, old: str, new: str) -> tuple[str, str]:
    """Both prompts with all occurrences of some words replaced; raises BadRecipe where there are none."""
    if not old:
        raise BadRecipe("the first value of words to replace is empty; write the words that are to be replaced")
    if old not in prompt and old not in negative:
        raise BadRecipe(f"neither prompt has {old!r} in it; the first value must be the words that are replaced")
    return prompt.replace(old, new), negative.replace(old, new)


def reorder_words(prompt: str, words: Sequence[str]) -> str:
    """The prompt with words of it changed about into this order; raises BadRecipe if one is missing."""
    gaps: list[str] = []
    rest = prompt
    for word in sorted(words, key=prompt.find):
        before, found, rest = rest.partition(word) if word else (rest, "", "")
        if not found:
            raise BadRecipe(
                f"the prompt has no {word!r} left to bring into order; name words that stand in it, once each"
            )
        gaps.append(before)
    return "".join(f"{before}{word}" for before, word in zip(gaps, words, strict=True)) + rest
