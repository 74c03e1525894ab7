"""How strongly an overlay acts, as a tag says it: over the steps, for which prompt, and in which blocks of the UNet."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, NamedTuple, Self, get_args

from velatura.errors import VelaturaWarning
from velatura.prompts.block_weights import parse_block_weights
from velatura.prompts.passage import Passage

PromptSide = Literal["both", "prompt", "negative"]
UNetBlock = Literal["in", "mid", "out"]

PROMPT_SIDES: tuple[PromptSide, ...] = get_args(PromptSide)
UNET_BLOCKS: tuple[UNetBlock, ...] = get_args(UNetBlock)
SCHEDULE_ARGUMENTS = ("start", "end", "on", "blocks")
POSITIONAL_ARGUMENTS = ("te", "unet", "dyn")
AESTHETIC_ARGUMENTS = ("steps", "rate")  # of an aesthetic
MAX_AESTHETIC_STEPS = 1000
BLOCK_WEIGHTS_ARGUMENT = "lbw"


class StrengthPoint(NamedTuple):
    """A strength, and the fraction of the steps at which it is reached."""

    fraction: float
    strength: float


@dataclass(frozen=True)
class StrengthSchedule:
    """What a tag says behind its name: `0.6`, or `0@0, 0.8@0.5:start=0.2:end=0.9:on=prompt:blocks=in+mid`.

    points: with growing fractions; between two the strength is linear, before the first and after the last it is held.
    start, end: outside these fractions the overlay is off; it acts at the start, and no more at the end.
    on: the prompt it acts for. blocks: the parts of the UNet it acts in, as they follow each other.
    """

    points: tuple[StrengthPoint, ...] = (StrengthPoint(0.0, 1.0),)
    start: float = 0.0
    end: float = 1.0
    on: PromptSide = "both"
    blocks: tuple[UNetBlock, ...] = UNET_BLOCKS

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", position: int = 0) -> Self:
        """Read what stands between colons behind the name in a tag; raises BadPrompt that points at the mistake.

        prompt, place: where the first argument starts. One that holds a single = is named, as in A1111, whose further
        arguments without a name mean nothing here as there, and are warned of.
        """
        whole, unnamed, named = _split_arguments(arguments, prompt, position, SCHEDULE_ARGUMENTS)
        _warn_of_ignored(whole, unnamed, 1)
        return cls.from_arguments(unnamed[0] if unnamed else None, named)

    @classmethod
    def from_arguments(cls, strength: Passage | None, named: Mapping[str, Passage]) -> Self:
        """Read the arguments of a tag one by one: that of the strength, and those with names."""
        start, end = _parse_window(named)
        return cls(
            cls.points if strength is None else _parse_points(strength),
            start,
            end,
            _parse_side(named["on"]) if "on" in named else cls.on,
            _parse_blocks(named["blocks"]) if "blocks" in named else cls.blocks,
        )

    def at(self, fraction: float) -> float:
        """The strength when this fraction of the steps is done: 0 at the first step."""
        has_ended = self.end < 1 and fraction >= self.end
        if fraction < self.start or has_ended:
            return 0.0
        count = sum(point.fraction <= fraction for point in self.points)
        if count in {0, len(self.points)}:
            return self.points[max(0, count - 1)].strength
        before, after = self.points[count - 1 : count + 1]
        progress = (fraction - before.fraction) / (after.fraction - before.fraction)
        return (1 - progress) * before.strength + progress * after.strength

    def per_step(self, steps: int) -> list[float]:
        """The strength of each of so many steps."""
        return [self.at(step / steps) for step in range(steps)]

    @property
    def constant(self) -> float | None:
        """The one strength of all steps, or None where it may change between two."""
        strengths = {point.strength for point in self.points}
        if len(strengths) == 1 and (strengths == {0.0} or (self.start, self.end) == (0.0, 1.0)):
            return self.points[0].strength
        return None


@dataclass(frozen=True)
class TextUnetStrengths:
    """What a tag says of an overlay that touches the text encoders too: `0.8`, `0.5:0.8`, or `te=0.5:unet=0.8:dyn=16`.

    text: one number, as text is encoded once. unet: all that a Strengths can say. rank: how much of the overlay is
    used, all of it where that is None. factors: for its blocks, lbw=. Names and order are those of the webui's LoRA
    tags.
    """

    text: float = 1.0
    unet: StrengthSchedule = StrengthSchedule()
    rank: int | None = None
    block_weights: tuple[float, ...] = ()

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", position: int = 0, *, reads_text: bool = True) -> Self:
        """Read what stands between colons behind the name in a tag; raises BadPrompt that points at the mistake.

        reads_text: whether the overlay touches the text encoders; one that does not may change over the steps as it is.
        """
        whole, unnamed, named = _split_arguments(
            arguments, prompt, position, (*POSITIONAL_ARGUMENTS, BLOCK_WEIGHTS_ARGUMENT, *SCHEDULE_ARGUMENTS)
        )
        _warn_of_ignored(whole, unnamed, len(POSITIONAL_ARGUMENTS))
        by_name = dict(zip(POSITIONAL_ARGUMENTS, unnamed, strict=False)) | named
        text = by_name.get("te")
        if text is not None and "@" in text.text and reads_text:
            advice = "its own strength as te=0.8, and this one as unet="
            raise text.error(f"the text encoder reads a prompt once, with one strength; give {advice}")
        return cls(
            cls.text if text is None or not reads_text else _parse_strength(text),
            StrengthSchedule.from_arguments(by_name.get("unet", text), by_name),
            _parse_rank(by_name["dyn"]) if "dyn" in by_name else None,
            parse_block_weights(by_name[BLOCK_WEIGHTS_ARGUMENT]) if BLOCK_WEIGHTS_ARGUMENT in by_name else (),
        )


@dataclass(frozen=True)
class AestheticStrengths:
    """What a tag says of an aesthetic: all that a Strengths can say, and steps=10 and rate=1e-3, its own if None."""

    strengths: StrengthSchedule = StrengthSchedule()
    steps: int | None = None
    rate: float | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", position: int = 0) -> Self:
        """Read what stands between colons behind the name in a tag; raises BadPrompt that points at the mistake."""
        whole, unnamed, named = _split_arguments(
            arguments, prompt, position, (*AESTHETIC_ARGUMENTS, *SCHEDULE_ARGUMENTS)
        )
        _warn_of_ignored(whole, unnamed, 1)
        return cls(
            StrengthSchedule.from_arguments(unnamed[0] if unnamed else None, named),
            _parse_steps(named["steps"]) if "steps" in named else None,
            _parse_rate(named["rate"]) if "rate" in named else None,
        )


def _split_arguments(
    arguments: Sequence[str], prompt: str, position: int, names: Sequence[str]
) -> tuple[Passage, list[Passage], dict[str, Passage]]:
    """All that stands behind a name, the arguments without names in it, and those with one."""
    text = ":".join(arguments)
    whole = Passage(text, prompt or text, position)
    passages = whole.split(":") if arguments else []
    unnamed = [passage.strip() for passage in passages if not _is_named(passage)]
    return whole, unnamed, _named_arguments((passage for passage in passages if _is_named(passage)), names)


def _warn_of_ignored(whole: Passage, unnamed: Sequence[Passage], max_count: int) -> None:
    if len(unnamed) > max_count:
        used, ignored = (
            ":".join(passage.text for passage in group) for group in (unnamed[:max_count], unnamed[max_count:])
        )
        message = f"a tag has one strength: in {whole.text!r} it is {used}, and {ignored!r} is ignored"
        warnings.warn(message, VelaturaWarning, 4)


def _is_named(argument: Passage) -> bool:
    return argument.text.count("=") == 1


def _named_arguments(passages: Iterable[Passage], names: Sequence[str]) -> dict[str, Passage]:
    """The values of named arguments by their names."""
    values: dict[str, Passage] = {}
    for passage in passages:
        name, value = (piece.strip() for piece in passage.split("="))
        if name.text not in names:
            suggestions = get_close_matches(name.text, names, n=1)
            advice = f"did you mean {suggestions[0]}=" if suggestions else f"choose among {', '.join(names)}"
            raise name.error(f"a tag knows no {name.text or 'argument without a name'}; {advice}")
        if name.text in values:
            raise name.error(f"{name.text}= stands in the tag twice; leave one out")
        values[name.text] = value
    return values


def _parse_points(argument: Passage) -> tuple[StrengthPoint, ...]:
    """A single strength, or several with their places: 0@0, 0.8@0.5."""
    if "@" not in argument.text:
        return (StrengthPoint(0.0, _parse_strength(argument)),)
    points: list[StrengthPoint] = []
    for passage in argument.split(","):
        strength, *positions = (piece.strip() for piece in passage.split("@"))
        if len(positions) != 1:
            raise passage.strip().error(f"{passage.text.strip()!r} is no strength@place; write it as 0.8@0.5")
        points.append(StrengthPoint(_parse_fraction(positions[0]), _parse_strength(strength)))
        if len(points) > 1 and points[-1].fraction <= points[-2].fraction:
            raise positions[0].error(
                f"{positions[0].text} does not come after {points[-2].fraction:g}; order strengths by their places"
            )
    return tuple(points)


def _parse_window(named: Mapping[str, Passage]) -> tuple[float, float]:
    """From which fraction of the steps to which the overlay acts."""
    start = _parse_fraction(named["start"]) if "start" in named else 0.0
    end = _parse_fraction(named["end"]) if "end" in named else 1.0
    if start >= end:
        wrong = named.get("end") or named["start"]
        raise wrong.error(f"from {start:g} to {end:g} there is no step; choose an end that is after the start")
    return start, end


def _parse_side(argument: Passage) -> PromptSide:
    if argument.text not in PROMPT_SIDES:
        raise argument.error(f"an overlay is not on {argument.text!r}; choose among {', '.join(PROMPT_SIDES)}")
    return argument.text


def _parse_blocks(argument: Passage) -> tuple[UNetBlock, ...]:
    """Blocks joined by +, in the order in which they follow each other."""
    chosen = [passage.strip() for passage in argument.split("+")]
    for passage in chosen:
        if passage.text not in UNET_BLOCKS:
            raise passage.error(f"there are no blocks {passage.text!r}; join some of {', '.join(UNET_BLOCKS)} by +")
    names = {passage.text for passage in chosen}
    return tuple(block for block in UNET_BLOCKS if block in names)


def _parse_strength(argument: Passage) -> float:
    strength = _parse_number(argument)
    if not math.isfinite(strength):
        raise argument.error(f"{argument.text!r} is no strength; write a number such as 0.6, or 0@0, 0.8@0.5")
    return strength


def _parse_rank(argument: Passage) -> int:
    rank = _parse_number(argument)
    if not (rank >= 1 and rank.is_integer()):
        raise argument.error(f"{argument.text!r} is no rank to keep; write a whole number from 1 up")
    return int(rank)


def _parse_steps(argument: Passage) -> int:
    steps = _parse_number(argument)
    if not (0 <= steps <= MAX_AESTHETIC_STEPS and steps.is_integer()):
        raise argument.error(
            f"{argument.text!r} are no steps; write a whole number up to {MAX_AESTHETIC_STEPS}, such as 10"
        )
    return int(steps)


def _parse_rate(argument: Passage) -> float:
    rate = _parse_number(argument)
    if not 0 <= rate <= 1:
        raise argument.error(f"{argument.text!r} is no rate; write a number from 0 to 1, such as 1e-4")
    return rate


def _parse_fraction(argument: Passage) -> float:
    fraction = _parse_number(argument)
    if not 0 <= fraction <= 1:
        raise argument.error(f"{argument.text!r} is no fraction of the steps; write a number from 0 to 1")
    return fraction


def _parse_number(argument: Passage) -> float:
    """The number that is written, as Python and A1111 read it, or NaN."""
    try:
        return float(argument.text)
    except ValueError:
        return math.nan
