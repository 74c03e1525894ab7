"""Likeness: the share of the way from the base's pictures to reference pictures, by textures and by patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from velatura.compare import metrics
from velatura.compare.picture_features import PictureFeatures

MIN_REFERENCES = 3  # by 4 of 28 pairs of robots, other robots had a likeness of more than 1.6, not 1
# A study records it: figures of different measures cannot be compared
LIKENESS_MEASURE = "textures and patches, each reference among the others"
PATCH_SIDE = 3  # in places of a map: with their neighbours, places tell a subject from another thing of its colour
PATCH_STEP = 2  # of the reference patches that are looked for
# Shorter ways are measured as if they were so long, so that noise is not divided by nearly 0: of the whole way, and of
# the base's style distance
MIN_WAY, MIN_STYLE_WAY = 0.1, 0.05
EPSILON = 1e-6


class Way(NamedTuple):
    """How far pictures have come from the base's pictures (0) to the references (1).

    Attributes:
        pictures: (strengths, pictures).
        references: (references,), each among the other ones; their mean is about 1.
    """

    pictures: Tensor
    references: Tensor


def likeness(features: Sequence[PictureFeatures], reference: PictureFeatures | None) -> Tensor:
    """Return the share of the way from the base's pictures to the references, (strengths, pictures).

    Two ways are measured, and the shorter one of each picture counts. By textures: the Gram matrices of the whole
    picture, see `metrics.style_distance`; they tell that something foreign is in it. By patches, see `patch_way`: how
    much of what the references have and the base's pictures do not is found in the picture. The result is 0 for the
    mean of the base's pictures, and 1 for the mean of the references, each among the other ones.

    Args:
        features: The pictures of each strength, those of the base first; the same prompts in each.
        reference: The pictures that the overlay was trained on, or held-out ones. None: the way is that to the farthest
            strength, by textures.
    """
    if reference is None:
        return _way_to_farthest(features)
    style = _style_way(features, reference)
    ways = [
        patch_way([pictures.patches[number] for pictures in features], patches)
        for number, patches in enumerate(reference.patches)
    ]
    pictures = torch.minimum(style.pictures, torch.stack([way.pictures for way in ways]).mean(dim=0))
    end = torch.minimum(style.references, torch.stack([way.references for way in ways]).mean(dim=0)).mean()
    start = pictures[0].mean()
    return (pictures - start) / (end - start).clamp(min=MIN_WAY)


def _way_to_farthest(features: Sequence[PictureFeatures]) -> Tensor:
    distances = torch.stack([metrics.style_distance(pictures, features[0]) for pictures in features])
    gains = distances - distances[0]
    return gains / gains.mean(dim=1).max().clamp(min=EPSILON)


def _style_way(features: Sequence[PictureFeatures], reference: PictureFeatures) -> Way:
    distances = torch.stack([metrics.style_distance_of_another(pictures, reference) for pictures in features])
    among_references = metrics.left_out_style_distance(reference)
    start = distances[0].mean()
    length = (start - among_references.mean()).clamp(min=max(MIN_STYLE_WAY * float(start), EPSILON))
    return Way((start - distances) / length, (start - among_references) / length)


def patch_way(pictures: Sequence[Tensor], references: Tensor) -> Way:
    """Measure by one map of patches how far pictures have come.

    For every patch of a reference the most similar patch of a picture is looked for, wherever it is. Its gain is how
    much more similar the best patches of the other references are than those of the base's pictures: high for parts of
    a subject or strokes of a style, about 0 for what the base paints too. The way is the projection of a picture's
    similarities on the gains.

    Args:
        pictures: Features at the places of a square map, (pictures, places, channels), of the pictures of each
            strength; those of the base first.
        references: The same of the references.

    Returns:
        The way of every picture, and that of every reference among the others.
    """
    channels = references.shape[-1]
    known = torch.cat([pictures[0].reshape(-1, channels), references.reshape(-1, channels)])
    mean, deviation = known.mean(dim=0), known.std(dim=0).clamp(min=EPSILON)
    standardised = [(patches - mean) / deviation for patches in (references, *pictures)]  # no channel outweighs others
    wanted = _neighbourhoods(standardised[0], PATCH_STEP)
    among_references, *found = (_best_cosines(wanted, patches) for patches in standardised)
    count = len(references)
    is_other = torch.arange(count)[:, None] != torch.arange(count).repeat_interleave(wanted.shape[1])
    if count == 1:
        is_other = ~is_other  # a single reference is compared with itself
    start = found[0].mean(dim=0)
    gains = ((among_references * is_other).sum(dim=0) / is_other.sum(dim=0) - start).clamp(min=0)
    others_gains = gains * is_other
    return Way(
        (torch.stack(found) - start) @ gains / gains.square().sum().clamp(min=EPSILON),
        ((among_references - start) * others_gains).sum(dim=1) / others_gains.square().sum(dim=1).clamp(min=EPSILON),
    )


def _best_cosines(wanted: Tensor, patches: Tensor) -> Tensor:
    """Return for each picture the cosine of every wanted patch with its most similar patch, (pictures, wanted)."""
    flat = wanted.flatten(0, 1)
    # one picture after another: the patches of all of them with their neighbours take much memory
    return torch.stack([(flat @ _neighbourhoods(picture[None])[0].T).amax(dim=1) for picture in patches])


def _neighbourhoods(patches: Tensor, step: int = 1) -> Tensor:
    """Return the features of places with those of their neighbours, of length 1, (pictures, places, features)."""
    side = round(patches.shape[1] ** 0.5)
    maps = patches.transpose(1, 2).reshape(len(patches), -1, side, side)
    padded = F.pad(maps, [PATCH_SIDE // 2] * 4, mode="replicate")
    return F.normalize(F.unfold(padded, PATCH_SIDE, stride=step).transpose(1, 2), dim=-1)
