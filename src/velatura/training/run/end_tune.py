"""Auto-strength at the end of a run: the strength that serves best, written beside the overlay and into its file."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from velatura.base.base import Base
from velatura.datasets.templates import NAME_PLACEHOLDER
from velatura.errors import NoEffect, VelaturaError, VelaturaWarning, warn
from velatura.training.data.captions import caption_name
from velatura.training.noise import isolate_random_state
from velatura.training.run.report import OnStage, Run, Stage
from velatura.training.run.summary import read_run

if TYPE_CHECKING:
    from velatura.compare.tune import Tuning
    from velatura.overlays.overlay import Overlay
    from velatura.training.plan import Plan
    from velatura.training.trainer import Trainer

MIN_STEPS = 50  # a shorter run takes less time than the pictures
STAGE_NAME = "finding the best strength"


def tune_result(run: Run, trainer: Trainer, on_stage: OnStage | None) -> Run:
    """Find the best strength of a finished overlay if it is due, write it, and add it to the verdict.

    Nothing that fails here fails the run, whose overlay is written: it is warned of.

    Args:
        run: The finished run.
        trainer: What trained it; its overlay is detached.
        on_stage: Called after each strength.
    """
    verdict = run.verdict
    if verdict is None or not is_tune_due(trainer.base, trainer.plan.tune, verdict.steps):
        return run
    called_by = caption_word(trainer.plan, run.overlay)
    tuning = trainer.processes.run_on_main(lambda: _tune(run, trainer.base, called_by, on_stage))
    if tuning is None:
        return run
    return replace(run, verdict=replace(verdict, strength=tuning.strength, strength_note=tuning.note))


def caption_word(plan: Plan, overlay: Overlay) -> str:
    """Return the word that called an overlay in the captions of its training, "" if they never named it."""
    name = caption_name(overlay)
    return name if any(NAME_PLACEHOLDER in line for line in plan.caption_template(name).lines) else ""


def is_tune_due(base: Base, is_asked: bool | None, steps: int) -> bool:
    """Return True if a plan asks for the best strength, or says nothing and it takes little beside the training.

    That is after a run of `MIN_STEPS` on the tiny base and on a GPU. It is never due on a pix2pix model, which needs an
    image to edit.
    """
    if base.image_condition == "pix2pix":
        return False
    if is_asked is not None:
        return is_asked
    return steps >= MIN_STEPS and (base.family.name == "tiny" or base.device.type != "cpu")


def _tune(run: Run, base: Base, called_by: str, on_stage: OnStage | None) -> Tuning | None:
    from velatura.compare.tune import tune

    def report(done: int, total: int) -> None:
        if on_stage:
            on_stage(Stage(STAGE_NAME, done, total))

    if on_stage:
        on_stage(Stage(STAGE_NAME, 0, 1))
    pictures = Path(read_run(run.folder).pictures)
    try:
        with isolate_random_state(base.device), warnings.catch_warnings():
            warnings.simplefilter("ignore", VelaturaWarning)  # what an overlay does not change is in the verdict
            known = pictures if pictures.is_dir() else None
            tuning = tune(base, run.overlay, pictures=known, called_by=called_by, on_strength=report)
        tuning.write(run.file)
    except NoEffect:
        return None  # the verdict says that little was learned
    except (VelaturaError, RuntimeError, OSError) as error:  # RuntimeError: no memory left on a GPU, among others
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warn(f"the overlay is written, but its best strength was not found: {reason}")
        return None
    except KeyboardInterrupt as interruption:
        interruption.add_note("the run is finished and its overlay is written; only its best strength is missing")
        raise
    return tuning
