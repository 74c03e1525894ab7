"""Prompt matrix: `a city|at night|in fog` is a base text with options, in all combinations."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from velatura.prompts.passage import prompt_error

MAX_MATRIX_OPTIONS = 10  # 1,024 pictures

MATRIX_TOKEN = re.compile(r"\\.|[\[\]()|]", re.DOTALL)
OPENING_BRACKETS = {"]": "[", ")": "("}


@dataclass(frozen=True)
class PromptMatrix:
    """A base text that is in all pictures, and options that are in some of them.

    As in A1111, the first half of the options varies over the columns, the second half over the rows.
    """

    base: str
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split a prompt at its bars, except those in brackets and after backslashes.

        Raises:
            BadPrompt: if there are more than MAX_MATRIX_OPTIONS options.
        """
        bars = list(_bars(text))
        if len(bars) > MAX_MATRIX_OPTIONS:
            reason = f"{len(bars)} options give 2^{len(bars)} pictures; use up to {MAX_MATRIX_OPTIONS} options"
            raise prompt_error(text, bars[MAX_MATRIX_OPTIONS], reason)
        base, *options = (text[start + 1 : end] for start, end in pairwise([-1, *bars, len(text)]))
        stripped = (option.strip().strip(",").strip() for option in options)
        return cls(base.strip(), tuple(option for option in stripped if option))

    @property
    def column_options(self) -> tuple[str, ...]:
        """Return the options that vary over the columns."""
        return self.options[: (len(self.options) + 1) // 2]

    @property
    def row_options(self) -> tuple[str, ...]:
        """Return the options that vary over the rows."""
        return self.options[len(self.column_options) :]

    def columns(self) -> list[tuple[str, ...]]:
        """Return the options of every column, for labels."""
        return list(_combinations(self.column_options))

    def rows(self) -> list[tuple[str, ...]]:
        """Return the options of every row, for labels."""
        return list(_combinations(self.row_options))

    def prompts(self, separator: str = ", ", *, base_last: bool = False) -> list[list[str]]:
        """Return the prompts as rows of columns; the first one has no options.

        Args:
            separator: Text between the base and the options.
            base_last: Put the options before the base.
        """
        return [[self._join(column + row, separator, base_last) for column in self.columns()] for row in self.rows()]

    def _join(self, options: tuple[str, ...], separator: str, base_last: bool) -> str:
        return separator.join((*options, self.base) if base_last else (self.base, *options))


def _combinations(options: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield all subsets of the options: none, the first, the second, both, the third ..."""
    for bitmask in range(1 << len(options)):
        yield tuple(option for i, option in enumerate(options) if bitmask >> i & 1)


def _bars(text: str) -> Iterator[int]:
    """Yield the positions of bars outside of brackets; a bracket that is never closed does not count."""
    bars: list[int] = []
    open_brackets: list[tuple[str, int]] = []  # with the number of bars before the bracket
    for token in MATRIX_TOKEN.finditer(text):
        match token.group():
            case "|":
                bars.append(token.start())
            case "[" | "(" as sign:
                open_brackets.append((sign, len(bars)))
            case "]" | ")" as sign if open_brackets and open_brackets[-1][0] == OPENING_BRACKETS[sign]:
                del bars[open_brackets.pop()[1] :]
            case _:
                pass
    yield from bars
