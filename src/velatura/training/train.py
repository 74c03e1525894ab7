"""Train an overlay of any kind: the base is frozen, the overlay's parameters learn."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple, Unpack

import torch
from torch.optim import Optimizer

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.datasets.folder import Dataset, Example, read_dataset, read_picture
from velatura.errors import BadPlan, UnsupportedBase, ignore_warnings, warn
from velatura.merging.bake.inputs import check_no_overlays_attached
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.sampling.recipe.recipe import Recipe
from velatura.tiny import TINY_HASH
from velatura.tiny_world import describe_limits_of_training, select_judged, words_of
from velatura.training.data.cache import DatasetCache, encode_dataset, training_examples, warn_of_pairs
from velatura.training.data.captions import caption_name
from velatura.training.distributed import Processes
from velatura.training.kinds.a1111_export import check_a1111_optimizer
from velatura.training.kinds.a1111_start import load_a1111_state
from velatura.training.kinds.class_images import make_class_pictures
from velatura.training.kinds.pivotal import prepare_for_training
from velatura.training.loop import TrainingLoop
from velatura.training.loss import apply_zero_terminal_snr
from velatura.training.noise import isolate_random_state
from velatura.training.optimizers import create_overlay_optimizer
from velatura.training.plan import OptimizerName, Plan
from velatura.training.plan_fields import PlanFields
from velatura.training.precision import frozen_base, gradient_checkpointing, make_trainable
from velatura.training.run.end_sheet import look_at_result, sheet_prompts
from velatura.training.run.folder import RunFolder, check_vacant
from velatura.training.run.previews import preview_image, preview_recipes
from velatura.training.run.report import OnStage, Run, Stage, Step
from velatura.training.run.stored_run import StoredRun, dtype_name, log_header, warn_if_machine_differs
from velatura.training.run.tensorboard import check_tensorboard_installed
from velatura.training.trainer import Trainer
from velatura.training.validation import (
    ValidationSet,
    create_validation_set,
    fingerprint_data,
    resolve_validation_folder,
    validation_examples,
)

__all__ = ["Run", "Stage", "Step", "check_plan", "resume", "train", "warn_of_limits"]


@torch.inference_mode(mode=False)
@torch.enable_grad()
@freeze_models
@check_arguments(skip=Plan.model_fields)
def train(
    base: AnyBase,
    overlay: Overlay,
    folder: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    out: str | os.PathLike[str],
    steps: int | None = None,
    learning_rate: str | float | None = None,
    optimizer: OptimizerName | None = None,
    batch_size: int | None = None,
    pixels: int | None = None,
    seed: int | None = None,
    template: str | None = None,
    snapshot_every: int | None = None,
    preview_every: int | None = None,
    preview_prompt: str | None = None,
    class_prompt: str | None = None,
    class_pictures: int = 100,
    over_others: bool = False,
    on_step: Callable[[Step], None] | None = None,
    on_stage: OnStage | None = None,
    **fields: Unpack[PlanFields],
) -> Run:
    """Train an overlay, in place, on a folder of captioned pictures, and write a run folder.

    The base comes out as it went in. Two runs of one plan on one machine make the same overlay, bit for bit, and so
    does a run that is interrupted at any moment and resumed. SIGINT and SIGTERM end the step, keep a snapshot and
    raise KeyboardInterrupt; a note of the error says where the snapshot is. Launched by `accelerate launch` or
    `torchrun`, all processes train one overlay together, each with `batch_size` pictures a step.

    Args:
        base: Stable Diffusion, without other overlays attached.
        overlay: As `Hypernetwork.for_base`, `Lora.for_base`, ... make it, or one that was trained before. A
            hypernetwork from a .pt of A1111's web UI continues with the optimizer's state in the .pt.optim beside it.
        folder: Pictures, each with its caption in a .txt file beside it.
        plan: All options of the training; None: the preset for this kind of overlay on this family of bases. The
            arguments below change fields of it; None leaves a field as it is.
        out: The run folder, new or empty.
        steps: Optimizer steps.
        learning_rate: A number, or several with the steps they hold until: "5e-5:100, 5e-6:1500, 5e-7".
        optimizer: "adamw", "lion", "adafactor", "prodigy", "adamw8bit" or "schedule_free".
        batch_size: Pictures a step.
        pixels: Width and height that pictures are scaled and cropped to.
        seed: All random draws follow from it.
        template: Sentences around the captions: "captions" (none), "style", "subject", "subject_filewords", ...
        snapshot_every: Steps between two snapshots; 0: only when interrupted.
        preview_every: Steps between two previews; 0: none.
        preview_prompt: What previews show, one prompt a line.
        class_prompt: For prior preservation: what the subject is one of, as "a robot". Before the training the base
            generates class pictures of it into the folder's reg/, if fewer are there than `class_pictures`.
        class_pictures: The number of class pictures; only with a class prompt. 100 is the command line's default.
        over_others: Allow other overlays attached to the base, which the new one is then trained on top of.
        on_step: Called after every step.
        on_stage: Called while pictures are prepared, and before previews and the sheet of strengths are painted.
        **fields: All other fields of `Plan`.

    Returns:
        The trained overlay, its file, its losses, its folder, and a verdict to print.

    Raises:
        AlreadyExists: `out` holds something.
        BadPlan: The plan is contradictory, or does not fit the base or the captions.
        BadDataset: The folder has no pictures, or broken ones.
        WrongBase: The overlay does not fit the base.
        UnsupportedBase: Other overlays are attached.
        TrainingDiverged: The loss became NaN or infinite, and lower learning rates did not help.
    """
    base = to_base(base)
    overlay, out = prepare_for_training(overlay), check_vacant(out)
    changes: dict[str, object] = {
        "steps": steps,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "pixels": pixels,
        "seed": seed,
        "template": template,
        "snapshot_every": snapshot_every,
        "preview_every": preview_every,
        "preview_prompt": preview_prompt,
    }
    plan = _change_plan(plan or Plan.preset(overlay.kind, base.family.name), changes, dict(fields))
    _warn_of_range(plan)
    if class_prompt is not None:
        check_no_overlays_attached(base)
        make_class_pictures(base, folder, class_prompt, class_pictures, seed=plan.seed)
    processes = Processes.join(base.device)
    with processes.fail_together():
        dataset = read_dataset(folder)
        warn_of_limits(base, overlay, dataset)
        setup = _set_up(base, overlay, dataset, plan, processes, over_others=over_others, on_stage=on_stage)
        header = {
            **log_header(setup.trainer.base, overlay, folder, len(dataset.repeat_examples())),
            "over_others": over_others,
            "processes": processes.count,
        }
        with _attach_overlay(setup.trainer):
            load_a1111_state(overlay, setup.trainer.optimizer)
            setup.trainer.synchronize()
            _check_captions(overlay, setup.trainer.cache)
            loop = TrainingLoop.begin(
                setup.trainer,
                out,
                header,
                fingerprint_data(dataset, plan),
                validation_set=setup.validation_set,
                preview_recipes=setup.preview_recipes,
                on_step=on_step,
                on_stage=on_stage,
            )
            run = loop.run()
        return look_at_result(run, setup.trainer, setup.sheet_prompts, on_stage)


@torch.inference_mode(mode=False)
@torch.enable_grad()
@freeze_models
@check_arguments()
def resume(
    base: AnyBase,
    run: str | os.PathLike[str],
    *,
    on_step: Callable[[Step], None] | None = None,
    on_stage: OnStage | None = None,
    data_changed: bool = False,
    steps: int | None = None,
) -> Run:
    """Resume an interrupted run from its last snapshot; it ends as it would have without the interruption.

    Args:
        base: The base that the run began on.
        run: The run folder. Of several processes only the main one needs it.
        on_step: Called after every step.
        on_stage: Called while pictures are prepared, and before previews and the sheet of strengths are painted.
        data_changed: Accept pictures or captions that changed since the run began.
        steps: Make the run longer, a finished one too: the steps of the whole run.

    Returns:
        The same as `train` would have returned.

    Raises:
        BadFile: The folder is not a run, or is damaged.
        NoEffect: The run is finished, and no steps are given.
        AlreadyExists: Another process is using the run.
        WrongBase: The run began on another base.
        BadDataset: Pictures or captions changed.
        BadPlan: The run began with another number of processes, or has taken that many steps already.
    """
    base = to_base(base)
    processes, path = Processes.join(base.device), Path(run).expanduser()
    with processes.fail_together():
        folder = RunFolder.reopen(path, may_be_finished=steps is not None) if processes.is_main else None
        with nullcontext() if folder is None else closing(folder.log):
            stored = processes.run_on_main(
                lambda: StoredRun.read(folder, base, processes, data_changed=data_changed, steps=steps)
            )
            dataset = read_dataset(stored.data_folder)
            warn_of_limits(base, stored.overlay, dataset)
            setup = _set_up(
                base,
                stored.overlay,
                dataset,
                stored.plan,
                processes,
                over_others=stored.over_others,
                on_stage=on_stage,
            )
            warn_if_machine_differs(setup.trainer.base, stored.header)
            with _attach_overlay(setup.trainer):
                loop = TrainingLoop.resume(
                    setup.trainer,
                    path,
                    folder,
                    validation_set=setup.validation_set,
                    preview_recipes=setup.preview_recipes,
                    on_step=on_step,
                    on_stage=on_stage,
                )
                finished_run = loop.run()
            return look_at_result(finished_run, setup.trainer, setup.sheet_prompts, on_stage)


def check_plan(base: Base, overlay: Overlay, dataset: Dataset, plan: Plan) -> None:
    """Refuse what a training would refuse, and warn of the plan as it would, before anything is encoded or written.

    Pictures and captions, which are the same in every plan, are judged by `warn_of_limits`.
    """
    _warn_of_range(plan)
    _preview_recipes(plan, overlay, dataset.examples)
    apply_zero_terminal_snr(base, plan)
    _create_optimizer(overlay, plan)
    validation_examples(dataset, plan)


class Setup(NamedTuple):
    """Trainer, validation pictures and recipes: all that a training needs besides its run folder.

    Attributes:
        trainer: The overlay with its optimizer.
        validation_set: The validation pictures.
        preview_recipes: Recipes of the previews.
        sheet_prompts: Prompts of the sheet of strengths.
    """

    trainer: Trainer
    validation_set: ValidationSet | None
    preview_recipes: Sequence[Recipe]
    sheet_prompts: Sequence[str]


def _change_plan(plan: Plan, changes: Mapping[str, object], fields: Mapping[str, object]) -> Plan:
    """Return the plan with those changes that are not None, and with all fields."""
    changed = {**{name: value for name, value in changes.items() if value is not None}, **fields}
    return resolve_validation_folder(plan.replace(**changed) if changed else plan)


def _warn_of_range(plan: Plan) -> None:
    for message in plan.range_warnings():
        warn(message)


def _set_up(
    base: Base,
    overlay: Overlay,
    dataset: Dataset,
    plan: Plan,
    processes: Processes,
    *,
    over_others: bool,
    on_stage: OnStage | None,
) -> Setup:
    """Freeze the base, make the optimizer, and encode pictures and captions."""
    recipes = _preview_recipes(plan, overlay, dataset.repeat_examples())
    warn_of_pairs(base, dataset)
    prompts = sheet_prompts(plan, overlay, dataset.examples, recipes)
    frozen = apply_zero_terminal_snr(_freeze_base(base, overlay, plan, over_others=over_others), plan)
    optimizer = _create_optimizer(overlay, plan)
    cache = encode_dataset(frozen, overlay, dataset, plan, _picture_counter(dataset, plan, on_stage))
    validation_set = create_validation_set(frozen, overlay, dataset, plan, cache)
    image = preview_image(frozen, dataset.repeat_examples()[0])
    trainer = Trainer(frozen, overlay, optimizer, cache, plan, processes, image)
    return Setup(trainer, validation_set, recipes, prompts)


def warn_of_limits(base: Base, overlay: Overlay, dataset: Dataset) -> None:
    """Warn of captions and pictures that are outside what the tiny base knows."""
    if base.hash != TINY_HASH:
        return
    learned = words_of(" ".join([overlay.card.name, *overlay.card.trigger_words]))
    captions = [example.caption for example in dataset.examples]
    with ignore_warnings():  # of pictures, which are read again
        pictures = [
            read_picture(example.path, base.family.default_pixels) for example in select_judged(dataset.examples)
        ]
    for limit in describe_limits_of_training(captions, learned, pictures):
        warn(limit)


def _picture_counter(dataset: Dataset, plan: Plan, on_stage: OnStage | None) -> Callable[[], None]:
    """Return what is called after every encoded picture, and reports the stage "preparing pictures"."""
    examples = [*training_examples(dataset, plan), *(dataset.regularisation if plan.class_weight else [])]
    total, done = len({(example.path, example.is_mirrored) for example in examples}), count(1)

    def report() -> None:
        if on_stage:
            on_stage(Stage("preparing pictures", next(done), total))

    return report


def _create_optimizer(overlay: Overlay, plan: Plan) -> Optimizer:
    optimizer = create_overlay_optimizer(plan, make_trainable(overlay))
    if plan.a1111:
        check_a1111_optimizer(optimizer, plan.patience)
    if plan.tensorboard:
        check_tensorboard_installed()
    return optimizer


def _preview_recipes(plan: Plan, overlay: Overlay, examples: Sequence[Example]) -> list[Recipe]:
    """Return the recipes of previews; without a preview prompt they show the first caption in the plan's template."""
    return preview_recipes(plan, plan.caption_template(caption_name(overlay)).draw(examples[0].caption, Random(0)))


