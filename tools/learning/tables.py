"""Tables of the results, as docs/subjects.md and docs/training.md hold them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from statistics import fmean
from typing import Any

from .factors import TASKS, Arm, trial_of
from .halving import quality

Record = dict[str, Any]
STYLE_COLUMNS = {"style": "learned", "subject": "subject", "place": "place", "style and subject": "score"}
SUBJECT_COLUMNS = {
    "robot": "learned",
    "its colour": "colour",
    "place": "place",
    "robot and place": "score",
    "other prompts": "kept",
}
NOISE_PARTS: dict[str, Callable[[Sequence[float]], float]] = {
    "all noise levels": fmean,
    "below 500": lambda losses: fmean(losses[:4]),
    "500 and above": lambda losses: fmean(losses[4:]),
    "500 to 750": lambda losses: fmean(losses[4:6]),
    "750 and above": lambda losses: fmean(losses[6:]),
}
TABLE_MARKS = re.compile(r"<!-- table: (?P<name>[\w-]+) -->.*?<!-- end -->", re.DOTALL)
FIRST_JUDGE, SCREEN_SUFFIX = "small", "-screen"  # an earlier classifier, and the names of tables of what it saw
BOOTSTRAP_COUNT = 2000
MIN_RANKED = 4  # trials of a task below which a rank correlation says nothing


def task_table(results: Sequence[Record], task: str) -> str:
    """Return the table of one task: a row for each arm and number of steps, the best first within the steps."""
    if not _of_task(results, task):
        return "No trials yet."
    columns = SUBJECT_COLUMNS if task == "robot" else STYLE_COLUMNS
    rows = [
        f"| trained | timesteps | steps | trials | {' | '.join(columns)} | loss at 500 and above |",
        "|" + "---|" * (len(columns) + 5),
    ]
    groups: dict[tuple[int, Arm], list[Record]] = {}
    for record in results:
        if record["task"] == task:
            groups.setdefault((record["steps"], trial_of(record).arm), []).append(record)

    def order(group: tuple[int, Arm]) -> tuple[float, ...]:
        return group[0], -fmean(map(quality, groups[group])), fmean(map(_high_loss, groups[group]))

    for steps, arm in sorted(groups, key=order):
        records = groups[steps, arm]
        shares = [fmean(record["shares"][share] for record in records) for share in columns.values()]
        name = arm.parameters + (", prior" if arm.prior else "")
        name += f", rate x {arm.rate_factor:g}" if arm.rate_factor != 1 else ""
        cells = [name, arm.timesteps, f"{steps}", f"{len(records)}", *(f"{share:.2f}" for share in shares)]
        rows.append(f"| {' | '.join(cells)} | {fmean(map(_high_loss, records)):.4f} |")
    return "\n".join(rows)


def correlation_table(results: Sequence[Record]) -> str:
    """Return how well the loss at some noise levels orders trials by their pictures: Spearman's rank correlation."""
    tasks = [task for task in TASKS if len(_of_task(results, task)) >= MIN_RANKED]
    if not tasks:
        return f"No task has {MIN_RANKED} trials yet."
    rows = [
        f"| validation loss | {' | '.join(f'{task}, {len(_of_task(results, task))} trials' for task in tasks)} |",
        "|" + "---|" * (len(tasks) + 1),
    ]
    for name, part in NOISE_PARTS.items():
        cells = [f"{rank_correlation(*_qualities_and_losses(_of_task(results, task), part)):.2f}" for task in tasks]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def high_noise_gain(results: Sequence[Record], task: str) -> tuple[float, float, float]:
    """Return how much better the loss at 500 and above orders trials than the plain mean, by `rank_correlation`.

    Returns:
        The difference of both correlations, and between which it lies in 90 % of the cases if trials are drawn anew.
    """
    records, rng = _of_task(results, task), Random(0)

    def gain(drawn: Sequence[Record]) -> float:
        parts = (NOISE_PARTS["500 and above"], NOISE_PARTS["all noise levels"])
        high, all_levels = (rank_correlation(*_qualities_and_losses(drawn, part)) for part in parts)
        return high - all_levels

    gains = sorted(gain(rng.choices(records, k=len(records))) for _ in range(BOOTSTRAP_COUNT))
    return gain(records), gains[BOOTSTRAP_COUNT // 20], gains[-BOOTSTRAP_COUNT // 20]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values share the mean of their ranks. It is 0 if all are equal."""
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    mean_a, mean_b = fmean(ranks_a), fmean(ranks_b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(ranks_a, ranks_b, strict=True))
    spread = sum((x - mean_a) ** 2 for x in ranks_a) * sum((y - mean_b) ** 2 for y in ranks_b)
    return covariance / spread**0.5 if spread else 0.0


def print_tables(results: Sequence[Record]) -> None:
    """Print all tables, each under its name."""
    for suffix in ("", SCREEN_SUFFIX):
        for task in TASKS:
            print(f"{task}{suffix}\n\n{task_table(records_for(results, suffix), task)}\n")
        print(f"loss against pictures{suffix}\n\n{correlation_table(records_for(results, suffix))}\n")
        for task in TASKS:
            _print_high_noise_gain(records_for(results, suffix), task)


def _print_high_noise_gain(results: Sequence[Record], task: str) -> None:
    if len(_of_task(results, task)) >= MIN_RANKED:
        gain, low, high = high_noise_gain(results, task)
        print(f"{task}: 500 and above orders better than all noise levels by {gain:.2f} ({low:.2f} to {high:.2f})\n")


def records_for(results: Sequence[Record], table_name: str) -> list[Record]:
    """Return the records for a table: those of the first classifier if its name says screen, else the others."""
    is_screen = table_name.endswith(SCREEN_SUFFIX)
    return [record for record in results if (record["judge"] == FIRST_JUDGE) == is_screen]


def _of_task(results: Sequence[Record], task: str) -> list[Record]:
    return [record for record in results if record["task"] == task]


def _high_loss(record: Record) -> float:
    return fmean(record["after"][4:])


def _qualities_and_losses(
    records: Sequence[Record], part: Callable[[Sequence[float]], float]
) -> tuple[list[float], list[float]]:
    """Return what pictures say of each trial, and what its loss says: how far it fell below the untrained loss."""
    falls = [1 - part(record["after"]) / part(record["before"]) for record in records]
    return [quality(record) for record in records], falls


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def fill_tables(text: str, results: Sequence[Record]) -> str:
    """Return the text of a page with new tables between its marks, <!-- table: NAME --> and <!-- end -->."""

    def table(mark: re.Match[str]) -> str:
        name = mark["name"]
        table_name, records = name.removesuffix(SCREEN_SUFFIX), records_for(results, name)
        if table_name not in {*TASKS, "correlation"}:
            return mark[0]  # another tool's
        content = correlation_table(records) if table_name == "correlation" else task_table(records, table_name)
        return f"<!-- table: {name} -->\n\n{content}\n\n<!-- end -->"

    return TABLE_MARKS.sub(table, text)
