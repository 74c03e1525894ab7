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
from velatura.datasets.tiny_subjects import FILE, SUBJECTS, Features, SubjectFinder
from velatura.tensors import write_safetensors

LEARNED, TRIED = 6000, 500
FIRST_LEARNED, FIRST_TRIED = 80_000_000, 90_000_000  # seeds that nothing else uses
AT_ONCE = 50
SHRINKAGE = 10.0  # of a ridge regression on standardised features; 1 to 100 find as many


def scenes(count: int, first_seed: int, *, held_out: bool) -> list[Scene]:
    """Drawn at random in all styles."""
    return [random_scene(Random(first_seed + n), held_out=held_out, styles=list(STYLES)) for n in range(count)]


def pixels(some: Sequence[Scene]) -> Tensor:
    """The drawings of scenes (count, 3, 64, 64), from -1 to 1."""
    drawn = np.stack([np.asarray(paint(scene), dtype=np.float32) for scene in some])
    return torch.tensor(drawn / 127.5 - 1).permute(0, 3, 1, 2)


def fitted(features: Tensor, subjects: Tensor) -> dict[str, Tensor]:
    """The weight (20, features) and the bias (20,) of a ridge regression on which subject it is."""
    mean, deviation = features.mean(dim=0), features.std(dim=0) + 1e-4
    known = (features - mean) / deviation
    wanted = F.one_hot(subjects, len(SUBJECTS)).float() - 1 / len(SUBJECTS)
    shrunk = known.T @ known + SHRINKAGE * torch.eye(known.shape[1])
    weight = torch.linalg.solve(shrunk, known.T @ wanted).T / deviation
    return {"weight": weight, "bias": -weight @ mean}


def rates(finder: SubjectFinder, tried: Sequence[Scene]) -> dict[str, float]:
    """The share of subjects that are found, over all and by style."""
    found = [name for some in _portions(tried) for name in finder.find(pixels(some))]
    right: dict[str, list[bool]] = {style: [] for style in ("all", *STYLES)}
    for scene, name in zip(tried, found, strict=True):
        right["all"].append(name == scene.subject)
        right[scene.style].append(name == scene.subject)
    return {style: round(sum(each) / len(each), 3) for style, each in right.items()}


def main(open_base: Callable[[], velatura.Base] = velatura.tiny) -> None:
    base = open_base()
    features, learned = Features(base), scenes(LEARNED, FIRST_LEARNED, held_out=False)
    seen = torch.cat([features(pixels(some)) for some in _portions(learned)])
    subjects = torch.tensor([SUBJECTS.index(scene.subject) for scene in learned])
    write_safetensors(FILE, {name: each.half() for name, each in fitted(seen, subjects).items()}, {})
    print(rates(SubjectFinder(base), scenes(TRIED, FIRST_TRIED, held_out=True)))


def _portions(some: Sequence[Scene]) -> list[Sequence[Scene]]:
    return [some[first : first + AT_ONCE] for first in range(0, len(some), AT_ONCE)]


if __name__ == "__main__":
    main()
