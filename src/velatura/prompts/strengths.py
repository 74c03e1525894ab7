"""How strongly an overlay acts, as a tag says it: over the steps, for which prompt, and in which blocks of the UNet."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, NamedTuple, Self, get_args

from velatura.errors import VelaturaWarning
from velatura.prompts.block_factors import block_factors
from velatura.prompts.passage import Passage

Side = Literal["both", "prompt", "negative"]
Block = Literal["in", "mid", "out"]

SIDES: tuple[Side, ...] = get_args(Side)
BLOCKS: tuple[Block, ...] = get_args(Block)
NAMED = ("start", "end", "on", "blocks")
POSITIONS = ("te", "unet", "dyn")
DRAWN = ("steps", "rate")  # of an aesthetic
MOST_STEPS = 1000
FACTORS = "lbw"


class Point(NamedTuple):
    """A strength, and the fraction of the steps at which it is reached."""

    fraction: float
    strength: float


@dataclass(frozen=True)
class Strengths:
    """What a tag says behind its name: `0.6`, or `0@0, 0.8@0.5:start=0.2:end=0.9:on=prompt:blocks=in+mid`.

    points: with growing fractions; between two the strength is linear, before the first and after the last it is held.
    start, end: outside these fractions the overlay is off; it acts at the start, and no more at the end.
    on: the prompt it acts for. blocks: the parts of the UNet it acts in, as they follow each other.
    """

    points: tuple[Point, ...] = (Point(0.0, 1.0),)
    start: float = 0.0
    end: float = 1.0
    on: Side = "both"
    blocks: tuple[Block, ...] = BLOCKS

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", place: int = 0) -> Self:
        """Read what stands between colons behind the name in a tag; raises BadPrompt that points at the mistake.

        prompt, place: where the first argument starts. One that holds a single = is named, as in A1111, whose further
        arguments without a name mean nothing here as there, and are warned of.
        """
        whole, strengths, named = _arguments(arguments, prompt, place, NAMED)
        _warn_of_ignored(whole, strengths, 1)
        return cls.of(strengths[0] if strengths else None, named)

    @classmethod
    def of(cls, strength: Passage | None, named: Mapping[str, Passage]) -> Self:
        """Read the arguments of a tag one by one: that of the strength, and those with names."""
        start, end = _window(named)
        return cls(
            cls.points if strength is None else _points(strength),
            start,
            end,
            _side(named["on"]) if "on" in named else cls.on,
            _blocks(named["blocks"]) if "blocks" in named else cls.blocks,
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
        share = (fraction - before.fraction) / (after.fraction - before.fraction)
        return (1 - share) * before.strength + share * after.strength

    def over(self, steps: int) -> list[float]:
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
class TwoStrengths:
    """What a tag says of an overlay that touches the text encoders too: `0.8`, `0.5:0.8`, or `te=0.5:unet=0.8:dyn=16`.

    text: one number, as text is encoded once. unet: all that a Strengths can say. rank: how much of the overlay is
    used, all of it where that is None. factors: for its blocks, lbw=. Names and order are those of the webui's LoRA
    tags.
    """

    text: float = 1.0
    unet: Strengths = Strengths()
    rank: int | None = None
    factors: tuple[float, ...] = ()

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", place: int = 0, *, reads_text: bool = True) -> Self:
        """Read what stands between colons behind the name in a tag; raises BadPrompt that points at the mistake.

        reads_text: whether the overlay touches the text encoders; one that does not may change over the steps as it is.
        """
        whole, strengths, named = _arguments(arguments, prompt, place, (*POSITIONS, FACTORS, *NAMED))
        _warn_of_ignored(whole, strengths, len(POSITIONS))
        said = dict(zip(POSITIONS, strengths, strict=False)) | named
        text = said.get("te")
        if text is not None and "@" in text.text and reads_text:
            advice = "its own strength as te=0.8, and this one as unet="
            raise text.misread(f"the text encoder reads a prompt once, with one strength; give {advice}")
        return cls(
            cls.text if text is None or not reads_text else _strength(text),
            Strengths.of(said.get("unet", text), said),
            _rank(said["dyn"]) if "dyn" in said else None,
            block_factors(said[FACTORS]) if FACTORS in said else (),
        )


@dataclass(frozen=True)
class DrawnStrengths:
    """What a tag says of an aesthetic: all that a Strengths can say, and steps=10 and rate=1e-3, its own if None."""

    strengths: Strengths = Strengths()
    steps: int | None = None
    rate: float | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str], prompt: str = "", place: int = 0) -> Self:
        """Read what stands between colons behind the name in a tag; raises BadPrompt that points at the mistake."""
        whole, strengths, named = _arguments(arguments, prompt, place, (*DRAWN, *NAMED))
        _warn_of_ignored(whole, strengths, 1)
        return cls(
            Strengths.of(strengths[0] if strengths else None, named),
            _steps(named["steps"]) if "steps" in named else None,
            _rate(named["rate"]) if "rate" in named else None,
        )


def _arguments(
    arguments: Sequence[str], prompt: str, place: int, names: Sequence[str]
) -> tuple[Passage, list[Passage], dict[str, Passage]]:
    """All that stands behind a name, the arguments without names in it, and those with one."""
    text = ":".join(arguments)
    whole = Passage(text, prompt or text, place)
    passages = whole.split(":") if arguments else []
    strengths = [each.strip() for each in passages if not _is_named(each)]
    return whole, strengths, _named((each for each in passages if _is_named(each)), names)


def _warn_of_ignored(whole: Passage, strengths: Sequence[Passage], known: int) -> None:
    if len(strengths) > known:
        read, ignored = (":".join(each.text for each in part) for part in (strengths[:known], strengths[known:]))
        said = f"a tag has one strength: in {whole.text!r} it is {read}, and {ignored!r} is ignored"
        warnings.warn(said, VelaturaWarning, 4)


def _is_named(argument: Passage) -> bool:
    return argument.text.count("=") == 1


def _named(passages: Iterable[Passage], names: Sequence[str]) -> dict[str, Passage]:
    """The values of named arguments by their names."""
    found: dict[str, Passage] = {}
    for passage in passages:
        name, value = (each.strip() for each in passage.split("="))
        if name.text not in names:
            near = get_close_matches(name.text, names, n=1)
            advice = f"did you mean {near[0]}=" if near else f"choose among {', '.join(names)}"
            raise name.misread(f"a tag knows no {name.text or 'argument without a name'}; {advice}")
        if name.text in found:
            raise name.misread(f"{name.text}= stands in the tag twice; leave one out")
        found[name.text] = value
    return found


def _points(written: Passage) -> tuple[Point, ...]:
    """A single strength, or several with their places: 0@0, 0.8@0.5."""
    if "@" not in written.text:
        return (Point(0.0, _strength(written)),)
    points: list[Point] = []
    for passage in written.split(","):
        strength, *places = (each.strip() for each in passage.split("@"))
        if len(places) != 1:
            raise passage.strip().misread(f"{passage.text.strip()!r} is no strength@place; write it as 0.8@0.5")
        points.append(Point(_fraction(places[0]), _strength(strength)))
        if len(points) > 1 and points[-1].fraction <= points[-2].fraction:
            raise places[0].misread(
                f"{places[0].text} does not come after {points[-2].fraction:g}; order strengths by their places"
            )
    return tuple(points)


def _window(named: Mapping[str, Passage]) -> tuple[float, float]:
    """From which fraction of the steps to which the overlay acts."""
    start = _fraction(named["start"]) if "start" in named else 0.0
    end = _fraction(named["end"]) if "end" in named else 1.0
    if start >= end:
        pointed_at = named.get("end") or named["start"]
        raise pointed_at.misread(f"from {start:g} to {end:g} there is no step; choose an end that is after the start")
    return start, end


def _side(written: Passage) -> Side:
    if written.text not in SIDES:
        raise written.misread(f"an overlay is not on {written.text!r}; choose among {', '.join(SIDES)}")
    return written.text


def _blocks(written: Passage) -> tuple[Block, ...]:
    """Blocks joined by +, in the order in which they follow each other."""
    chosen = [each.strip() for each in written.split("+")]
    for each in chosen:
        if each.text not in BLOCKS:
            raise each.misread(f"there are no blocks {each.text!r}; join some of {', '.join(BLOCKS)} by +")
    names = {each.text for each in chosen}
    return tuple(block for block in BLOCKS if block in names)


def _strength(written: Passage) -> float:
    strength = _number(written)
    if not math.isfinite(strength):
        raise written.misread(f"{written.text!r} is no strength; write a number such as 0.6, or 0@0, 0.8@0.5")
    return strength


def _rank(written: Passage) -> int:
    rank = _number(written)
    if not (rank >= 1 and rank.is_integer()):
        raise written.misread(f"{written.text!r} is no rank to keep; write a whole number from 1 up")
    return int(rank)


def _steps(written: Passage) -> int:
    steps = _number(written)
    if not (0 <= steps <= MOST_STEPS and steps.is_integer()):
        raise written.misread(f"{written.text!r} are no steps; write a whole number up to {MOST_STEPS}, such as 10")
    return int(steps)


def _rate(written: Passage) -> float:
    rate = _number(written)
    if not 0 <= rate <= 1:
        raise written.misread(f"{written.text!r} is no rate; write a number from 0 to 1, such as 1e-4")
    return rate


def _fraction(written: Passage) -> float:
    fraction = _number(written)
    if not 0 <= fraction <= 1:
        raise written.misread(f"{written.text!r} is no fraction of the steps; write a number from 0 to 1")
    return fraction


def _number(written: Passage) -> float:
    """The number that is written, as Python and A1111 read it, or NaN."""
    try:
        return float(written.text)
    except ValueError:
        return math.nan
