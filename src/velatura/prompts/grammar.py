"""What brackets, tags, comments and BREAK mean in a prompt, as the AUTOMATIC1111 webui reads them."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from velatura.prompts.passage import misread
from velatura.prompts.strengths import Strengths

ROUND = 1.1
SQUARE = 1 / 1.1

TOKEN = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]? )           # a backslash before anything else is dropped
    | (?P<open_round> \( )  | (?P<open_square> \[ )
    | : \s* (?P<emphasis> [+-]? (?: [0-9]+ \.? [0-9]* | \.[0-9]+ ) ) \s* \)
    | (?P<close_round> \) ) | (?P<close_square> \] )
    | (?P<words> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)
BREAKS = re.compile(r"\s*\bBREAK\b\s*")
TAG = re.compile(r"<(?P<kind>\w+):(?P<arguments>[^>]+)>")
ALMOST_TAG = re.compile(
    r"<\s*(hypernet|lora|lyco)\b[^<>]*>?  |  \b(hypernet|lora|lyco):[^<>\s]*>", re.IGNORECASE | re.VERBOSE
)
NOT_READ_YET = {
    "prompt editing": re.compile(r"(?<!\\)\[[^\[\]]*(?::\s*[+-]?[0-9.]+\s*|\|[^\[\]]*)(?<!\\)\]"),
    "AND": re.compile(r"\bAND\b"),
}


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
        name, *others = self.arguments
        return Strengths.parse(others, self.prompt, self.start + len(f"<{self.kind}:{name}:"))

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.arguments)}>"


def without_comments(text: str) -> str:
    """The prompt with a line break in place of each # and what follows it on its line."""
    return re.sub(r"\n?#.*(\n|$)", "\n", text)


def take_tags(text: str) -> tuple[str, list[Tag]]:
    """Split a prompt into its words and the tags in them; raises BadPrompt for what was meant as a tag but is none."""
    tags = [Tag(each["kind"], tuple(each["arguments"].split(":")), text, each.start()) for each in TAG.finditer(text)]
    blanked = TAG.sub(lambda tag: " " * len(tag.group()), text)
    if broken := ALMOST_TAG.search(blanked):
        kind = (broken[1] or broken[2]).lower()
        raise misread(text, broken.start(), f"{broken.group()!r} is no tag; one looks like <{kind}:name:0.6>")
    for tag in tags:
        if not tag.name:
            raise misread(text, tag.start, f"{tag} names nothing; a tag looks like <{tag.kind}:name:0.6>")
    return TAG.sub("", text), tags


def read_emphasis(text: str) -> list[Run]:
    """Split words into runs of equal emphasis: (x) 1.1 times, [x] 1/1.1 times, (x:1.4) 1.4 times, nested they multiply.

    Brackets that close nothing are text, those left open reach to the end. A BREAK between words becomes the run BREAK.
    """
    runs: list[Run] = []
    rounds: list[int] = []
    squares: list[int] = []
    for token in TOKEN.finditer(text):
        match token.lastgroup:
            case "open_round":
                rounds.append(len(runs))
            case "open_square":
                squares.append(len(runs))
            case "emphasis" if rounds:
                _stress(runs, rounds.pop(), float(token["emphasis"]))
            case "close_round" if rounds:
                _stress(runs, rounds.pop(), ROUND)
            case "close_square" if squares:
                _stress(runs, squares.pop(), SQUARE)
            case "escaped":
                runs.append(Run(token["escaped"], 1.0))
            case _:
                runs.extend(_between_breaks(token.group()))
    for start in rounds:
        _stress(runs, start, ROUND)
    for start in squares:
        _stress(runs, start, SQUARE)
    return _merged(runs) or [Run("", 1.0)]


def unread(text: str) -> list[str]:
    """The parts of the webui's grammar that the words use and that are not read yet, but taken as they stand."""
    return [f"{name} ({found.group()!r})" for name, form in NOT_READ_YET.items() if (found := form.search(text))]


def _stress(runs: list[Run], start: int, emphasis: float) -> None:
    runs[start:] = [Run(text, before * emphasis) for text, before in runs[start:]]


def _between_breaks(text: str) -> Iterator[Run]:
    first, *others = BREAKS.split(text)
    yield Run(first, 1.0)
    for other in others:
        yield BREAK
        yield Run(other, 1.0)


def _merged(runs: list[Run]) -> list[Run]:
    """Neighbours of equal emphasis as one."""
    borders = [0, *(i for i, (a, b) in enumerate(pairwise(runs), 1) if a.emphasis != b.emphasis), len(runs)]
    joined = (runs[a:b] for a, b in pairwise(borders))
    return [Run("".join(run.text for run in group), group[0].emphasis) for group in joined if group]
