"""Prepare and run a training from the command line, for every kind: print the plan, train, print the result."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Self

import velatura
from velatura.cli.base import open_base, refuse_unknown_base
from velatura.cli.screen import say
from velatura.cli.train.options import CAPTION_PANEL, OUTPUT_PANEL, TRAINING_PANEL, TrainOptions
from velatura.cli.train.progress import training_progress
from velatura.datasets.folder import read_dataset, read_picture
from velatura.errors import BadPlan, gather_warnings, quantity
from velatura.training.run.recorded_base import base_location
from velatura.training.run.verdict import command_line

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.datasets.folder import Dataset
    from velatura.overlays.overlay import Overlay
    from velatura.training.plan import Plan
    from velatura.training.train import Run


MAX_NAMES_SHOWN = 10  # of pictures without a text file
PROBE_PIXELS = 16  # pixels: enough to read a picture to its end and see whether it is whole


@dataclass(frozen=True)
class TrainSession:
    """A training ready to run: the base is open, and every picture can be read."""

    base: Base
    name: str
    folder: Path
    plan: Plan
    out: Path
    dry_run: bool

    @classmethod
    def prepare(cls, kind: str, folder: Path, options: TrainOptions, **kind_fields: object) -> Self:
        """Check the folders, print what they hold, open the base and build the plan.

        What is known without the base is printed before torch is imported, which takes seconds.

        Args:
            kind: The kind of overlay, as "lora".
            folder: The pictures.
            options: The options that every kind has.
            kind_fields: Plan fields of this kind alone; None means the preset's value.
        """
        from velatura.training.run.folder import check_vacant, file_name

        name = options.name or (folder.stem if folder.is_file() else folder.absolute().name)
        out = check_vacant(options.out or Path("runs", file_name(name)))
        if options.plan and options.purpose:
            raise BadPlan("--for chooses a preset, and --plan takes the place of one: give one of them")
        given_plan = None if options.plan is None else velatura.Plan.from_file(options.plan)
        dataset = read_dataset(folder)
        with gather_warnings():
            for example in [*dataset.examples, *dataset.regularisation]:
                for path in filter(None, (example.path, example.before)):
                    read_picture(path, PROBE_PIXELS)
        library = velatura.Library(*(options.library or [Path()]))
        refuse_unknown_base(options.base, library)
        _print_folders(folder, dataset, out)
        base = open_base(options.base, library, options.load_options)
        preset = given_plan or velatura.Plan.preset(kind, base.family.name, options.purpose or "style")
        if options.optimizer == "prodigy":
            preset = preset.replace(text_rate=None, word_rate=None)  # it finds one rate for all parameters
        given_fields = {field: value for field, value in kind_fields.items() if value is not None}
        return cls(base, name, folder, preset.replace(**(given_fields | options.plan_fields())), out, options.dry_run)

    def prompt(self, overlay: Overlay) -> str:
        """Return a prompt for the trained overlay: the first caption, in the plan's template."""
        from velatura.training.data.captions import caption_name

        caption = read_dataset(self.folder).examples[0].caption
        return self.plan.caption_template(caption_name(overlay)).draw(caption, Random(0))

    def run(self, overlay: Overlay) -> Run | None:
        """Print the plan with an estimate of time and memory, train, and print where the result is."""
        from velatura.training.estimate import estimate
        from velatura.training.train import check_plan, warn_of_limits

        dataset = read_dataset(self.folder)
        rows = {
            "overlay": f"{overlay.card.name}, {overlay.card}, {quantity(_parameter_count(overlay), 'parameter')}",
            "base": f"{self.base.name} {self.base.hash}",
            **_picture_rows(dataset, self.plan),
        }
        for label, value in rows.items():
            say(f"{label:21}{value}")
        say(*plan_lines(self.plan, is_full=self.dry_run))
        if self.dry_run:
            check_plan(self.base, overlay, dataset, self.plan)
            warn_of_limits(self.base, overlay, dataset)
        say(f"{'takes':21}{estimate(self.base, overlay, self.plan)}")
        if self.dry_run:
            return None
        with training_progress() as progress:
            run = velatura.train(
                self.base,
                overlay,
                self.folder,
                self.plan,
                out=self.out,
                on_step=progress.on_step,
                on_stage=progress.on_stage,
            )
        print_run(run)
        strength = 1 if run.verdict is None or run.verdict.strength is None else run.verdict.strength
        is_called_by_name = overlay.kind == "embedding" and strength == 1
        tag = "" if is_called_by_name else f" <{overlay.kind}:{run.file.stem}:{strength:g}>"
        location = base_location(self.base.opened_from, self.base.name, self.base.open_options)
        words = ["--library", self.out, *self.base.open_options.command_words(location)]
        say(f"try:  {command_line('velatura', 'generate', self.prompt(overlay) + tag, *words)}")
        return run


