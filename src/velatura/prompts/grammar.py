"""What brackets, tags, comments and BREAK mean in a prompt, as the AUTOMATIC1111 webui reads them."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

from velatura.errors import BadPrompt, UnknownName, VelaturaWarning
from velatura.prompts.passage import excerpt_at, prompt_error
from velatura.prompts.strengths import AestheticStrengths, StrengthSchedule, TextUnetStrengths

ROUND_BRACKET_EMPHASIS = 1.1
SQUARE_BRACKET_EMPHASIS = 1 / 1.1
MAX_EMPHASIS = 1e30  # beyond it float32 ends soon
MAX_OPEN_BRACKETS = 100  # 1.1 to that power is 13,781

EmphasisMode = Literal["Original", "No norm", "Ignore", "None"]  # the webui's names

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
TAG_PATTERN = re.compile(r"<(?P<kind>\w+):(?P<arguments>[^>]+)>")
MALFORMED_TAG_PATTERN = re.compile(
    r"<\s*(hypernet|lora|lyco)\b[^<>]*>?  |  \b(hypernet|lora|lyco):[^<>\s]{0,99}>", re.IGNORECASE | re.VERBOSE
)


class Fragment(NamedTuple):
    """Words of a prompt that are told with the same emphasis; 1 is plain."""

    text: str
    emphasis: float


BREAK = Fragment(
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
    def strengths(self) -> StrengthSchedule:
        """How strongly the overlay is laid on, 1 if the tag does not say; raises BadPrompt for what is no strength."""
        return StrengthSchedule.parse(*self._arguments_after_name)

    def text_unet_strengths(self, *, reads_text: bool) -> TextUnetStrengths:
        """The same of an overlay of a kind that may touch the text encoders too, and of one that does."""
        return TextUnetStrengths.parse(*self._arguments_after_name, reads_text=reads_text)

    @property
    def aesthetic_strengths(self) -> AestheticStrengths:
        """The same of an aesthetic, and how far it draws."""
        return AestheticStrengths.parse(*self._arguments_after_name)

    @property
    def _arguments_after_name(self) -> tuple[Sequence[str], str, int]:
        """What stands behind the name, the prompt, and where in it that starts."""
        name, *others = self.arguments
        return others, self.prompt, self.start + len(f"<{self.kind}:{name}:")

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.arguments)}>"


def strip_comments(text: str) -> str:
    """The prompt with a line break in place of each # and what follows it on its line."""
    return re.sub(r"\n?#.*(\n|$)", "\n", text)


def find_tags(text: str) -> list[re.Match[str]]:
    """Where tags stand in a text."""
    return list(
        TAG_PATTERN.finditer(text, 0, text.rfind(">") + 1)
    )  # no further: with no > behind it would look in vain


def split_tags(text: str, *, lenient: bool = False) -> tuple[str, list[Tag]]:
    """Split a prompt into its words and the tags in them; raises BadPrompt for what was meant as a tag but is none.

    lenient: leave such a thing in the words with a warning, as the webui does without one.
    """
    matches = find_tags(text)
    tags = [
        Tag(tag_match["kind"], tuple(tag_match["arguments"].split(":")), text, tag_match.start())
        for tag_match in matches
    ]
    borders = [0, *(border for tag_match in matches for border in tag_match.span()), len(text)]
    between = [text[start:end] for start, end in zip(borders[::2], borders[1::2], strict=True)]
    errors = [*_malformed_tags(text, matches), *(_nameless_tag_error(tag) for tag in tags if not tag.name)]
    if errors and not lenient:
        raise errors[0]
    for error in errors:
        warnings.warn(f"{error}; it calls nothing", VelaturaWarning, 3)
    return "".join(between), [tag for tag in tags if tag.name]


def _malformed_tags(text: str, matches: Iterable[re.Match[str]]) -> Iterator[BadPrompt]:
    blanked = list(text)
    for tag_match in matches:
        blanked[tag_match.start() : tag_match.end()] = " " * len(tag_match.group())
    for malformed in MALFORMED_TAG_PATTERN.finditer("".join(blanked)):
        kind = (malformed[1] or malformed[2]).lower()
        yield prompt_error(
            text, malformed.start(), f"{malformed.group()!r} is no tag; one looks like <{kind}:name:0.6>"
        )


