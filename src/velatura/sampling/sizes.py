"""How large a second pass is, and how many steps a picture that is begun still takes, as the webui reckons both."""

from __future__ import annotations

import math
from typing import NamedTuple

OLD_AREA = 512 * 512  # what first passes of 2022 were brought near, their sides being multiples of OLD_MULTIPLE
OLD_MULTIPLE = 64
FURTHEST = 0.999  # a picture is never given up altogether
LONGEST = 1e6  # levels of a schedule


class Size(NamedTuple):
    """Width and height, in pixels or latents."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class SecondPass(NamedTuple):
    """What the latents of the first pass are enlarged to, in pixels, and what is then cut off in latents, centred."""

    enlarged: Size
    surplus: Size


class Walked(NamedTuple):
    """How long the schedule of a begun picture is, and at which of its levels from the end on it starts.

    levels: of the schedule, without the last one, which is 0; left: steps that are taken, less one.
    """

    levels: int
    left: int


def second_pass(first: Size, scale: float, wanted: Size, factor: int = 8) -> SecondPass:
    """Reckon the second pass: scale, or the size that is wanted, of which one side may be 0 to follow the other.

    factor: pixels that a latent stands for. Where both sides are given, the first pass is enlarged to cover them, and
    what juts out is cut off.
    """
    if not any(wanted):
        return SecondPass(Size(int(first.width * scale), int(first.height * scale)), Size(0, 0))
    wide = Size(wanted.width, wanted.width * first.height // first.width)
    high = Size(wanted.height * first.width // first.height, wanted.height)
    if not all(wanted):
        return SecondPass(wide if wanted.width else high, Size(0, 0))
    covers = wide if first.width / first.height < wanted.width / wanted.height else high
    surplus = ((side - target) // factor for side, target in zip(covers, wanted, strict=True))
    return SecondPass(covers, Size(*surplus))


def old_first_pass(final: Size) -> Size:
    """The first pass of recipes before 2023, which tell the final size only: of about 512 x 512 pixels."""
    scale = math.sqrt(OLD_AREA / (final.width * final.height))
    return Size(*(math.ceil(side * scale / OLD_MULTIPLE) * OLD_MULTIPLE for side in final))


def steps_left(steps: int, denoising: float, *, exactly: int | None = None) -> Walked:
    """The part of a schedule that is walked when so much of a picture (0 to 1) is to be noise.

    exactly: take this number of steps whatever the share, with a schedule so much longer, as second passes do.
    """
    share = min(denoising, FURTHEST)
    if exactly is None:
        return Walked(steps, int(share * steps))
    return Walked(int(min(exactly / share, LONGEST)) if share > 0 else 0, exactly - 1)