def _freeze_base(base: Base, overlay: Overlay, plan: Plan, *, over_others: bool) -> Base:
    """Return the base in the plan's precision, and refuse other overlays on it unless they are asked for."""
    if not over_others:
        check_no_overlays_attached(base)
    frozen = frozen_base(base, plan.precision, trains_text="text" in overlay.target_parts)
    if over_others and frozen is not base:  # its UNet is a copy, and overlays are not copied with it
        ours, planned = dtype_name(base), dtype_name(frozen)
        raise UnsupportedBase(
            f"{base.name} computes in {ours} and the plan in {planned}, where the other overlays would be lost: "
            f'plan the precision "{ours}", or open the base in {planned}'
        )
    return frozen


def _check_captions(overlay: Overlay, cache: DatasetCache) -> None:
    """Refuse captions that never name an overlay, or a part of it, which acts only where a prompt names it."""
    parameters = overlay.trainable_parameters
    word_vectors = [weight for name, weight in parameters.items() if overlay.part_of(name) == "words"]
    if not word_vectors and "unet" not in overlay.target_parts:
        word_vectors = list(parameters.values())
    if not word_vectors:
        return
    is_named = any(
        bucket.captions.is_affected_by(word_vectors, picture)
        for bucket in cache.buckets
        for picture in range(bucket.captions.picture_count)
    )
    if not is_named:
        name = caption_name(overlay)
        raise BadPlan(
            f"no caption contains {name!r}, so nothing would be trained: plan a template with [name] in it, "
            f'as style_filewords or subject_filewords, or write "{name}" into the captions'
        )


@contextmanager
def _attach_overlay(trainer: Trainer) -> Generator[None]:
    """Attach the overlay, and give the training random numbers of its own."""
    base = trainer.base
    with isolate_random_state(base.device), gradient_checkpointing(base, is_enabled=trainer.plan.checkpointing):
        attachment = attach(base, trainer.overlay)
        try:
            yield
        finally:
            with ignore_warnings():  # a new overlay changes nothing at first
                attachment.detach()
