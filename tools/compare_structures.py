"""python -m tools.compare_structures WORK: which structure of a hypernetwork learns the bundled style best.

A hypernetwork is trained for every structure and activation, all else alike: the bundled neon pictures, half the steps
of the tiny base's preset and no weights by SNR, the same pictures, noise and timesteps. Each takes a minute on
one core, and is kept in WORK with its pictures and its figures; what is there already is not made again. `--only NAME`
makes one of them. Then comes the table of docs/structures.md.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import cast

import torch
from PIL import Image

import velatura
from tools.drawing.paint import paint
from tools.drawing.scene import Scene, caption
from tools.drawing.subjects import SUBJECTS
from tools.structure_measures import VisionMeasures
from tools.tiny_base.data import unseen_scene
from velatura.datasets.folder import read_folder
from velatura.training.data.cache import encode_examples
from velatura.training.validation import ValidationSet

PAGE = Path(__file__).parents[1] / "docs" / "structures.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
STYLE = "neon"
UNSEEN_COUNT = 32  # drawings in the style that no run sees, for the validation loss
VALIDATION_DRAWS = 64
FIRST_SEED = 70_000_000  # of drawings that nothing else uses
SEED = 7
PLAN_FIELDS: dict[str, object] = {
    "steps": 150,
    "batch_size": 8,
    "inverse_snr": 0,
    "learning_rate": "3e-3:85, 1e-3:125, 3e-4",
}
SAMPLING_STEPS = 12

STRUCTURES = ((1, 2, 1), (1, 2, 2, 1))
ACTIVATIONS = ("relu", "linear", "mish", "swish", "tanh")
BARE_ROW, DRAWN_ROW = "no overlay", "drawings in the style"


@dataclass(frozen=True)
class StructureChoice:
    """What is compared: layers, activation, and whether the last layer begins at zero, the others by Xavier."""

    layers: tuple[int, ...]
    activation: str
    zero_last: bool = False

    @property
    def name(self) -> str:
        """Of its folder and its row."""
        return f"{','.join(map(str, self.layers))} {self.activation}{', zero last' if self.zero_last else ''}"


CHOICES = [
    *(StructureChoice(layers, activation) for layers in STRUCTURES for activation in ACTIVATIONS),
    *(StructureChoice(layers, "relu", zero_last=True) for layers in STRUCTURES),
]


@dataclass(frozen=True)
class Figures:
    """How well a network learned: see docs/structures.md for each."""

    validation: float
    style: float
    subjects: float
    seconds: float
    parameters: int


def make_network(base: velatura.Base, choice: StructureChoice) -> velatura.Hypernetwork:
    """The network of a choice before its training."""
    init = "xavier_normal" if choice.zero_last else "normal"
    options = {"layers": choice.layers, "activation": choice.activation, "init": init, "seed": 0}
    overlay = velatura.Hypernetwork.for_base(base, **options, name="it")
    if choice.zero_last:
        for network in overlay.children():
            last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
            torch.nn.init.zeros_(last.weight)
    return overlay


def train_network(base: velatura.Base, choice: StructureChoice, work: Path) -> velatura.Overlay:
    """The network of a choice, trained if WORK does not hold it yet."""
    folder = work / choice.name
    file = folder / "it.safetensors"
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        plan = velatura.Plan.preset("hypernet", base.family.name)
        plan = plan.replace(**PLAN_FIELDS, snapshot_every=0, validation_pictures=0, tune=False)
        started = time.process_time()
        velatura.train(base, make_network(base, choice), velatura.tiny_pictures(STYLE), plan, out=folder)
        (folder / "seconds.txt").write_text(f"{time.process_time() - started}")
    return velatura.open_overlay(file)


def unseen_scenes(count: int, *, subjects: Sequence[str] = (), style: str = STYLE) -> Iterator[tuple[Scene, str]]:
    """Scenes in a style, of combinations that the base never saw, with captions that do not name the style."""
    for index in range(count):
        scene = unseen_scene(FIRST_SEED + index)
        if subjects:
            scene = replace(scene, subject=subjects[index % len(subjects)], count=1)
        yield replace(scene, style=style), caption(scene, Random(index), style_word="")


def make_validation(base: velatura.Base, work: Path) -> ValidationSet:
    """Unseen drawings in the style, with timesteps and noise, the same for every network."""
    folder = work / "unseen"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (scene, text) in enumerate(unseen_scenes(UNSEEN_COUNT)):
        paint(scene).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(text)
    cache = encode_examples(base, read_folder(folder), base.family.default_pixels)
    return ValidationSet.from_cache(cache, VALIDATION_DRAWS, len(base.schedule))


def paint_subjects(base: velatura.Base, overlay: velatura.Overlay | None, folder: Path) -> list[Image.Image]:
    """Two pictures of every subject, with an overlay or without, kept in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = unseen_scenes(2 * len(SUBJECTS), subjects=list(SUBJECTS))
    files = {folder / f"{number:02}.png": text for number, (_, text) in enumerate(scenes)}
    if not all(file.exists() for file in files):
        tag = "" if overlay is None else " <hypernet:it:1>"
        recipes = [velatura.Recipe(prompt=text + tag, seed=SEED, steps=SAMPLING_STEPS) for text in files.values()]
        overlays = {} if overlay is None else {"it": overlay}
        for file, picture in zip(files, velatura.generate_many(base, recipes, overlays=overlays), strict=True):
            picture.image.save(file)
    return [Image.open(file).convert("RGB") for file in files]


