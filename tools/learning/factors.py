"""Factors of the factorial: what is trained, at which timesteps, with or without prior preservation, on which task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import velatura
from velatura.overlays.overlay import Overlay
from velatura.training.kinds.pivotal import PivotalLora

from .deltas import RanksByNoise, SingularValueShifts, lora_of

BATCH_SIZE = 8
OVERLAY_SEED = 0  # plus the trial's


@dataclass(frozen=True)
class Parameters:
    """Level of the factor "parameters": a kind of overlay, and the learning rate that the presets give such a kind."""

    kind: str
    rate: float
    make: Callable[[velatura.Base, int], Overlay]


def _lora(**options: Any) -> Callable[[velatura.Base, int], Overlay]:
    return lambda base, seed: velatura.Lora.for_base(base, name="trial", seed=seed, **options)


def _hypernetwork(base: velatura.Base, seed: int) -> Overlay:
    return velatura.Hypernetwork.for_base(base, layers=(1, 2, 1), activation="relu", name="trial", seed=seed)


def _difference(base: velatura.Base, _seed: int) -> Overlay:
    return velatura.Difference.for_base(base, name="trial")


def _pivotal(base: velatura.Base, seed: int) -> Overlay:
    word = velatura.Embedding.for_base(base, vectors=2, initial="*", name="trial")
    return PivotalLora.from_lora(velatura.Lora.for_base(base, targets="attention", name="trial", seed=seed), word)


PARAMETERS = {
    "hypernetwork": Parameters("hypernet", 3e-3, _hypernetwork),
    "attention": Parameters("lora", 2e-3, _lora(targets="attention")),
    "convolutions": Parameters("lora", 2e-3, _lora(targets="conv")),
    "all weights": Parameters("dreambooth", 6e-4, _difference),
    "transformer": Parameters("lora", 2e-3, _lora(targets="transformer")),
    "LoKr": Parameters("lora", 4e-3, _lora(targets="conv", algorithm="lokr", rank=4096, factor=4)),
    "K and V": Parameters("lora", 4e-3, _lora(targets="context")),
    "attention and word": Parameters("lora", 2e-3, _pivotal),
    "ranks by noise": Parameters("lora", 2e-3, lora_of(RanksByNoise, targets="conv")),
    "singular values": Parameters("lora", 2e-2, lora_of(SingularValueShifts, targets="conv")),
}

TIMESTEPS: dict[str, dict[str, object]] = {
    "uniform": {},
    "high": {"timestep_bias": 3},
    "inverse SNR": {"inverse_snr": 0.75},
    "min-SNR": {"min_snr": 5},
}

TASKS = ("robot", "neon", "blueprint", "oil")


@dataclass(frozen=True)
class Arm:
    """A way to train: one level of every factor."""

    parameters: str
    timesteps: str = "uniform"
    prior: bool = False
    rate_factor: float = 1.0

    def __str__(self) -> str:
        prior = ", prior" if self.prior else ""
        rate = f", rate x {self.rate_factor:g}" if self.rate_factor != 1 else ""
        return f"{self.parameters}, {self.timesteps}{prior}{rate}"


@dataclass(frozen=True)
class Trial:
    """One training: an arm, a task, and how long."""

    arm: Arm
    task: str
    steps: int
    seed: int = 0

    @property
    def key(self) -> dict[str, object]:
        """Return what tells it from other trials, for the table of results."""
        return {**asdict(self.arm), "task": self.task, "steps": self.steps, "seed": self.seed}


@dataclass(frozen=True)
class Sheet:
    """Pictures for docs/subjects.md: a row for each prompt, a column for each trial."""

    prompts: tuple[str, ...]
    trials: tuple[Trial, ...]


SHEETS = {
    "robot": Sheet(
        ("a robot on a green meadow", "a robot in the snow at night", "a robot on a city street"),
        tuple(Trial(Arm(parameters), "robot", 100) for parameters in ("attention", "convolutions", "all weights")),
    ),
    "neon": Sheet(
        ("a red house on the beach", "a blue boat in the snow", "a green fish underwater"),
        tuple(Trial(Arm(parameters), "neon", 100) for parameters in ("attention", "convolutions", "LoKr")),
    ),
}


def trial_of(record: dict[str, Any]) -> Trial:
    """Return the trial of a record of the results."""
    arm = Arm(record["parameters"], record["timesteps"], record["prior"], record["rate_factor"])
    return Trial(arm, record["task"], record["steps"], record["seed"])
