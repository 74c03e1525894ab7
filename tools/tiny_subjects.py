"""python -m tools.tiny_subjects: fit the map by which the tiny captioner tells subjects, and ship it in the package.

6,000 drawings are looked at, in every style and of every combination but those kept back: about three minutes on one
core. The figures on drawings that nothing saw are printed, by style.
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import velatura
from tools.drawing.paint import paint
from tools.drawing.scene import Scene, random_scene
from tools.drawing.styles import STYLES
from velatura.datasets.captioners.tiny_subjects import SUBJECT_MAP_FILE, SUBJECTS, SubjectFinder, UNetFeatures
from velatura.tensors import write_safetensors

TRAIN_COUNT, TEST_COUNT = 6000, 500
FIRST_TRAIN_SEED, FIRST_TEST_SEED = 80_000_000, 90_000_000  # seeds that nothing else uses
BATCH_SIZE = 50
SHRINKAGE = 10.0  # of a ridge regression on standardised features; 1 to 100 find as many


def scenes(count: int, first_seed: int, *, held_out: bool) -> list[Scene]:
    """Drawn at random in all styles."""
    return [random_scene(Random(first_seed + n), held_out=held_out, styles=list(STYLES)) for n in range(count)]


def pixels(batch: Sequence[Scene]) -> Tensor:
    """The drawings of scenes (count, 3, 64, 64), from -1 to 1."""
    drawings = np.stack([np.asarray(paint(scene), dtype=np.float32) for scene in batch])
    return torch.tensor(drawings / 127.5 - 1).permute(0, 3, 1, 2)


def fit_ridge_regression(features: Tensor, subjects: Tensor) -> dict[str, Tensor]:
    """The weight (20, features) and the bias (20,) of a ridge regression on which subject it is."""
    mean, deviation = features.mean(dim=0), features.std(dim=0) + 1e-4
    standardised = (features - mean) / deviation
    targets = F.one_hot(subjects, len(SUBJECTS)).float() - 1 / len(SUBJECTS)
    regularised_gram = standardised.T @ standardised + SHRINKAGE * torch.eye(standardised.shape[1])
    weight = torch.linalg.solve(regularised_gram, standardised.T @ targets).T / deviation
    return {"weight": weight, "bias": -weight @ mean}


def accuracy_by_style(finder: SubjectFinder, test_scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of subjects that are found, over all and by style."""
    found = [name for batch in _batches(test_scenes) for name in finder.find(pixels(batch))]
    results: dict[str, list[bool]] = {style: [] for style in ("all", *STYLES)}
    for scene, name in zip(test_scenes, found, strict=True):
        results["all"].append(name == scene.subject)
        results[scene.style].append(name == scene.subject)
    return {style: round(sum(style_results) / len(style_results), 3) for style, style_results in results.items()}


def main(open_base: Callable[[], velatura.Base] = velatura.tiny) -> None:
    base = open_base()
    features, train_scenes = UNetFeatures(base), scenes(TRAIN_COUNT, FIRST_TRAIN_SEED, held_out=False)
    train_features = torch.cat([features(pixels(batch)) for batch in _batches(train_scenes)])
    subjects = torch.tensor([SUBJECTS.index(scene.subject) for scene in train_scenes])
    write_safetensors(
        SUBJECT_MAP_FILE,
        {name: tensor.half() for name, tensor in fit_ridge_regression(train_features, subjects).items()},
        {},
    )
    print(accuracy_by_style(SubjectFinder(base), scenes(TEST_COUNT, FIRST_TEST_SEED, held_out=True)))


def _batches(items: Sequence[Scene]) -> list[Sequence[Scene]]:
    return [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]


if __name__ == "__main__":
    main()
