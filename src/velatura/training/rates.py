"""Learning rates that change at given steps, such as "5e-5:100, 5e-6:1500, 5e-7", and schedules that shape them."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, NamedTuple, Self

from velatura.card import printable_text
from velatura.errors import BadPlan, quantity

UNTIL_THE_END = -1  # as the number of steps, "5e-5:-1"
MAX_PARTS = 1000  # of a text, which a person hardly writes
MAX_STEP_COUNT = 10**9
MAX_RATE = 1.0  # by which AdamW and Lion move every weight in a single step
MAX_SHOWN_LENGTH = 100  # characters of rates in a message
# A1111 takes them, as Python's parser does, and no program writes them: digits of other scripts, 1_0; controls
OTHER_CHARACTERS = re.compile(r"(?![0-9])\d|\d_|[\x00-\x1f\x7f-\x9f]")
# "5,0e-5" as a whole part: a rate without a step count lasts to the end, so a part after it has no meaning of its own
DECIMAL_COMMA = re.compile(r"((?:^|,)\s*[+-]?\d+|:\s*\d+(?=,\d+\s*%)),(\d+(?:[eE][+-]?\d+)?\s*%?\s*)(?=[:,]|$)")
GROUPED_STEPS = re.compile(r":\s*\d{1,3}(?:,\d{3})+(?=\s*(?:,|$))")  # "5e-5:1,000"


@dataclass(frozen=True)
class RateSegment:
    """One rate and the steps with it, counted in finished steps: from `start` on, before `end`."""

    rate: float
    start: int
    end: int


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of all steps, parsed as AUTOMATIC1111's web UI parses them (LearnScheduleIterator).

    `5e-5:100, 5e-6` is 5e-5 for the first 100 steps and 5e-6 from there on; `:-1` means to the end. A step count may
    be a share of all steps, `5e-5:10%, 5e-6`, which the web UI does not read. Parts that end before the first step are
    dropped, and the text after the part that reaches the last step has no effect. If the last part ends early, the
    training ends there.

    Attributes:
        segments: The rates in the order of their steps, without a gap.
        warnings: What the text says that is probably not meant, in words.
    """

    segments: tuple[RateSegment, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, steps: int, *, start_step: int = 0, ends_training: bool = True) -> Self:
        """Parse rates for a training that ends at `steps` and begins when `start_step` steps are done.

        Args:
            text: The rates.
            steps: Number of the last step.
            start_step: Number of finished steps.
            ends_training: The training ends where these rates end, which is warned of if it is early.

        Raises:
            BadPlan: The text cannot be read, has a decimal comma, or has no rate for the first step.
        """
        _refuse_commas_in_numbers(text)
        shown = _show(text)
        texts = [part.strip() for part in text.split(",") if part.strip()]
        try:
            read = list(_parse_parts(texts, steps, start_step))
        except ValueError as error:
            reason = _show(str(error))
            raise BadPlan(f'the rate "{shown}" cannot be read, {reason}: write "5e-5", or "5e-5:100, 5e-6"') from None
        parts = [part for part in read if not part.is_passed]
        if not parts:
            raise BadPlan(
                f'the rate "{shown}" has no value for step {start_step + 1}: end it with a rate without a step count, '
                '"5e-5:100, 5e-6"'
            )
        segments = tuple(_join_parts(parts, steps, start_step))
        warnings = [*_find_mistakes(shown, parts, segments), *(_find_unused(shown, texts, read) if segments else ())]
        if ends_training and segments and segments[-1].end < steps:
            warnings.append(
                f'the rate "{shown}" ends the training after {segments[-1].end} of {quantity(steps, "step")}: '
                'end it with a rate without a step count, "5e-5:100, 5e-6"'
            )
        return cls(segments, tuple(warnings))

    @property
    def end(self) -> int:
        """Return the number of steps after which the rates, and so the training, end."""
        return self.segments[-1].end if self.segments else 0

    def __iter__(self) -> Iterator[float]:
        """Yield the rate of each step, from the one after `start_step` to the last."""
        for segment in self.segments:
            yield from repeat(segment.rate, segment.end - segment.start)


