"""Values of a grid's axes: 1,2,3 or 1-10 (+3) or 0-1 [5], as in A1111's X/Y/Z plot."""

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

MAX_AXIS_VALUES = 10_000

AxisNumber = TypeVar("AxisNumber", int, float)


def whole_numbers(text: str) -> list[int]:
    """Parse whole numbers: 1,2,3; 1-5; 1-10 (+3) with steps of 3; 0-100 [5] for five evenly spaced numbers.

    Raises:
        BadRecipe: if an entry is not a whole number or a range, or there are too many values.
    """
    return [number for entry in texts(text) if entry for number in WHOLE_NUMBERS.parse(text, entry)]


def numbers(text: str) -> list[float]:
    """Parse numbers: 1,2.5; 0-1 (+0.25) with steps; 0-1 [5] for five evenly spaced numbers; 1-5 with steps of 1.

    Raises:
        BadRecipe: if an entry is not a number or a range, or there are too many values.
    """
    return [number for entry in texts(text) if entry for number in DECIMAL_NUMBERS.parse(text, entry)]


def texts(text: str) -> list[str]:
    """Split a text at commas and line breaks, and strip spaces; a comma in double quotes does not split.

    Raises:
        BadRecipe: if the quotes are wrong, or there are too many values.
    """
    try:
        rows = list(csv.reader(StringIO(text, newline=""), skipinitialspace=True))
    except csv.Error as error:
        raise BadRecipe(f"the values of a grid are not a list ({error}); write them as 1,2,3 or a,b,c") from None
    entries = [entry.strip() for row in rows for entry in row]
    _refuse_too_many(len(entries), text)
    return entries


def join_texts(values: Iterable[str]) -> str:
    """Return texts as one text that `texts` splits again: with commas, and double quotes where a text needs them."""
    return ", ".join(_quote_text(value) for value in values)


def _quote_text(value: str) -> str:
    return value if re.fullmatch(r'[^",\r\n]+', value) else '"{}"'.format(value.replace('"', '""'))


def prompt_values(text: str) -> list[str | float]:
    """Parse values that replace a word of a prompt: texts, but 0-1 (+0.25) and 0-1 [5] are ranges of numbers."""
    values: list[str | float] = []
    for entry in texts(text):
        ends_in_brackets = re.fullmatch(r".*[0-9.]\s*[(\[]\s*[+-]?[0-9.]+\s*[)\]]", entry)
        is_range = ends_in_brackets and entry[0] in "+-.0123456789"
        values += _parse_range(entry) if is_range else [entry]
    return values


def orders(text: str) -> list[tuple[str, ...]]:
    """Return all permutations of the texts between commas, the original order first.

    Raises:
        BadRecipe: if there are too many permutations.
    """
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
    """Yield the numbers of numpy.arange(first, last + step, step), which A1111 uses: rounding may add one number."""
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
    """Parser of one kind of number.

    Attributes:
        name: Name in error messages.
        unsigned: Pattern of a number without a sign.
        number: Converts a text or a float.
        steps: Returns the numbers from the first to the last with a step.
    """

    name: str
    unsigned: str
    number: Callable[[str | float], AxisNumber]
    steps: Callable[[AxisNumber, AxisNumber, AxisNumber], Iterator[AxisNumber]]

    def parse(self, text: str, entry: str) -> Iterable[AxisNumber]:
        """Return the numbers of one entry, a number or a range; errors show the entry in the text."""
        number = f"[+-]?{self.unsigned}"
        if re.fullmatch(number, entry):
            return [self.number(entry)]
        step = rf"\s*(?:\(\s*([+-]{self.unsigned})\s*\)\s*)?"
        span = rf"({number})\s*-\s*({number})"
        if range_match := re.fullmatch(span + step, entry):
            first, last, step_size = (self.number(group) for group in range_match.groups(default="1"))
            return self._count_up(text, entry, first, last, step_size)
        if range_match := re.fullmatch(rf"{span}\s*\[\s*([0-9]{{1,9}})\s*\]", entry):
            count = int(range_match[3])
            _refuse_too_many(count, text)
            return map(self.number, _spread(self.number(range_match[1]), self.number(range_match[2]), count))
        raise _axis_error(
            text, entry, f"{entry!r} is not a {self.name}; write values as 1,2,3 or 1-5 or 1-10 (+3) or 0-1 [5]"
        )

    def _count_up(
        self, text: str, entry: str, first: AxisNumber, last: AxisNumber, step: AxisNumber
    ) -> Iterable[AxisNumber]:
        if step == 0:
            raise _axis_error(text, entry, "the step is 0; write values as 1-10 (+3)")
        _refuse_too_many((last - first) / step + 1, text)
        return self.steps(first, last, step)


WHOLE_NUMBERS = _NumberKind[int]("whole number", "[0-9]{1,18}", int, _whole_steps)
DECIMAL_NUMBERS = _NumberKind[float](
    "number", r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})", float, _decimal_steps
)


def replace_words(prompt: str, negative: str, old: str, new: str) -> tuple[str, str]:
    """Replace words in a prompt and its negative prompt.

    Raises:
        BadRecipe: if the words are empty, or neither prompt contains them.
    """
    if not old:
        raise BadRecipe("the first value of words to replace is empty; write the words that are replaced")
    if old not in prompt and old not in negative:
        raise BadRecipe(f"neither prompt contains {old!r}; the first value must be the words that are replaced")
    return prompt.replace(old, new), negative.replace(old, new)


def reorder_words(prompt: str, words: Sequence[str]) -> str:
    """Put words of a prompt into this order, at the positions that they have.

    Raises:
        BadRecipe: if the prompt does not contain one of them, or not often enough.
    """
    gaps: list[str] = []
    rest = prompt
    for word in sorted(words, key=prompt.find):
        before, separator, rest = rest.partition(word) if word else (rest, "", "")
        if not separator:
            raise BadRecipe(
                f"the prompt does not contain another {word!r} to reorder; name words of the prompt, each one once"
            )
        gaps.append(before)
    return "".join(f"{before}{word}" for before, word in zip(gaps, words, strict=True)) + rest
