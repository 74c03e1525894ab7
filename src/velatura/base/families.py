"""The families of bases there are, and what tells them apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Family:
    """What all bases of one architecture share.

    cross_width, self_widths: features of the contexts that cross- and self-attention read.
    latent_factor: pixels per latent along one side; latent_scale: what makes latents of unit variance.
    """

    name: str
    cross_width: int
    self_widths: tuple[int, ...]
    vae_scale_factor: int
    scaling_factor: float
    default_pixels: int
    prediction: Prediction

    @property
    def widths(self) -> frozenset[int]:
        """Every context width of the family."""
        return frozenset((self.cross_width, *self.self_widths))


FAMILIES = {
    "tiny": Family("tiny", 96, (64, 128, 192), 4, 1.0, 64, "epsilon"),
    "SD1": Family("SD1", 768, (320, 640, 1280), 8, 0.18215, 512, "epsilon"),
    "SD2": Family("SD2", 1024, (320, 640, 1280), 8, 0.18215, 768, "v_prediction"),
    "SDXL": Family("SDXL", 2048, (640, 1280), 8, 0.13025, 1024, "epsilon"),
}


def find_family(cross_width: int, self_widths: Iterable[int]) -> Family | None:
    """Find the family whose contexts are exactly these, if there is one."""
    wanted = (cross_width, frozenset(self_widths))
    return next(
        (family for family in FAMILIES.values() if (family.cross_width, frozenset(family.self_widths)) == wanted), None
    )


def guess_family_name(widths: Iterable[int]) -> str:
    """Say which family contexts of these widths come from: the one that shares most of them and misses fewest."""
    wanted = frozenset(widths)
    nearest = max(FAMILIES.values(), key=lambda family: (len(wanted & family.widths), -len(wanted ^ family.widths)))
    return nearest.name if wanted & nearest.widths else "no family known here"
