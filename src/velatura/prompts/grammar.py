"""What brackets, tags, comments and BREAK mean in a prompt, as the AUTOMATIC1111 webui reads them."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from velatura.errors import BadPrompt, VelaturaWarning
from velatura.prompts.passage import misread
from velatura.prompts.strengths import DrawnStrengths, Strengths, TwoStrengths

ROUND = 1.1
SQUARE = 1 / 1.1
STRONGEST = 1e30  # beyond it float32 ends soon
MOST_OPEN = 100  # 1.1 to that power is 13,781

Emphasis = Literal["Original", "No norm", "Ignore", "None"]  # the webui's names

TOKEN = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]? )           # a backslash before anything else is dropped
    | (?P<open_round> \( )  | (?P<open_square> \[ )
    | : \s*+ (?P<emphasis> [+-]? (?: [0-9]++ \.?+ [0-9]*+ | \.[0-9]++ ) ) \s*+ \)
    | (?P<close_round> \) ) | (?P<close_square> \] )
    | (?P<words> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)
BREAKS = re.compile(r"\bBREAK\b")
TAG = re.compile(r"<(?P<kind>\w+):(?P<arguments>[^>]+)>")
ALMOST_TAG = re.compile(
    r"<\s*(hypernet|lora|lyco)\b[^<>]*>?  |  \b(hypernet|lora|lyco):[^<>\s]{0,99}>", re.IGNORECASE | re.VERBOSE
)


class Run(NamedTuple):
    """Words of a prompt that are told with the same emphasis; 1 is plain."""

    text: str
    emphasis: float


BREAK = Run(
    "BREAK", -1.0
)  # what follows starts in the next chunk; the webui's own mark, kept because brackets change it


class Tag(NamedTuple):
    """An overlay called by a prompt, `<hypernet:inca:0.6>`, and where it stands in it."""

    kind: str
    arguments: tuple[str, ...]
    prompt: str
    start: int

    @property
    def name(self) -> str:
        """The overlay's name; spaces around it are not part of it."""
        return self.arguments[0].strip()

    @property
    def strengths(self) -> Strengths:
        """How strongly the overlay is laid on, 1 if the tag does not say; raises BadPrompt for what is no strength."""
        return Strengths.parse(*self._said)

    def two_strengths(self, *, reads_text: bool) -> TwoStrengths:
        """The same of an overlay of a kind that may touch the text encoders too, and of one that does."""
        return TwoStrengths.parse(*self._said, reads_text=reads_text)

    @property
    def drawn(self) -> DrawnStrengths:
        """The same of an aesthetic, and how far it draws."""
        return DrawnStrengths.parse(*self._said)

    @property
    def _said(self) -> tuple[Sequence[str], str, int]:
        """What stands behind the name, the prompt, and where in it that starts."""
        name, *others = self.arguments
        return others, self.prompt, self.start + len(f"<{self.kind}:{name}:")

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.arguments)}>"


def without_comments(text: str) -> str:
    """The prompt with a line break in place of each # and what follows it on its line."""
    return re.sub(r"\n?#.*(\n|$)", "\n", text)


def find_tags(text: str) -> list[re.Match[str]]:
    """Where tags stand in a text."""
    return list(TAG.finditer(text, 0, text.rfind(">") + 1))  # no further: with no > behind it would look in vain


def take_tags(text: str, *, lenient: bool = False) -> tuple[str, list[Tag]]:
    """Split a prompt into its words and the tags in them; raises BadPrompt for what was meant as a tag but is none.

    lenient: leave such a thing in the words with a warning, as the webui does without one.
    """
    found = find_tags(text)
    tags = [Tag(each["kind"], tuple(each["arguments"].split(":")), text, each.start()) for each in found]
    borders = [0, *(place for each in found for place in each.span()), len(text)]
    between = [text[start:end] for start, end in zip(borders[::2], borders[1::2], strict=True)]
    wrong = [*_almost_tags(text, found), *(_nameless(tag) for tag in tags if not tag.name)]
    if wrong and not lenient:
        raise wrong[0]
    for each in wrong:
        warnings.warn(f"{each}; it calls nothing", VelaturaWarning, 3)
    return "".join(between), [tag for tag in tags if tag.name]


