"""python -m tools.which_one TASK: which kind of overlay serves 4, 12 and 24 pictures of a style and of a subject?

    run      train and judge what is missing, seed after seed; stop it at any time, and start it again
    mix      paint with several of the overlays at once, and judge what each of them still shows; what is missing of
             them is trained first
    table    print the tables, and write them into docs/which-one.md

Every kind is trained with its preset, for at most STEPS steps, and judged as `velatura compare` does; a classifier
besides looks at pictures at the best strength (tools/tiny_base/judge.py). Results are one JSON line for each trial, in
tools/which_one.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from statistics import correlation, fmean, stdev
from typing import Any, NamedTuple

from tools.drawing.paint import paint
from tools.drawing.scene import Scene, caption

RESULTS = Path(__file__).with_suffix(".jsonl")
MIXES = RESULTS.with_name("which_one_mixes.json")
PAGE = Path(__file__).parents[1] / "docs" / "which-one.md"
TABLE_MARKS = re.compile(r"<!-- table: (?P<name>[\w-]+) -->.*?<!-- end -->", re.DOTALL)

STEPS = 120
PROMPTS = 16  # that the classifier looks at for each overlay
SEEDS = 3
KINDS = ("hypernet", "lora", "dreambooth", "embedding", "aesthetic")
TASKS = {"neon": "style", "robot": "subject"}  # and the purpose of their presets
COUNTS = (12, 4, 24)  # pictures, one in four of which is held out
STYLE_SEED = 7  # of the drawings, as in the package

MIX_COUNT, MIX_SEED, MIX_PROMPTS = 12, 0, 32  # the trainings that are mixed, and the prompts of each mix
STYLE_KINDS = ("embedding", "hypernet", "lora")  # the three that articles advise to use together
STYLE_MIXES: dict[str, dict[str, float]] = {  # strengths by kind, of overlays that learned neon
    "no overlay": {},
    **{f"{kind} at {strength:g}": {kind: strength} for kind in STYLE_KINDS for strength in (0.5, 1.0)},
    **{f"all three at {strength:g}": dict.fromkeys(STYLE_KINDS, strength) for strength in (0.5, 0.7, 1.0)},
}
TASK_MIXES: dict[str, dict[str, float]] = {  # strengths by task, of hypernetworks
    "robot alone": {"robot": 1.0},
    "neon alone": {"neon": 1.0},
    "both at 1": {"robot": 1.0, "neon": 1.0},
    "both at 0.7": {"robot": 0.7, "neon": 0.7},
    "both at 0.5": {"robot": 0.5, "neon": 0.5},
}

Record = dict[str, Any]
MIX_COLUMNS = {"learned": "neon", "score": "neon and subject"}
COLUMNS = {  # of the tables: a figure of the study, or a share of the classifier
    "score": "score",
    "likeness": "likeness",
    "prompt kept": "kept",
    "shows it": "learned",
    "subject and place kept": "kept_by_judge",
    "change of other prompts": "base_change",
    "other things kept": "others_kept",
    "best strength": "strength",
    "seconds": "training_seconds",
    "kB": "kilobytes",
}


class Trial(NamedTuple):
    """One training: a kind, what it learns, from how many pictures, and its seed."""

    kind: str
    task: str
    count: int
    seed: int


def trials() -> Iterator[Trial]:
    """Yield all trials, seed after seed, so that an interrupted run has every kind and number of pictures."""
    from velatura.studies.trials import UNTRAINED_KINDS

    for seed in range(SEEDS):
        for count in COUNTS:
            for task in TASKS:
                yield from (Trial(kind, task, count, seed) for kind in KINDS if not (seed and kind in UNTRAINED_KINDS))


def read_records(path: Path) -> list[Record]:
    """Return the records of all finished trials."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trial_of(record: Record) -> Trial:
    """Return the trial of a record."""
    return Trial(record["kind"], record["task"], record["count"], record["seed"])


def run(work: Path, results: Path, minutes: float) -> None:
    """Do the missing trials until the time is up."""
    import torch

    import velatura
    from tools.tiny_base.judge import open_judge

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    base, judge, started = velatura.tiny(), open_judge(), time.monotonic()
    setups = cache(partial(open_setup, base, work))
    for trial in trials():
        # Read again before each trial: another process may have done it meanwhile
        if trial in map(trial_of, read_records(results)):
            continue
        if time.monotonic() - started > 60 * minutes:
            return
        record = run_one(setups(trial.task, trial.count), judge, trial)
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{trial}: score {record['score']:.2f}, shows it {record['learned']:.2f}", flush=True)


