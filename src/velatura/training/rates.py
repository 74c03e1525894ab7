"""The rate grammar: a number that changes at given steps, such as "5e-5:100, 5e-6:1500, 5e-7"."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, NamedTuple, Self

from velatura.errors import BadPlan

TO_THE_END = -1


@dataclass(frozen=True)
class Segment:
    """One rate and the steps it holds for, counted in steps done: first included, end excluded."""

    rate: float
    first: int
    end: int


@dataclass(frozen=True)
class LearningRates:
    """What a schedule text says, read as AUTOMATIC1111's webui reads it.

    `5e-5:100, 5e-6` is 5e-5 for the first 100 steps and 5e-6 from there on; `:-1` means to the end. Parts that
    start_step has passed are dropped, and what follows the part that reaches the last step is not read at all.
    A schedule whose last part ends early ends the training early.

    oddities: what is read as the webui reads it, and hardly meant so.
    """

    segments: tuple[Segment, ...]
    oddities: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str, steps: int, *, start_step: int = 0) -> Self:
        """Read a schedule for a training that ends at `steps`; raises BadPlan for a text that names no rate."""
        try:
            parts = tuple(_parts(text, steps, start_step))
        except ValueError as error:
            raise BadPlan(f'the rate "{text}" cannot be read, {error}; write "5e-5", or "5e-5:100, 5e-6"') from None
        if not parts:
            raise BadPlan(
                f'the rate "{text}" says nothing of step {start_step + 1}; end it with one that lasts, "5e-5:100, 5e-6"'
            )
        segments = tuple(_segments(parts, steps, start_step))
        return cls(segments, tuple(_oddities(text, parts, segments, steps)))

    @property
    def end(self) -> int:
        """The count of steps at which the schedule, and so the training, is over."""
        return self.segments[-1].end if self.segments else 0

    def __iter__(self) -> Iterator[float]:
        """The rate of each step, from the one after start_step to the last."""
        for segment in self.segments:
            yield from repeat(segment.rate, segment.end - segment.first)


class _RatePart(NamedTuple):
    """One part of a schedule as it is read."""

    text: str
    rate: float
    until: int


def _parts(text: str, steps: int, start_step: int) -> Iterator[_RatePart]:
    """The parts that matter between start_step and steps."""
    for part in filter(str.strip, text.split(",")):
        pieces = part.split(":")
        rate = float(pieces[0])
        # Too many pieces say "to the end", as one rate does: so the webui reads them
        until = int(pieces[1]) if len(pieces) == 2 else TO_THE_END
        if until == TO_THE_END:
            yield _RatePart(part.strip(), rate, steps)
            return
        if until > start_step:
            yield _RatePart(part.strip(), rate, min(until, steps))
            if until > steps:
                return


def _segments(parts: tuple[_RatePart, ...], steps: int, start_step: int) -> Iterator[Segment]:
    """Make the parts follow each other: one that should have ended before it began still gets a single step.

    The webui gives such a part its step even past the last one; here nothing runs past `steps`.
    """
    first = start_step
    for index, part in enumerate(parts):
        end = min(part.until if index == 0 else max(part.until, first + 1), steps)
        if end > first:
            yield Segment(part.rate, first, end)
            first = end


def _oddities(text: str, parts: tuple[_RatePart, ...], segments: tuple[Segment, ...], steps: int) -> Iterator[str]:
    for part, segment in zip(parts, segments, strict=False):  # parts past the last step have no segment
        if part.text.count(":") > 1:
            yield f'"{part.text}" in the rate "{text}" holds to the end; write one step after it, "5e-5:100", or none'
        elif part.until < segment.end:
            yield (
                f'"{part.text}" in the rate "{text}" gets a single step, as {segment.first} steps are over before it; '
                "count steps from the beginning of the training"
            )
    if segments and segments[-1].end < steps:
        yield (
            f'the rate "{text}" ends the training after {segments[-1].end} of {steps} steps; '
            'end it with a rate that lasts, "5e-5:100, 5e-6"'
        )


RateSchedule = Literal["constant", "linear", "cosine", "restarts"]

# From 0, where the warm-up ends, to 1, where the training does; the second number is how many restarts there are
SCHEDULE_FACTORS: dict[RateSchedule, Callable[[float, int], float]] = {
    "constant": lambda _along, _cycles: 1.0,
    "linear": lambda progress, _cycles: 1 - progress,
    "cosine": lambda progress, _cycles: 0.5 * (1 + math.cos(math.pi * progress)),
    "restarts": lambda progress, cycles: 0.5 * (1 + math.cos(math.pi * (progress * cycles % 1))),
}


def schedule_factor(schedule: RateSchedule, step: int, total_steps: int, *, warmup: int = 0, cycles: int = 1) -> float:
    """What the rate of the step after `done` is multiplied by; as diffusers' schedules, whose warm-up begins at 0."""
    if step < warmup:
        return step / warmup
    return SCHEDULE_FACTORS[schedule]((step - warmup) / max(1, total_steps - warmup), cycles)
