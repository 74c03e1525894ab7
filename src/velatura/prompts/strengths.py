"""Strengths in tags: an overlay's strength over the steps, for which prompt, and in which blocks of the UNet."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, NamedTuple, Self, get_args

from velatura.errors import warn
from velatura.prompts.block_weights import parse_block_weights
from velatura.prompts.passage import Passage

PromptSide = Literal["both", "prompt", "negative"]
UNetBlock = Literal["in", "mid", "out"]

PROMPT_SIDES: tuple[PromptSide, ...] = get_args(PromptSide)
UNET_BLOCKS: tuple[UNetBlock, ...] = get_args(UNetBlock)
SCHEDULE_ARGUMENTS = ("start", "end", "on", "blocks")
POSITIONAL_ARGUMENTS = ("te", "unet", "dyn")
AESTHETIC_ARGUMENTS = ("steps", "rate")
MAX_AESTHETIC_STEPS = 1000
MAX_SHOWN_CHARACTERS = 60
BLOCK_WEIGHTS_ARGUMENT = "lbw"


class StrengthPoint(NamedTuple):
    """A strength at a fraction of the steps."""

    fraction: float
    strength: float


@dataclass(frozen=True)
class StrengthSchedule:
    """Strength over the steps, as in `0.6` or `0@0, 0.8@0.5:start=0.2:end=0.9:on=prompt:blocks=in+mid`.

    Attributes:
        points: Strengths at increasing fractions of the steps. Between two points the strength is linear, before the
            first and after the last it is constant.
        start, end: Fractions of the steps between which the overlay acts; `end` is excluded unless it is 1.
        on: Prompt for which the overlay acts.
        blocks: Blocks of the UNet in which it acts, in the UNet's order.
    """

    points: tuple[StrengthPoint, ...] = (StrengthPoint(0.0, 1.0),)
    start: float = 0.0
    end: float = 1.0
    on: PromptSide = "both"
    blocks: tuple[UNetBlock, ...] = UNET_BLOCKS

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", position: int = 0) -> Self:
        """Parse the arguments of a tag after its name.

        As in A1111, an argument with a single = is named, and only the first argument without a name counts;
        `warn_of_ignored_arguments` names the others.

        Args:
            arguments: Texts between the colons of the tag.
            prompt, position: Prompt with the tag, and the position of the first argument, for error messages.

        Raises:
            BadPrompt: for a wrong argument; the error points at its position.
        """
        unnamed, named = _split_arguments(arguments, prompt, position, SCHEDULE_ARGUMENTS)
        return cls.from_arguments(unnamed[0] if unnamed else None, named)

    @classmethod
    def from_arguments(cls, strength: Passage | None, named: Mapping[str, Passage]) -> Self:
        """Build a schedule from the argument with the strength, and the named arguments."""
        start, end = _parse_window(named)
        return cls(
            cls.points if strength is None else _parse_points(strength),
            start,
            end,
            _parse_side(named["on"]) if "on" in named else cls.on,
            _parse_blocks(named["blocks"]) if "blocks" in named else cls.blocks,
        )

    def at(self, fraction: float) -> float:
        """Return the strength at a fraction of the steps; the first step has the fraction 0."""
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
        """Return the strengths of all steps."""
        return [self.at(step / steps) for step in range(steps)]

    @property
    def constant(self) -> float | None:
        """Return the strength if it is the same at all steps, else None."""
        strengths = {point.strength for point in self.points}
        if len(strengths) == 1 and (strengths == {0.0} or (self.start, self.end) == (0.0, 1.0)):
            return self.points[0].strength
        return None


@dataclass(frozen=True)
class TextUnetStrengths:
    """Strengths in the text encoders and in the UNet, as in `0.8`, `0.5:0.8` or `te=0.5:unet=0.8:dyn=16`.

    Names and order of the arguments are those of A1111's LoRA tags.

    Attributes:
        text: Strength in the text encoders: a constant, as a prompt is encoded once.
        unet: Strength in the UNet over the steps.
        rank: Rank to which a LoRA is cut (dyn=), as in A1111's LyCORIS extension; None for its full rank.
        block_weights: Factors for its blocks (lbw=).
    """

    text: float = 1.0
    unet: StrengthSchedule = StrengthSchedule()
    rank: int | None = None
    block_weights: tuple[float, ...] = ()

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", position: int = 0, *, reads_text: bool = True) -> Self:
        """Parse the arguments of a tag after its name.

        Args:
            arguments: Texts between the colons of the tag.
            prompt, position: Prompt with the tag, and the position of the first argument, for error messages.
            reads_text: True if the overlay changes the text encoders; else its only strength may vary.

        Raises:
            BadPrompt: for a wrong argument; the error points at its position.
        """
        unnamed, named = _split_arguments(
            arguments, prompt, position, (*POSITIONAL_ARGUMENTS, BLOCK_WEIGHTS_ARGUMENT, *SCHEDULE_ARGUMENTS)
        )
        by_name = dict(zip(POSITIONAL_ARGUMENTS, unnamed, strict=False)) | named
        text = by_name.get("te")
        if text is not None and "@" in text.text and reads_text:
            advice = "write its strength as te=0.8, and this one as unet="
            raise text.error(f"the text encoder reads a prompt once, with one strength; {advice}")
        return cls(
            cls.text if text is None or not reads_text else _parse_strength(text),
            StrengthSchedule.from_arguments(by_name.get("unet", text), by_name),
            _parse_rank(by_name["dyn"]) if "dyn" in by_name else None,
            parse_block_weights(by_name[BLOCK_WEIGHTS_ARGUMENT]) if BLOCK_WEIGHTS_ARGUMENT in by_name else (),
        )


@dataclass(frozen=True)
class AestheticStrengths:
    """Strength of an aesthetic gradient over the steps, with its gradient steps and learning rate; None for its own."""

    strengths: StrengthSchedule = StrengthSchedule()
    steps: int | None = None
    rate: float | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", position: int = 0) -> Self:
        """Parse the arguments of a tag after its name: those of StrengthSchedule, steps= and rate=.

        Raises:
            BadPrompt: for a wrong argument; the error points at its position.
        """
        unnamed, named = _split_arguments(arguments, prompt, position, (*AESTHETIC_ARGUMENTS, *SCHEDULE_ARGUMENTS))
        return cls(
            StrengthSchedule.from_arguments(unnamed[0] if unnamed else None, named),
            _parse_steps(named["steps"]) if "steps" in named else None,
            _parse_rate(named["rate"]) if "rate" in named else None,
        )


def warn_of_ignored_arguments(arguments: Sequence[str], strength_count: int = 1) -> None:
    """Warn of the arguments of a tag that have no name, and that nothing reads.

    Args:
        arguments: Texts between the colons of the tag, after its name.
        strength_count: How many arguments without a name count; a LoRA's tag has three.
    """
    unnamed = [argument.strip() for argument in arguments if not _is_named(argument)]
    if len(unnamed) > strength_count:
        used, ignored = ":".join(unnamed[:strength_count]), ":".join(unnamed[strength_count:])
        shown = ":".join(arguments)[:MAX_SHOWN_CHARACTERS]
        count = "one strength" if strength_count == 1 else f"{strength_count} arguments without a name"
        warn(f"a tag has {count}: in {shown!r} it is {used}, and {ignored[:MAX_SHOWN_CHARACTERS]!r} is ignored")


def _split_arguments(
    arguments: Sequence[str], prompt: str, position: int, names: Sequence[str]
) -> tuple[list[Passage], dict[str, Passage]]:
    """Return the arguments without names, and the named arguments."""
    text = ":".join(arguments)
    passages = Passage(text, prompt or text, position).split(":") if arguments else []
    unnamed = [passage.strip() for passage in passages if not _is_named(passage.text)]
    return unnamed, _named_arguments((passage for passage in passages if _is_named(passage.text)), names)


def _is_named(argument: str) -> bool:
    return argument.count("=") == 1


def _named_arguments(passages: Iterable[Passage], names: Sequence[str]) -> dict[str, Passage]:
    """Return the values of named arguments by name."""
    values: dict[str, Passage] = {}
    for passage in passages:
        name, value = (piece.strip() for piece in passage.split("="))
        if name.text not in names:
            suggestions = get_close_matches(name.text, names, n=1)
            advice = f"did you mean {suggestions[0]}=" if suggestions else f"choose one of {', '.join(names)}"
            raise name.error(f"a tag does not have an argument {name.text!r}; {advice}")
        if name.text in values:
            raise name.error(f"{name.text}= is in the tag twice; leave one out")
        values[name.text] = value
    return values


def _parse_points(argument: Passage) -> tuple[StrengthPoint, ...]:
    """Parse a single strength, or several with fractions of the steps, such as 0@0, 0.8@0.5."""
    if "@" not in argument.text:
        return (StrengthPoint(0.0, _parse_strength(argument)),)
    points: list[StrengthPoint] = []
    for passage in argument.split(","):
        strength, *positions = (piece.strip() for piece in passage.split("@"))
        if len(positions) != 1:
            raise passage.strip().error(f"{passage.text.strip()!r} is not strength@fraction; write it as 0.8@0.5")
        points.append(StrengthPoint(_parse_fraction(positions[0]), _parse_strength(strength)))
        if len(points) > 1 and points[-1].fraction <= points[-2].fraction:
            raise positions[0].error(
                f"{positions[0].text} is not after {points[-2].fraction:g}; order strengths by their fractions"
            )
    return tuple(points)


def _parse_window(named: Mapping[str, Passage]) -> tuple[float, float]:
    """Parse the fractions of the steps at which the overlay starts and ends."""
    start = _parse_fraction(named["start"]) if "start" in named else 0.0
    end = _parse_fraction(named["end"]) if "end" in named else 1.0
    if start >= end:
        wrong = named.get("end") or named["start"]
        raise wrong.error(f"the end {end:g} does not come after the start {start:g}; choose an end after the start")
    return start, end


def _parse_side(argument: Passage) -> PromptSide:
    if argument.text not in PROMPT_SIDES:
        raise argument.error(f"on= cannot be {argument.text!r}; choose one of {', '.join(PROMPT_SIDES)}")
    return argument.text


def _parse_blocks(argument: Passage) -> tuple[UNetBlock, ...]:
    """Parse blocks joined by +, and return them in the UNet's order."""
    passages = [passage.strip() for passage in argument.split("+")]
    for passage in passages:
        if passage.text not in UNET_BLOCKS:
            raise passage.error(f"{passage.text!r} does not name blocks; join some of {', '.join(UNET_BLOCKS)} with +")
    names = {passage.text for passage in passages}
    return tuple(block for block in UNET_BLOCKS if block in names)