def open_setup(base: Any, work: Path, task: str, count: int) -> Any:
    """Draw the pictures, and return what all trials with them share."""
    from velatura.compare.picture_features import PictureEncoder
    from velatura.compare.picture_sets import read_picture_set
    from velatura.studies.pictures import split_pictures
    from velatura.studies.trials import TrialSetup

    folder = work / "which-one" / f"{task}-{count}"
    split = split_pictures(draw_pictures(task, count, work), folder)
    return TrialSetup(
        base,
        folder,
        split.data,
        read_picture_set(split.held_out).images,
        split.held_out,
        split.captions,
        task,
        TASKS[task],
        PictureEncoder.open(base),
        "tiny",
    )


def run_one(setup: Any, judge: Any, trial: Trial) -> Record:
    """Train and judge one overlay; return its record."""
    import velatura
    from tools.learning.trial import judge_overlay
    from velatura.studies.trials import called_by, run_trial

    result = run_trial(setup, trial.kind, trial.seed, STEPS)
    figures = dict(result.figures)
    shares = {"learned": 0.0, "kept": 1.0, "subject": 1.0, "place": 1.0}  # of an overlay without effect
    if figures["strength"]:
        overlay, call = velatura.open_overlay(setup.folder / result.file), called_by(setup, trial.kind)
        shares = judge_overlay(
            setup.base,
            judge,
            overlay,
            trial.task,
            call=f"{call}, " if call else "",
            strength=figures["strength"],
            count=PROMPTS,
        )
    figures |= {
        "learned": shares["learned"],
        # Of a style: the subject that the prompt asks for; of a subject: the place, and what other prompts ask for
        "kept_by_judge": shares["subject"] if trial.task != "robot" else min(shares["place"], shares["kept"]),
        "kilobytes": figures.pop("bytes") / 1e3,
    }
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    return {**trial._asdict(), "steps": result.steps, **rounded}


def judge_mixes(work: Path) -> dict[str, list[Record]]:
    """Paint with several overlays at once, and return the shares of pictures that show what each has learned."""
    import torch

    import velatura
    from tools.learning.trial import FIRST_PROMPT_SEED, look_at_prompts, prompts_of, style_shares, subject_shares
    from tools.tiny_base.data import unseen_scene
    from tools.tiny_base.judge import open_judge

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    base, judge = velatura.tiny(), open_judge()
    setups = cache(partial(open_setup, base, work))
    scenes = [unseen_scene(FIRST_PROMPT_SEED + i) for i in range(MIX_PROMPTS)]
    robots = [replace(scene, subject="robot", colour="red", count=1, size=0.34) for scene in scenes]
    styles: list[Record] = []
    for name, strengths in STYLE_MIXES.items():
        call = "neon, " if "embedding" in strengths else ""  # the word that the embedding has learned
        prompts = [call + text for text in prompts_of(scenes)]
        overlays = [(open_trained(setups("neon", MIX_COUNT), kind), value) for kind, value in strengths.items()]
        with attached(base, overlays):
            seen = look_at_prompts(base, judge, prompts)
        styles.append({"mix": name, **style_shares(seen, scenes, "neon")})
    tasks: list[Record] = []
    prompts = [text.replace("red robot", "robot") for text in prompts_of(robots)]
    for name, strengths in TASK_MIXES.items():
        overlays = [(open_trained(setups(task, MIX_COUNT), "hypernet"), value) for task, value in strengths.items()]
        with attached(base, overlays):
            seen = look_at_prompts(base, judge, prompts)
        shares = subject_shares(seen, robots)
        in_style = style_shares(seen, robots, "neon")["learned"]
        tasks.append({"mix": name, "robot": shares["learned"], "neon": in_style, "place": shares["place"]})
    return {"style-mixes": styles, "task-mixes": tasks}


def open_trained(setup: Any, kind: str) -> Any:
    """Open the overlay of a kind that is mixed, trained if it is missing: a clone has the records but no overlays."""
    import velatura
    from velatura.studies.trials import run_trial

    file = setup.folder / "trials" / f"{kind}-{MIX_SEED}" / f"{setup.name}.safetensors"
    if not file.exists():
        run_trial(setup, kind, MIX_SEED, STEPS)
    return velatura.open_overlay(file)


@contextmanager
def attached(base: Any, overlays: Sequence[tuple[Any, float]]) -> Generator[None]:
    """Attach several overlays, each at its strength, while a block runs."""
    import velatura

    with ExitStack() as stack:
        for attachment in velatura.attach_all(base, overlays):
            stack.enter_context(attachment)
        yield


