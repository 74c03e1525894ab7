"""Prompt editing: [cat:dog:0.5] changes words at a step, [cat|dog] alternates at every step."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Self, TypeAlias

from velatura.prompts.passage import prompt_error

EDITING_TOKEN = re.compile(r"\\.|[\[\]():|\\]|[^\[\]():|\\]+", re.DOTALL)
SWITCH_NUMBER_PATTERN = re.compile(r"\s*+([+-]?(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?+)\s*+")
MAX_QUOTED_CHARACTERS = 20  # of a wrong number in a message
MAX_NESTED_EDITS = 100

Node: TypeAlias = "str | BracketGroup | ScheduledEdit | Alternation"


class BracketGroup(NamedTuple):
    """A pair of brackets without editing, with its contents."""

    nodes: list[Node]


class ScheduledEdit(NamedTuple):
    """Words that are replaced by others at a step. `when` is the number as it was written."""

    before: list[Node]
    after: list[Node]
    when: str


class Alternation(NamedTuple):
    """Words that alternate, one option for a step."""

    options: list[list[Node]]


class EditingIssue(NamedTuple):
    """Brackets that look like editing but are read as words, with their position and the reason."""

    position: int
    reason: str


@dataclass(frozen=True)
class Timing:
    """Steps over which a prompt is scheduled; twice as many for a sampler that calls the model twice a step.

    Attributes:
        steps: Steps of the first pass.
        hires_steps: Steps of hires fix's second pass, if the texts of that pass are needed; None for the first pass.
        uses_old_scheduling: Scheduling of A1111 before 1.6: a number below 1 is a fraction, others are steps, and the
            second pass repeats the first. Since 1.6 a number with a point is a fraction, one without a point is a step,
            and both continue through the second pass.
    """

    steps: int
    hires_steps: int | None = None
    uses_old_scheduling: bool = False

    @property
    def total_steps(self) -> int:
        """Return the steps of the pass."""
        return self.steps if self.hires_steps is None or self.uses_old_scheduling else self.hires_steps

    def switch_step(self, when: str) -> int:
        """Return the last step before the words change; 0 if they change before the first step."""
        return int(max(0, min(self.total_steps, self._exact_step(when))))

    def ends_before(self, when: str) -> bool:
        """Return True if the pass ends before that step."""
        return self._exact_step(when) > self.total_steps

    def _exact_step(self, when: str) -> float:
        number = float(when)
        if self.uses_old_scheduling:
            return number * self.total_steps if number < 1 else number
        if "." in when:
            return (number - (self.hires_steps is not None)) * self.total_steps
        return number - (self.steps if self.hires_steps is not None else 0)


class EditedText:
    """A text with prompt editing. Brackets that are not editing, and unbalanced ones, stay in the text.

    As in A1111, a | outside of [ ] turns all editing in the text into plain words.

    Raises:
        BadPrompt: More than MAX_NESTED_EDITS edits are inside each other.
    """

    def __init__(self, text: str) -> None:
        parser = _parse(text)
        self._text = text
        self._nodes = parser.root
        self._switch_numbers = parser.switch_numbers
        self._spans = parser.spans
        self._has_alternations = parser.has_alternations
        self.issues = parser.issues

    @property
    def is_constant(self) -> bool:
        """Return True if the text is the same at all steps."""
        return not self._spans

    def changes_at(self, position: int) -> bool:
        """Return True if a position of the text is inside words that change."""
        before = bisect_left(self._spans, (position,))
        return before > 0 and position < self._spans[before - 1][1]

    def unreached_edits(self, passes: Sequence[Timing]) -> list[str]:
        """Return the numbers of edits that are after the last step of all passes."""
        return sorted(when for when in self._switch_numbers if all(timing.ends_before(when) for timing in passes))

    def schedule(self, timing: Timing) -> list[tuple[int, str]]:
        """Return the texts in order, with the last step of every text."""
        if self.is_constant:
            return [(timing.total_steps, self._text)]
        switch_steps = {when: timing.switch_step(when) for when in self._switch_numbers}
        ends = {step for step in switch_steps.values() if step > 0} | {timing.total_steps}
        if self._has_alternations:
            ends.update(range(1, timing.total_steps + 1))
        return [(end, "".join(self._text_at(end, switch_steps))) for end in sorted(ends)]

    def _text_at(self, step: int, switch_steps: dict[str, int]) -> Iterator[str]:
        """Yield the pieces of the text at a step, without recursion, as brackets may be nested to any depth."""
        open_nodes = [iter(self._nodes)]
        while open_nodes:
            node = next(open_nodes[-1], None)
            match node:
                case None:
                    open_nodes.pop()
                case str():
                    yield node
                case BracketGroup():
                    open_nodes.append(iter(node.nodes))
                case ScheduledEdit():
                    open_nodes.append(iter(node.before if step <= switch_steps[node.when] else node.after))
                case Alternation():
                    open_nodes.append(iter(node.options[(step - 1) % len(node.options)]))


@dataclass(slots=True)
class _OpenBracket:
    """An open bracket, its contents so far, and the indices of its own : and | in them."""

    opening: str
    position: int
    nodes: list[Node] = field(default_factory=list[Node])
    nested_edits: int = 0  # how many edits are inside each other in it
    separator_indices: list[int] = field(default_factory=list[int])

    def add_separator(self, separator: str) -> None:
        self.separator_indices.append(len(self.nodes))
        self.nodes.append(separator)

    @property
    def separators(self) -> str:
        """Return its separators, such as "::" for an edit and "|" for an alternation of two."""
        return "".join(str(self.nodes[index]) for index in self.separator_indices)

    @property
    def sections(self) -> list[list[Node]]:
        borders = [-1, *self.separator_indices, len(self.nodes)]
        return [self.nodes[start + 1 : end] for start, end in pairwise(borders)]


class _EditingParser:
    """Parser of prompt editing, fed token by token.

    After a closing bracket that does not fit, all open brackets are read as text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.root: list[Node] = []
        self.switch_numbers: set[str] = set()
        self.spans: list[tuple[int, int]] = []  # positions of the outermost edits and alternations
        self.has_alternations = False
        self.issues: list[EditingIssue] = []
        self.stray_bar: int | None = None
        self._has_mixed_bracket = False  # True after a closed bracket with both | and : of its own
        self._open_brackets: list[_OpenBracket] = []

    @classmethod
    def from_plain_text(cls, text: str, stray_bar: int | None = None) -> Self:
        """Return a parser with the text as plain words, and with an issue if a | at `stray_bar` is the reason."""
        parser = cls(text)
        parser.root.append(text)
        if stray_bar is not None:
            reason = r"a | outside of [a|b] turns all prompt editing into plain words, as in A1111; write \| for a bar"
            parser.issues.append(EditingIssue(stray_bar, reason))
        return parser

    @property
    def has_editing(self) -> bool:
        """Return True if there is editing that a stray | turns into words."""
        return bool(self.spans) or self._has_mixed_bracket

    def feed(self, token: str, position: int) -> None:
        """Parse one token."""
        innermost = self._open_brackets[-1] if self._open_brackets else None
        match token:
            case "[" | "(":
                self._open_brackets.append(_OpenBracket(token, position))
            case "]" | ")":
                self._close(token, position)
            case ":" if innermost is not None:
                innermost.add_separator(token)
            case "|" if innermost is not None and innermost.opening == "[":
                innermost.add_separator(token)
            case "|":
                self._record_stray_bar(position)
            case _:
                self._current_nodes().append(token)

    def close_as_text(self) -> None:
        """Read all open brackets as text."""
        for bracket in self._open_brackets:
            if "|" in bracket.separators:
                self._record_stray_bar(bracket.position)
            self.root += [bracket.opening, *bracket.nodes]
        self._open_brackets.clear()

    def _close(self, token: str, position: int) -> None:
        node = self._closing_node(token)
        if node is None:
            self.close_as_text()
            self.root.append(token)
            return
        bracket = self._open_brackets.pop()
        self._current_nodes().append(node)
        nested_edits = bracket.nested_edits + (not isinstance(node, BracketGroup))
        if nested_edits > MAX_NESTED_EDITS:
            reason = f"more than {MAX_NESTED_EDITS} edits are inside each other here; write them one after another"
            raise prompt_error(self._text, bracket.position, reason)
        if self._open_brackets:
            self._open_brackets[-1].nested_edits = max(self._open_brackets[-1].nested_edits, nested_edits)
        if isinstance(node, BracketGroup):
            return
        while self.spans and self.spans[-1][0] > bracket.position:
            self.spans.pop()
        self.spans.append((bracket.position, position + 1))

    def _closing_node(self, token: str) -> BracketGroup | ScheduledEdit | Alternation | None:
        """Return the node of the innermost bracket with this closing bracket, or None if they do not fit."""
        if not self._open_brackets or self._open_brackets[-1].opening + token not in {"[]", "()"}:
            return None
        bracket = self._open_brackets[-1]
        separators = bracket.separators
        if not separators or (separators == ":" and token == ")"):
            return BracketGroup([bracket.opening, *bracket.nodes, token])
        if token == ")":
            return None
        if not separators.strip("|"):
            self.has_alternations = True
            return Alternation(bracket.sections)
        self._has_mixed_bracket = self._has_mixed_bracket or "|" in separators
        return self._make_edit(bracket) if separators in {":", "::"} else None

    def _make_edit(self, bracket: _OpenBracket) -> ScheduledEdit | None:
        *texts, last = bracket.sections
        number_text = "".join(node for node in last if isinstance(node, str))
        is_plain = all(isinstance(node, str) for node in last)
        number = SWITCH_NUMBER_PATTERN.fullmatch(number_text) if is_plain else None
        if number is None:
            if len(texts) == 2:
                quoted = number_text[:MAX_QUOTED_CHARACTERS]
                reason = f"[...:...:{quoted}] is read as words, as {quoted!r} is not a number of steps"
                self.issues.append(EditingIssue(bracket.position, f"{reason}; write [cat:dog:0.5] or [cat:dog:8]"))
            return None
        self.switch_numbers.add(number[1])
        return ScheduledEdit(texts[0] if len(texts) == 2 else [], texts[-1], number[1])

    def _record_stray_bar(self, position: int) -> None:
        if self.stray_bar is None:
            self.stray_bar = position

    def _current_nodes(self) -> list[Node]:
        return self._open_brackets[-1].nodes if self._open_brackets else self.root


def _parse(text: str) -> _EditingParser:
    if "]" not in text or not {":", "|"} & set(text):
        return _EditingParser.from_plain_text(text)
    parser = _EditingParser(text)
    for token in EDITING_TOKEN.finditer(text):
        parser.feed(token.group(), token.start())
    parser.close_as_text()
    if parser.stray_bar is None:
        return parser
    return _EditingParser.from_plain_text(text, parser.stray_bar if parser.has_editing else None)
