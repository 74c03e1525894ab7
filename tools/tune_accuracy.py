"""python -m tools.tune_accuracy WORK: is the strength of `velatura.tune` what a classifier calls best?

Ten overlays of bundled styles are trained, weak ones and strong ones, each painted at strengths from 0 to 1.6 with
prompts that tune does not use. The classifier (tools/tiny_base/judge.py) gives the probability that each picture is in
the style, and that it shows the subject of its prompt; the product of their means is highest at the best strength.
Where the score is flat a strength far from the best one serves as well: the table says also which share of the
classifier's best score the strength of tune reaches. What is in WORK already is not made again, so that the tool can be
stopped at any time. The table is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

import velatura
from tools.drawing.scene import caption
from tools.tiny_base.data import LABELS, unseen_scene
from tools.tiny_base.judge import Judge, open_judge, picture_bytes
from tools.tiny_base.vae import to_unit
from velatura.compare.strength_trade import BestStrength, best_strength
from velatura.compare.tune import Tuning
from velatura.errors import VelaturaWarning

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6)
PROMPT_COUNT = 20
FIRST_SCENE = 60_000_000  # seed
SAMPLING_STEPS = 8
BATCH_SIZE = 4
MAX_ERROR = 0.15


@dataclass(frozen=True)
class StyleRun:
    """An overlay of a bundled style: its kind, the pictures, steps, rate, and options of its structure."""

    name: str
    kind: str
    pictures: str
    steps: int
    rate: str
    options: dict[str, object] = field(default_factory=dict[str, object])

    def make(self, base: velatura.Base) -> velatura.Overlay:
        """The overlay before its training."""
        kinds: dict[str, Callable[..., velatura.Overlay]] = {
            "hypernet": velatura.Hypernetwork.for_base,
            "lora": velatura.Lora.for_base,
        }
        return kinds[self.kind](base, seed=0, name=self.name, **self.options)


RUNS = (
    StyleRun("hyper-neon", "hypernet", "neon", 50, "3e-3:35, 1e-3"),
    StyleRun("lora-neon", "lora", "neon", 40, "3e-3"),
    StyleRun("hyper-blue", "hypernet", "blueprint", 50, "3e-3:35, 1e-3"),
    StyleRun("lora-blue", "lora", "blueprint", 40, "3e-3"),
    StyleRun("lora-neon-strong", "lora", "neon", 40, "8e-3"),
    StyleRun("hyper-neon-weak", "hypernet", "neon", 30, "1e-3"),
    StyleRun("lora-blue-weak", "lora", "blueprint", 30, "1e-3"),
    StyleRun("hyper-blue-strong", "hypernet", "blueprint", 60, "5e-3:45, 1e-3"),
    StyleRun("lora-conv-neon", "lora", "neon", 30, "3e-3", {"targets": "conv"}),
    StyleRun("hyper-neon-long", "hypernet", "neon", 80, "3e-3:60, 1e-3"),
)


class Curve(NamedTuple):
    """A best strength, the interval in which it lies in 80 % of the cases, and the points that it is the top of.

    Each point is a strength, how far the style is there, and how far the prompt is kept.
    """

    strength: float
    low: float
    high: float
    points: list[list[float]]

    @classmethod
    def of(cls, found: BestStrength | Tuning) -> Curve:
        """Take over what was found."""
        points = [[point.strength, point.likeness, point.kept] for point in found.points]
        return cls(found.strength, found.low, found.high, points)

    def score_at(self, strength: float) -> float:
        """Return the product of both at a strength, linearly between those that were painted."""
        strengths, in_style, kept = zip(*self.points, strict=True)
        return float(np.interp(strength, strengths, in_style) * np.interp(strength, strengths, kept))


class Finding(NamedTuple):
    """What the classifier and `velatura.tune` say of one overlay."""

    name: str
    judged: Curve
    tuned: Curve

    @property
    def is_near(self) -> bool:
        """Whether they agree within `MAX_ERROR`."""
        return abs(self.judged.strength - self.tuned.strength) <= MAX_ERROR + 1e-9

    @property
    def share_of_best(self) -> float:
        """The classifier's score at the strength of tune, as a share of its score at its own best strength."""
        best = max(self.judged.score_at(strength) for strength in np.linspace(0, STRENGTHS[-1], 161))
        return self.judged.score_at(self.tuned.strength) / best if best > 0 else 1.0