def draw_pictures(task: str, count: int, work: Path) -> Path:
    """Draw pictures of a style or of the robot into a folder with captions, and return it."""
    folder = work / "which-one-pictures" / f"{task}-{count}" / task
    if folder.exists():
        return folder
    partial = folder.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for i, scene in enumerate(scenes_of(task, count)):
        text = caption(scene, Random(scene.seed), style_word="").replace("red robot", "robot")
        paint(scene).save(partial / f"{i:02}.png")
        (partial / f"{i:02}.txt").write_text(text + "\n")
    partial.rename(folder)
    return folder


def scenes_of(task: str, count: int) -> list[Scene]:
    """Return scenes such as those of the bundled pictures, as many as asked for."""
    from tools.tiny_base.export import robot_scene, style_scene

    if task == "robot":
        return [robot_scene(i) for i in range(count)]
    return [style_scene(i, task, STYLE_SEED) for i in range(count)]


def table(records: Sequence[Record], task: str) -> str:
    """Return the table of a style or subject: a row for each number of pictures and kind, the best score first."""
    groups: dict[tuple[int, str], list[Record]] = {}
    for record in records:
        if record["task"] == task:
            groups.setdefault((record["count"], record["kind"]), []).append(record)
    if not groups:
        return "No trials yet."
    rows = [f"| pictures | kind | seeds | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 3)]
    for count, kind in sorted(groups, key=lambda group: (group[0], -_mean(groups[group], "score"))):
        group = groups[count, kind]
        cells = [f"{count}", kind, f"{len(group)}", *(_cell(group, name) for name in COLUMNS.values())]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def agreement_table(records: Sequence[Record]) -> str:
    """Return how well score and likeness order the overlays, beside the share in which the classifier sees it."""
    rows = ["| task | pictures | overlays | score | likeness |", "|---|---|---|---|---|"]
    for task in TASKS:
        for count in sorted(COUNTS):
            group = [record for record in records if (record["task"], record["count"]) == (task, count)]
            if len(group) > 2:
                cells = [f"{rank_correlation(group, name, 'learned'):.2f}" for name in ("score", "likeness")]
                rows.append(f"| {task} | {count} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def rank_correlation(records: Sequence[Record], first: str, second: str) -> float:
    """Return Spearman's rank correlation of two figures; equal ones share their mean rank. 0 if one never differs."""
    ranks = [_ranks([record[name] for record in records]) for name in (first, second)]
    if any(len(set(group)) == 1 for group in ranks):
        return 0.0
    return correlation(*ranks)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [fmean(number for number, other in enumerate(ordered) if other == value) for value in values]


def mix_table(records: Sequence[Record]) -> str:
    """Return the table of mixes, in the order in which they were painted."""
    if not records:
        return "Not painted yet."
    names = [name for name in records[0] if name != "mix"]
    rows = [f"| mix | {' | '.join(MIX_COLUMNS.get(name, name) for name in names)} |", "|" + "---|" * (len(names) + 1)]
    rows += [f"| {record['mix']} | {' | '.join(f'{record[name]:.2f}' for name in names)} |" for record in records]
    return "\n".join(rows)


def _mean(group: Sequence[Record], name: str) -> float:
    return fmean(record[name] for record in group)


def _cell(group: Sequence[Record], name: str) -> str:
    """Return the mean over seeds, with the standard deviation of the score; nothing is measured of idle overlays."""
    group = [record for record in group if name in record]
    if not group:
        return ""
    if name in {"training_seconds", "kilobytes"}:
        return f"{_mean(group, name):,.0f}"
    deviation = f" ± {stdev(record[name] for record in group):.2f}" if name == "score" and len(group) > 1 else ""
    return f"{_mean(group, name):.2f}{deviation}"


def write_tables(records: Sequence[Record], mixes: Mapping[str, Sequence[Record]], page: Path) -> None:
    """Print the tables, and put them where the page marks their places."""
    tables = {task: table(records, task) for task in TASKS}
    tables |= {name: mix_table(mixes.get(name, ())) for name in ("style-mixes", "task-mixes")}
    tables["agreement"] = agreement_table(records)
    for task, text in tables.items():
        print(f"{task}\n{text}\n")

    def fill(mark: re.Match[str]) -> str:
        return f"<!-- table: {mark['name']} -->\n\n{tables[mark['name']]}\n\n<!-- end -->"

    page.write_text(TABLE_MARKS.sub(fill, page.read_text()))


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("run", "mix", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/which-one"), help="folder of pictures and runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=600, help="start no trial after this time")
    options = parser.parse_args()
    if options.task == "run":
        run(options.work, options.results, options.minutes)
    elif options.task == "mix":
        MIXES.write_text(json.dumps(judge_mixes(options.work), indent=1) + "\n")
    else:
        mixes = json.loads(MIXES.read_text()) if MIXES.exists() else {}
        write_tables(read_records(options.results), mixes, PAGE)


if __name__ == "__main__":
    main()
