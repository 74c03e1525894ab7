"""Measure how like two sets of pictures are: `velatura measure A/ B/`, and `velatura.measure` in Python."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from velatura.arguments import check_arguments
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.compare import metrics
from velatura.compare.metrics import Mean
from velatura.compare.picture_features import PictureEncoder, PictureFeatures
from velatura.compare.picture_sets import Pictures, PictureSet, read_picture_set
from velatura.errors import gather_warnings
from velatura.tiny import TINY_HASH

NOISE_SEED = 0
MIN_NOISE_PICTURES = 4
LABEL_WIDTH, NUMBER_WIDTH = 18, 15

# What each number means, in one line
MEANINGS = {
    "image similarity": "mean cosine of CLIP's vectors with all reference pictures: higher is nearer (CLIP-I)",
    "nearest picture": "cosine with the most similar reference picture: higher is nearer, 1 is a copy of it",
    "dino": "mean cosine of DINO's vectors with all reference pictures: higher is nearer, of subjects above all",
    "style distance": "difference of Gram matrices of the UNet's features: lower is nearer in texture and colour",
    "text similarity": "cosine of CLIP's vectors of a picture and its text: higher follows the text better (CLIP-T)",
    "change": "difference from the reference picture of the same name, place by place: 0 is the same picture",
    "diversity": "mean difference between pictures: near 0 they are all the same picture",
}
FALLING = frozenset({"style distance", "change"})  # a lower value is nearer
TINY_NOTE = (
    "measured with the tiny base's own small models, which know drawings of 64 pixels: for photographs give --base "
    "and --clip, the folder of a CLIP"
)
NO_CLIP_NOTE = (
    "the base's CLIP is not on this machine, so nothing is measured with CLIP: give the folder of one with --clip"
)


@dataclass(frozen=True)
class Metric:
    """One number about a set of pictures, with the numbers that it can be compared with.

    Attributes:
        name: The name, one of `MEANINGS`.
        value: The mean over the pictures.
        error: Its standard error.
        itself: The same number for the reference pictures against themselves: the best that can be.
        others: The same number for each reference picture against the other ones: what a new picture of the same kind
            would reach. Of texts: the similarity with the texts of other pictures. None where it has no meaning.
        noise: The same number for pictures of noise: the worst.
    """

    name: str
    value: float
    error: float
    itself: float | None
    others: float | None
    noise: float | None

    @property
    def meaning(self) -> str:
        """What the number means, in one line."""
        return MEANINGS[self.name]

    @property
    def is_lower_nearer(self) -> bool:
        """Return True if a lower value is nearer to the reference pictures."""
        return self.name in FALLING


@dataclass(frozen=True)
class Measurement:
    """All numbers about a set of pictures beside a set of reference pictures; `str` gives a table.

    Attributes:
        pictures, references: Numbers of pictures.
        metrics: The numbers by their names.
        notes: What a reader must know of them.
    """

    pictures: int
    references: int
    metrics: Mapping[str, Metric]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Metric:
        return self.metrics[name]

    def __str__(self) -> str:
        columns = ("value", "itself", "others", "noise")
        lines = [" " * LABEL_WIDTH + "".join(f"{column:{NUMBER_WIDTH}}" for column in columns).rstrip()]
        for metric in self.metrics.values():
            value = f"{metric.value:.3f} ± {metric.error:.3f}"
            others = [_format(number) for number in (metric.itself, metric.others, metric.noise)]
            cells = "".join(f"{cell:{NUMBER_WIDTH}}" for cell in (value, *others)).rstrip()
            lines += [f"{metric.name:{LABEL_WIDTH}}{cells}", f"{'':{LABEL_WIDTH}}{metric.meaning}"]
        lines += [
            "itself: reference pictures beside themselves; others: each beside the other ones (of texts: beside other",
            "texts), what a new picture of the same kind reaches; noise: pictures of noise",
            *self.notes,
        ]
        return "\n".join(lines)

    def as_json(self) -> str:
        """Return all of it as JSON; numbers that have no meaning are null."""
        rows = {
            name: {key: value for key, value in asdict(metric).items() if key != "name"}
            | {"meaning": metric.meaning, "lower_is_nearer": metric.is_lower_nearer}
            for name, metric in self.metrics.items()
        }
        facts = {"pictures": self.pictures, "references": self.references, "metrics": rows, "notes": self.notes}
        return json.dumps(facts, indent=2, ensure_ascii=False)


@freeze_models
@check_arguments()
@gather_warnings()
def measure(
    pictures: Pictures,
    references: Pictures,
    *,
    base: AnyBase | None = None,
    clip: str | os.PathLike[str] | None = None,
    dino: str | os.PathLike[str] | None = None,
    texts: Sequence[str] | None = None,
) -> Measurement:
    """Measure how like pictures are to reference pictures, to their texts, and to each other.

    Args:
        pictures: A folder, or PIL images.
        references: A folder, or PIL images, that they are compared with.
        base: Its autoencoder and UNet look at the pictures, and its CLIP if it is on this machine. None: the tiny
            base.
        clip: The folder of a whole CLIP of transformers or open_clip, which is used instead.
        dino: The folder of a DINO of transformers.
        texts: A text for each picture; by default, of a folder, the prompts in the pictures or their captions.

    Returns:
        A measurement to print, with the numbers by their names.

    Raises:
        BadDataset: A folder is missing, or has no pictures or one that cannot be read; or the texts are not as many.
        BadFile: A folder of a model cannot be read.
    """
    if base is None:
        from velatura.tiny import tiny

        base = tiny()
    base = to_base(base)
    ours, theirs = read_picture_set(pictures, texts), read_picture_set(references)
    encoder = PictureEncoder.open(base, clip=clip, dino=dino)
    measured = _Comparison.of(encoder, ours, theirs)
    rows = (row for row in map(measured.metric, MEANINGS) if row is not None)
    notes = [TINY_NOTE] if base.hash == TINY_HASH and clip is None else []
    notes += [NO_CLIP_NOTE] if encoder.clip is None else []
    return Measurement(len(ours), len(theirs), {row.name: row for row in rows}, tuple(notes))


def noise_pictures(count: int, pixels: int) -> list[Image.Image]:
    """Return pictures of noise, always the same ones."""
    generator = np.random.default_rng(NOISE_SEED)
    return [Image.fromarray(generator.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)) for _ in range(count)]


@dataclass(frozen=True)
class _Comparison:
    """Features of both sets and of noise, and the vectors of texts."""

    ours: PictureFeatures
    theirs: PictureFeatures
    noise: PictureFeatures
    texts: Tensor | None
    pairs: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, encoder: PictureEncoder, ours: PictureSet, theirs: PictureSet) -> _Comparison:
        noise = noise_pictures(max(MIN_NOISE_PICTURES, len(ours)), encoder.pixels)
        texts = encoder.clip.encode_texts(ours.texts) if encoder.clip and ours.texts else None
        return cls(
            encoder.features(ours.images),
            encoder.features(theirs.images),
            encoder.features(noise),
            texts,
            ours.pairs_with(theirs),
        )

    def metric(self, name: str) -> Metric | None:
        """Return a metric, or None if there is nothing to measure it with."""
        measure_metric: dict[str, Callable[[], Metric | None]] = {
            "image similarity": lambda: self._similarity(name, self.ours.clip, self.theirs.clip, self.noise.clip),
            "nearest picture": self._nearest,
            "dino": lambda: self._similarity(name, self.ours.dino, self.theirs.dino, self.noise.dino),
            "style distance": self._style,
            "text similarity": self._text,
            "change": self._change,
            "diversity": self._diversity,
        }
        return measure_metric[name]()

    def _similarity(self, name: str, ours: Tensor | None, theirs: Tensor | None, noise: Tensor | None) -> Metric | None:
        if ours is None or theirs is None or noise is None:
            return None
        value = Mean.of(metrics.image_similarity(ours, theirs))
        others = _mean(metrics.left_out_similarity(theirs)) if len(theirs) > 1 else None
        return Metric(name, value.value, value.error, 1.0, others, _mean(metrics.image_similarity(noise, theirs)))

    def _nearest(self) -> Metric | None:
        ours, theirs, noise = self.ours.clip, self.theirs.clip, self.noise.clip
        if ours is None or theirs is None or noise is None:
            return None
        value = Mean.of(metrics.nearest_similarity(ours, theirs))
        others = _mean(metrics.left_out_nearest(theirs)) if len(theirs) > 1 else None
        noise_value = _mean(metrics.nearest_similarity(noise, theirs))
        return Metric("nearest picture", value.value, value.error, 1.0, others, noise_value)

    def _style(self) -> Metric:
        value = Mean.of(metrics.style_distance(self.ours, self.theirs))
        others = _mean(metrics.left_out_style_distance(self.theirs)) if len(self.theirs) > 1 else None
        return Metric(
            "style distance",
            value.value,
            value.error,
            _mean(metrics.style_distance(self.theirs, self.theirs)),
            others,
            _mean(metrics.style_distance(self.noise, self.theirs)),
        )

    def _text(self) -> Metric | None:
        ours, noise = self.ours.clip, self.noise.clip
        if ours is None or noise is None or self.texts is None:
            return None
        value = Mean.of(metrics.text_similarity(ours, self.texts))
        others = _mean(metrics.other_text_similarity(ours, self.texts))
        noise_value = _mean((noise @ self.texts.T).flatten())
        return Metric("text similarity", value.value, value.error, None, others, noise_value)

    def _change(self) -> Metric | None:
        if not self.pairs:
            return None
        ours = self.ours.select([own for own, _ in self.pairs])
        originals = self.theirs.select([original for _, original in self.pairs])
        value = Mean.of(metrics.change(ours, originals))
        noise = self.noise.select([index % len(self.noise) for index in range(len(originals))])
        others = _mean(metrics.diversity(self.theirs)) if len(self.theirs) > 1 else None
        return Metric("change", value.value, value.error, 0.0, others, _mean(metrics.change(noise, originals)))

    def _diversity(self) -> Metric | None:
        if len(self.ours) < 2:
            return None
        value = Mean.of(metrics.diversity(self.ours))
        itself = _mean(metrics.diversity(self.theirs)) if len(self.theirs) > 1 else None
        return Metric("diversity", value.value, value.error, itself, None, _mean(metrics.diversity(self.noise)))


def _mean(values: Tensor) -> float | None:
    """Return the mean of finite numbers, None if there is none."""
    value = float(torch.nanmean(values)) if len(values) else math.nan
    return value if math.isfinite(value) else None


def _format(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"