def print_run(run: Run) -> None:
    """Print where the overlay of a finished run is, and the run's verdict."""
    say(f"{run.file}: {run.overlay.card}", *str(run.verdict).splitlines())


def _parameter_count(overlay: Overlay) -> int:
    return sum(weight.numel() for weight in overlay.parameters())


def _caption_row(dataset: Dataset) -> str:
    """Return how many pictures have no text file, so that their name is their caption, and which."""
    names = [example.path.name for example in dataset.examples if example.is_caption_from_name]
    more = f", and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return f"from file names: {len(names)}" + (f" ({', '.join(names[:MAX_NAMES_SHOWN])}{more})" if names else "")


def _print_folders(folder: Path, dataset: Dataset, out: Path) -> None:
    """Print the folders of the pictures and of the run at once, whatever reads what is printed."""
    rows = {
        "folder": f"{folder}, {quantity(len(dataset.repeat_examples()), 'picture')}",
        "captions": _caption_row(dataset),
        "out": out,
    }
    say(*(f"{label:21}{value}" for label, value in rows.items()))
    sys.stdout.flush()


def _picture_rows(dataset: Dataset, plan: Plan) -> dict[str, str]:
    """Return rows about the training: how often each picture is seen, and by how many processes."""
    from velatura.training.data.cache import training_examples
    from velatura.training.distributed import process_count

    examples, processes = training_examples(dataset, plan), process_count()
    times_seen = plan.rates().end * plan.batch_size * plan.accumulation * processes / len(examples)
    pictures = "picture and each mirror image" if any(example.is_mirrored for example in examples) else "picture"
    rows = {"seen": f"each {pictures} {round(times_seen, 1):g} times"}
    if processes > 1:
        rows["processes"] = f"{processes}, each with pictures of its own at every step"
    if dataset.regularisation:
        rows["class pictures"] = f"{len(dataset.regularisation)}"
    return rows


FIRST_FIELDS = (
    "learning_rate",
    "optimizer",
    "batch_size",
    "accumulation",
    "template",
    "caption_dropout",
    "snapshot_every",
)
FIELD_GROUPS = {
    TRAINING_PANEL: (
        *("text_rate", "word_rate", "schedule", "warmup", "cycles", "weight_decay", "gradient_norm", "ema"),
        *("pixels", "shape", "precision", "checkpointing", "seed"),
    ),
    "Loss and noise": (
        *("loss", "huber_threshold", "huber_schedule", "min_snr", "debiased", "inverse_snr", "timestep_bias"),
        *(
            "noise_offset",
            "pyramid_noise",
            "input_perturbation",
            "velocity_as_noise",
            "noise_as_velocity",
            "zero_terminal_snr",
        ),
        *("masks", "class_weight", "latents", "flip"),
    ),
    CAPTION_PANEL: ("shuffle_tags", "tag_dropout", "keep_tags", "caption_lines", "image_dropout"),
    OUTPUT_PANEL: (
        *(
            "keep_last",
            "keep_every",
            "validation_pictures",
            "validation_folder",
            "patience",
            "rescues",
            "rescue_factor",
        ),
        *("loss_limit", "preview_every", "preview_prompt", "preview_seeds", "end_sheet", "tune"),
        *("cache", "a1111", "tensorboard"),
    ),
}


def plan_lines(plan: Plan, *, is_full: bool) -> Iterator[str]:
    """Yield a line for each plan field, by the name that --set takes; is_full: also fields with their defaults."""
    yield f"{'steps':21}{_steps_text(plan)}"
    for field in FIRST_FIELDS:
        yield f"{field:21}{_field_line(plan, field)}"
    for group, fields in FIELD_GROUPS.items():
        shown = [field for field in fields if is_full or getattr(plan, field) != type(plan).model_fields[field].default]
        if shown:
            yield f"{group}:" if is_full else f"{group}, besides:"
        yield from (f"  {field:19}  {_field_line(plan, field)}" for field in shown)


def _field_line(plan: Plan, field: str) -> str:
    """Return the value of a field and its description."""
    value = getattr(plan, field)
    text = "none" if value is None else " | ".join(str(value).splitlines())
    return f"{text:14}  {type(plan).model_fields[field].description}"


def _steps_text(plan: Plan) -> str:
    end = plan.rates().end
    return f"{end}" if end == plan.steps else f"{end}, where the rate ends, not {plan.steps}"
