"""Another overlay that is attached beside each trial of a study: what is left of both where they act together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from PIL import Image

from velatura.base.base import Base
from velatura.compare import metrics
from velatura.compare.likeness import likeness
from velatura.compare.picture_features import PictureEncoder, PictureFeatures
from velatura.compare.strength_trade import score_trade
from velatura.compare.tune import MIN_CHANGE, StrengthPainter, kept_share, select_references
from velatura.compare.tune_prompts import TunePrompt, call_overlay
from velatura.errors import BadStrength, ignore_warnings
from velatura.formats.open import open_overlay
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay


class OtherFile(NamedTuple):
    """An overlay's file, and the strength at which it is attached."""

    path: Path
    strength: float


class OtherOverlay(NamedTuple):
    """An overlay that no trial trains, and the strength at which it is attached beside each."""

    overlay: Overlay
    strength: float

    @classmethod
    def open(cls, base: Base, file: OtherFile) -> Self:
        """Open the overlay, and attach it once to see that it fits the base.

        Raises:
            BadStrength: The strength is 0.
            BadFile: The file cannot be read.
            WrongBase: The overlay does not fit the base.
        """
        if not file.strength:
            raise BadStrength(f"{file.path.name} has strength 0, where it does nothing: give another strength")
        overlay = open_overlay(file.path)
        overlay.name_after_file()
        with ignore_warnings(), attach(base, overlay, file.strength):
            return cls(overlay, file.strength)


def paint_other(
    encoder: PictureEncoder, other: OtherOverlay, prompts: Sequence[TunePrompt], steps: int
) -> PictureFeatures:
    """Paint prompts with the other overlay alone, and return the features of the pictures.

    Args:
        encoder: Looks at the pictures; its base paints them.
        other: The other overlay.
        prompts: What is painted; of words that call an overlay only those of the other one are added.
        steps: Sampling steps.
    """
    by_other = [TunePrompt(prompt.text, call_overlay(other.overlay, prompt.text)) for prompt in prompts]
    return encoder.features(StrengthPainter(encoder.base, other.overlay, by_other, 1, steps).paint(other.strength))


def measure_together(
    encoder: PictureEncoder,
    overlay: Overlay,
    other: OtherOverlay,
    *,
    prompts: Sequence[TunePrompt],
    strength: float,
    steps: int,
    base_pictures: PictureFeatures,
    own_pictures: PictureFeatures,
    other_pictures: PictureFeatures,
    references: Sequence[Image.Image],
) -> dict[str, float]:
    """Measure an overlay with another one attached too.

    Args:
        encoder: Looks at the pictures; its base paints them.
        overlay, strength: The overlay of the trial, and its best strength.
        other: The other overlay.
        prompts: What is painted, with the words that call the overlay.
        steps: Sampling steps.
        base_pictures: What the base alone paints of the prompts.
        own_pictures: What it paints of them with the overlay of the trial alone.
        other_pictures: What it paints of them with the other overlay alone, see `paint_other`.
        references: The pictures that likeness is measured against.

    Returns:
        "together", the score as it is measured without the other overlay, and "other_left", see `effect_left`; that
        only if the other overlay changes pictures.
    """
    base = encoder.base
    by_both = [TunePrompt(prompt.text, call_overlay(other.overlay, prompt.called)) for prompt in prompts]
    with ignore_warnings(), attach(base, other.overlay, other.strength):
        images = StrengthPainter(base, overlay, by_both, 1, steps).paint(strength)
    both = encoder.features(images)  # by the UNet without the other overlay
    reference = encoder.features(select_references(references).images)
    near = likeness([base_pictures, both], reference)[1].mean()
    kept = kept_share([base_pictures, both], [prompt.text for prompt in prompts])[1].mean()
    figures = {"together": float(score_trade(near, kept))}
    if float(metrics.change(other_pictures, base_pictures).mean()) >= MIN_CHANGE:
        figures["other_left"] = effect_left(base_pictures, other_pictures, own_pictures, both)
    return figures


def effect_left(
    base_pictures: PictureFeatures, other: PictureFeatures, own: PictureFeatures, both: PictureFeatures
) -> float:
    """Return how much of the change that another overlay makes to the base's pictures it makes beside an overlay too.

    It is the projection of the one change on the other, place by place in the autoencoder's features: 1 if it is as
    large, 0 if nothing of it is left, above 1 if both reinforce each other.

    Args:
        base_pictures: What the base alone paints.
        other, own, both: The same prompts and seeds with the other overlay, with the one beside which it is attached,
            and with both.
    """
    shared, whole = 0.0, 0.0
    levels = zip(base_pictures.maps, other.maps, own.maps, both.maps, strict=True)
    for base_map, other_map, own_map, both_map in levels:
        alone = other_map - base_map  # (pictures, channels, height, width)
        shared += float(((both_map - own_map) * alone).sum(dim=1).mean())
        whole += float(alone.square().sum(dim=1).mean())
    return shared / whole
