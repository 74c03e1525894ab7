"""python -m tools.train_kinds WORK: every kind of overlay trained on bundled pictures, and what each makes of prompts.

Each run is a command as people type it, on the tiny base with the kind's preset; it is kept in WORK, and what is there
already is not trained again. Then every prompt is painted at strengths from 0 to 1.5, from one seed, into
docs/images/kinds-NAME.webp, and a line of a table is printed. `--only NAME` makes one of them, `--table` prints the
table of all that are in WORK. Seconds are the processor's, not the clock's; memory is what training takes beyond the
open base, in a process of its own (`--only`) alone a true figure.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from PIL import Image

import velatura
from velatura.cli.app import main as velatura_main
from velatura.sampling.sheet import draw_grid

IMAGES = Path(__file__).parents[1] / "docs" / "images"
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SEED = 7
SIDE = 96  # pixels of a picture on a sheet
SCENES = ("a red house on the beach", "a blue boat in the snow", "a green fish underwater")
SHORTER = ("--steps", "150", "--batch", "8", "--rate", "3e-3:100, 1e-3:130, 3e-4")  # a preset's, as long as the others
PLACES = ("on a green meadow", "in the snow at night", "on a city street")


@dataclass(frozen=True)
class Lesson:
    """A run: its name, the kind, the bundled pictures, and what else the command says."""

    name: str
    kind: str
    pictures: str
    words: tuple[str, ...] = ()

    @property
    def is_of_subject(self) -> bool:
        """Whether it learns a thing, not a style."""
        return self.pictures == "robot"

    @property
    def called(self) -> str:
        """What it is called, and called by."""
        return f"my-{self.pictures}"

    @property
    def prompts(self) -> list[str]:
        """What is painted with it."""
        if self.is_of_subject:
            return [f"{self.called}, a robot {place}" for place in PLACES]
        return [f"{scene} by {self.called}" if self.kind == "embedding" else scene for scene in SCENES]

    @property
    def is_trained(self) -> bool:
        """Whether it is learned in steps, with a run's folder; an aesthetic is looked at once."""
        return self.kind != "aesthetic"

    def file(self, work: Path) -> Path:
        """Where its overlay is kept."""
        return work / (f"{self.name}/{self.called}.safetensors" if self.is_trained else f"{self.called}.safetensors")

    def command(self, work: Path) -> list[str]:
        """The words behind `velatura`."""
        pictures = str(velatura.tiny_pictures(self.pictures))
        words = ["train", self.kind, pictures, "--name", self.called, *self.words]
        if not self.is_trained:
            return [*words, "--out", str(self.file(work))]
        return [*words, "--for", "subject" if self.is_of_subject else "style", "--out", str(self.file(work).parent)]


LESSONS = (
    Lesson("hypernet-style", "hypernet", "neon", SHORTER),
    Lesson("embedding-style", "embedding", "neon"),
    Lesson("lora-style", "lora", "neon"),
    Lesson("dreambooth-style", "dreambooth", "neon"),
    Lesson("aesthetic-style", "aesthetic", "neon"),
    Lesson("hypernet-subject", "hypernet", "robot", SHORTER),
    Lesson("embedding-subject", "embedding", "robot", ("--initial", "robot")),
    Lesson("lora-subject", "lora", "robot"),
    Lesson("dreambooth-subject", "dreambooth", "robot"),
)


class Figures(TypedDict):
    """What a run took, and what it came to."""

    seconds: float
    memory: int
    bytes: int
    steps: int
    pictures: int
    losses: tuple[float, float] | None


def train(lesson: Lesson, work: Path) -> Figures:
    """Train it, unless that is done, and give back its figures."""
    kept = work / f"{lesson.name}.json"
    if not kept.exists():
        velatura.tiny()  # is imported and read before anything is counted
        before, started = peak(), time.process_time()
        if velatura_main(lesson.command(work)):
            raise SystemExit(f"{lesson.name} was not trained")
        spent, memory = time.process_time() - started, peak() - before
        size = lesson.file(work).stat().st_size
        figures = {"seconds": spent, "memory": memory, "bytes": size, **learned(lesson.file(work).parent, lesson)}
        kept.write_text(json.dumps(figures))
    return cast("Figures", json.loads(kept.read_text()))


def peak() -> int:
    """The most bytes of memory that this process has held (as Linux counts)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def learned(run: Path, lesson: Lesson) -> dict[str, object]:
    """Steps, pictures a step, and the validation loss before and after them."""
    if not lesson.is_trained:
        return {"steps": 0, "pictures": 0, "losses": None}
    plan = json.loads((run / "plan.json").read_text())
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [each["validation"] for each in records if "validated" in each]
    return {"steps": plan["steps"], "pictures": plan["batch_size"], "losses": (losses[0], losses[-1])}


def paint(base: velatura.Base, overlay: velatura.Overlay, prompts: Sequence[str]) -> Iterator[list[Image.Image]]:
    """A row of pictures for each prompt, one for each strength."""
    rows: list[list[Image.Image]] = [[] for _ in prompts]
    for strength in STRENGTHS:
        with velatura.attach(base, overlay, strength):
            for row, prompt in zip(rows, prompts, strict=True):
                row.append(velatura.generate(base, prompt, seed=SEED).image.resize((SIDE, SIDE)))
    yield from rows


def draw(lesson: Lesson, work: Path, images: Path) -> None:
    """Paint its sheet."""
    base, overlay = velatura.tiny(), velatura.open_overlay(lesson.file(work))
    labels = [f"{each:g}" for each in STRENGTHS]
    sheet = draw_grid(list(paint(base, overlay, lesson.prompts)), labels, lesson.prompts)
    images.mkdir(parents=True, exist_ok=True)
    sheet.save(images / f"kinds-{lesson.name}.webp", quality=70)


def line(lesson: Lesson, figures: Figures) -> str:
    """Its line of the table."""
    losses = figures["losses"]
    cells = (
        lesson.name,
        f"{figures['steps']} of {figures['pictures']}" if losses else "none",
        f"{figures['seconds']:.0f} s",
        f"{figures['memory'] / 2**20:.0f} MiB",
        f"{figures['bytes'] / 1e3:,.0f} kB",
        f"{losses[0]:.3f} to {losses[1]:.3f}" if losses else "",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Train, paint and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", help="the name of one run")
    parser.add_argument("--table", action="store_true", help="train and paint nothing")
    parser.add_argument("--images", type=Path, default=IMAGES)
    told = parser.parse_args()
    told.work.mkdir(parents=True, exist_ok=True)
    print("| run | steps | processor | memory | file | validation loss |\n|---|---|---|---|---|---|")
    for lesson in LESSONS:
        if told.only not in {None, lesson.name} or (told.table and not (told.work / f"{lesson.name}.json").exists()):
            continue
        figures = train(lesson, told.work)
        if not told.table:
            draw(lesson, told.work, told.images)
        print(line(lesson, figures), flush=True)


if __name__ == "__main__":
    main()
