"""The size of the second pass, and the number of steps of img2img, computed as A1111 does."""

from __future__ import annotations

from typing import NamedTuple

MAX_DENOISING = 0.999  # an init image is never ignored completely
MAX_SCHEDULE_STEPS = 1e6


class Resolution(NamedTuple):
    """A width and a height, in pixels or in latents."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class HiresTarget(NamedTuple):
    """A size that the first pass is upscaled to, in pixels, and what is then cropped centrally, in latents."""

    upscale_to: Resolution
    truncate: Resolution


class Img2ImgSteps(NamedTuple):
    """A part of a noise schedule that img2img takes.

    Attributes:
        schedule_steps: Steps of the whole schedule.
        t_enc: Number of the last steps that are taken, less one (A1111's name).
    """

    schedule_steps: int
    t_enc: int


def compute_hires_target(
    first_pass: Resolution, scale: float, target: Resolution, latent_factor: int = 8
) -> HiresTarget:
    """Compute the size of the second pass.

    Args:
        first_pass: Size of the first pass in pixels.
        scale: Factor by which it grows, if `target` is 0x0.
        target: Size in pixels. If one side is 0, it follows from the other. If both are given, the first pass is
            upscaled to cover them, and what is outside is cropped.
        latent_factor: Pixels per latent, along one side.
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


def setup_img2img_steps(steps: int, denoising: float, *, exact_steps: int | None = None) -> Img2ImgSteps:
    """Compute which part of a noise schedule img2img takes.

    Args:
        steps: Steps of the schedule, as in the recipe.
        denoising: How much of the image is replaced by noise, 0 to 1.
        exact_steps: Take this number of steps, whatever the denoising, from a schedule that is longer accordingly. The
            second pass of hires fix does so.
    """
    fraction = min(denoising, MAX_DENOISING)
    if exact_steps is None:
        return Img2ImgSteps(steps, int(fraction * steps))
    schedule_steps = int(min(exact_steps / fraction, MAX_SCHEDULE_STEPS)) if fraction > 0 else 0
    return Img2ImgSteps(schedule_steps, exact_steps - 1)
