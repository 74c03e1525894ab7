"""Numbers that compare pictures: how like they are to others, to a text, and to each other.

Every function returns one number for each picture, so that a mean can be given with its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from velatura.compare.picture_features import PictureFeatures

# Of cosines. Of 0.07 to 0.25 the one with which the share of the prompt that is kept is nearest to what a classifier of
# drawings says: off by 0.04 in neon, 0.01 in the places of robots, and 0.09 in blueprints (docs/measuring.md)
SOFTMAX_TEMPERATURE = 0.15


@dataclass(frozen=True)
class Mean:
    """A mean and how sure it is.

    Attributes:
        value: The mean.
        error: Its standard error, 0 for a single number.
        count: The number of numbers.
    """

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Tensor | Sequence[float]) -> Mean:
        """Return the mean of numbers, with its standard error."""
        numbers = torch.as_tensor(values, dtype=torch.float64).flatten()
        count = len(numbers)
        error = float(numbers.std()) / math.sqrt(count) if count > 1 else 0.0
        return cls(float(numbers.mean()), error, count)


def image_similarity(vectors: Tensor, references: Tensor) -> Tensor:
    """Return the mean cosine of each picture with all references (CLIP-I, or DINO; Ruiz et al. 2023, section 4.2).

    Args:
        vectors, references: (pictures, features), of length 1.
    """
    return (vectors @ references.T).mean(dim=1)


def nearest_similarity(vectors: Tensor, references: Tensor) -> Tensor:
    """Return the cosine of each picture with the reference that it is most like; 1 is a copy."""
    return (vectors @ references.T).amax(dim=1)


def style_distance(pictures: PictureFeatures, references: PictureFeatures) -> Tensor:
    """Return how far each picture's Gram matrices are from the mean ones of the references, 0 to 1.

    Of each level: the norm of the difference over the sum of both norms. The mean over the levels is taken.
    """
    distances = [
        _relative_distance(gram, reference.mean(dim=0, keepdim=True))
        for gram, reference in zip(pictures.grams, references.grams, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


def left_out_style_distance(references: PictureFeatures) -> Tensor:
    """Return how far each reference is from the others by `style_distance`; of a single one, from itself."""
    if len(references) < 2:
        return style_distance(references, references)
    return torch.stack([_relative_distance(gram, _means_of_others(gram)) for gram in references.grams]).mean(dim=0)


def style_distance_of_another(pictures: PictureFeatures, references: PictureFeatures) -> Tensor:
    """Return how far each picture is from the references by `style_distance` if it stood in for one of them.

    It is the mean distance from the means of all references but one, so that it can be compared with
    `left_out_style_distance`: the fewer pictures a mean is of, the farther everything is from it.
    """
    if len(references) < 2:
        return style_distance(pictures, references)
    distances = [
        torch.stack([_relative_distance(gram, mean[None]) for mean in _means_of_others(reference)]).mean(dim=0)
        for gram, reference in zip(pictures.grams, references.grams, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


def left_out_similarity(references: Tensor) -> Tensor:
    """Return the mean cosine of each reference with the others; of a single one, with itself."""
    count = len(references)
    if count < 2:
        return image_similarity(references, references)
    cosines = references @ references.T
    return (cosines.sum(dim=1) - cosines.diagonal()) / (count - 1)


def left_out_nearest(references: Tensor) -> Tensor:
    """Return the cosine of each reference with the other one that it is most like; of a single one, with itself."""
    if len(references) < 2:
        return nearest_similarity(references, references)
    cosines = references @ references.T
    return cosines.fill_diagonal_(-1.0).amax(dim=1)


def text_similarity(images: Tensor, texts: Tensor) -> Tensor:
    """Return the cosine of each picture with its own text (CLIP-T).

    Args:
        images, texts: (pictures, features), of length 1.
    """
    return (images * texts).sum(dim=1)


def other_text_similarity(images: Tensor, texts: Tensor) -> Tensor:
    """Return the mean cosine of each picture with the texts of the other pictures: what chance gives."""
    cosines = images @ texts.T
    is_other = (texts @ texts.T) < 1 - 1e-4  # equal texts are a picture's own
    counts = is_other.sum(dim=1)
    means = (cosines * is_other).sum(dim=1) / counts.clamp(min=1)
    return torch.where(counts > 0, means, torch.nan)


def change(pictures: PictureFeatures, originals: PictureFeatures) -> Tensor:
    """Return how much each picture differs from its original, place by place: 0 for equal ones, 2 for opposite ones.

    The mean squared difference of the autoencoder's features of length 1, over places and levels, halved: as LPIPS
    without learned weights (Zhang et al. 2018).
    """
    return _map_distance(pictures.maps, originals.maps)


def diversity(pictures: PictureFeatures, groups: Sequence[Hashable] | None = None) -> Tensor:
    """Return how much the pictures of a group differ from each other, by `change`, one number for each pair.

    Args:
        pictures: The pictures.
        groups: The group of each picture, such as its prompt; None: all are one group.

    Returns:
        (pairs,), empty if no group has two pictures.
    """
    groups = groups if groups is not None else [0] * len(pictures)
    pairs = [(i, j) for i, j in combinations(range(len(pictures)), 2) if groups[i] == groups[j]]
    if not pairs:
        return torch.zeros(0)
    return change(pictures.select([i for i, _ in pairs]), pictures.select([j for _, j in pairs]))


def own_prompt_share(pictures: Tensor, originals: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return how sure each picture can be told to be of its own prompt, by what the base paints of all prompts.

    What pictures have in common, such as a style, is taken off both sets. Then the softmax of the cosines with all
    originals is summed over those of the picture's own prompt: 1 where no other one is near.

    Args:
        pictures: Features of pictures, (pictures, features).
        originals: The same of the base's pictures of the same prompts.
        prompts: The prompt of each picture and of its original.
    """
    cosines = _centred(pictures) @ _centred(originals).T
    own = torch.tensor([[prompt == other for other in prompts] for prompt in prompts])
    return ((cosines / SOFTMAX_TEMPERATURE).softmax(dim=1) * own).sum(dim=1)


def own_prompt_chance(prompts: Sequence[str]) -> Tensor:
    """Return the share that pictures of nothing would get of `own_prompt_share`, one for each picture."""
    return torch.tensor([list(prompts).count(prompt) / len(prompts) for prompt in prompts])


def _centred(features: Tensor) -> Tensor:
    """Return features without their mean, of length 1."""
    return F.normalize(features - features.mean(dim=0, keepdim=True), dim=1)


def _means_of_others(grams: Tensor) -> Tensor:
    """Return for each matrix the mean of all others, (pictures, channels, channels)."""
    return (grams.sum(dim=0, keepdim=True) - grams) / (len(grams) - 1)


def _relative_distance(grams: Tensor, others: Tensor) -> Tensor:
    difference, total = _norm(grams - others), _norm(grams) + _norm(others)
    return torch.where(total > 0, difference / total.clamp(min=1e-12), 0.0)


def _norm(matrices: Tensor) -> Tensor:
    """Return the Frobenius norm of each matrix."""
    return matrices.square().sum(dim=(1, 2)).sqrt()


def _map_distance(maps: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    distances = [
        (level - other).square().sum(dim=1).mean(dim=(1, 2)) / 2 for level, other in zip(maps, others, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)
