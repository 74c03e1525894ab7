"""python -m tools.train_kinds WORK: every kind of overlay trained on bundled pictures, and what each makes of prompts.

Each run is a command as people type it, on the tiny base with the kind's preset; it is kept in WORK, and what is there
already is not trained again. Then every prompt is painted at strengths from 0 to 1.5, from one seed, into
docs/images/kinds-NAME.webp, and a line of a table is printed. `--only NAME` makes one of them, `--table` prints the
table of all that are in WORK. `--seeds 3` repeats each with as many seeds; those of the first are painted. Seconds are
the processor's, not the clock's; memory is what training takes beyond the open base, in a process of its own (`--only`)
alone a true figure. `--judge` also prints what the classifier of tools/tiny_base sees in 100 pictures at strength 1,
and of hypernetworks for a style at the strength that their training recommends. What it saw is kept in
tools/kinds.json, and docs/overlays.md gets the table of it, unless `--sampling-steps` asks for other pictures than
those of the table, which have 8.
"""

import argparse
import json
import re
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TypedDict, cast

from PIL import Image

import velatura
from tools.learning.trial import STEPS, judge_overlay
from tools.tiny_base.judge import judge_mark, open_judge
from velatura.cli.app import main as velatura_main
from velatura.library.preferred_strength import SIDECAR_STRENGTH
from velatura.sampling.image_grid import draw_grid

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PAGE = Path(__file__).parents[1] / "docs" / "overlays.md"
RESULTS = Path(__file__).parent / "kinds.json"
TABLE = re.compile(r"<!-- table: kinds -->.*?<!-- end -->", re.DOTALL)
COLUMNS = {"shown": "learned", "subject": "subject", "place": "place", "both": "score", "other prompts": "kept"}
AT_PREFERRED = "-preferred"  # behind the name of a run, of what the judge saw at the strength that was recommended
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SEED = 7
PICTURE_PIXELS = 96  # pixels of a picture on a sheet
SCENES = ("a red house on the beach", "a blue boat in the snow", "a green fish underwater")
PLACES = ("on a green meadow", "in the snow at night", "on a city street")


@dataclass(frozen=True)
class KindRun:
    """A run: its name, the kind, the bundled pictures, and what else the command says."""

    name: str
    kind: str
    pictures: str
    words: tuple[str, ...] = ()
    seed: int = 0

    @property
    def run_name(self) -> str:
        """Its name among the runs of all seeds."""
        return self.name if self.seed == 0 else f"{self.name}-{self.seed}"

    @property
    def is_of_subject(self) -> bool:
        """Whether it learns a thing, not a style."""
        return self.pictures == "robot"

    @property
    def overlay_name(self) -> str:
        """What it is called, and called by."""
        return f"my-{self.pictures}"

    @property
    def prompts(self) -> list[str]:
        """What is painted with it."""
        if self.is_of_subject:
            return [f"{self.overlay_name}, a robot {place}" for place in PLACES]
        return [f"{scene} by {self.overlay_name}" if self.kind == "embedding" else scene for scene in SCENES]

    @property
    def is_trained(self) -> bool:
        """Whether it is learned in steps, with a run's folder; an aesthetic is looked at once."""
        return self.kind != "aesthetic"

    def file(self, work: Path) -> Path:
        """Where its overlay is kept."""
        return work / (
            f"{self.run_name}/{self.overlay_name}.safetensors"
            if self.is_trained
            else f"{self.overlay_name}.safetensors"
        )

    def command(self, work: Path) -> list[str]:
        """The words behind `velatura`."""
        pictures = str(velatura.tiny_pictures(self.pictures))
        words = ["train", self.kind, pictures, "--name", self.overlay_name, *self.words]
        if not self.is_trained:
            return [*words, "--out", str(self.file(work))]
        words += ["--for", "subject" if self.is_of_subject else "style", "--seed", str(self.seed)]
        return [*words, "--out", str(self.file(work).parent)]


