"""A prompt as it was written, and what it says at each step."""

import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from velatura.errors import VelaturaWarning
from velatura.prompts.grammar import Emphasis, Run, Tag, find_tags, read_emphasis, take_tags, without_comments
from velatura.prompts.parts import AND, Part, split_at_and
from velatura.prompts.passage import pointed_at
from velatura.prompts.timeline import Timeline, Timing


@dataclass(frozen=True)
class Voice:
    """Words that are encoded as they stand, brackets of emphasis still in, and how much they count beside others.

    Voices of equal words are one context: keep it by `words`.
    """

    words: str
    weight: float = 1.0
    emphasis: Emphasis = "Original"

    @cached_property
    def runs(self) -> list[Run]:
        """The words with their emphasis."""
        return read_emphasis(self.words, self.emphasis)


class Row(NamedTuple):
    """What a prompt says up to a call of the model, that one included.

    The webui counts calls from 0, so that its first row holds for one more than the prompt says; and so it is here.
    """

    until: int
    voices: tuple[Voice, ...]


@dataclass(frozen=True)
class Prompt:
    """What the text encoders are told, brackets still in, and the overlays that tags in it call."""

    text: str
    words: str
    tags: tuple[Tag, ...] = ()
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            object.__setattr__(self, "parts", (Part(self.words),))

    @classmethod
    def read(cls, text: str, *, lenient: bool = False) -> Self:
        """Read a prompt; raises BadPrompt for a malformed tag, lenient: warns of it and takes it as words."""
        words, tags = take_tags(without_comments(text), lenient=lenient)
        return cls(text, words, tuple(tags), tuple(split_at_and(words)))

    @classmethod
    def read_negative(cls, text: str) -> Self:
        """Read a negative prompt, in which tags and AND are words: overlays are called by the prompt only."""
        words = without_comments(text)
        if tags := find_tags(words):
            said = (
                f"{tags[0].group()} in the negative prompt calls no overlay; put it into the prompt, with on=negative"
            )
            warnings.warn(said, VelaturaWarning, 2)
        if AND.search(words):
            warnings.warn("AND in the negative prompt is taken as a word; separate by commas", VelaturaWarning, 2)
        return cls(text, words)

    @cached_property
    def runs(self) -> list[Run]:
        """The words with their emphasis, for those who tell a model the same at each step: training, for one.

        Warns of AND and prompt editing, which are words then.
        """
        for found in self._changing():
            warnings.warn(f"{found} is taken as plain words here", VelaturaWarning, 3)
        return read_emphasis(self.words)

    def rows(self, steps: Timing | int, emphasis: Emphasis = "Original") -> list[Row]:
        """What the prompt says over the steps: rows in their order, the last one until the last step.

        steps: those the sampler takes, or the timing where there is more to say of them. Each row holds a voice for
        each prompt joined by AND: picture = negative + guidance * sum of weight * (voice - negative). Most prompts
        have one row of one voice. Warns of brackets that look like editing and are none, and of tags within edits.
        """
        timing = Timing(steps) if isinstance(steps, int) else steps
        self._warn()
        schedules = [each.schedule(timing) for each in self._timelines]
        ends = sorted({end for schedule in schedules for end, _ in schedule})
        rows = [Row(end, tuple(self._voices(schedules, end, emphasis))) for end in ends]
        return [row for row, later in zip(rows, [*rows[1:], None], strict=True) if not later or row[1] != later[1]]

    def warn_of_unreached(self, *passes: Timing) -> None:
        """Warn of edits whose step never comes, be it in the one pass or the other."""
        steps = sum(timing.total for timing in passes)
        for when in (each for timeline in self._timelines for each in timeline.unreached(passes)):
            said = f"words that change at {when} never do in {steps} steps; give an earlier step, or a fraction as 0.5"
            warnings.warn(said, VelaturaWarning, 2)

    @cached_property
    def _timelines(self) -> list[Timeline]:
        return [Timeline(part.words) for part in self.parts]

    def _voices(self, schedules: Sequence[Sequence[tuple[int, str]]], step: int, emphasis: Emphasis) -> Iterator[Voice]:
        for part, schedule in zip(self.parts, schedules, strict=True):
            _, words = schedule[bisect_left(schedule, (step,))]
            yield Voice(words, part.weight, emphasis)

    def _changing(self) -> list[str]:
        """The grammar in it that makes its words more than one text."""
        edits = not all(each.is_steady for each in self._timelines)
        return ["AND"] * (len(self.parts) > 1) + ["prompt editing"] * edits

    def _tags_in_changing_words(self) -> Iterator[Tag]:
        taken = 0
        for tag in self.tags:
            place = tag.start - taken  # in the words, from which all tags before it are taken out
            taken += len(str(tag))
            i = bisect_right(self.parts, place, key=lambda part: part.start) - 1
            if self._timelines[i].changes_at(place - self.parts[i].start):
                yield tag

    def _warn(self) -> None:
        for part, timeline in zip(self.parts, self._timelines, strict=True):
            for place, reason in timeline.complaints:
                warnings.warn(f"{reason}; {pointed_at(part.words, place)}", VelaturaWarning, 4)
        for tag in self._tags_in_changing_words():
            said = (
                f"{tag} stands in words that change, and acts at all steps; say in the tag when it acts, as start=0.5"
            )
            warnings.warn(said, VelaturaWarning, 4)
        if len(self.parts) == 1 and self.parts[0].weight != 1:
            said = f"the prompt ends in a weight, as prompts joined by AND do: it counts {self.parts[0].weight:g} times"
            warnings.warn(f"{said}, as in the webui; end it in a comma if that is not meant", VelaturaWarning, 4)


def row_at(rows: Sequence[Row], call: int) -> Row:
    """The row of a call of the model, counted from 0; the first one again where a sampler calls more often than told.

    Restart and DPM adaptive do, and the webui falls back to the first row then.
    """
    place = bisect_left(rows, call, key=lambda row: row.until)
    return rows[place % len(rows)]