def _almost_tags(text: str, found: Iterable[re.Match[str]]) -> Iterator[BadPrompt]:
    blanked = list(text)
    for each in found:
        blanked[each.start() : each.end()] = " " * len(each.group())
    for broken in ALMOST_TAG.finditer("".join(blanked)):
        kind = (broken[1] or broken[2]).lower()
        yield misread(text, broken.start(), f"{broken.group()!r} is no tag; one looks like <{kind}:name:0.6>")


def _nameless(tag: Tag) -> BadPrompt:
    return misread(tag.prompt, tag.start, f"{tag} names nothing; a tag looks like <{tag.kind}:name:0.6>")


def read_emphasis(text: str, mode: Emphasis = "Original") -> list[Run]:
    """Split words into runs of equal emphasis: (x) 1.1 times, [x] 1/1.1 times, (x:1.4) 1.4 times, nested they multiply.

    Brackets that close nothing are text, those left open reach to the end. A BREAK between words becomes the run BREAK.
    Raises BadPrompt for emphasis beyond all numbers, and for more brackets within each other than anybody means.
    """
    if mode == "None":
        return [Run(text, 1.0)]
    reader = _Stress(text)
    for token in TOKEN.finditer(text):
        reader.take(token)
    runs = _merged(reader.finish()) or [Run("", 1.0)]
    return runs if mode != "Ignore" else [run if run == BREAK else Run(run.text, 1.0) for run in runs]


class _Stress:
    """The words so far, and the brackets that are open, each as the number of the run it starts with.

    Words between two brackets are one run, and few brackets may be open, so that long prompts take linear time.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._words: list[list[str]] = []
        self._emphasis: list[float] = []
        self._rounds: list[int] = []
        self._squares: list[int] = []
        self._may_go_on = False  # whether what follows is told as the last run is

    def take(self, token: re.Match[str]) -> None:
        """Read one token."""
        match token.lastgroup:
            case "open_round":
                self._open(self._rounds, token)
            case "open_square":
                self._open(self._squares, token)
            case "emphasis" if self._rounds:
                self._stress(self._rounds.pop(), float(token["emphasis"]))
            case "close_round" if self._rounds:
                self._stress(self._rounds.pop(), ROUND)
            case "close_square" if self._squares:
                self._stress(self._squares.pop(), SQUARE)
            case "escaped":
                self._add(token["escaped"])
            case _:
                self._add_between_breaks(token.group())

    def finish(self) -> list[Run]:
        """The runs, brackets that are still open reaching to the end."""
        for start in self._rounds:
            self._stress(start, ROUND)
        for start in self._squares:
            self._stress(start, SQUARE)
        if any(abs(emphasis) > STRONGEST for emphasis in self._emphasis):
            raise misread(self._text, 0, f"the emphasis of some words is above {STRONGEST:g}; write one such as 1.4")
        return [Run("".join(words), emphasis) for words, emphasis in zip(self._words, self._emphasis, strict=True)]

    def _open(self, brackets: list[int], token: re.Match[str]) -> None:
        if len(self._rounds) + len(self._squares) == MOST_OPEN:
            reason = (
                f"{MOST_OPEN} brackets are open here; write (words:1.4), or \\( and \\[ for brackets that are words"
            )
            raise misread(self._text, token.start(), reason)
        brackets.append(len(self._words))
        self._may_go_on = False

    def _stress(self, start: int, emphasis: float) -> None:
        self._emphasis[start:] = [before * emphasis for before in self._emphasis[start:]]
        self._may_go_on = False

    def _add_between_breaks(self, text: str) -> None:
        first, *others = BREAKS.split(text)
        self._add(first.rstrip() if others else first)
        for i, other in enumerate(others, 1):
            self._start(BREAK)
            self._may_go_on = False
            self._add(other.lstrip() if i == len(others) else other.strip())

    def _add(self, words: str) -> None:
        if self._may_go_on:
            self._words[-1].append(words)
            return
        self._start(Run(words, 1.0))

    def _start(self, run: Run) -> None:
        self._words.append([run.text])
        self._emphasis.append(run.emphasis)
        self._may_go_on = True


def _merged(runs: list[Run]) -> list[Run]:
    """Neighbours of equal emphasis as one."""
    borders = [0, *(i for i, (a, b) in enumerate(pairwise(runs), 1) if a.emphasis != b.emphasis), len(runs)]
    joined = (runs[a:b] for a, b in pairwise(borders))
    return [Run("".join(run.text for run in group), group[0].emphasis) for group in joined if group]