def figures(base: velatura.Base, choice: StructureChoice, work: Path, vision: VisionMeasures) -> Figures:
    """The figures of a choice, made if WORK does not hold them yet."""
    file = work / choice.name / "figures.json"
    if not file.exists():
        overlay = train_network(base, choice, work)
        with velatura.attach(base, overlay):
            validation = make_validation(base, work).loss(base)
        pictures = paint_subjects(base, overlay, work / choice.name / "pictures")
        seconds = float((work / choice.name / "seconds.txt").read_text())
        count = sum(weight.numel() for weight in overlay.parameters())
        result = Figures(validation, *measure_pictures(base, work, pictures, vision), seconds, count)
        file.write_text(json.dumps(asdict(result)))
    return Figures(**json.loads(file.read_text()))


def bare_figures(base: velatura.Base, work: Path, vision: VisionMeasures) -> Figures:
    """The figures of the base alone."""
    pictures = paint_subjects(base, None, work / BARE_ROW)
    return Figures(make_validation(base, work).loss(base), *measure_pictures(base, work, pictures, vision), 0, 0)


def drawn_figures(vision: VisionMeasures) -> Figures:
    """What there is to reach: how many subjects the eye finds where they surely are."""
    scenes = [scene for scene, _ in unseen_scenes(2 * len(SUBJECTS), subjects=list(SUBJECTS))]
    names = vision.subjects([paint(scene) for scene in scenes])
    is_found = [name == scene.subject for name, scene in zip(names, scenes, strict=True)]
    return Figures(math.nan, 1.0, sum(is_found) / len(is_found), 0, 0)


def measure_pictures(
    base: velatura.Base, work: Path, pictures: Sequence[Image.Image], vision: VisionMeasures
) -> tuple[float, float]:
    """How much of the style is there, from 0, the bare base's pictures, to 1, drawings in it; and subjects found."""
    scenes = list(unseen_scenes(2 * len(SUBJECTS), subjects=list(SUBJECTS)))
    drawings, bare_pictures = [paint(scene) for scene, _ in scenes], paint_subjects(base, None, work / BARE_ROW)
    training_pictures = [Image.open(path) for path in sorted(velatura.tiny_pictures(STYLE).glob("*.png"))]
    low, high, value = (vision.similarity(images, training_pictures) for images in (bare_pictures, drawings, pictures))
    is_found = [name == scene.subject for name, (scene, _) in zip(vision.subjects(pictures), scenes, strict=True)]
    return (value - low) / (high - low), sum(is_found) / len(is_found)


def table(rows: dict[str, Figures]) -> str:
    """The figures as a table of Markdown, the lowest validation loss first."""
    lines = ["| structure | validation loss | style | subjects | parameters | seconds |", "|---|---|---|---|---|---|"]
    for name, row in sorted(rows.items(), key=lambda item: (math.isnan(item[1].validation), item[1].validation)):
        size_and_time = f"{row.parameters:,} | {row.seconds:.0f}" if row.parameters else " | "
        loss = "" if math.isnan(row.validation) else f"{row.validation:.4f}"
        lines.append(f"| {name} | {loss} | {row.style:.2f} | {row.subjects:.2f} | {size_and_time} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None, open_base: Callable[[], velatura.Base] = velatura.tiny) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the trained networks")
    parser.add_argument("--only", choices=[choice.name for choice in CHOICES], help="train this one, write no table")
    options = parser.parse_args(words)
    work, base, vision = cast("Path", options.work), open_base(), VisionMeasures()
    if options.only:
        print(
            options.only, figures(base, next(choice for choice in CHOICES if choice.name == options.only), work, vision)
        )
        return
    rows = {BARE_ROW: bare_figures(base, work, vision), DRAWN_ROW: drawn_figures(vision)}
    rows |= {choice.name: figures(base, choice, work, vision) for choice in CHOICES}
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(rows) + END + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
