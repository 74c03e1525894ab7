"""Define the options that every `velatura train KIND` has."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from velatura.base.families import PredictionWord
from velatura.cli.base import (
    TEXT_ENCODER_FLAG,
    LoadOptions,
    base_option,
    part_option,
    prediction_option,
    zero_snr_option,
)
from velatura.cli.options import set_signature
from velatura.datasets.templates import TEMPLATES, CaptionLines, template_lines
from velatura.errors import BadDataset, BadPlan
from velatura.files import suggest_similar
from velatura.tiny import bundled_picture_sets, tiny_pictures

OVERLAY_PANEL, CAPTION_PANEL, TRAINING_PANEL, OUTPUT_PANEL = (
    "Overlay and base",
    "Captions of pictures",
    "Training steps",
    "Output files",
)


def bundled_or_given(folder: Path) -> Path:
    """Return the folder of a bundled set of pictures, such as neon, unless a folder of this name exists."""
    if folder.exists() or folder.name != str(folder):
        return folder
    names = bundled_picture_sets()
    if folder.name in names:
        return tiny_pictures(folder.name)
    raise BadDataset(
        f"{folder} does not exist{suggest_similar(folder, names)}: name a folder of pictures, with a .txt file of the "
        f"caption beside each, or one of "
        f"the bundled sets {', '.join(names)}"
    )


Folder = Annotated[
    Path,
    typer.Argument(
        help="Pictures, each with its caption in a .txt file beside it; or a bundled set: neon, blueprint, robot.",
        callback=bundled_or_given,
    ),
]
LibraryFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--library", help="Folders in which --base is found.", rich_help_panel=OVERLAY_PANEL, show_default="this folder"
    ),
]


def option(
    help_text: str,
    panel: str,
    *flags: str,
    default: str | bool = True,
    callback: Callable[[Any], Any] | None = None,
) -> Any:
    """Return an option in a panel of the help.

    Args:
        help_text: What it does.
        panel: The panel.
        flags: Its flags, if they are not made of the parameter's name.
        default: The default in words, where the plan's preset has it.
        callback: Checks its value while the command line is parsed, and returns it.
    """
    return typer.Option(*flags, help=help_text, rich_help_panel=panel, show_default=default, callback=callback)


def processes_option(panel: str) -> Any:
    """Return the option --processes; the process that starts the others never runs the command itself."""
    help_text = "Processes that train together, one for each GPU, each with --batch pictures a step."
    return typer.Option("--processes", help=help_text, rich_help_panel=panel, callback=_launch_processes)


def _launch_processes(context: typer.Context, count: int) -> int:
    from velatura.cli.train.processes import launch
    from velatura.training.distributed import process_count

    if count == 1 or process_count() > 1:
        return count
    raise typer.Exit(launch(context.find_root().obj, count))


@dataclass(frozen=True)
class TrainOptions:
    """Options of every training; None means the preset's value."""

    base: Annotated[str, base_option(OVERLAY_PANEL)] = "tiny"
    unet: Annotated[Path | None, part_option("unet", OVERLAY_PANEL)] = None
    text_encoder: Annotated[list[Path] | None, part_option("text", OVERLAY_PANEL, TEXT_ENCODER_FLAG)] = None
    vae: Annotated[Path | None, part_option("vae", OVERLAY_PANEL)] = None
    prediction: Annotated[PredictionWord | None, prediction_option(OVERLAY_PANEL)] = None
    zero_snr: Annotated[bool | None, zero_snr_option(OVERLAY_PANEL)] = None
    library: LibraryFolders = None
    name: Annotated[str | None, option("What the overlay is called.", OVERLAY_PANEL, default="the folder's name")] = (
        None
    )
    template: Annotated[
        str | None,
        option(
            "Sentences around the captions: captions, style, subject, subject_filewords, ..., or a text file.",
            CAPTION_PANEL,
            default="preset",
        ),
    ] = None
    shuffle_tags: Annotated[
        bool | None,
        option("Bring the parts between commas into another order each time.", CAPTION_PANEL, default="preset"),
    ] = None
    tag_dropout: Annotated[
        str | None, option("Share of the parts between commas left out, 0.1 or 10%.", CAPTION_PANEL, default="preset")
    ] = None
    keep_tags: Annotated[
        int | None, option("First parts that are never moved or left out.", CAPTION_PANEL, default="preset")
    ] = None
    caption_lines: Annotated[
        CaptionLines | None,
        option("Of captions with several lines: all, the first, or one at random.", CAPTION_PANEL, default="preset"),
    ] = None
    caption_dropout: Annotated[
        str | None, option("Share of captions left out altogether, 0.1 or 10%.", CAPTION_PANEL, default="preset")
    ] = None
    steps: Annotated[int | None, option("Steps of the optimizer.", TRAINING_PANEL, default="preset")] = None
    rate: Annotated[
        str | None, option('Learning rate, or several: "5e-5:100, 5e-6".', TRAINING_PANEL, default="preset")
    ] = None
    schedule: Annotated[
        str | None, option("Shape of the rate: constant, cosine, ...", TRAINING_PANEL, default="preset")
    ] = None
    warmup: Annotated[int | None, option("Steps in which the rate rises from 0.", TRAINING_PANEL, default="preset")] = (
        None
    )
    optimizer: Annotated[str | None, option("adamw, lion, adafactor, ...", TRAINING_PANEL, default="preset")] = None
    batch: Annotated[int | None, option("Pictures a step.", TRAINING_PANEL, default="preset")] = None
    pixels: Annotated[int | None, option("Pictures are cut to this size.", TRAINING_PANEL, default="the base's")] = None
    shape: Annotated[
        str | None,
        option("Square, or buckets: each in the nearest of several sizes.", TRAINING_PANEL, default="square"),
    ] = None
    min_snr: Annotated[float | None, option("Min-SNR weighting; 5 is usual.", TRAINING_PANEL)] = None
    precision: Annotated[
        str | None, option("Of the frozen base: float32, bfloat16.", TRAINING_PANEL, default="auto")
    ] = None
    seed: Annotated[int | None, option("All chance is drawn from it.", TRAINING_PANEL, default="0")] = None
    plan: Annotated[
        Path | None,
        option("A plan to begin with: the plan.json of a run, or its folder.", TRAINING_PANEL, default="the preset"),
    ] = None
    purpose: Annotated[
        str | None,
        option("Which preset: style or subject.", TRAINING_PANEL, "--for", default="style, of dreambooth subject"),
    ] = None
    set_: Annotated[
        list[str] | None, option("Any other field of the plan, as ema=0.999; see --dry-run.", TRAINING_PANEL, "--set")
    ] = None
    out: Annotated[Path | None, option("The run's folder, a new one.", OUTPUT_PANEL, default="runs/NAME")] = None
    snapshot_every: Annotated[
        int | None, option("Steps between snapshots, 0: only when stopped.", OUTPUT_PANEL, default="preset")
    ] = None
    patience: Annotated[
        int | None,
        option("End after so many snapshots without a lower validation loss.", TRAINING_PANEL, default="never"),
    ] = None
    preview_every: Annotated[
        int | None, option("Steps between preview pictures, 0: none.", OUTPUT_PANEL, default="0")
    ] = None
    preview: Annotated[
        list[str] | None,
        option("What previews show; give several for a column each.", OUTPUT_PANEL, default="the first caption"),
    ] = None
    cache: Annotated[
        bool | None,
        option(
            "Keep encoded pictures and captions for the next run, or encode them anew.",
            OUTPUT_PANEL,
            "--cache/--no-cache",
            default="cache",
        ),
    ] = None
    tune: Annotated[
        bool | None,
        option(
            "At the end find the strength that serves best, and write it beside the overlay.",
            OUTPUT_PANEL,
            "--tune/--no-tune",
            default="where it is cheap",
        ),
    ] = None
    dry_run: Annotated[bool, option("Print the plan and stop.", OUTPUT_PANEL, "--dry-run")] = False
    processes: Annotated[int, processes_option(TRAINING_PANEL)] = 1

    @property
    def load_options(self) -> LoadOptions:
        """Return the options of opening the base."""
        return LoadOptions(
            vae=self.vae,
            prediction=self.prediction,
            zero_snr=self.zero_snr,
            unet=self.unet,
            text=tuple(self.text_encoder or ()),
        )

    def plan_fields(self) -> dict[str, object]:
        """Return the plan fields that were set, by the plan's names."""
        same_names = (
            *("template", "shuffle_tags", "tag_dropout", "keep_tags", "caption_lines", "caption_dropout"),
            *("steps", "schedule"),
        )
        more_same_names = (
            "warmup",
            "optimizer",
            "pixels",
            "shape",
            "min_snr",
            "precision",
            "seed",
            "snapshot_every",
            "patience",
            "preview_every",
            "cache",
            "tune",
        )
        preview_prompt = "\n".join(self.preview or []) or None
        renamed: dict[str, object] = {
            "learning_rate": self.rate,
            "batch_size": self.batch,
            "preview_prompt": preview_prompt,
        }
        values = renamed | {name: getattr(self, name) for name in (*same_names, *more_same_names)}
        if self.template:
            values["template"] = _resolve_template(self.template)
        return {field: value for field, value in values.items() if value is not None} | parse_assignments(
            self.set_ or []
        )


