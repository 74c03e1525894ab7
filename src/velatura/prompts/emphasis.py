"""Emphasis in prompts: ( ), [ ], (words:1.4) and BREAK, as A1111 reads them."""

import re
from itertools import pairwise
from typing import Literal, NamedTuple

from velatura.errors import warn
from velatura.prompts.passage import prompt_error

ROUND_BRACKET_EMPHASIS = 1.1
SQUARE_BRACKET_EMPHASIS = 1 / 1.1
MAX_EMPHASIS = 1e30  # a little more overflows float32
MAX_UNCLOSED_BRACKETS = 100  # 1.1 to the power of 100 is 13,781
MAX_MULTIPLICATIONS = 10**6  # of the emphasis of fragments, some tenths of a second

# A1111's names, and how ComfyUI applies emphasis: relative to an empty prompt
EmphasisMode = Literal["Original", "No norm", "Ignore", "None", "ComfyUI"]

EMPHASIS_TOKEN = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]? )           # a backslash before anything else is dropped
    | (?P<open_round> \( )  | (?P<open_square> \[ )
    | : \s*+ (?P<emphasis> [+-]? (?: [0-9]++ \.?+ [0-9]*+ | \.[0-9]++ ) ) \s*+ \)
    | (?P<close_round> \) ) | (?P<close_square> \] )
    | (?P<words> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)
BREAK_PATTERN = re.compile(r"\bBREAK\b")


class Fragment(NamedTuple):
    """Words of a prompt with the same emphasis; 1 is neutral."""

    text: str
    emphasis: float


# Ends a chunk. As in A1111, its emphasis of -1 is the mark, so a BREAK inside brackets is not one.
BREAK = Fragment("BREAK", -1.0)


def parse_emphasis(text: str, mode: EmphasisMode = "Original") -> list[Fragment]:
    """Split words into fragments of equal emphasis.

    (x) multiplies the emphasis by 1.1, [x] divides it by 1.1, (x:1.4) multiplies it by 1.4; nested brackets multiply.
    A closing bracket without an opening one is text; an open bracket reaches to the end, but more than
    MAX_UNCLOSED_BRACKETS of them have no effect, of which it warns. A BREAK between words becomes the fragment BREAK.

    Args:
        text: Words of a prompt, without tags.
        mode: "None" reads brackets as text; "Ignore" drops them and gives all words the emphasis 1.

    Raises:
        BadPrompt: for an emphasis above MAX_EMPHASIS, or brackets that are nested too deeply around too many words.
    """
    if mode == "None":
        return [Fragment(text, 1.0)]
    parser = _EmphasisParser(text)
    for token in EMPHASIS_TOKEN.finditer(text):
        parser.feed(token)
    fragments = _merge_equal(parser.finish()) or [Fragment("", 1.0)]
    if mode == "Ignore":
        return [fragment if fragment == BREAK else Fragment(fragment.text, 1.0) for fragment in fragments]
    return fragments


class _EmphasisParser:
    """Parser of emphasis: the fragments so far, and the open brackets as indices of their first fragment.

    The words between two brackets are one fragment. Each bracket multiplies the fragments inside, so the time is that
    of the multiplications, which are limited.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._words: list[list[str]] = []
        self._emphasis: list[float] = []
        self._rounds: list[int] = []
        self._squares: list[int] = []
        self._multiplications = 0
        self._extends_last = False  # True if the next words belong to the last fragment

    def feed(self, token: re.Match[str]) -> None:
        """Parse one token."""
        match token.lastgroup:
            case "open_round":
                self._open(self._rounds)
            case "open_square":
                self._open(self._squares)
            case "emphasis" if self._rounds:
                self._multiply_emphasis(self._rounds.pop(), float(token["emphasis"]))
            case "close_round" if self._rounds:
                self._multiply_emphasis(self._rounds.pop(), ROUND_BRACKET_EMPHASIS)
            case "close_square" if self._squares:
                self._multiply_emphasis(self._squares.pop(), SQUARE_BRACKET_EMPHASIS)
            case "escaped":
                self._add(token["escaped"])
            case _:
                self._add_between_breaks(token.group())

    def finish(self) -> list[Fragment]:
        """Close all open brackets at the end, and return the fragments."""
        unclosed = len(self._rounds) + len(self._squares)
        if unclosed > MAX_UNCLOSED_BRACKETS:
            warn(
                f"the prompt has {unclosed:,} brackets that are not closed: they have no effect; close them, or write "
                "\\( and \\[ for brackets that are text"
            )
        else:
            for start in self._rounds:
                self._multiply_emphasis(start, ROUND_BRACKET_EMPHASIS)
            for start in self._squares:
                self._multiply_emphasis(start, SQUARE_BRACKET_EMPHASIS)
        if any(abs(emphasis) > MAX_EMPHASIS for emphasis in self._emphasis):
            reason = f"the emphasis of some words is above {MAX_EMPHASIS:g}; write a number such as 1.4"
            raise prompt_error(self._text, 0, reason)
        return [Fragment("".join(words), emphasis) for words, emphasis in zip(self._words, self._emphasis, strict=True)]

    def _open(self, brackets: list[int]) -> None:
        brackets.append(len(self._words))
        self._extends_last = False

    def _multiply_emphasis(self, start: int, emphasis: float) -> None:
        self._multiplications += len(self._emphasis) - start
        if self._multiplications > MAX_MULTIPLICATIONS:
            raise prompt_error(
                self._text,
                0,
                "brackets are nested too deeply around too many words; write (words:1.4), or \\( and \\[ for brackets "
                "that are text",
            )
        self._emphasis[start:] = [previous * emphasis for previous in self._emphasis[start:]]
        self._extends_last = False

    def _add_between_breaks(self, text: str) -> None:
        first, *others = BREAK_PATTERN.split(text)
        self._add(first.rstrip() if others else first)
        for i, other in enumerate(others, 1):
            self._start(BREAK)
            self._extends_last = False
            self._add(other.lstrip() if i == len(others) else other.strip())

    def _add(self, words: str) -> None:
        if self._extends_last:
            self._words[-1].append(words)
            return
        self._start(Fragment(words, 1.0))

    def _start(self, fragment: Fragment) -> None:
        self._words.append([fragment.text])
        self._emphasis.append(fragment.emphasis)
        self._extends_last = True


def _merge_equal(fragments: list[Fragment]) -> list[Fragment]:
    """Join neighbours of equal emphasis."""
    borders = [0, *(i for i, (a, b) in enumerate(pairwise(fragments), 1) if a.emphasis != b.emphasis), len(fragments)]
    groups = (fragments[a:b] for a, b in pairwise(borders))
    return [Fragment("".join(fragment.text for fragment in group), group[0].emphasis) for group in groups if group]
