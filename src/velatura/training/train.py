"""Training, for every kind of overlay: the base is frozen, the overlay's parameters learn."""

import os
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import cast

import torch
from torch.optim import Optimizer

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, Example, read_dataset
from velatura.errors import BadFile, BadPlan, UnsupportedBase, VelaturaWarning, WrongBase
from velatura.merging.chain import refuse_laid_over
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.sampling.recipe import Recipe
from velatura.training.a1111 import refuse_unknown
from velatura.training.board import refuse_missing
from velatura.training.checkpointing import checkpointed
from velatura.training.class_pictures import encode_lessons
from velatura.training.course import Course, Run, Step
from velatura.training.examined import data_of, examination_of, examined_apart, settled
from velatura.training.fingerprint import refuse_changed
from velatura.training.following import followed, heard_beginning
from velatura.training.optimizers import optimizer_for
from velatura.training.pivotal import learner
from velatura.training.plan import Plan
from velatura.training.precision import frozen_base, learnable
from velatura.training.predicting import scheduled
from velatura.training.previews import preview_recipes
from velatura.training.processes import Team
from velatura.training.pupil import Pupil
from velatura.training.run import RunFolder, vacant
from velatura.training.speech import name_of

__all__ = ["Run", "Step", "refuse_unfit", "resume", "train"]


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
    overlay = learner(overlay)
    plan = settled(plan or Plan.preset(overlay.kind, base.family.name))
    out = vacant(out)
    dataset = read_dataset(folder)
    examples = dataset.repeated()
    recipes = _recipes(plan, overlay, examples)
    course = _course(base, overlay, dataset, plan, over_others=over_others)
    course.recipes, course.on_step = recipes, on_step

    team = course.pupil.team = Team.joined(base.device)
    with _laid(course.pupil):
        if not team.leads:
            return followed(course.pupil, out)
        beginning = _beginning(course.pupil.base, overlay, folder, len(examples)) | {"over_others": over_others}
        with team.led():
            course.pupil.share()
            course.pupil.refuse_unheard()
            course.begin(out, beginning | {"processes": team.size}, data_of(dataset, plan))
            return course.run()


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
    team = Team.joined(base.device)
    if not team.leads:
        return _followed(base, team, Path(run))
    with team.led():
        kept = RunFolder.reopen(run)
        with closing(kept.log):
            return _resumed(base, kept, team, on_step, data_changed=data_changed)


def _resumed(
    base: Base, kept: RunFolder, team: Team, on_step: Callable[[Step], None] | None, *, data_changed: bool
) -> Run:
    plan, beginning = kept.plan, kept.beginning
    _refuse_other_base(base, beginning)
    _refuse_other_count(team, beginning)
    folder = str(beginning["folder"])
    dataset = read_dataset(folder)
    if not data_changed:
        refuse_changed(folder, kept.data, data_of(dataset, plan))
    if not kept.snapshots:
        raise BadFile(f"{kept.path} has no whole snapshot any more, so the run cannot go on: train anew")
    overlay, over_others = kept.snapshots[-1].overlay(), bool(beginning["over_others"])
    team.call("begin", plan.model_dump_json(), folder, over_others, overlay)
    course = _course(base, overlay, dataset, plan, over_others=over_others)
    course.pupil.team = team
    course.recipes, course.on_step = _recipes(plan, overlay, dataset.repeated()), on_step
    _warn_of_other_machine(course.pupil.base, beginning)
    with _laid(course.pupil):
        course.go_on(kept, kept.card)
        return course.run()


def _followed(base: Base, team: Team, run: Path) -> Run:
    """Resume a run in a process that does not lead it."""
    begun = heard_beginning(team)
    plan = Plan.model_validate_json(begun.plan)
    course = _course(base, begun.overlay, read_dataset(begun.folder), plan, over_others=begun.over_others)
    course.pupil.team = team
    with _laid(course.pupil):
        return followed(course.pupil, run)


def _course(base: Base, overlay: Overlay, dataset: Dataset, plan: Plan, *, over_others: bool) -> Course:
    """All that a run needs, but for its folder."""
    frozen = scheduled(_frozen(base, overlay, plan, over_others=over_others), plan)
    optimizer = _optimizer(overlay, plan)
    cache = encode_lessons(frozen, overlay, dataset, plan)
    pupil = Pupil(frozen, overlay, optimizer, cache, plan)
    return Course(pupil, examination_of(frozen, overlay, dataset, plan, cache))


