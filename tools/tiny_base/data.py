"""The drawn world as arrays: pictures, captions and labels, drawn once by all cores and kept in the work folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..drawing.doodles import doodle
from ..drawing.paint import paint
from ..drawing.places import PLACES
from ..drawing.scene import BASE_STYLES, COLOURS, HELD_OUT_STYLES, Scene, caption, random_scene
from ..drawing.styles import STYLES
from ..drawing.subjects import HELD_OUT_SUBJECTS, SUBJECTS
from .store import drawing_key, kept

ALL_SUBJECTS = [*SUBJECTS, *HELD_OUT_SUBJECTS]
ALL_STYLES = [*BASE_STYLES, *HELD_OUT_STYLES]
LABELS = {"subject": ALL_SUBJECTS, "colour": list(COLOURS), "place": list(PLACES), "style": ALL_STYLES}
# the plain style twice: it is what a prompt without a style word asks for
TRAINING_STYLES = ("poster", *BASE_STYLES)
CAPTIONS_EACH = 4


@dataclass(frozen=True)
class Drawings:
    """What was drawn, as (count, 64, 64, 3) bytes, and the scenes it was drawn from."""

    pictures: NDArray[np.uint8]
    scenes: list[Scene]
    first_seed: int

    @property
    def captions(self) -> list[list[str]]:
        """Four ways to say each."""
        return [
            [caption(scene, Random(1000 * (self.first_seed + i) + j)) for j in range(CAPTIONS_EACH)]
            for i, scene in enumerate(self.scenes)
        ]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(count, 4) indices into LABELS."""
        return np.array([labels_of(scene) for scene in self.scenes])


def training_scene(seed: int) -> Scene:
    """A scene the base may see."""
    return random_scene(Random(seed), held_out=False, styles=TRAINING_STYLES)


def unseen_scene(seed: int) -> Scene:
    """A combination that the base never saw, in a style it knows."""
    return random_scene(Random(seed), held_out=True, styles=TRAINING_STYLES)


def any_scene(seed: int) -> Scene:
    """Anything at all, held-out styles and subjects included: what judges learn from."""
    return random_scene(Random(seed), held_out=None, styles=list(STYLES), subjects=ALL_SUBJECTS)


def held_out_style_scene(seed: int) -> Scene:
    """Held-out styles and combinations: what the autoencoder is tested on."""
    return random_scene(Random(seed), held_out=True, styles=HELD_OUT_STYLES)


def labels_of(scene: Scene) -> list[int]:
    """Indices of subject, colour, place and style."""
    return [LABELS[field].index(getattr(scene, field)) for field in LABELS]


def draw(scene_of: Callable[[int], Scene], count: int, first_seed: int, work: Path) -> Drawings:
    """Draw `count` scenes, or read them back if the work folder holds them already."""
    scenes = [scene_of(seed) for seed in range(first_seed, first_seed + count)]
    name = f"{scene_of.__name__}-{first_seed}-{count}"
    return Drawings(kept(work, name, drawing_key(), lambda: _in_parallel(_painted, scenes)), scenes, first_seed)


def draw_doodles(count: int, work: Path) -> NDArray[np.uint8]:
    """(count, 64, 64, 3) pictures of nothing."""
    return kept(work, f"doodles-{count}", drawing_key(), lambda: _in_parallel(_doodled, range(count)))


def _painted(scene: Scene) -> NDArray[np.uint8]:
    return np.asarray(paint(scene))


def _doodled(seed: int) -> NDArray[np.uint8]:
    return np.asarray(doodle(seed))


def _in_parallel(job: Callable[[Any], NDArray[np.uint8]], items: Sequence[Any]) -> NDArray[np.uint8]:
    with get_context("spawn").Pool(cpu_count()) as pool:
        return np.stack(pool.map(job, items, chunksize=250))
