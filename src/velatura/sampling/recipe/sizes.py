"""How large a second pass is, and how many steps a picture that is begun still takes, as the webui reckons both."""

from __future__ import annotations

import math
from typing import NamedTuple

OLD_FIRST_PASS_AREA = (
    512 * 512
)  # what first passes of 2022 were brought near, their sides being multiples of OLD_MULTIPLE
OLD_FIRST_PASS_MULTIPLE = 64
MAX_DENOISING = 0.999  # a picture is never given up altogether
MAX_SCHEDULE_STEPS = 1e6  # levels of a schedule


class Resolution(NamedTuple):
    """Width and height, in pixels or latents."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class HiresTarget(NamedTuple):
    """What the latents of the first pass are enlarged to, in pixels, and what is then cut off in latents, centred."""

    upscale_to: Resolution
    truncate: Resolution


class Img2ImgSteps(NamedTuple):
    """How long the schedule of a begun picture is, and at which of its levels from the end on it starts.

    levels: of the schedule, without the last one, which is 0; left: steps that are taken, less one.
    """

    schedule_steps: int
    t_enc: int


def compute_hires_target(
    first_pass: Resolution, scale: float, target: Resolution, latent_factor: int = 8
) -> HiresTarget:
    """Reckon the second pass: scale, or the size that is wanted, of which one side may be 0 to follow the other.

    factor: pixels that a latent stands for. Where both sides are given, the first pass is enlarged to cover them, and
    what juts out is cut off.
    """
    if not any(target):
        return HiresTarget(Resolution(int(first_pass.width * scale), int(first_pass.height * scale)), Resolution(0, 0))
    by_width = Resolution(target.width, target.width * first_pass.height // first_pass.width)
    by_height = Resolution(target.height * first_pass.width // first_pass.height, target.height)
    if not all(target):
        return HiresTarget(by_width if target.width else by_height, Resolution(0, 0))
    upscale_to = by_width if first_pass.width / first_pass.height < target.width / target.height else by_height
    truncate = ((side - target_side) // latent_factor for side, target_side in zip(upscale_to, target, strict=True))
    return HiresTarget(upscale_to, Resolution(*truncate))


def old_first_pass(final: Resolution) -> Resolution:
    """The first pass of recipes before 2023, which tell the final size only: of about 512 x 512 pixels."""
    scale = math.sqrt(OLD_FIRST_PASS_AREA / (final.width * final.height))
    return Resolution(*(math.ceil(side * scale / OLD_FIRST_PASS_MULTIPLE) * OLD_FIRST_PASS_MULTIPLE for side in final))


def setup_img2img_steps(steps: int, denoising: float, *, exact_steps: int | None = None) -> Img2ImgSteps:
    """The part of a schedule that is walked when so much of a picture (0 to 1) is to be noise.

    exactly: take this number of steps whatever the share, with a schedule so much longer, as second passes do.
    """
    fraction = min(denoising, MAX_DENOISING)
    if exact_steps is None:
        return Img2ImgSteps(steps, int(fraction * steps))
    return Img2ImgSteps(int(min(exact_steps / fraction, MAX_SCHEDULE_STEPS)) if fraction > 0 else 0, exact_steps - 1)
