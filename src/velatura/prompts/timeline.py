"""Words that change while a picture is made: [cat:dog:0.5] and [cat|dog], told apart over a sampler's steps."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Self, TypeAlias

TOKEN = re.compile(r"\\.|[\[\]():|\\]|[^\[\]():|\\]+", re.DOTALL)
WHEN = re.compile(r"\s*+([+-]?(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?+)\s*+")
SHOWN = 20  # characters of a number that is none

Node: TypeAlias = "str | Group | Edit | Cycle"


class Group(NamedTuple):
    """A pair of brackets that only means emphasis, with all that stands in it."""

    nodes: list[Node]


class Edit(NamedTuple):
    """Words that give way to others at a step; when is the number as it was written."""

    before: list[Node]
    after: list[Node]
    when: str


class Cycle(NamedTuple):
    """Words that take turns, each for one step."""

    options: list[list[Node]]


class Complaint(NamedTuple):
    """Brackets that look like more than they are read as: where, and why."""

    place: int
    reason: str


@dataclass(frozen=True)
class Timing:
    """The steps that a prompt is laid out over, twice as many for a sampler that calls the model twice a step.

    steps: of the first pass. second_pass: the steps of the second pass of hires fix, if it is that one's words which
    are asked for. before_1_6: numbers below 1 are fractions and others steps, and a second pass repeats the first, as
    the webui had it until its version 1.6; since then a number with a point in it is a fraction, and one without a
    step, both counting on through the second pass.
    """

    steps: int
    second_pass: int | None = None
    before_1_6: bool = False

    @property
    def total(self) -> int:
        """How many steps there are words for."""
        return self.steps if self.second_pass is None or self.before_1_6 else self.second_pass

    def turn(self, when: str) -> int:
        """The last step before the words change, 0 where they have changed from the start."""
        return int(max(0, min(self.total, self._place(when))))

    def ends_before(self, when: str) -> bool:
        """Whether words that are to change then never do, since the last step is earlier."""
        return self._place(when) > self.total

    def _place(self, when: str) -> float:
        number = float(when)
        if self.before_1_6:
            return number * self.total if number < 1 else number
        if "." in when:
            return (number - (self.second_pass is not None)) * self.total
        return number - (self.steps if self.second_pass is not None else 0)


class Timeline:
    """What a text says at each step. Brackets that are neither an edit nor a cycle stay in it, as do stray ones.

    Where a | stands in no [ ] of its own the webui reads no editing at all in the text, and so it is here.
    """

    def __init__(self, text: str) -> None:
        reader = _read(text)
        self._text = text
        self._nodes = reader.root
        self._numbers = reader.numbers
        self._spans = reader.spans
        self._has_cycles = reader.has_cycles
        self.complaints = reader.complaints

    @property
    def is_steady(self) -> bool:
        """Whether it says the same at all steps."""
        return not self._spans

    def changes_at(self, place: int) -> bool:
        """Whether what stands before that place of the text and what stands behind it are in words that change."""
        before = bisect_left(self._spans, (place,))
        return before > 0 and place < self._spans[before - 1][1]

    def unreached(self, passes: Sequence[Timing]) -> list[str]:
        """The numbers of edits that lie beyond the last step of all passes."""
        return sorted(when for when in self._numbers if all(timing.ends_before(when) for timing in passes))

    def schedule(self, timing: Timing) -> list[tuple[int, str]]:
        """The texts in their order, each with the last step that it is for."""
        if self.is_steady:
            return [(timing.total, self._text)]
        turns = {when: timing.turn(when) for when in self._numbers}
        ends = {turn for turn in turns.values() if turn > 0} | {timing.total}
        if self._has_cycles:
            ends.update(range(1, timing.total + 1))
        return [(end, "".join(self._said(end, turns))) for end in sorted(ends)]

    def _said(self, step: int, turns: dict[str, int]) -> Iterator[str]:
        """The pieces of the text at a step; without recursion, since brackets may be nested to any depth."""
        open_nodes = [iter(self._nodes)]
        while open_nodes:
            node = next(open_nodes[-1], None)
            match node:
                case None:
                    open_nodes.pop()
                case str():
                    yield node
                case Group():
                    open_nodes.append(iter(node.nodes))
                case Edit():
                    open_nodes.append(iter(node.before if step <= turns[node.when] else node.after))
                case Cycle():
                    open_nodes.append(iter(node.options[(step - 1) % len(node.options)]))


@dataclass(slots=True)
class _Bracket:
    """A bracket that is open, what stands behind it, and where in that its own : and | are."""

    sign: str
    place: int
    nodes: list[Node] = field(default_factory=list[Node])
    cuts: list[int] = field(default_factory=list[int])

    def add_cut(self, sign: str) -> None:
        self.cuts.append(len(self.nodes))
        self.nodes.append(sign)

    @property
    def signs(self) -> str:
        """Its separators: "::" of an edit, "|" of a cycle of two."""
        return "".join(str(self.nodes[cut]) for cut in self.cuts)

    @property
    def parts(self) -> list[list[Node]]:
        borders = [-1, *self.cuts, len(self.nodes)]
        return [self.nodes[start + 1 : end] for start, end in pairwise(borders)]


class _Reader:
    """Reads tokens one after the other, and keeps what is open.

    Where something does not fit, no bracket that is open there can be closed any more: all are words then.
    """

    def __init__(self) -> None:
        self.root: list[Node] = []
        self.numbers: set[str] = set()
        self.spans: list[tuple[int, int]] = []  # of outermost edits and cycles
        self.has_cycles = False
        self.complaints: list[Complaint] = []
        self.stray_bar: int | None = None
        self._mixed = False  # a bracket was closed that had a | and a : of its own
        self._open: list[_Bracket] = []

    @classmethod
    def of_words(cls, text: str, stray_bar: int | None = None) -> Self:
        """A reader that has found words only, because of a | that it complains of if it matters."""
        reader = cls()
        reader.root.append(text)
        if stray_bar is not None:
            said = r"a | outside of [a|b] makes words of all editing in the prompt, as in the webui; write \| for a bar"
            reader.complaints.append(Complaint(stray_bar, said))
        return reader

    @property
    def lost(self) -> bool:
        """Whether there is anything that a stray | makes words of."""
        return bool(self.spans) or self._mixed

    def take(self, token: str, place: int) -> None:
        """Read one token."""
        innermost = self._open[-1] if self._open else None
        match token:
            case "[" | "(":
                self._open.append(_Bracket(token, place))
            case "]" | ")":
                self._close(token, place)
            case ":" if innermost is not None:
                innermost.add_cut(token)
            case "|" if innermost is not None and innermost.sign == "[":
                innermost.add_cut(token)
            case "|":
                self._stray(place)
            case _:
                self._place_of_nodes().append(token)

    def give_up(self) -> None:
        """Make words of all brackets that are open."""
        for bracket in self._open:
            if "|" in bracket.signs:
                self._stray(bracket.place)
            self.root += [bracket.sign, *bracket.nodes]
        self._open.clear()

    def _close(self, token: str, place: int) -> None:
        closed = self._closed(token)
        if closed is None:
            self.give_up()
            self.root.append(token)
            return
        bracket = self._open.pop()
        self._place_of_nodes().append(closed)
        if isinstance(closed, Group):
            return
        while self.spans and self.spans[-1][0] > bracket.place:
            self.spans.pop()
        self.spans.append((bracket.place, place + 1))

    def _closed(self, token: str) -> Group | Edit | Cycle | None:
        """What the innermost bracket is with this end, or None where it does not fit."""
        if not self._open or self._open[-1].sign + token not in {"[]", "()"}:
            return None
        bracket = self._open[-1]
        signs = bracket.signs
        if not signs or (signs == ":" and token == ")"):
            return Group([bracket.sign, *bracket.nodes, token])
        if token == ")":
            return None
        if not signs.strip("|"):
            self.has_cycles = True
            return Cycle(bracket.parts)
        self._mixed = self._mixed or "|" in signs
        return self._edit(bracket) if signs in {":", "::"} else None

    def _edit(self, bracket: _Bracket) -> Edit | None:
        *words, last = bracket.parts
        written = "".join(node for node in last if isinstance(node, str))
        number = WHEN.fullmatch(written) if all(isinstance(node, str) for node in last) else None
        if number is None:
            if len(words) == 2:
                said = f"[...:...:{written[:SHOWN]}] is taken as words: {written[:SHOWN]!r} is no number of steps"
                self.complaints.append(Complaint(bracket.place, f"{said}; write [cat:dog:0.5] or [cat:dog:8]"))
            return None
        self.numbers.add(number[1])
        return Edit(words[0] if len(words) == 2 else [], words[-1], number[1])

    def _stray(self, place: int) -> None:
        if self.stray_bar is None:
            self.stray_bar = place

    def _place_of_nodes(self) -> list[Node]:
        return self._open[-1].nodes if self._open else self.root


def _read(text: str) -> _Reader:
    if "]" not in text or not {":", "|"} & set(text):
        return _Reader.of_words(text)
    reader = _Reader()
    for token in TOKEN.finditer(text):
        reader.take(token.group(), token.start())
    reader.give_up()
    if reader.stray_bar is None:
        return reader
    return _Reader.of_words(text, reader.stray_bar if reader.lost else None)
