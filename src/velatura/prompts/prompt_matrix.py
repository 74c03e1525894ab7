"""One prompt for many pictures: a base and options behind bars, `a city|at night|in fog`, in all their combinations."""

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
    """What is in each picture, and what is in some of them only.

    The first half of the options changes from column to column, the others from row to row, as in the webui.
    """

    base: str
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split a prompt at its bars, but for those in brackets and behind backslashes; too many are a BadPrompt."""
        bars = list(_bars(text))
        if len(bars) > MAX_MATRIX_OPTIONS:
            reason = f"{len(bars)} options make 2 to that power of pictures; leave it at {MAX_MATRIX_OPTIONS}"
            raise prompt_error(text, bars[MAX_MATRIX_OPTIONS], reason)
        base, *options = (text[start + 1 : end] for start, end in pairwise([-1, *bars, len(text)]))
        stripped = (option.strip().strip(",").strip() for option in options)
        return cls(base.strip(), tuple(option for option in stripped if option))

    @property
    def column_options(self) -> tuple[str, ...]:
        """The options that change from column to column."""
        return self.options[: (len(self.options) + 1) // 2]

    @property
    def row_options(self) -> tuple[str, ...]:
        """The options that change from row to row."""
        return self.options[len(self.column_options) :]

    def columns(self) -> list[tuple[str, ...]]:
        """The options of each column, for its label."""
        return list(_combinations(self.column_options))

    def rows(self) -> list[tuple[str, ...]]:
        """The options of each row, for its label."""
        return list(_combinations(self.row_options))

    def prompts(self, separator: str = ", ", *, base_last: bool = False) -> list[list[str]]:
        """The prompts, row by row; those with none of the options first."""
        return [[self._join(column + row, separator, base_last) for column in self.columns()] for row in self.rows()]

    def _join(self, chosen: tuple[str, ...], separator: str, base_last: bool) -> str:
        return separator.join((*chosen, self.base) if base_last else (self.base, *chosen))


def _combinations(options: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All choices among options: none, the first, the second, both, the third ..."""
    for bitmask in range(1 << len(options)):
        yield tuple(option for i, option in enumerate(options) if bitmask >> i & 1)


def _bars(text: str) -> Iterator[int]:
    """Where bars stand outside of brackets; a bracket that is never closed is none."""
    bars: list[int] = []
    open_brackets: list[tuple[str, int]] = []  # each with how many bars stand before it
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
