"""Training, for every kind of overlay: the base is frozen, the overlay's parameters learn."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import torch
from torch.optim import Optimizer

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, Example, read_dataset
from velatura.errors import BadFile, BadPlan, UnsupportedBase, VelaturaWarning, WrongBase
from velatura.merging.bake.hypernet_maps import check_no_overlays_attached
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.data.cache import encode_dataset
from velatura.training.data.captions import caption_name
from velatura.training.data.fingerprint import check_data_unchanged
from velatura.training.kinds.a1111_export import check_a1111_optimizer
from velatura.training.kinds.pivotal import activate_bundled_embeddings
from velatura.training.loop import Run, Step, TrainingLoop
from velatura.training.loss import apply_zero_terminal_snr
from velatura.training.optimizers import create_overlay_optimizer
from velatura.training.plan import Plan
from velatura.training.precision import frozen_base, gradient_checkpointing, make_trainable
from velatura.training.processes import OVER, Team
from velatura.training.run.folder import RunFolder, check_vacant
from velatura.training.run.previews import preview_recipes
from velatura.training.run.tensorboard import check_tensorboard_installed
from velatura.training.signals import catch_signals
from velatura.training.trainer import Trainer
from velatura.training.validation import (
    create_validation_set,
    fingerprint_data,
    resolve_validation_folder,
    validation_examples,
)

__all__ = ["Run", "Step", "check_plan", "resume", "train"]


@torch.inference_mode(mode=False)
@torch.enable_grad()
def train(
    base: Base,
    overlay: Overlay,
    folder: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    out: str | os.PathLike[str],
    on_step: Callable[[Step], None] | None = None,
    over_others: bool = False,
) -> Run:
    """Train an overlay, in place, on a folder of captioned pictures, and leave a run folder at `out`.

    Without a plan it is the preset for such an overlay on such a base. over_others: train it over other overlays that
    lie on the base, which is refused otherwise: they are hardly there on purpose.

    The base comes out as it went in. Two runs of one plan on one machine make the same overlay, bit for bit, and so
    does one that is broken off at any moment and resumed. SIGINT and SIGTERM end the step, keep a snapshot and stop; a
    note of the error says where it is.
    """
    overlay = activate_bundled_embeddings(overlay)
    plan = resolve_validation_folder(plan or Plan.preset(overlay.kind, base.family.name))
    out = check_vacant(out)
    dataset = read_dataset(folder)
    examples = dataset.repeat_examples()
    recipes = _preview_recipes(plan, overlay, examples)
    loop = _create_loop(base, overlay, dataset, plan, over_others=over_others)
    loop.preview_recipes, loop.on_step = recipes, on_step

    team = loop.trainer.team = Team.join(base.device)
    with _attach_overlay(loop.trainer):
        if not team.leads:
            return follow_run(loop.trainer, out)
        header = _log_header(loop.trainer.base, overlay, folder, len(examples)) | {"over_others": over_others}
        with team.lead():
            loop.trainer.broadcast()
            loop.trainer.check_captions()
            loop.begin(out, header | {"processes": team.size}, fingerprint_data(dataset, plan))
            return loop.run()


@torch.inference_mode(mode=False)
@torch.enable_grad()
def resume(
    base: Base,
    run: str | os.PathLike[str],
    *,
    on_step: Callable[[Step], None] | None = None,
    data_changed: bool = False,
) -> Run:
    """Go on with a run that was broken off, from its last snapshot, to the end that it would have had.

    base: the one it began on; raises WrongBase for another. data_changed: go on though the pictures are not those that
    the run began with, which raises BadDataset otherwise.
    """
    team = Team.join(base.device)
    if not team.leads:
        return _resume_as_follower(base, team, Path(run))
    with team.lead():
        run_folder = RunFolder.reopen(run)
        with closing(run_folder.log):
            return _resume_run(base, run_folder, team, on_step, data_changed=data_changed)


def _resume_run(
    base: Base, run_folder: RunFolder, team: Team, on_step: Callable[[Step], None] | None, *, data_changed: bool
) -> Run:
    plan, header = run_folder.plan, run_folder.header
    _check_same_base(base, header)
    _check_process_count(team, header)
    folder = str(header["folder"])
    dataset = read_dataset(folder)
    if not data_changed:
        check_data_unchanged(folder, run_folder.data_fingerprint, fingerprint_data(dataset, plan))
    if not run_folder.snapshots:
        raise BadFile(f"{run_folder.path} has no whole snapshot any more, so the run cannot go on: train anew")
    overlay, over_others = run_folder.snapshots[-1].overlay(), bool(header["over_others"])
    team.call("begin", plan.model_dump_json(), folder, over_others, overlay)
    loop = _create_loop(base, overlay, dataset, plan, over_others=over_others)
    loop.trainer.team = team
    loop.preview_recipes, loop.on_step = _preview_recipes(plan, overlay, dataset.repeat_examples()), on_step
    _warn_if_machine_differs(loop.trainer.base, header)
    with _attach_overlay(loop.trainer):
        loop.resume(run_folder, run_folder.card)
        return loop.run()


def _resume_as_follower(base: Base, team: Team, run: Path) -> Run:
    """Resume a run in a process that does not lead it."""
    start = receive_run_start(team)
    plan = Plan.model_validate_json(start.plan)
    loop = _create_loop(base, start.overlay, read_dataset(start.folder), plan, over_others=start.over_others)
    loop.trainer.team = team
    with _attach_overlay(loop.trainer):
        return follow_run(loop.trainer, run)


def _create_loop(base: Base, overlay: Overlay, dataset: Dataset, plan: Plan, *, over_others: bool) -> TrainingLoop:
    """All that a run needs, but for its folder."""
    frozen = apply_zero_terminal_snr(_freeze_base(base, overlay, plan, over_others=over_others), plan)
    optimizer = _create_optimizer(overlay, plan)
    cache = encode_dataset(frozen, overlay, dataset, plan)
    trainer = Trainer(frozen, overlay, optimizer, cache, plan)
    return TrainingLoop(trainer, create_validation_set(frozen, overlay, dataset, plan, cache))


def check_plan(base: Base, overlay: Overlay, dataset: Dataset, plan: Plan) -> None:
    """Refuse what a training would, before anything is encoded or written."""
    _preview_recipes(plan, overlay, dataset.examples)
    apply_zero_terminal_snr(base, plan)
    _create_optimizer(overlay, plan)
    validation_examples(dataset, plan)


def _create_optimizer(overlay: Overlay, plan: Plan) -> Optimizer:
    optimizer = create_overlay_optimizer(plan, make_trainable(overlay))
    if plan.a1111:
        check_a1111_optimizer(optimizer)
    if plan.tensorboard:
        check_tensorboard_installed()
    return optimizer


def _preview_recipes(plan: Plan, overlay: Overlay, examples: list[Example]) -> list[Recipe]:
    """What previews show: the first caption as it is worded, unless the plan says otherwise."""
    return preview_recipes(plan, plan.caption_template(caption_name(overlay)).draw(examples[0].caption, Random(0)))


def _freeze_base(base: Base, overlay: Overlay, plan: Plan, *, over_others: bool) -> Base:
    """The base in the plan's precision, without other overlays, or with them where that is asked for."""
    if not over_others:
        check_no_overlays_attached(base)
        return frozen_base(base, plan.precision, trains_text="text" in overlay.target_parts)
    frozen = frozen_base(base, plan.precision, trains_text="text" in overlay.target_parts)
    if frozen is not base:  # its UNet is a copy, and no overlay is ever copied along
        raise UnsupportedBase(
            f"{base.name} computes in {_dtype_name(base)} and the plan in {_dtype_name(frozen)}, where other overlays would be "
            f'lost: plan the precision "{_dtype_name(base)}", or open the base in {_dtype_name(frozen)}'
        )
    return frozen


