"""Learning rates that change at given steps, such as "5e-5:100, 5e-6:1500, 5e-7", and schedules that shape them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, NamedTuple, Self

from velatura.errors import BadPlan

UNTIL_THE_END = -1  # as the number of steps, "5e-5:-1"


@dataclass(frozen=True)
class RateSegment:
    """One rate and the steps with it, counted in finished steps: from `start` on, before `end`."""

    rate: float
    start: int
    end: int


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of all steps, parsed as AUTOMATIC1111's web UI parses them (LearnScheduleIterator).

    `5e-5:100, 5e-6` is 5e-5 for the first 100 steps and 5e-6 from there on; `:-1` means to the end. Parts that end
    before the first step are dropped, and the text after the part that reaches the last step is not read at all. If
    the last part ends early, the training ends there.

    Attributes:
        segments: The rates in the order of their steps, without a gap.
        warnings: What the text says that is probably not meant, in words.
    """

    segments: tuple[RateSegment, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, steps: int, *, start_step: int = 0) -> Self:
        """Parse rates for a training that ends at `steps` and begins when `start_step` steps are done.

        Raises:
            BadPlan: The text cannot be read, or it has no rate for the first step.
        """
        try:
            parts = tuple(_parse_parts(text, steps, start_step))
        except ValueError as error:
            raise BadPlan(f'the rate "{text}" cannot be read, {error}: write "5e-5", or "5e-5:100, 5e-6"') from None
        if not parts:
            raise BadPlan(
                f'the rate "{text}" has no value for step {start_step + 1}: end it with a rate without a step count, '
                '"5e-5:100, 5e-6"'
            )
        segments = tuple(_join_parts(parts, steps, start_step))
        return cls(segments, tuple(_find_mistakes(text, parts, segments, steps)))

    @property
    def end(self) -> int:
        """Return the number of steps after which the rates, and so the training, end."""
        return self.segments[-1].end if self.segments else 0

    def __iter__(self) -> Iterator[float]:
        """Yield the rate of each step, from the one after `start_step` to the last."""
        for segment in self.segments:
            yield from repeat(segment.rate, segment.end - segment.start)


class _RatePart(NamedTuple):
    """One comma-separated part of the text, such as "5e-5:100"."""

    text: str
    rate: float
    end: int


def _parse_parts(text: str, steps: int, start_step: int) -> Iterator[_RatePart]:
    """Yield the parts that end after `start_step`, up to the one that reaches `steps`."""
    for part in filter(str.strip, text.split(",")):
        pieces = part.split(":")
        rate = float(pieces[0])
        # Like a rate without a step count, a part with two colons lasts to the end: the web UI parses it so
        end = int(pieces[1]) if len(pieces) == 2 else UNTIL_THE_END
        if end == UNTIL_THE_END:
            yield _RatePart(part.strip(), rate, steps)
            return
        if end > start_step:
            yield _RatePart(part.strip(), rate, min(end, steps))
            if end > steps:
                return


def _join_parts(parts: tuple[_RatePart, ...], steps: int, start_step: int) -> Iterator[RateSegment]:
    """Yield the parts one after another; a part that should end before it begins still gets a single step.

    The web UI gives such a part its step even after the last one; here nothing runs past `steps`.
    """
    start = start_step
    for index, part in enumerate(parts):
        end = min(part.end if index == 0 else max(part.end, start + 1), steps)
        if end > start:
            yield RateSegment(part.rate, start, end)
            start = end


def _find_mistakes(
    text: str, parts: tuple[_RatePart, ...], segments: tuple[RateSegment, ...], steps: int
) -> Iterator[str]:
    for part, segment in zip(parts, segments, strict=False):  # parts past the last step have no segment
        if part.text.count(":") > 1:
            yield (
                f'"{part.text}" in the rate "{text}" lasts to the end of the training: write one step count, '
                '"5e-5:100", or none'
            )
        elif part.end < segment.end:
            yield (
                f'"{part.text}" in the rate "{text}" gets a single step, because it ends before step {segment.start}: '
                "count the steps from the beginning of the training"
            )
    if segments and segments[-1].end < steps:
        yield (
            f'the rate "{text}" ends the training after {segments[-1].end} of {steps} steps: '
            'end it with a rate without a step count, "5e-5:100, 5e-6"'
        )


RateSchedule = Literal["constant", "linear", "cosine", "restarts"]

# Factors by progress, which is 0 where the warm-up ends and 1 where the training ends, and by the number of cycles
SCHEDULE_FACTORS: dict[RateSchedule, Callable[[float, int], float]] = {
    "constant": lambda _progress, _cycles: 1.0,
    "linear": lambda progress, _cycles: 1 - progress,
    "cosine": lambda progress, _cycles: 0.5 * (1 + math.cos(math.pi * progress)),
    "restarts": lambda progress, cycles: 0.5 * (1 + math.cos(math.pi * (progress * cycles % 1))),
}


def schedule_factor(schedule: RateSchedule, step: int, total_steps: int, *, warmup: int = 0, cycles: int = 1) -> float:
    """Return the factor on the learning rate, from 0 to 1, as in the schedules of diffusers.

    Args:
        schedule: Name of the schedule.
        step: Number of finished steps.
        total_steps: Number of steps of the training.
        warmup: Number of steps over which the factor rises from 0.
        cycles: Number of cosine cycles of "restarts".
    """
    if step < warmup:
        return step / warmup
    return SCHEDULE_FACTORS[schedule]((step - warmup) / max(1, total_steps - warmup), cycles)
