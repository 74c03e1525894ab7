"""What the axes of a grid are written as: 1,2,3 or 1-10 (+3) or 0-1 [5], as in the webui's X/Y/Z plot."""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import permutations
from typing import Generic, TypeVar

from velatura.errors import BadRecipe
from velatura.prompts.passage import pointed_at

MOST = 10_000  # values of one axis

Number = TypeVar("Number", int, float)


def whole_numbers(text: str) -> list[int]:
    """Whole numbers: 1,2,3; 1-5; 1-10 (+3) by steps of 3; 0-100 [5] for so many of them, evenly spread."""
    return [number for entry in texts(text) if entry for number in WHOLE.read(text, entry)]


def numbers(text: str) -> list[float]:
    """Numbers: 1,2.5; 0-1 (+0.25) by steps; 0-1 [5] for so many of them, evenly spread; 1-5 by steps of 1."""
    return [number for entry in texts(text) if entry for number in DECIMAL.read(text, entry)]


def texts(text: str) -> list[str]:
    """What stands between commas or line breaks, without the spaces around; double quotes keep a comma in."""
    try:
        rows = list(csv.reader(StringIO(text, newline=""), skipinitialspace=True))
    except csv.Error as error:
        raise BadRecipe(f"the values of a grid are no list ({error}); write them as 1,2,3 or a,b,c") from None
    found = [entry.strip() for row in rows for entry in row]
    _refuse_too_many(len(found), text)
    return found


def words(text: str) -> list[str | float]:
    """Values for a word in a prompt: texts as they are written, but 0-1 (+0.25) and 0-1 [5] are numbers."""
    found: list[str | float] = []
    for entry in texts(text):
        is_range = re.fullmatch(r".*[0-9.]\s*[(\[]\s*[+-]?[0-9.]+\s*[)\]]", entry) and entry[0] in "+-.0123456789"
        found += _range_of_words(entry) if is_range else [entry]
    return found


def orders(text: str) -> list[tuple[str, ...]]:
    """All orders that texts can be brought into, the written one first."""
    found = texts(text)
    _refuse_too_many(math.factorial(min(len(found), 20)), text)
    return list(permutations(found))


def _range_of_words(entry: str) -> list[int] | list[float]:
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
    if count > MOST:
        raise _misread(text, "", f"that is more than {MOST:,} values; write fewer")


def _misread(text: str, entry: str, reason: str) -> BadRecipe:
    place = max(0, text.find(entry))
    return BadRecipe(f"{reason}; {pointed_at(text, place)}")


@dataclass(frozen=True)
class _Kind(Generic[Number]):
    """How numbers of a kind are written, made, and counted up in steps."""

    name: str
    unsigned: str
    number: Callable[[str | float], Number]
    steps: Callable[[Number, Number, Number], Iterator[Number]]

    def read(self, text: str, entry: str) -> Iterable[Number]:
        """The numbers that one entry of a text stands for."""
        number = f"[+-]?{self.unsigned}"
        if re.fullmatch(number, entry):
            return [self.number(entry)]
        step = rf"\s*(?:\(\s*([+-]{self.unsigned})\s*\)\s*)?"
        span = rf"({number})\s*-\s*({number})"
        if found := re.fullmatch(span + step, entry):
            return self._stepped(text, entry, *map(self.number, found.groups(default="1")))
        if found := re.fullmatch(rf"{span}\s*\[\s*([0-9]{{1,9}})\s*\]", entry):
            count = int(found[3])
            _refuse_too_many(count, text)
            return map(self.number, _spread(self.number(found[1]), self.number(found[2]), count))
        raise _misread(
            text, entry, f"{entry!r} is no {self.name}; write values as 1,2,3 or 1-5 or 1-10 (+3) or 0-1 [5]"
        )

    def _stepped(self, text: str, entry: str, first: Number, last: Number, step: Number) -> Iterable[Number]:
        if step == 0:
            raise _misread(text, entry, "a step of 0 leads nowhere; write values as 1-10 (+3)")
        _refuse_too_many((last - first) / step + 1, text)
        return self.steps(first, last, step)


WHOLE = _Kind[int]("whole number", "[0-9]{1,18}", int, _whole_steps)
DECIMAL = _Kind[float]("number", r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})", float, _decimal_steps)