def _log_header(base: Base, overlay: Overlay, folder: str | os.PathLike[str], picture_count: int) -> dict[str, object]:
    """What a run begins with, for its log: all that its plan does not say."""
    return {
        "velatura": version("velatura"),
        "torch": torch.__version__,
        "base": base.name,
        "base_hash": base.hash,
        "base_from": base.opened_from,
        "dtype": _dtype_name(base),
        "device": str(base.device),
        "overlay": overlay.card.model_dump(),
        "folder": str(Path(folder).expanduser().absolute()),
        "pictures": picture_count,
    }


def _check_same_base(base: Base, header: Mapping[str, object]) -> None:
    original = (header["base"], header["base_hash"])
    if (base.hash or original[1]) and base.hash != original[1]:
        raise WrongBase(
            f"the run began on {original[0]} ({original[1] or 'of no file'}), this is {base.name} "
            f"({base.hash or 'of no file'}): open that base to resume it"
        )


def _check_process_count(team: Team, header: Mapping[str, object]) -> None:
    """Refuse more or fewer processes than a run began with, as its batches would be others."""
    original_count = header.get("processes", 1)
    if original_count != team.size:
        raise BadPlan(
            f"the run began in {original_count} processes, these are {team.size}: resume it with --processes {original_count}"
        )


def _warn_if_machine_differs(base: Base, header: Mapping[str, object]) -> None:
    now = {"torch": torch.__version__, "dtype": _dtype_name(base), "device": str(base.device)}
    changes = [f"{name} {header[name]}, now {value}" for name, value in now.items() if header[name] != value]
    if changes:
        message = f"the run began with {'; '.join(changes)}: it goes on, but its end will differ in the last digits"
        warnings.warn(message, VelaturaWarning, stacklevel=3)


def _dtype_name(base: Base) -> str:
    return str(base.dtype).removeprefix("torch.")


@contextmanager
def _attach_overlay(trainer: Trainer) -> Generator[None]:
    """Lay the overlay on, with chance of its own; that a new one changes nothing at first is no news."""
    base = trainer.base
    with _isolate_random_state(base.device), gradient_checkpointing(base, is_enabled=trainer.plan.checkpointing):
        attachment = attach(base, trainer.overlay)
        try:
            yield
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VelaturaWarning)
                attachment.detach()


def _isolate_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Whatever is seeded inside, the user's own random numbers go on afterwards as if nothing had been."""
    devices = [device] if device.type == "cuda" else []
    return cast(
        "AbstractContextManager[None]",
        torch.random.fork_rng(devices),  # pyright: ignore[reportUnknownMemberType]
    )


LEADER_STOPPED = "the training was broken off by the process that leads it, which says why"


class RunStart(NamedTuple):
    """What a process is told of a run that is resumed, as it cannot read the run's folder itself."""

    plan: str
    folder: str
    over_others: bool
    overlay: Overlay


def receive_run_start(team: Team) -> RunStart:
    """What the leading process says of the run that it resumes."""
    name, arguments = team.broadcast(None)
    if name == OVER:
        raise KeyboardInterrupt(LEADER_STOPPED)
    return RunStart(*arguments)


def follow_run(trainer: Trainer, out: Path) -> Run:
    """Learn what the leading process learns; the run's losses and files are there alone."""
    trainer.overlay.train()
    try:
        with catch_signals() as stop:
            trainer.team.stop = stop
            if not trainer.team.follow(trainer):
                raise KeyboardInterrupt(LEADER_STOPPED)
        trainer.finalize_weights()
    finally:
        trainer.overlay.eval()
    return Run(trainer.overlay, out, [], out)
