"""Prompt: the parsed prompt, with its tags, its AND parts, and its texts over the steps."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from velatura.errors import BadPrompt, quantity, warn
from velatura.prompts.emphasis import EmphasisMode, Fragment, parse_emphasis
from velatura.prompts.passage import excerpt_at, prompt_error
from velatura.prompts.prompt_editing import EditedText, Timing
from velatura.prompts.tags import Tag, check_tags, find_tags, split_tags, strip_comments

AND_PATTERN = re.compile(r"\bAND\b")
WEIGHT_PATTERN = re.compile(r"[+-]?(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)")
MAX_SUBPROMPT_WEIGHT = 1e6  # larger weights make latents overflow
MAX_SUBPROMPTS = 100
MAX_PROMPT_CHARACTERS = 2**16
SURROGATE = re.compile("[\ud800-\udfff]")  # which no encoding has
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # not tabs and line breaks


class Subprompt(NamedTuple):
    """A prompt between ANDs, with its weight and its position in the whole prompt."""

    words: str
    weight: float = 1.0
    start: int = 0


def _check_characters(text: str) -> None:
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise BadPrompt(f"the prompt has {len(text):,} characters: write {MAX_PROMPT_CHARACTERS:,} at most")
    if surrogate := SURROGATE.search(text):
        raise BadPrompt(f"the prompt holds {surrogate[0]!a}, which is not a character: write it in UTF-8")


def split_at_and(text: str) -> list[Subprompt]:
    """Split a prompt at AND, and parse the weight at the end of every part. Empty parts count too.

    Raises:
        BadPrompt: for a weight above MAX_SUBPROMPT_WEIGHT, and for more than MAX_SUBPROMPTS parts.
    """
    subprompts: list[Subprompt] = []
    start = 0
    parts = AND_PATTERN.split(text)
    if len(parts) > MAX_SUBPROMPTS:
        raise prompt_error(
            text,
            0,
            f"the prompt has {len(parts):,} parts between ANDs, and each takes a call of the UNet in every step: "
            f"write {MAX_SUBPROMPTS} at most",
        )
    for words in parts:
        subprompt = _parse_subprompt(words, start)
        if abs(subprompt.weight) > MAX_SUBPROMPT_WEIGHT:
            position = start + words.rindex(":") + 1
            reason = f"the weight {subprompt.weight:g} is above {MAX_SUBPROMPT_WEIGHT:g}; write a number such as 0.5"
            raise prompt_error(text, position, reason)
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
    """A text to encode, with its emphasis brackets, and its weight beside other texts.

    Texts with the same words and emphasis mode have the same context: cache it by them.
    """

    words: str
    weight: float = 1.0
    emphasis: EmphasisMode = "Original"

    @cached_property
    def fragments(self) -> list[Fragment]:
        """Return the words with their emphasis."""
        return parse_emphasis(self.words, self.emphasis)


class ScheduledPrompt(NamedTuple):
    """Texts of a prompt up to and including a call of the model.

    As in A1111, calls count from 0, so the first entry holds for one call more than the prompt says.
    """

    last_call: int
    texts: tuple[WeightedText, ...]


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt.

    Attributes:
        text: The prompt as it was written.
        words: The prompt without comments and tags, with all brackets.
        tags: Tags that call overlays.
        subprompts: Parts between ANDs.
    """

    text: str
    words: str
    tags: tuple[Tag, ...] = ()
    subprompts: tuple[Subprompt, ...] = ()

    def __post_init__(self) -> None:
        if not self.subprompts:
            object.__setattr__(self, "subprompts", (Subprompt(self.words),))

    @classmethod
    def parse(cls, text: str, *, lenient: bool = False) -> Self:
        """Parse a prompt.

        Args:
            text: The prompt.
            lenient: Warn of malformed tags and read them as words.

        Raises:
            BadPrompt: for a malformed tag, unless lenient, for a wrong weight or argument of a tag, and for a text that
                is too long, has too many tags or too many edits inside each other.
        """
        _check_characters(text)
        words, tags = split_tags(strip_comments(text), lenient=lenient)
        prompt = cls(text, words, tuple(check_tags(tags)), tuple(split_at_and(words)))
        _ = prompt._edited_texts  # which may be refused
        return prompt

    @classmethod
    def parse_negative(cls, text: str) -> Self:
        """Parse a negative prompt, in which tags and AND are plain words, with a warning.

        Raises:
            BadPrompt: for a text that is too long, or has too many edits inside each other.
        """
        _check_characters(text)
        words = strip_comments(text)
        tags = find_tags(words)
        if tags:
            warn(f"{tags[0].group()} in the negative prompt calls no overlay; put it into the prompt, with on=negative")
        if AND_PATTERN.search(words):
            warn("AND in the negative prompt is read as a word; use commas to separate")
        prompt = cls(text, words)
        _ = prompt._edited_texts
        return prompt

    @cached_property
    def fragments(self) -> list[Fragment]:
        """Return the words with their emphasis, for uses with the same text at all steps, such as training.

        Warns of AND and prompt editing, which are read as plain words.
        """
        for syntax in self._changing_syntax():
            warn(f"{syntax} is read as plain words here")
        return parse_emphasis(self.words)

    def schedule(self, steps: Timing | int, emphasis: EmphasisMode = "Original") -> list[ScheduledPrompt]:
        """Return the texts of the prompt over the steps.

        Warns of brackets that look like prompt editing but are not, and of tags inside edits.

        Args:
            steps: Steps of the sampler, or a Timing for a second pass or A1111's old scheduling.
            emphasis: How emphasis is applied.

        Returns:
            Entries in order; the last one holds until the last step. An entry has a text for every part between ANDs:
            denoised = uncond + guidance * sum of weight * (cond - uncond). Most prompts have one entry with one text.

        Raises:
            BadPrompt: for emphasis that is too large.
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
        """Warn of edits whose step is after the last step of all passes."""
        steps = sum(timing.total_steps for timing in passes)
        for when in (number for text in self._edited_texts for number in text.unreached_edits(passes)):
            warn(
                f"words that change at {when} never change in {quantity(steps, 'step')}; "
                "write an earlier step, or a fraction such as 0.5"
            )

    @cached_property
    def _edited_texts(self) -> list[EditedText]:
        return [EditedText(subprompt.words) for subprompt in self.subprompts]

    def _texts_at(
        self, schedules: Sequence[Sequence[tuple[int, str]]], step: int, emphasis: EmphasisMode
    ) -> Iterator[WeightedText]:
        for subprompt, schedule in zip(self.subprompts, schedules, strict=True):
            _, words = schedule[bisect_left(schedule, (step,))]
            text = WeightedText(words, subprompt.weight, emphasis)
            _ = text.fragments  # which may be refused
            yield text

    def _changing_syntax(self) -> list[str]:
        """Return the names of the syntax that gives the prompt more than one text."""
        has_edits = not all(text.is_constant for text in self._edited_texts)
        return ["AND"] * (len(self.subprompts) > 1) + ["prompt editing"] * has_edits

    def _tags_in_changing_words(self) -> Iterator[Tag]:
        removed = 0
        tags = {tag.start: tag for tag in self.tags}
        for match in find_tags(strip_comments(self.text)):
            position = match.start() - removed  # in the words, without the tags before it
            removed += len(match.group())
            tag = tags.get(match.start())  # none for a tag that calls nothing
            if tag is None:
                continue
            i = bisect_right(self.subprompts, position, key=lambda subprompt: subprompt.start) - 1
            if self._edited_texts[i].changes_at(position - self.subprompts[i].start):
                yield tag

    def _warn_suspicious_syntax(self) -> None:
        control = CONTROL_CHARACTER.search(self.words)
        if control:
            warn(
                f"the prompt has the control character {control[0]!a} as its character {control.start() + 1}, which no "
                "keyboard writes: the text encoder gets it too, so remove it"
            )
        for subprompt, edited_text in zip(self.subprompts, self._edited_texts, strict=True):
            for position, reason in edited_text.issues:
                warn(f"{reason}; {excerpt_at(subprompt.words, position)}")
        for tag in self._tags_in_changing_words():
            warn(f"{tag} is inside words that change, but acts at all steps; limit it in the tag, as with start=0.5")
        if len(self.subprompts) == 1 and self.subprompts[0].weight != 1:
            warn(
                f"the prompt ends in a weight, as parts between ANDs do: it counts {self.subprompts[0].weight:g} "
                "times, as in A1111; end it with a comma if you do not want that"
            )


def scheduled_prompt_at(schedule: Sequence[ScheduledPrompt], call: int) -> ScheduledPrompt:
    """Return the entry of a schedule for a call of the model, counted from 0.

    After the last entry the first one is returned, as in A1111: Restart and DPM adaptive call the model more often than
    planned.
    """
    index = bisect_left(schedule, call, key=lambda entry: entry.last_call)
    return schedule[index % len(schedule)]
