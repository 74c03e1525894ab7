"""A prompt as it was written, and what it says at each step."""

import re
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from velatura.errors import VelaturaWarning
from velatura.prompts.grammar import EmphasisMode, Fragment, Tag, find_tags, parse_emphasis, split_tags, strip_comments
from velatura.prompts.passage import excerpt_at, prompt_error
from velatura.prompts.prompt_editing import EditedText, Timing

AND_PATTERN = re.compile(r"\bAND\b")
WEIGHT_PATTERN = re.compile(r"[+-]?(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)")
MAX_SUBPROMPT_WEIGHT = 1e6  # latents that are pushed further are no numbers soon


class Subprompt(NamedTuple):
    """One of the prompts between ANDs, how much it counts, and where in the whole it starts."""

    words: str
    weight: float = 1.0
    start: int = 0


def split_at_and(text: str) -> list[Subprompt]:
    """The prompts that are joined by AND, the weight at each one's end taken off; empty ones are prompts too.

    Raises BadPrompt for a weight beyond all measure.
    """
    subprompts: list[Subprompt] = []
    start = 0
    for words in AND_PATTERN.split(text):
        subprompt = _parse_subprompt(words, start)
        if abs(subprompt.weight) > MAX_SUBPROMPT_WEIGHT:
            position = start + words.rindex(":") + 1
            raise prompt_error(
                text,
                position,
                f"a weight of {subprompt.weight:g} is beyond {MAX_SUBPROMPT_WEIGHT:g}; write one such as 0.5",
            )
        subprompts.append(subprompt)
        start += len(words) + len("AND")
    return subprompts


def _parse_subprompt(text: str, start: int) -> Subprompt:
    words, colon, weight = text.rstrip().rpartition(":")
    if colon and WEIGHT_PATTERN.fullmatch(weight.lstrip()):
        return Subprompt(words.rstrip(), float(weight), start)
    return Subprompt(text.rstrip(), start=start)


@dataclass(frozen=True)
class WeightedText:
    """Words that are encoded as they stand, brackets of emphasis still in, and how much they count beside others.

    Voices of equal words are one context: keep it by `words`.
    """

    words: str
    weight: float = 1.0
    emphasis: EmphasisMode = "Original"

    @cached_property
    def fragments(self) -> list[Fragment]:
        """The words with their emphasis."""
        return parse_emphasis(self.words, self.emphasis)


class ScheduledPrompt(NamedTuple):
    """What a prompt says up to a call of the model, that one included.

    The webui counts calls from 0, so that its first row holds for one more than the prompt says; and so it is here.
    """

    last_call: int
    texts: tuple[WeightedText, ...]


