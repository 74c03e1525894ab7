"""Families of bases, and the context widths by which they are recognised."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Prediction = Literal["epsilon", "v_prediction"]
PredictionWord = Literal["epsilon", "v"]  # what callers and the command line write
PREDICTION_WORDS: dict[Prediction, PredictionWord] = {"epsilon": "epsilon", "v_prediction": "v"}


@dataclass(frozen=True)
class Family:
    """Constants that all bases of one architecture share.

    Attributes:
        name: Name shown to users.
        cross_width: Features of the context that cross-attention reads.
        self_widths: Features of the inputs of self-attention, one for each level of the UNet.
        vae_scale_factor: Pixels per latent along one side.
        scaling_factor: Factor that gives the VAE's latents unit variance.
        default_pixels: Side of the square pictures that the family was trained on.
        prediction: Output of the UNet: noise (epsilon) or velocity.
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
        """Return all context widths of the family."""
        return frozenset((self.cross_width, *self.self_widths))

    @property
    def unusual_prediction(self) -> Prediction | Literal[""]:
        """Return the prediction if the family of this name usually predicts something else, otherwise ""."""
        usual = FAMILIES.get(self.name)
        return "" if usual is None or usual.prediction == self.prediction else self.prediction


FAMILIES = {
    "tiny": Family("tiny", 96, (64, 128, 192), 4, 1.0, 64, "epsilon"),
    "SD1": Family("SD1", 768, (320, 640, 1280), 8, 0.18215, 512, "epsilon"),
    "SD2": Family("SD2", 1024, (320, 640, 1280), 8, 0.18215, 768, "v_prediction"),
    "SDXL": Family("SDXL", 2048, (640, 1280), 8, 0.13025, 1024, "epsilon"),
}
# What other programs and Civitai call the families: letters and digits in lower case, without "SD" before them
FAMILY_ALIASES = {
    "tiny": "tiny",
    **dict.fromkeys(("1", "14", "15", "1x", "v1", "v14", "v15"), "SD1"),
    **dict.fromkeys(("2", "20", "21", "2x", "v2", "v20", "v21", "20768", "21768"), "SD2"),
    **dict.fromkeys(("xl", "xl09", "xl1", "xl10", "xlbase10", "xlv1", "pony", "illustrious", "noobai"), "SDXL"),
}
FAMILY_BY_CROSS_WIDTH = {family.cross_width: family.name for family in FAMILIES.values()}


def find_family(cross_width: int, self_widths: Iterable[int]) -> Family | None:
    """Return the family with exactly these context widths, or None."""
    self_width_set = set(self_widths)
    for family in FAMILIES.values():
        if family.cross_width == cross_width and set(family.self_widths) == self_width_set:
            return family
    return None


def guess_family_name(widths: Iterable[int]) -> str:
    """Return the name of the family that shares most of these widths, or "" if none shares any."""
    known_widths = frozenset(widths)
    nearest = max(
        FAMILIES.values(), key=lambda family: (len(known_widths & family.widths), -len(known_widths ^ family.widths))
    )
    return nearest.name if known_widths & nearest.widths else ""


def check_family_name(stated: str, widths: Iterable[int]) -> str:
    """Return the family that an overlay states, unless its context widths are those of another one.

    Args:
        stated: The stated family, "" if none is.
        widths: Context widths that the overlay changes, in features.

    Returns:
        The stated family if it has these widths or is not one of FAMILIES; otherwise the family that the widths show,
        "" if no family has any of them.
    """
    known_widths = frozenset(widths)
    family, guess = FAMILIES.get(stated), guess_family_name(known_widths)
    if family is None or not known_widths or family.cross_width in known_widths:
        return stated or guess
    shows_another = bool(guess) and FAMILIES[guess].cross_width in known_widths
    return stated if known_widths & family.widths and not shows_another else guess


def advise_base(family: str) -> str:
    """Say which base to open for an overlay of this family, "" being an unknown one."""
    if not family:
        return "it was made for another model than SD1, SD2 and SDXL, so open the base that it was trained on"
    return f"it was made for {family}, so open a base of that family"


def normalize_family_name(name: str) -> str:
    """Return the name of the family that people mean by "SD1.5", "1.5", "xl" and the like; other names unchanged."""
    letters = re.sub(r"[^a-z0-9]", "", name.casefold())
    return FAMILY_ALIASES.get(letters.removeprefix("stablediffusion").removeprefix("sd"), name)