def refuse_unfit(base: Base, overlay: Overlay, dataset: Dataset, plan: Plan) -> None:
    """Refuse what a training would, before anything is encoded or written."""
    _recipes(plan, overlay, dataset.examples)
    scheduled(base, plan)
    _optimizer(overlay, plan)
    examined_apart(dataset, plan)


def _optimizer(overlay: Overlay, plan: Plan) -> Optimizer:
    optimizer = optimizer_for(plan, learnable(overlay))
    if plan.a1111:
        refuse_unknown(optimizer)
    if plan.tensorboard:
        refuse_missing()
    return optimizer


def _recipes(plan: Plan, overlay: Overlay, examples: list[Example]) -> list[Recipe]:
    """What previews show: the first caption as it is worded, unless the plan says otherwise."""
    return preview_recipes(plan, plan.wording(name_of(overlay)).draw(examples[0].caption, Random(0)))


def _frozen(base: Base, overlay: Overlay, plan: Plan, *, over_others: bool) -> Base:
    """The base in the plan's precision, without other overlays, or with them where that is asked for."""
    if not over_others:
        refuse_laid_over(base)
        return frozen_base(base, plan.precision, learns_text="text" in overlay.touches)
    frozen = frozen_base(base, plan.precision, learns_text="text" in overlay.touches)
    if frozen is not base:  # its UNet is a copy, and no overlay is ever copied along
        raise UnsupportedBase(
            f"{base.name} computes in {_dtype(base)} and the plan in {_dtype(frozen)}, where other overlays would be "
            f'lost: plan the precision "{_dtype(base)}", or open the base in {_dtype(frozen)}'
        )
    return frozen


def _beginning(base: Base, overlay: Overlay, folder: str | os.PathLike[str], picture_count: int) -> dict[str, object]:
    """What a run begins with, for its log: all that its plan does not say."""
    return {
        "velatura": version("velatura"),
        "torch": torch.__version__,
        "base": base.name,
        "base_hash": base.hash,
        "base_from": base.opened_from,
        "dtype": _dtype(base),
        "device": str(base.device),
        "overlay": overlay.card.model_dump(),
        "folder": str(Path(folder).expanduser().absolute()),
        "pictures": picture_count,
    }


def _refuse_other_base(base: Base, beginning: Mapping[str, object]) -> None:
    began = (beginning["base"], beginning["base_hash"])
    if (base.hash or began[1]) and base.hash != began[1]:
        raise WrongBase(
            f"the run began on {began[0]} ({began[1] or 'of no file'}), this is {base.name} "
            f"({base.hash or 'of no file'}): open that base to resume it"
        )


def _refuse_other_count(team: Team, beginning: Mapping[str, object]) -> None:
    """Refuse more or fewer processes than a run began with, as its batches would be others."""
    began = beginning.get("processes", 1)
    if began != team.size:
        raise BadPlan(f"the run began in {began} processes, these are {team.size}: resume it with --processes {began}")


def _warn_of_other_machine(base: Base, beginning: Mapping[str, object]) -> None:
    now = {"torch": torch.__version__, "dtype": _dtype(base), "device": str(base.device)}
    others = [f"{name} {beginning[name]}, now {each}" for name, each in now.items() if beginning[name] != each]
    if others:
        said = f"the run began with {'; '.join(others)}: it goes on, but its end will differ in the last digits"
        warnings.warn(said, VelaturaWarning, stacklevel=3)


def _dtype(base: Base) -> str:
    return str(base.dtype).removeprefix("torch.")


@contextmanager
def _laid(pupil: Pupil) -> Generator[None]:
    """Lay the overlay on, with chance of its own; that a new one changes nothing at first is no news."""
    base = pupil.base
    with _own_chance(base.device), checkpointed(base, wanted=pupil.plan.checkpointing):
        laid = attach(base, pupil.overlay)
        try:
            yield
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VelaturaWarning)
                laid.detach()


def _own_chance(device: torch.device) -> AbstractContextManager[None]:
    """Whatever is seeded inside, the user's own random numbers go on afterwards as if nothing had been."""
    devices = [device] if device.type == "cuda" else []
    return cast(
        "AbstractContextManager[None]",
        torch.random.fork_rng(devices),  # pyright: ignore[reportUnknownMemberType]
    )