@dataclass(frozen=True)
class Prompt:
    """What the text encoders are told, brackets still in, and the overlays that tags in it call."""

    text: str
    words: str
    tags: tuple[Tag, ...] = ()
    subprompts: tuple[Subprompt, ...] = ()

    def __post_init__(self) -> None:
        if not self.subprompts:
            object.__setattr__(self, "subprompts", (Subprompt(self.words),))

    @classmethod
    def parse(cls, text: str, *, lenient: bool = False) -> Self:
        """Read a prompt; raises BadPrompt for a malformed tag, lenient: warns of it and takes it as words."""
        words, tags = split_tags(strip_comments(text), lenient=lenient)
        return cls(text, words, tuple(tags), tuple(split_at_and(words)))

    @classmethod
    def parse_negative(cls, text: str) -> Self:
        """Read a negative prompt, in which tags and AND are words: overlays are called by the prompt only."""
        words = strip_comments(text)
        if tags := find_tags(words):
            message = (
                f"{tags[0].group()} in the negative prompt calls no overlay; put it into the prompt, with on=negative"
            )
            warnings.warn(message, VelaturaWarning, 2)
        if AND_PATTERN.search(words):
            warnings.warn("AND in the negative prompt is taken as a word; separate by commas", VelaturaWarning, 2)
        return cls(text, words)

    @cached_property
    def fragments(self) -> list[Fragment]:
        """The words with their emphasis, for those who tell a model the same at each step: training, for one.

        Warns of AND and prompt editing, which are words then.
        """
        for syntax in self._changing_syntax():
            warnings.warn(f"{syntax} is taken as plain words here", VelaturaWarning, 3)
        return parse_emphasis(self.words)

    def schedule(self, steps: Timing | int, emphasis: EmphasisMode = "Original") -> list[ScheduledPrompt]:
        """What the prompt says over the steps: rows in their order, the last one until the last step.

        steps: those the sampler takes, or the timing where there is more to say of them. Each row holds a voice for
        each prompt joined by AND: picture = negative + guidance * sum of weight * (voice - negative). Most prompts
        have one row of one voice. Warns of brackets that look like editing and are none, and of tags within edits.
        """
        timing = Timing(steps) if isinstance(steps, int) else steps
        self._warn_suspicious_syntax()
        schedules = [text.schedule(timing) for text in self._edited_texts]
        ends = sorted({end for schedule in schedules for end, _ in schedule})
        scheduled = [ScheduledPrompt(end, tuple(self._texts_at(schedules, end, emphasis))) for end in ends]
        return [
            entry
            for entry, following in zip(scheduled, [*scheduled[1:], None], strict=True)
            if not following or entry[1] != following[1]
        ]

    def warn_unreached_edits(self, *passes: Timing) -> None:
        """Warn of edits whose step never comes, be it in the one pass or the other."""
        steps = sum(timing.total_steps for timing in passes)
        for when in (number for text in self._edited_texts for number in text.unreached_edits(passes)):
            message = (
                f"words that change at {when} never do in {steps} steps; give an earlier step, or a fraction as 0.5"
            )
            warnings.warn(message, VelaturaWarning, 2)

    @cached_property
    def _edited_texts(self) -> list[EditedText]:
        return [EditedText(subprompt.words) for subprompt in self.subprompts]

    def _texts_at(
        self, schedules: Sequence[Sequence[tuple[int, str]]], step: int, emphasis: EmphasisMode
    ) -> Iterator[WeightedText]:
        for subprompt, schedule in zip(self.subprompts, schedules, strict=True):
            _, words = schedule[bisect_left(schedule, (step,))]
            yield WeightedText(words, subprompt.weight, emphasis)

    def _changing_syntax(self) -> list[str]:
        """The grammar in it that makes its words more than one text."""
        has_edits = not all(text.is_constant for text in self._edited_texts)
        return ["AND"] * (len(self.subprompts) > 1) + ["prompt editing"] * has_edits

    def _tags_in_changing_words(self) -> Iterator[Tag]:
        removed = 0
        for tag in self.tags:
            position = tag.start - removed  # in the words, from which all tags before it are taken out
            removed += len(str(tag))
            i = bisect_right(self.subprompts, position, key=lambda subprompt: subprompt.start) - 1
            if self._edited_texts[i].changes_at(position - self.subprompts[i].start):
                yield tag

    def _warn_suspicious_syntax(self) -> None:
        for subprompt, edited_text in zip(self.subprompts, self._edited_texts, strict=True):
            for position, reason in edited_text.issues:
                warnings.warn(f"{reason}; {excerpt_at(subprompt.words, position)}", VelaturaWarning, 4)
        for tag in self._tags_in_changing_words():
            message = (
                f"{tag} stands in words that change, and acts at all steps; say in the tag when it acts, as start=0.5"
            )
            warnings.warn(message, VelaturaWarning, 4)
        if len(self.subprompts) == 1 and self.subprompts[0].weight != 1:
            message = f"the prompt ends in a weight, as prompts joined by AND do: it counts {self.subprompts[0].weight:g} times"
            warnings.warn(f"{message}, as in the webui; end it in a comma if that is not meant", VelaturaWarning, 4)


def scheduled_prompt_at(schedule: Sequence[ScheduledPrompt], call: int) -> ScheduledPrompt:
    """The row of a call of the model, counted from 0; the first one again where a sampler calls more often than told.

    Restart and DPM adaptive do, and the webui falls back to the first row then.
    """
    index = bisect_left(schedule, call, key=lambda entry: entry.last_call)
    return schedule[index % len(schedule)]