def _parse_strength(argument: Passage) -> float:
    strength = _parse_number(argument)
    if not math.isfinite(strength):
        raise argument.error(f"{argument.text!r} is not a strength; write a number such as 0.6, or 0@0, 0.8@0.5")
    return strength


def _parse_rank(argument: Passage) -> int:
    rank = _parse_number(argument)
    if not (rank >= 1 and rank.is_integer()):
        raise argument.error(f"{argument.text!r} is not a rank; write a whole number from 1 up")
    return int(rank)


def _parse_steps(argument: Passage) -> int:
    steps = _parse_number(argument)
    if not (0 <= steps <= MAX_AESTHETIC_STEPS and steps.is_integer()):
        raise argument.error(
            f"{argument.text!r} is not a number of steps; write a whole number up to {MAX_AESTHETIC_STEPS}, such as 10"
        )
    return int(steps)


def _parse_rate(argument: Passage) -> float:
    rate = _parse_number(argument)
    if not 0 <= rate <= 1:
        raise argument.error(f"{argument.text!r} is not a learning rate; write a number from 0 to 1, such as 1e-4")
    return rate


def _parse_fraction(argument: Passage) -> float:
    fraction = _parse_number(argument)
    if not 0 <= fraction <= 1:
        raise argument.error(f"{argument.text!r} is not a fraction of the steps; write a number from 0 to 1")
    return fraction


def _parse_number(argument: Passage) -> float:
    """Parse a number as Python and A1111 do; return NaN for other text."""
    try:
        return float(argument.text)
    except ValueError:
        return math.nan
