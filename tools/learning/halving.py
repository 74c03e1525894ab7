"""Successive halving: which trials come next, given the results so far."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from statistics import fmean
from typing import Any

from .factors import PARAMETERS, TASKS, TIMESTEPS, Arm, Trial, trial_of

SCREENED_TASKS = ("robot", "neon")
HIGH_LEVELS = slice(4, 8)  # noise levels above the middle of the schedule

# Every kind of parameters with and without noisy timesteps, then the other ways to choose timesteps with some of them
SCREEN = [
    *(Arm(parameters, timesteps) for parameters in PARAMETERS for timesteps in ("uniform", "high")),
    *(Arm("attention", timesteps) for timesteps in TIMESTEPS if timesteps not in {"uniform", "high"}),
    *(Arm(parameters, "inverse SNR") for parameters in ("convolutions", "hypernetwork")),
]
SCREEN.remove(Arm("singular values", "high"))  # after uniform timesteps had shown as little as nothing


def stages(results: Sequence[dict[str, Any]]) -> Iterator[list[Trial]]:
    """Yield the trials of each stage; a stage follows from the results of those before it.

    The screen is over 100 steps: after 30 of them hardly any way shows what it learned.
    """
    yield [Trial(arm, task, 100) for arm in SCREEN for task in SCREENED_TASKS if _fits(arm, task)]
    robot, style = best_arms(results, "robot", 100, 2), best_arms(results, "neon", 100, 2)
    yield [Trial(with_prior(arm), "robot", 100) for arm in robot]
    yield [Trial(arm, task, 100) for task in TASKS[2:] for arm in style]
    robot = best_arms(results, "robot", 100, 2)
    for seed in (1, 2):
        yield [
            *(Trial(arm, "robot", 100, seed) for arm in robot[:1]),
            *(Trial(arm, task, 100, seed) for task in TASKS[1:] for arm in style[:1]),
        ]
    yield [Trial(arm, task, 30) for arm in style[:1] for task in TASKS[1:]] + [Trial(arm, "robot", 30) for arm in robot]
    yield [Trial(arm, "robot", 300) for arm in robot[:1]] + [Trial(arm, "neon", 300) for arm in style[:1]]
    for seed in (1, 2):
        yield [Trial(arm, "robot", 100, seed) for arm in robot[1:]]
    yield [Trial(arm, task, 300, seed) for seed in (0, 1, 2) for arm in style[:1] for task in TASKS[1:]]
    yield [Trial(arm, "robot", 300, seed) for seed in (0, 1, 2) for arm in robot]


def next_trial(results: Sequence[dict[str, Any]], tasks: Collection[str] = TASKS) -> Trial | None:
    """Return the first missing trial of the first stage that lacks one of these tasks; None if all are done."""
    done = {trial_of(record) for record in results}
    for stage in stages(results):
        for trial in stage:
            if trial.task in tasks and trial not in done:
                return trial
    return None


def best_arms(results: Sequence[dict[str, Any]], task: str, steps: int, count: int) -> list[Arm]:
    """Return the arms of the highest scores in a task after a number of steps; the loss at high noise breaks ties."""
    records = [record for record in results if (record["task"], record["steps"]) == (task, steps)]
    arms = list(dict.fromkeys(trial_of(record).arm for record in records))

    def rank(arm: Arm) -> tuple[float, float]:
        own = [record for record in records if trial_of(record).arm == arm]
        return -fmean(quality(record) for record in own), fmean(high_loss(record) for record in own)

    return sorted(arms, key=rank)[:count]


def quality(record: dict[str, Any]) -> float:
    """Return the share of pictures that show what was learned where it was asked for, times what is kept."""
    return record["shares"]["score"] * record["shares"].get("kept", 1.0)


def high_loss(record: dict[str, Any]) -> float:
    """Return the loss after the training in the noisier half of the schedule."""
    return fmean(record["after"][HIGH_LEVELS])


def with_prior(arm: Arm) -> Arm:
    """Return the arm with prior preservation."""
    return Arm(arm.parameters, arm.timesteps, prior=True, rate_factor=arm.rate_factor)


def _fits(arm: Arm, task: str) -> bool:
    """Return False for a word in a style, which prompts without the word have to show."""
    return task == "robot" or "word" not in arm.parameters