KIND_RUNS = (
    KindRun("hypernet-style", "hypernet", "neon"),
    KindRun("hypernet-blueprint", "hypernet", "blueprint"),
    KindRun("embedding-style", "embedding", "neon"),
    KindRun("lora-style", "lora", "neon"),
    KindRun("dreambooth-style", "dreambooth", "neon"),
    KindRun("aesthetic-style", "aesthetic", "neon"),
    KindRun("hypernet-subject", "hypernet", "robot"),
    KindRun("embedding-subject", "embedding", "robot", ("--initial", "robot")),
    KindRun("lora-subject", "lora", "robot"),
    KindRun("dreambooth-subject", "dreambooth", "robot"),
)


class Figures(TypedDict):
    """What a run took, and what it came to."""

    seconds: float
    memory: int
    bytes: int
    steps: int
    pictures: int
    losses: tuple[float, float] | None


def train(kind_run: KindRun, work: Path) -> Figures:
    """Train it, unless that is done, and give back its figures."""
    figures_file = work / f"{kind_run.run_name}.json"
    if not figures_file.exists():
        velatura.tiny()  # is imported and read before anything is counted
        before, started = peak(), time.process_time()
        if velatura_main(kind_run.command(work)):
            raise SystemExit(f"{kind_run.run_name} was not trained")
        seconds, memory = time.process_time() - started, peak() - before
        size = kind_run.file(work).stat().st_size
        figures = {
            "seconds": seconds,
            "memory": memory,
            "bytes": size,
            **read_losses(kind_run.file(work).parent, kind_run),
        }
        figures_file.write_text(json.dumps(figures))
    return cast("Figures", json.loads(figures_file.read_text()))


def peak() -> int:
    """The most bytes of memory that this process has held (as Linux counts)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_losses(run: Path, kind_run: KindRun) -> dict[str, object]:
    """Steps, pictures a step, and the validation loss before and after them."""
    if not kind_run.is_trained:
        return {"steps": 0, "pictures": 0, "losses": None}
    plan = json.loads((run / "plan.json").read_text())
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [record["validation"] for record in records if "validated" in record]
    return {"steps": plan["steps"], "pictures": plan["batch_size"], "losses": (losses[0], losses[-1])}


def paint(base: velatura.Base, overlay: velatura.Overlay, prompts: Sequence[str]) -> Iterator[list[Image.Image]]:
    """A row of pictures for each prompt, one for each strength."""
    rows: list[list[Image.Image]] = [[] for _ in prompts]
    for strength in STRENGTHS:
        with velatura.attach(base, overlay, strength):
            for row, prompt in zip(rows, prompts, strict=True):
                row.append(velatura.generate(base, prompt, seed=SEED).image.resize((PICTURE_PIXELS, PICTURE_PIXELS)))
    yield from rows


def draw(kind_run: KindRun, work: Path, images: Path) -> None:
    """Paint its sheet."""
    base, overlay = velatura.tiny(), velatura.open_overlay(kind_run.file(work))
    labels = [f"{strength:g}" for strength in STRENGTHS]
    sheet = draw_grid(list(paint(base, overlay, kind_run.prompts)), labels, kind_run.prompts)
    images.mkdir(parents=True, exist_ok=True)
    sheet.save(images / f"kinds-{kind_run.name}.webp", quality=70)


def judge(
    kind_run: KindRun, work: Path, strength: float = 1.0, count: int = 100, steps: int = STEPS
) -> dict[str, float]:
    """Return what the judge sees in pictures at a strength, once and for all: shares by their names."""
    name = f"{kind_run.run_name}-judged-{judge_mark()}"
    name += ("" if strength == 1 else f"-{strength:g}") + ("" if steps == STEPS else f"-{steps}-steps")
    file = work / f"{name}.json"
    if not file.exists():
        base, overlay = velatura.tiny(), velatura.open_overlay(kind_run.file(work))
        call = f"{kind_run.overlay_name}, " if kind_run.is_of_subject or kind_run.kind == "embedding" else ""
        shares = judge_overlay(
            base, open_judge(), overlay, kind_run.pictures, call=call, strength=strength, count=count, steps=steps
        )
        file.write_text(json.dumps(shares))
    return cast("dict[str, float]", json.loads(file.read_text()))


def preferred_strength(kind_run: KindRun, work: Path) -> float:
    """Return the strength that the training wrote beside its overlay, as `velatura tune` does."""
    return float(json.loads(kind_run.file(work).with_suffix(".json").read_text())[SIDECAR_STRENGTH])


def judged_strengths(kind_run: KindRun, work: Path) -> dict[str, float]:
    """Return the strengths at which the judge looks, by the names of the results."""
    strengths = {kind_run.name: 1.0}
    if kind_run.kind == "hypernet" and not kind_run.is_of_subject:
        strengths[kind_run.name + AT_PREFERRED] = preferred_strength(kind_run, work)
    return strengths


def keep_shares(
    kind_run: KindRun, shares: Mapping[str, float], results: Path = RESULTS, name: str | None = None
) -> None:
    """Write what the judge saw into the results, by the run's name, or another one, and its seed."""
    kept = read_shares(results)
    kept.setdefault(name or kind_run.name, {})[str(kind_run.seed)] = {
        name: round(share, 3) for name, share in shares.items()
    }
    results.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def read_shares(results: Path = RESULTS) -> dict[str, dict[str, dict[str, float]]]:
    """Return what the judge saw: shares by run, seed and name."""
    return json.loads(results.read_text()) if results.exists() else {}