def _nameless_tag_error(tag: Tag) -> BadPrompt:
    return prompt_error(tag.prompt, tag.start, f"{tag} names nothing; a tag looks like <{tag.kind}:name:0.6>")


def parse_emphasis(text: str, mode: EmphasisMode = "Original") -> list[Fragment]:
    """Split words into runs of equal emphasis: (x) 1.1 times, [x] 1/1.1 times, (x:1.4) 1.4 times, nested they multiply.

    Brackets that close nothing are text, those left open reach to the end. A BREAK between words becomes the run BREAK.
    Raises BadPrompt for emphasis beyond all numbers, and for more brackets within each other than anybody means.
    """
    if mode == "None":
        return [Fragment(text, 1.0)]
    parser = _EmphasisParser(text)
    for token in EMPHASIS_TOKEN.finditer(text):
        parser.feed(token)
    fragments = _merge_equal(parser.finish()) or [Fragment("", 1.0)]
    return (
        fragments
        if mode != "Ignore"
        else [fragment if fragment == BREAK else Fragment(fragment.text, 1.0) for fragment in fragments]
    )


class _EmphasisParser:
    """The words so far, and the brackets that are open, each as the number of the run it starts with.

    Words between two brackets are one run, and few brackets may be open, so that long prompts take linear time.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._words: list[list[str]] = []
        self._emphasis: list[float] = []
        self._rounds: list[int] = []
        self._squares: list[int] = []
        self._extends_last = False  # whether what follows is told as the last run is

    def feed(self, token: re.Match[str]) -> None:
        """Read one token."""
        match token.lastgroup:
            case "open_round":
                self._open(self._rounds, token)
            case "open_square":
                self._open(self._squares, token)
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
        """The runs, brackets that are still open reaching to the end."""
        for start in self._rounds:
            self._multiply_emphasis(start, ROUND_BRACKET_EMPHASIS)
        for start in self._squares:
            self._multiply_emphasis(start, SQUARE_BRACKET_EMPHASIS)
        if any(abs(emphasis) > MAX_EMPHASIS for emphasis in self._emphasis):
            raise prompt_error(
                self._text, 0, f"the emphasis of some words is above {MAX_EMPHASIS:g}; write one such as 1.4"
            )
        return [Fragment("".join(words), emphasis) for words, emphasis in zip(self._words, self._emphasis, strict=True)]

    def _open(self, brackets: list[int], token: re.Match[str]) -> None:
        if len(self._rounds) + len(self._squares) == MAX_OPEN_BRACKETS:
            reason = f"{MAX_OPEN_BRACKETS} brackets are open here; write (words:1.4), or \\( and \\[ for brackets that are words"
            raise prompt_error(self._text, token.start(), reason)
        brackets.append(len(self._words))
        self._extends_last = False

    def _multiply_emphasis(self, start: int, emphasis: float) -> None:
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
    """Neighbours of equal emphasis as one."""
    borders = [0, *(i for i, (a, b) in enumerate(pairwise(fragments), 1) if a.emphasis != b.emphasis), len(fragments)]
    groups = (fragments[a:b] for a, b in pairwise(borders))
    return [Fragment("".join(fragment.text for fragment in group), group[0].emphasis) for group in groups if group]


LookupResult = TypeVar("LookupResult")


def look_up(tags: Iterable[Tag], find: Callable[[Tag], LookupResult], *, lenient: bool = False) -> list[LookupResult]:
    """What tags call, in their order: what the function gives for each of them.

    Where it raises UnknownName the error points at the tag too; lenient: a warning does, and the tag calls nothing.
    """
    results: list[LookupResult] = []
    for tag in tags:
        try:
            results.append(find(tag))
        except UnknownName as error:
            message = f"{error}; {excerpt_at(tag.prompt, tag.start)}"
            if not lenient:
                raise UnknownName(message) from None
            warnings.warn(f"{message}; it is left out", VelaturaWarning, 2)
    return results


def add_tag(text: str, kind: str, name: str, strength: str = "1.0") -> str:
    """The prompt with an overlay called at its end, unless a tag in it calls that one already."""
    words = strip_comments(text)
    if any((tag.kind, tag.arguments[0]) == (kind, name) for tag in split_tags(words)[1]):
        return text
    line_break = "\n" if "#" in text.rpartition("\n")[2] else ""  # behind a comment on its line it would be one too
    return f"{text}{line_break}<{kind}:{name}:{strength}>"