def train_options(command: Callable[..., None]) -> Callable[..., None]:
    """Fill a command's parameter `options`, a TrainOptions, from one option for each of its fields."""
    hints = get_type_hints(TrainOptions, include_extras=True)

    @wraps(command)
    def with_options(**values: Any) -> None:
        command(
            options=TrainOptions(**{field.name: values.pop(field.name) for field in fields(TrainOptions)}), **values
        )

    parameters = {
        field.name: inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(TrainOptions)
        if field.default is not MISSING
    }
    before = [parameters.pop(name) for name in ("base", "library", "name")]
    set_signature(with_options, command, replaced="options", before=before, after=[*parameters.values()])
    return with_options


def _resolve_template(template: str) -> str:
    """Return the template as the plan stores it: its name, or the lines of a file, which may change before a resume."""
    return template if template in TEMPLATES or "[" in template else "\n".join(template_lines(template))


def parse_assignments(assignments: Sequence[str]) -> dict[str, str | None]:
    """Return the assignments of --set by field."""
    pairs = [assignment.partition("=") for assignment in assignments]
    for field, sign, _ in pairs:
        if not (field and sign):
            raise BadPlan(
                f'"--set {field}" has no field and value: write a field of the plan and its value, "--set ema=0.999"'
            )
    return {field: None if value == "none" and _is_optional(field) else value for field, _, value in pairs}


def _is_optional(field: str) -> bool:
    from velatura.training.plan import Plan

    return field in Plan.model_fields and type(None) in get_args(Plan.model_fields[field].annotation)


def refuse_options_without(required: str, value: object, options: Mapping[str, object]) -> None:
    """Refuse options that have no meaning without the required one; None means not given."""
    if not value and (dependent := [name for name, option_value in options.items() if option_value is not None]):
        raise typer.BadParameter(f"{dependent[0]} has no meaning without {required}: add {required}, or leave it out")