def shares_table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the table of what the judge saw: means over the seeds, with the lowest and the highest."""
    rows = [f"| run | strength | seeds | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 3)]
    for name in (name for kind_run in KIND_RUNS for name in (kind_run.name, kind_run.name + AT_PREFERRED)):
        if seeds := list(results.get(name, {}).values()):
            cells = [_mean_and_range([seed[share] for seed in seeds if share in seed]) for share in COLUMNS.values()]
            strength = _mean_and_range([seed["strength"] for seed in seeds]) if name.endswith(AT_PREFERRED) else "1"
            run = name.removesuffix(AT_PREFERRED).replace("-", ", ")
            rows.append(f"| {run} | {strength} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _mean_and_range(shares: Sequence[float]) -> str:
    if not shares:
        return ""
    text = f"{fmean(shares):.2f}"
    return text if len(shares) == 1 else f"{text} ({min(shares):.2f} to {max(shares):.2f})"


def fill_table(text: str, results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the text of the page with a new table between its marks."""
    return TABLE.sub(lambda _mark: f"<!-- table: kinds -->\n\n{shares_table(results)}\n\n<!-- end -->", text)


def table_row(kind_run: KindRun, figures: Figures) -> str:
    """Its line of the table."""
    losses = figures["losses"]
    cells = (
        kind_run.run_name,
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
    parser.add_argument("--only", choices=[run.name for run in KIND_RUNS], help="the name of one run")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds each is trained with")
    parser.add_argument("--table", action="store_true", help="train and paint nothing")
    parser.add_argument("--judge", action="store_true", help="let the classifier look at 100 pictures of each")
    parser.add_argument("--sampling-steps", type=int, default=STEPS, help="of the pictures that the classifier sees")
    parser.add_argument("--images", type=Path, default=IMAGES)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print("| run | steps | processor | memory | file | validation loss |\n|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        for kind_run in KIND_RUNS:
            if options.only in {None, kind_run.name}:
                report(replace(kind_run, seed=seed), options)


def report(kind_run: KindRun, options: argparse.Namespace) -> None:
    """Train, paint and judge one run, and print its line of the table."""
    if (kind_run.seed and not kind_run.is_trained) or (  # nothing in it is drawn by chance
        options.table and not (options.work / f"{kind_run.run_name}.json").exists()
    ):
        return
    figures = train(kind_run, options.work)
    if not options.table and kind_run.seed == 0:
        draw(kind_run, options.work, options.images)
    print(table_row(kind_run, figures), flush=True)
    if options.judge:
        for name, strength in judged_strengths(kind_run, options.work).items():
            shares = judge(kind_run, options.work, strength, steps=options.sampling_steps)
            print(f"{kind_run.run_name} at strength {strength:g}: {shares}", flush=True)
            if options.sampling_steps == STEPS:
                keep_shares(kind_run, {"strength": strength, **shares}, name=name)
        PAGE.write_text(fill_table(PAGE.read_text("utf-8"), read_shares()), "utf-8")


if __name__ == "__main__":
    main()
