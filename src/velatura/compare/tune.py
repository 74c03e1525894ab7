"""Auto-strength: paint a few strengths of an overlay, and find the one that has its likeness and keeps the prompt."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.compare import metrics
from velatura.compare.likeness import MIN_REFERENCES, likeness
from velatura.compare.picture_features import PictureEncoder, PictureFeatures
from velatura.compare.picture_sets import Pictures, PictureSet, read_picture_set
from velatura.compare.strength_trade import TradePoint, best_strength
from velatura.compare.tune_prompts import TunePrompt, call_overlay, tune_prompts
from velatura.errors import BadPrompt, BadStrength, NoEffect, gather_warnings, ignore_warnings, quantity, warn
from velatura.formats.open import open_overlay
from velatura.library.preferred_strength import write_into_file, write_sidecar
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.sampling.generate import make_pictures
from velatura.sampling.recipe.recipe import Recipe

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
FIRST_SEED = 1000
TINY_STEPS, STEPS = 12, 20
SAMPLER = "Euler"  # deterministic, and enough in a few steps
MAX_REFERENCES = 16
MIN_SCORE = 0.02  # of the best strength; below, no strength is better than 0
MIN_CHANGE = 1e-3  # of the pictures at the highest strength; below, the overlay does nothing
BAR_WIDTH = 24

OnTune = Callable[[int, int], None]  # strengths painted, and strengths in all


@dataclass(frozen=True)
class Tuning:
    """The best strength of an overlay, with the curve that it is the top of; `str` gives a table.

    Attributes:
        strength: The strength at which likeness times the sixth root of prompt kept is highest.
        low, high: It lies between them in 80 % of the cases if other prompts are drawn.
        points: The curve, from strength 0 on.
        prompts: The prompts that were painted.
        seeds: Pictures of each prompt.
        reference: What likeness is measured against: "pictures", or "itself" for how far the overlay goes at most.
    """

    strength: float
    low: float
    high: float
    points: tuple[TradePoint, ...]
    prompts: tuple[str, ...]
    seeds: int
    reference: str

    @property
    def note(self) -> str:
        """What was measured, in one line."""
        nearest = min(self.points, key=lambda point: abs(point.strength - self.strength))
        like = "like its pictures" if self.reference == "pictures" else "of its full effect"
        return (
            f"best strength {self.strength:g} ({self.low:g} to {self.high:g}): {nearest.likeness:.0%} {like}, "
            f"{nearest.kept:.0%} of the prompt kept, {len(self.prompts)} prompts"
        )

    def __str__(self) -> str:
        lines = [f"{'strength':>8}  {'likeness':>8}  {'kept':>5}  {'score':>5}"]
        for point in self.points:
            bar = "#" * round(BAR_WIDTH * point.score)
            numbers = f"{point.strength:8g}  {point.likeness:8.2f}  {point.kept:5.2f}  {point.score:5.2f}"
            lines.append(f"{numbers}  {bar}".rstrip())
        return "\n".join([*lines, self.note])

    def as_json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(asdict(self) | {"note": self.note}, indent=2, ensure_ascii=False)

    def write(self, weights: str | os.PathLike[str]) -> Path:
        """Write the strength beside a file of weights, and into it if velatura wrote it.

        Args:
            weights: The overlay's file. The .json beside it gets the preferred weight and a note, which A1111, Forge
                and others read; what else it says stays.

        Returns:
            The .json.

        Raises:
            BadFile: The .json that is there is not one of notes.
        """
        path = Path(weights).expanduser()
        sidecar = write_sidecar(path, self.strength, self.note)
        write_into_file(path, self.strength, self.note)
        return sidecar


@freeze_models
@check_arguments()
@gather_warnings()
def tune(
    base: AnyBase,
    overlay: Overlay | str | os.PathLike[str],
    *,
    pictures: Pictures | None = None,
    prompts: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seeds: int = 1,
    steps: int | None = None,
    clip: str | os.PathLike[str] | None = None,
    dino: str | os.PathLike[str] | None = None,
    called_by: str = "",
    on_strength: OnTune | None = None,
) -> Tuning:
    """Find the strength at which an overlay has its likeness and the prompt is kept.

    The same prompts and seeds are painted at every strength. Likeness is how near the pictures come to those that the
    overlay was trained on, by textures and patches (`velatura.compare.likeness`); the prompt is kept if a picture
    can be told to be of its own prompt by what the base paints of all of them.

    Args:
        base: The base that paints, without the overlay.
        overlay: The overlay, or its file.
        pictures: The pictures that it was trained on, a folder or PIL images. None: likeness is how far the overlay
            goes from the base's pictures, compared with the farthest.
        prompts: What is painted; by default fixed prompts for the base, or the subject of the captions in some places.
        strengths: The strengths above 0 that are painted, rising.
        seeds: Pictures of each prompt.
        steps: Sampling steps; None: 12 on the tiny base, else 20.
        clip: The folder of a whole CLIP, whose patches are compared too.
        dino: The folder of a DINO, whose patches are compared too.
        called_by: Words that call the overlay, beside its trigger words; an embedding is called by its name.
        on_strength: Called after each strength with how many are painted, and how many there are.

    Returns:
        The best strength, to print, or to write beside the overlay's file.

    Raises:
        NoEffect: The overlay changes nothing that can be measured, or brings no picture nearer to its pictures.
        BadPrompt: Fewer than two different prompts are given.
        BadStrength: The strengths are fewer than two, not above 0 or not rising.
        BadFile, BadDataset: A file cannot be read.
    """
    base = to_base(base)
    return tune_with(
        PictureEncoder.open(base, clip=clip, dino=dino),
        overlay if isinstance(overlay, Overlay) else open_overlay(overlay),
        pictures=pictures,
        prompts=prompts,
        strengths=strengths,
        seeds=seeds,
        steps=steps,
        called_by=called_by,
        on_strength=on_strength,
    )


def tune_with(
    encoder: PictureEncoder,
    overlay: Overlay,
    *,
    pictures: Pictures | None = None,
    prompts: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seeds: int = 1,
    steps: int | None = None,
    called_by: str = "",
    on_strength: OnTune | None = None,
) -> Tuning:
    """Find the strength as `tune` does, with models that are open.

    Args:
        encoder: Looks at the pictures; its base paints them.
        overlay, pictures, prompts, strengths, seeds, steps, called_by, on_strength: As `tune` takes them.

    Returns:
        The best strength.

    Raises:
        NoEffect, BadPrompt, BadStrength, BadDataset: As `tune` does.
    """
    base, strengths = encoder.base, _check_strengths(strengths)
    is_tiny = base.family.name == "tiny"
    references = None if pictures is None else select_references(pictures)
    if references and len(references) < MIN_REFERENCES:
        warn(
            f"{quantity(len(references), 'picture')} cannot tell how much such pictures differ, so the likeness may be "
            f"far off: give {MIN_REFERENCES} or more"
        )
    captions = list(references.texts or ()) if references else []
    chosen = tune_prompts(overlay, captions, is_tiny=is_tiny, called_by=called_by)
    if prompts is not None:
        chosen = [TunePrompt(text, call_overlay(overlay, text, called_by)) for text in prompts]
    if len({prompt.text for prompt in chosen}) < 2:
        raise BadPrompt("one prompt does not tell what is kept of it: give two or more that differ")
    painter = StrengthPainter(base, overlay, chosen, seeds, steps or (TINY_STEPS if is_tiny else STEPS))
    features: list[PictureFeatures] = []
    for done, strength in enumerate((0.0, *strengths), 1):
        features.append(encoder.features(painter.paint(strength)))
        if on_strength:
            on_strength(done, len(strengths) + 1)
    reference = encoder.features(references.images) if references else None
    texts = [prompt.text for prompt in chosen for _ in range(seeds)]
    # Prompts are drawn anew for the uncertainty, so that the seeds of one prompt are one number
    near, kept = (
        values.reshape(len(features), len(chosen), seeds).mean(dim=2)
        for values in (likeness(features, reference), kept_share(features, texts))
    )
    found = best_strength((0.0, *strengths), near, kept)
    if max(point.score for point in found.points) < MIN_SCORE:
        name, may_be_subject = overlay.card.name or "the overlay", prompts is None and not captions
        raise NoEffect(_explain_no_top(name, features, strengths[-1], may_be_subject=may_be_subject))
    return Tuning(
        round(found.strength, 2),
        round(found.low, 2),
        round(found.high, 2),
        found.points,
        tuple(prompt.called for prompt in chosen),
        seeds,
        "itself" if reference is None else "pictures",
    )


@dataclass(frozen=True)
class StrengthPainter:
    """Paints the same prompts and seeds at any strength.

    Attributes:
        base: The base, without the overlay.
        overlay: The overlay.
        prompts: The prompts.
        seeds: Pictures of each prompt.
        steps: Sampling steps.
    """

    base: Base
    overlay: Overlay
    prompts: Sequence[TunePrompt]
    seeds: int
    steps: int

    def paint(self, strength: float) -> list[Image.Image]:
        """Paint at a strength; at 0 the base alone paints, without the words that call the overlay."""
        if not strength:
            return self._generate([prompt.text for prompt in self.prompts])
        with ignore_warnings(), attach(self.base, self.overlay, strength):  # of an overlay that changes nothing
            return self._generate([prompt.called for prompt in self.prompts])

    def _generate(self, prompts: Sequence[str]) -> list[Image.Image]:
        recipes = [
            Recipe(prompt=prompt, seed=FIRST_SEED + number * self.seeds + seed, steps=self.steps, sampler=SAMPLER)
            for number, prompt in enumerate(prompts)
            for seed in range(self.seeds)
        ]
        return [picture.image for picture in make_pictures(self.base, recipes)]


def kept_share(features: Sequence[PictureFeatures], texts: Sequence[str]) -> Tensor:
    """Return the share of the prompt that is kept, 1 at strength 0 and 0 for chance, (strengths, pictures).

    Args:
        features: The pictures of each strength, those of the base first.
        texts: The prompt of each picture.
    """
    contents = [pictures.patches[0].flatten(1) for pictures in features]
    shares = torch.stack([metrics.own_prompt_share(content, contents[0], texts) for content in contents])
    gains = shares - metrics.own_prompt_chance(texts)
    return gains / gains[0].mean().clamp(min=1e-6)


def select_references(pictures: Pictures) -> PictureSet:
    """Return at most `MAX_REFERENCES` pictures, evenly spread over all."""
    found = read_picture_set(pictures)
    count = len(found)
    rows = [row * count // min(count, MAX_REFERENCES) for row in range(min(count, MAX_REFERENCES))]
    texts = None if found.texts is None else [found.texts[row] for row in rows]
    return PictureSet([found.images[row] for row in rows], [found.names[row] for row in rows], texts)


def _explain_no_top(name: str, features: Sequence[PictureFeatures], highest: float, *, may_be_subject: bool) -> str:
    """Say why no strength is better than 0: nothing changes, or it changes to something else."""
    if float(metrics.change(features[-1], features[0]).mean()) < MIN_CHANGE:
        return (
            f"{name} changes nothing that can be measured at strengths up to {highest:g}: train it for more steps or "
            "at a higher rate"
        )
    subject = ", or, if it learned a subject, prompts that name it" if may_be_subject else ""
    return (
        f"{name} brings no picture nearer to its pictures, at no strength up to {highest:g}: give the pictures that it "
        f"was trained on{subject}, or train it for more steps"
    )


def _check_strengths(strengths: Sequence[float]) -> list[float]:
    values = [float(strength) for strength in strengths]
    if len(values) < 2 or not values[0] > 0 or any(b <= a for a, b in pairwise(values)):
        shown = ", ".join(f"{value:g}" for value in values)
        raise BadStrength(f'the strengths "{shown}" are not two or more above 0 that rise: write 0.25,0.5,0.75,1')
    return values
