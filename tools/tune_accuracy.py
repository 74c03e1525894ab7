"""python -m tools.tune_accuracy WORK: does `velatura.tune` find the strength that a classifier of drawings calls best?

Ten overlays of bundled styles are trained, weak ones and strong ones, each painted at strengths from 0 to 1.6 with
prompts that tune does not use. The classifier (tools/tiny_base/judge.py, of which a small one is trained here) says in
how many of the pictures it finds the style, and the subject that the prompt asks for; their product is highest at the
best strength. What is in WORK already is not made again. About half an hour on one core. The table is printed.
"""

import argparse
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import velatura
from tools.drawing.paint import paint
from tools.drawing.scene import caption
from tools.tiny_base.data import LABELS, any_scene, labels_of, unseen_scene
from tools.tiny_base.judge import Judge, _worn, verdicts
from tools.tiny_base.vae import to_unit
from velatura.compare.strength_trade import best_strength
from velatura.errors import VelaturaWarning

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
PROMPT_COUNT = 40
FIRST_SCENE, FIRST_DRAWING = 60_000_000, 30_000_000  # seeds
SAMPLING_STEPS = 12
JUDGE_DRAWINGS, JUDGE_TESTS, JUDGE_STEPS, JUDGE_BATCH, JUDGE_RATE = 4000, 300, 450, 64, 2e-3
JUDGED = ("subject", "style")
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
    StyleRun("hyper-neon", "hypernet", "neon", 100, "2e-3:70, 5e-4"),
    StyleRun("lora-neon", "lora", "neon", 80, "2e-3"),
    StyleRun("hyper-blue", "hypernet", "blueprint", 100, "2e-3:70, 5e-4"),
    StyleRun("lora-blue", "lora", "blueprint", 80, "2e-3"),
    StyleRun("lora-neon-strong", "lora", "neon", 80, "8e-3"),
    StyleRun("hyper-neon-weak", "hypernet", "neon", 60, "5e-4"),
    StyleRun("lora-blue-weak", "lora", "blueprint", 50, "1e-3"),
    StyleRun("hyper-blue-strong", "hypernet", "blueprint", 120, "4e-3:90, 1e-3"),
    StyleRun("lora-conv-neon", "lora", "neon", 60, "2e-3", {"targets": "conv"}),
    StyleRun("hyper-neon-long", "hypernet", "neon", 160, "3e-3:100, 1e-3:140, 3e-4"),
)


class Finding(NamedTuple):
    """What both say of one overlay."""

    name: str
    judged: float
    tuned: float
    low: float
    high: float

    @property
    def is_near(self) -> bool:
        """Whether they agree within `MAX_ERROR`."""
        return abs(self.judged - self.tuned) <= MAX_ERROR + 1e-9


def small_judge(work: Path) -> Judge:
    """A classifier that is trained for less than a minute's drawings, kept in WORK."""
    file, judge = work / "small-judge.pt", Judge()
    if not file.exists():
        train_judge(judge)
        torch.save(judge.state_dict(), file)
    judge.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return judge.eval()


def train_judge(judge: Judge) -> None:
    """Train it on drawings in every style, to tell subjects and styles."""
    scenes = [any_scene(FIRST_DRAWING + number) for number in range(JUDGE_DRAWINGS)]
    pictures = torch.from_numpy(np.stack([np.asarray(paint(scene)) for scene in scenes]))
    labels = torch.tensor([labels_of(scene) for scene in scenes])
    count = JUDGE_DRAWINGS - JUDGE_TESTS
    optimizer, generator = (
        torch.optim.AdamW(judge.parameters(), lr=JUDGE_RATE, weight_decay=0.05),
        torch.Generator().manual_seed(0),
    )
    for step in range(JUDGE_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = JUDGE_RATE * min(1, (step + 1) / 40) * (0.51 + 0.5 * math.cos(math.pi * step / JUDGE_STEPS))
        chosen = torch.randint(count, (JUDGE_BATCH,), generator=generator)
        logits = judge(_worn(to_unit(pictures[chosen]), generator))
        losses = [F.cross_entropy(logits[name], labels[chosen, list(LABELS).index(name)]) for name in JUDGED]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    right = verdicts(judge.eval(), pictures[count:]) == labels[count:]
    print({name: round(right[:, list(LABELS).index(name)].float().mean().item(), 3) for name in JUDGED})


def trained_file(base: velatura.Base, run: StyleRun, work: Path) -> Path:
    """The overlay's file, trained if WORK does not hold it yet."""
    file = work / run.name / f"{run.name}.safetensors"
    if not file.exists():
        shutil.rmtree(file.parent, ignore_errors=True)
        fields = {"steps": run.steps, "learning_rate": run.rate, "batch_size": 8, "snapshot_every": 0}
        plan = velatura.Plan.preset(run.kind, "tiny").replace(**fields, end_sheet=False, tune=False)
        velatura.train(base, run.make(base), velatura.tiny_pictures(run.pictures), plan, out=file.parent)
    return file


def judged_strength(base: velatura.Base, run: StyleRun, file: Path, judge: Judge) -> float:
    """The strength at which style and subject are found most often."""
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
        seen = verdicts(judge, torch.from_numpy(np.stack([np.asarray(image) for image in images])))
        found.append(((seen[:, 3] == style).float(), (seen[:, 0] == subjects).float()))
    in_style, right_subject = (torch.stack(part) for part in zip(*found, strict=True))
    return best_strength(STRENGTHS, in_style, right_subject).strength


def find(base: velatura.Base, run: StyleRun, work: Path, judge: Judge) -> Finding:
    """Ask both."""
    file = trained_file(base, run, work)
    tuning = velatura.tune(base, file, pictures=velatura.tiny_pictures(run.pictures))
    return Finding(run.name, judged_strength(base, run, file, judge), tuning.strength, tuning.low, tuning.high)


def table_row(finding: Finding) -> str:
    """Its line of the table."""
    tuned = f"{finding.tuned:.2f} ({finding.low:.2f} to {finding.high:.2f})"
    return f"| {finding.name} | {finding.judged:.2f} | {tuned} | {'yes' if finding.is_near else 'no'} |"


def main(words: Sequence[str] | None = None, open_base: Callable[[], velatura.Base] = velatura.tiny) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", help="the name of one overlay")
    options = parser.parse_args(words)
    work = cast("Path", options.work)
    work.mkdir(parents=True, exist_ok=True)
    base, judge = open_base(), small_judge(work)
    print("| overlay | classifier | tune | within 0.15 |\n|---|---|---|---|")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelaturaWarning)
        for run in RUNS:
            if options.only in {None, run.name}:
                print(table_row(find(base, run, work, judge)), flush=True)


if __name__ == "__main__":
    main()
