"""python -m tools.train_kinds WORK: every kind of overlay trained on bundled pictures, and what each makes of prompts.

Each run is the command that it shows, on the tiny base with the kind's preset; it is kept in WORK, and what is there
already is not trained again. Then every prompt is painted at strengths from 0 to 1.5, from one seed, into
docs/images/kinds-NAME.webp, and a table of all runs is printed. `--only NAME` makes one of them.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image

import velatura
from velatura.cli.app import main as velatura_main
from velatura.sampling.sheet import draw_grid

IMAGES = Path(__file__).parents[1] / "docs" / "images"
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SEED = 7
SIDE = 96  # pixels of a picture on a sheet
SCENES = ("a red house on the beach", "a blue boat in the snow", "a green fish underwater")
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

    def command(self, out: Path) -> list[str]:
        """The words behind `velatura`."""
        purpose = "subject" if self.is_of_subject else "style"
        pictures = str(velatura.tiny_pictures(self.pictures))
        return ["train", self.kind, pictures, "--name", self.called, "--for", purpose, *self.words, "--out", str(out)]


LESSONS = (
    Lesson("hypernet-style", "hypernet", "neon"),
    Lesson("embedding-style", "embedding", "neon"),
    Lesson("lora-style", "lora", "neon"),
    Lesson("dreambooth-style", "dreambooth", "neon"),
    Lesson("hypernet-subject", "hypernet", "robot"),
    Lesson("embedding-subject", "embedding", "robot", ("--initial", "robot")),
    Lesson("lora-subject", "lora", "robot"),
    Lesson("dreambooth-subject", "dreambooth", "robot"),
)


def train(lesson: Lesson, work: Path) -> dict[str, object]:
    """Train it, unless that is done, and give back its figures."""
    out, kept = work / lesson.name, work / f"{lesson.name}.json"
    if not kept.exists():
        started = time.perf_counter()
        if velatura_main(lesson.command(out)):
            raise SystemExit(f"{lesson.name} was not trained")
        seconds = time.perf_counter() - started
        records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        validations = {each["validated"]: each["validation"] for each in records if "validated" in each}
        file = out / f"{lesson.called}.safetensors"
        figures = {"seconds": seconds, "bytes": file.stat().st_size, "validations": validations, "file": str(file)}
        kept.write_text(json.dumps(figures))
    return json.loads(kept.read_text())


def paint(base: velatura.Base, overlay: velatura.Overlay, prompts: Sequence[str]) -> Iterator[list[Image.Image]]:
    """A row of pictures for each prompt, one for each strength."""
    rows: list[list[Image.Image]] = [[] for _ in prompts]
    for strength in STRENGTHS:
        with velatura.attach(base, overlay, strength):
            for row, prompt in zip(rows, prompts, strict=True):
                row.append(velatura.generate(base, prompt, seed=SEED).image.resize((SIDE, SIDE)))
    yield from rows


def main() -> None:
    """Train, paint and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", help="the name of one run")
    parser.add_argument("--images", type=Path, default=IMAGES)
    told = parser.parse_args()
    told.work.mkdir(parents=True, exist_ok=True)
    base = velatura.tiny()
    print("| run | seconds | file | validation loss, before and after |\n|---|---|---|---|")
    for lesson in LESSONS:
        if told.only not in {None, lesson.name}:
            continue
        figures = train(lesson, told.work)
        overlay = velatura.open_overlay(str(figures["file"]))
        sheet = draw_grid(
            list(paint(base, overlay, lesson.prompts)), [f"{each:g}" for each in STRENGTHS], lesson.prompts
        )
        sheet.save(told.images / f"kinds-{lesson.name}.webp", quality=80)
        losses = [*cast("dict[str, float]", figures["validations"]).values()]
        size = f"{int(str(figures['bytes'])) / 1e6:.2f} MB"
        print(f"| {lesson.name} | {figures['seconds']:.0f} | {size} | {losses[0]:.3f}, {losses[-1]:.3f} |")


if __name__ == "__main__":
    main()
