"""Successive halving: which trials come next, given the results so far.

A record says which classifier looked ("judge"). The first stages count whichever it was, since they only choose ways
that are worth more trials; in later stages a trial of another classifier is done again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from statistics import fmean
from typing import Any

from .factors import PARAMETERS, TASKS, TIMESTEPS, Arm, Trial, trial_of

Record = dict[str, Any]

SCREENED_TASKS = ("robot", "neon")
FINALISTS = 2  # best ways of a task that go on to other seeds
SEEDS = 3
HIGH_LEVELS = slice(4, 8)  # noise levels above the middle of the schedule

# Every kind of parameters with and without noisy timesteps, then the other ways to choose timesteps with some of them
SCREEN = [
    *(Arm(parameters, timesteps) for parameters in PARAMETERS for timesteps in ("uniform", "high")),
    *(Arm("attention", timesteps) for timesteps in TIMESTEPS if timesteps not in {"uniform", "high"}),
    *(Arm(parameters, "inverse SNR") for parameters in ("convolutions", "hypernetwork")),
    *(Arm("singular values", rate_factor=factor) for factor in (0.25, 4.0, 16.0)),  # as its own rate had shown little
]
SCREEN.remove(Arm("singular values", "high"))  # after uniform timesteps had shown as little as nothing


def stages(results: Sequence[Record]) -> Iterator[list[Trial]]:
    """Yield the trials of each stage of the screen; a stage follows from the results of those before it.

    The screen is over 100 steps: after 30 of them hardly any way shows what it learned.

    Args:
        results: The first record of each trial, whichever classifier looked.
    """
    yield [Trial(arm, task, 100) for arm in SCREEN for task in SCREENED_TASKS if _fits(arm, task)]
    yield [Trial(with_prior(arm), "robot", 100) for arm in best_arms(results, "robot", 100, FINALISTS)]


def final_stages(screen: Sequence[Record], results: Sequence[Record]) -> Iterator[list[Trial]]:
    """Yield the trials of each stage after the screen: the best ways with other seeds, styles and numbers of steps.

    Args:
        screen: The records of the screen.
        results: The records of the classifier that looks now.
    """
    finalists = {task: best_arms(screen, "robot" if task == "robot" else "neon", 100, FINALISTS) for task in TASKS}
    for seed in range(SEEDS):
        yield [Trial(arm, task, 100, seed) for task in TASKS for arm in finalists[task]]
    yield [Trial(arm, task, 30) for task in TASKS for arm in finalists[task]]
    for seed in range(SEEDS):
        yield [
            Trial(arm, task, 300, seed)
            for task in TASKS
            for arm in best_arms(
                [record for record in results if trial_of(record).arm in finalists[task]], task, 100, 1
            )
        ]


def next_trial(results: Sequence[Record], mark: str, tasks: Collection[str] = TASKS) -> Trial | None:
    """Return the first missing trial of the first stage that lacks one of these tasks; None if all are done.

    Args:
        results: All records.
        mark: The mark of the classifier that looks now.
        tasks: What is learned.
    """
    first = list({trial_of(record): record for record in reversed(results)}.values())[::-1]
    screen = [record for record in first if (record["steps"], record["seed"]) == (100, 0)]
    own = [record for record in results if record["judge"] == mark]
    for records, some_stages in ((first, stages(screen)), (own, final_stages(screen, own))):
        done = {trial_of(record) for record in records}
        for stage in some_stages:
            for trial in stage:
                if trial.task in tasks and trial not in done:
                    return trial
    return None


def best_arms(results: Sequence[Record], task: str, steps: int, count: int) -> list[Arm]:
    """Return the arms of the highest scores in a task after a number of steps; the loss at high noise breaks ties."""
    records = [record for record in results if (record["task"], record["steps"]) == (task, steps)]
    arms = list(dict.fromkeys(trial_of(record).arm for record in records))

    def rank(arm: Arm) -> tuple[float, float]:
        own = [record for record in records if trial_of(record).arm == arm]
        return -fmean(quality(record) for record in own), fmean(high_loss(record) for record in own)

    return sorted(arms, key=rank)[:count]


def quality(record: Record) -> float:
    """Return the share of pictures that show what was learned where it was asked for, times what is kept."""
    return record["shares"]["score"] * record["shares"].get("kept", 1.0)


def high_loss(record: Record) -> float:
    """Return the loss after the training in the noisier half of the schedule."""
    return fmean(record["after"][HIGH_LEVELS])


def with_prior(arm: Arm) -> Arm:
    """Return the arm with prior preservation."""
    return Arm(arm.parameters, arm.timesteps, prior=True, rate_factor=arm.rate_factor)


def _fits(arm: Arm, task: str) -> bool:
    """Return False for a word in a style, which prompts without the word have to show."""
    return task == "robot" or "word" not in arm.parameters