def check_rates(text: str, steps: int, *, max_rate: float = MAX_RATE) -> None:
    """Refuse rates that the web UI takes although their writer cannot have meant what it does with them.

    Args:
        text: The rates.
        steps: Number of the last step.
        max_rate: The largest rate; infinite for an optimizer that finds the rate itself.

    Raises:
        BadPlan: A part is not RATE or RATE:STEPS, a rate is NaN, infinite, negative or larger than `max_rate`, all
            are 0, a step count is below 1 or not larger than the one before, or there are more than MAX_PARTS.
    """
    shown = _show(text)
    if OTHER_CHARACTERS.search(text.strip()):
        raise BadPlan(f'the rate "{shown}" has characters that numbers do not have: write "5e-5:100, 5e-6"')
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) > MAX_PARTS:
        raise BadPlan(f'the rate "{shown}" has {len(parts):,} parts: write {MAX_PARTS:,} at most')
    if any(part.count(":") > 1 for part in parts):
        raise BadPlan(f'the rate "{shown}" has a part with two colons: write one step count for it, "5e-5:100"')
    rates = LearningRates.parse(text, steps)
    _check_step_counts(shown, parts, steps)
    written = [float(part.partition(":")[0]) for part in parts]  # those beyond the last step too
    if not all(math.isfinite(rate) and rate >= 0 for rate in written):
        raise BadPlan(f'the rate "{shown}" is not a positive number throughout: write for example 1e-4')
    if not any(segment.rate for segment in rates.segments):
        raise BadPlan(f'the rate "{shown}" is 0, so nothing would be learned: write for example 1e-4')
    if max(written) > max_rate:
        raise BadPlan(
            f'the rate "{shown}" goes up to {max(written):g}, and above {max_rate:g} every training diverges: write '
            "for example 1e-4"
        )


def _check_step_counts(shown: str, parts: Sequence[str], steps: int) -> None:
    """Refuse a part that cannot be read, and step counts that are not in order, beyond the last step too."""
    last_count, last_share = 0, 0.0
    for part in parts:
        rate, colon, count = (piece.strip() for piece in part.partition(":"))
        try:
            float(rate)
            end = _parse_end(count, steps) if colon else UNTIL_THE_END
        except ValueError as error:
            reason = _show(str(error))
            raise BadPlan(f'the rate "{shown}" cannot be read, {reason}: write "5e-5", or "5e-5:100, 5e-6"') from None
        if count.endswith("%"):
            share = float(count.removesuffix("%"))
            is_in_order, last_share = share > last_share or share == 0, share
        elif end == UNTIL_THE_END:
            continue
        elif not 1 <= end <= MAX_STEP_COUNT:
            raise BadPlan(f'the rate "{shown}" has the step count {count[:20]}: write 1 to {MAX_STEP_COUNT:,}')
        else:
            is_in_order, last_count = end > last_count, end
        if not is_in_order:
            raise BadPlan(
                f'the rate "{shown}" has step counts that do not rise, at "{part[:MAX_SHOWN_LENGTH]}": count the steps '
                'from the beginning of the training, "5e-5:100, 5e-6:200"'
            )


class _RatePart(NamedTuple):
    """One comma-separated part of the text, such as "5e-5:100"."""

    text: str
    rate: float
    end: int
    has_end: bool = True
    is_passed: bool = False  # its steps are finished before the first one


def _show(text: str) -> str:
    text = printable_text(text)
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}..."


def _refuse_commas_in_numbers(text: str) -> None:
    if GROUPED_STEPS.search(text):
        corrected = GROUPED_STEPS.sub(lambda match: match[0].replace(",", ""), text)
        raise BadPlan(
            f'the rate "{_show(text)}" has a comma in a step count, but commas separate rates: write '
            f'"{_show(corrected)}"'
        )
    if DECIMAL_COMMA.search(text):
        corrected = DECIMAL_COMMA.sub(r"\1.\2", text)
        raise BadPlan(
            f'the rate "{_show(text)}" has a decimal comma, but commas separate rates: write "{_show(corrected)}"'
        )


def _parse_parts(texts: Sequence[str], steps: int, start_step: int) -> Iterator[_RatePart]:
    """Yield the parts up to the one that reaches `steps`, those that end before `start_step` among them."""
    for text in texts:
        pieces = text.split(":")
        rate = float(pieces[0])
        # Like a rate without a step count, a part with two colons lasts to the end: the web UI parses it so
        end = _parse_end(pieces[1], steps) if len(pieces) == 2 else UNTIL_THE_END
        if end == UNTIL_THE_END:
            yield _RatePart(text, rate, steps, has_end=False)
            return
        yield _RatePart(text, rate, min(end, steps), is_passed=end <= start_step)
        if end > max(start_step, steps):
            return