def trained_file(base: velatura.Base, run: StyleRun, work: Path) -> Path:
    """The overlay's file, trained if WORK does not hold it yet."""
    file = work / run.name / f"{run.name}.safetensors"
    if not file.exists():
        shutil.rmtree(file.parent, ignore_errors=True)
        fields = {"steps": run.steps, "learning_rate": run.rate, "batch_size": BATCH_SIZE, "snapshot_every": 0}
        fields |= {"validation_pictures": 0, "warmup": 0}
        plan = velatura.Plan.preset(run.kind, "tiny").replace(**fields, end_sheet=False, tune=False)
        velatura.train(base, run.make(base), velatura.tiny_pictures(run.pictures), plan, out=file.parent)
    return file


def judged_strength(base: velatura.Base, run: StyleRun, file: Path, judge: Judge) -> BestStrength:
    """The strength at which style and subject are both most probable."""
    scenes = [unseen_scene(FIRST_SCENE + number) for number in range(PROMPT_COUNT)]
    recipes = [
        velatura.Recipe(
            prompt=caption(scene, Random(scene.seed), style_word=""), seed=number, steps=SAMPLING_STEPS, sampler="Euler"
        )
        for number, scene in enumerate(scenes)
    ]
    subjects = torch.tensor([LABELS["subject"].index(scene.subject) for scene in scenes])
    overlay, style = velatura.open_overlay(file), LABELS["style"].index(run.pictures)
    found: list[tuple[Tensor, Tensor]] = []
    for strength in STRENGTHS:
        with velatura.attach(base, overlay, strength):
            images = [picture.image for picture in velatura.generate_many(base, recipes)]
        with torch.no_grad():
            logits = judge(to_unit(torch.stack([picture_bytes(image) for image in images])))
        right_subject = logits["subject"].softmax(1)[torch.arange(len(subjects)), subjects]
        found.append((logits["style"].softmax(1)[:, style], right_subject))
    in_style, right_subject = (torch.stack(part) for part in zip(*found, strict=True))
    return best_strength(STRENGTHS, in_style, right_subject, multiply)


def multiply(in_style: Tensor, right_subject: Tensor) -> Tensor:
    """The score of the classifier."""
    return in_style * right_subject


def find(base: velatura.Base, run: StyleRun, work: Path, judge: Judge) -> Finding:
    """Ask both, unless WORK holds what they said."""
    stored = work / f"{run.name}.json"
    if stored.exists():
        name, judged, tuned = json.loads(stored.read_text())
        return Finding(name, Curve(*judged), Curve(*tuned))
    file = trained_file(base, run, work)
    tuning = velatura.tune(base, file, pictures=velatura.tiny_pictures(run.pictures))
    judged = judged_strength(base, run, file, judge)
    finding = Finding(run.name, Curve.of(judged), Curve.of(tuning))
    stored.write_text(json.dumps(finding))
    return finding


def table_row(finding: Finding) -> str:
    """Return its line of the table."""
    judged, tuned = (f"{curve.strength:.2f} ({curve.low:.2f} to {curve.high:.2f})" for curve in finding[1:])
    near = "yes" if finding.is_near else "no"
    return f"| {finding.name} | {judged} | {tuned} | {near} | {finding.share_of_best:.2f} |"


def main(words: Sequence[str] | None = None, open_base: Callable[[], velatura.Base] = velatura.tiny) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", help="the name of one overlay")
    options = parser.parse_args(words)
    work = cast("Path", options.work)
    work.mkdir(parents=True, exist_ok=True)
    base, judge = open_base(), open_judge()
    print("| overlay | classifier | tune | within 0.15 | share of the best score |\n|---|---|---|---|---|")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelaturaWarning)
        for run in RUNS:
            if options.only in {None, run.name}:
                print(table_row(find(base, run, work, judge)), flush=True)


if __name__ == "__main__":
    main()