def _parse_end(text: str, steps: int) -> int:
    """Return a step count, "100", or a share of all steps, "10%", as a number of steps."""
    if not text.strip().endswith("%"):
        return int(text)
    share = float(text.strip().removesuffix("%"))
    if not 0 <= share <= 100:
        raise ValueError(f"{text.strip()} is not a share of the training from 0% to 100%")
    return round(steps * share / 100)


def _join_parts(parts: Sequence[_RatePart], steps: int, start_step: int) -> Iterator[RateSegment]:
    """Yield the parts one after another; a part that should end before it begins still gets a single step.

    The web UI gives such a part its step even after the last one; here nothing runs past `steps`.
    """
    start = start_step
    for index, part in enumerate(parts):
        end = min(part.end if index == 0 else max(part.end, start + 1), steps)
        if end > start:
            yield RateSegment(part.rate, start, end)
            start = end


def _find_mistakes(shown: str, parts: Sequence[_RatePart], segments: Sequence[RateSegment]) -> Iterator[str]:
    for part, segment in zip(parts, segments, strict=False):  # parts past the last step have no segment
        if part.text.count(":") > 1:
            yield (
                f'"{part.text}" in the rate "{shown}" lasts to the end of the training: write one step count, '
                '"5e-5:100", or none'
            )
        elif part.end < segment.end:
            yield (
                f'"{part.text}" in the rate "{shown}" gets a single step, because it ends before step {segment.start}: '
                "count the steps from the beginning of the training"
            )


def _find_unused(shown: str, texts: Sequence[str], read: Sequence[_RatePart]) -> Iterator[str]:
    """Yield warnings of parts that no step uses in a training of any length, and of unread ones that cannot be read.

    Parts beyond the last step are not warned of: a training of fewer steps leaves out the end of a preset's rates.
    """
    empty = [part.text for part in read if part.end <= 0 and not part.text.endswith("%")]
    if empty:
        yield f'"{", ".join(empty)}" in the rate "{shown}" gets no step: give it a step count of 1 or more'
    ends = [_try_end(part) for part in texts]
    last = ends.index(UNTIL_THE_END) if UNTIL_THE_END in ends else len(texts)
    unreadable = [
        part for part, end in zip(texts[len(read) : last], ends[len(read) : last], strict=True) if end is None
    ]
    if unreadable:
        yield (
            f'"{", ".join(unreadable)}" in the rate "{shown}" cannot be read, and would stop a longer training: '
            'write "5e-5", or "5e-5:100, 5e-6"'
        )
    if texts[last + 1 :]:
        yield (
            f'"{", ".join(texts[last + 1 :])}" in the rate "{shown}" is never used, because "{texts[last]}" has no '
            "step count, so it lasts to the end: leave it out, or give all rates but the last a step count, "
            '"5e-5:100, 5e-6"'
        )


def find_unreached(text: str, steps: int) -> list[str]:
    """Return the parts of readable rates that begin after the last step, such as "5e-6" of "5e-5:100, 5e-6" in 100."""
    unreached: list[str] = []
    end = 0
    for part in filter(None, map(str.strip, text.split(","))):
        if end >= steps:
            unreached.append(part)
        part_end = _try_end(part, steps)
        if part_end in {None, UNTIL_THE_END}:  # what follows is warned of by _find_unused
            break
        end = max(end, part_end or 0)
    return unreached


def _try_end(text: str, steps: int = 100) -> int | None:
    """Return the step count of a part, at most `steps`, or None if the part cannot be read."""
    try:
        [part] = _parse_parts([text], steps=steps, start_step=-steps)
    except ValueError:
        return None
    return part.end if part.has_end else UNTIL_THE_END


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


def fit_rate(rate: str, planned: int, steps: int) -> str:
    """Return a learning rate whose segments end at the same shares of fewer steps: "1e-3:100, 1e-4" of 200 at 100."""
    if planned == steps:
        return rate
    parts: list[str] = []
    last_end = 0
    for part in rate.split(","):
        value, colon, end = part.strip().partition(":")
        if not end.strip().isdecimal():
            parts.append(value + colon + end)
            continue
        fitted = max(1, round(int(end) * steps / planned))
        if fitted >= steps:  # the parts after it are never reached
            return ", ".join([*parts, value])
        if fitted > last_end:  # else it is shorter than a step
            parts.append(f"{value}:{fitted}")
            last_end = fitted
    return ", ".join(parts)
