"""What every kind of training can be told on the command line, written once for all its verbs."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from velatura.cli.base import base_option
from velatura.cli.training_processes import processes_option
from velatura.datasets.templates import TEMPLATES, template_lines
from velatura.errors import BadPlan

WHAT, SAID, HOW, KEPT = "What is trained", "What is said of the pictures", "How it learns", "What is kept"

Folder = Annotated[Path, typer.Argument(help="Pictures, each with its caption in a .txt file beside it.")]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--library", help="Folders in which --base is found.", rich_help_panel=WHAT, show_default="this folder"
    ),
]


def option(help_text: str, panel: str, *flags: str, shown: str | bool = True) -> Any:
    """An option in a panel of the help; shown: its default in words, where the plan's preset has it."""
    return typer.Option(*flags, help=help_text, rich_help_panel=panel, show_default=shown)


@dataclass(frozen=True)
class Asked:
    """What a command line asks of any training; None stands for what the preset says."""

    base: Annotated[str, base_option(WHAT)] = "tiny"
    library: Folders = None
    name: Annotated[str | None, option("What the overlay is called.", WHAT, shown="the folder's name")] = None
    template: Annotated[
        str | None,
        option(
            "Sentences around the captions: captions, style, subject, subject_filewords, ..., or a text file.",
            SAID,
            shown="preset",
        ),
    ] = None
    shuffle_tags: Annotated[
        bool | None, option("Bring the parts between commas into another order each time.", SAID, shown="preset")
    ] = None
    tag_dropout: Annotated[
        float | None, option("Share of the parts between commas left out.", SAID, shown="preset")
    ] = None
    keep_tags: Annotated[int | None, option("First parts that are never moved or left out.", SAID, shown="preset")] = (
        None
    )
    caption_dropout: Annotated[float | None, option("Share of captions left out altogether.", SAID, shown="preset")] = (
        None
    )
    steps: Annotated[int | None, option("Steps of the optimizer.", HOW, shown="preset")] = None
    rate: Annotated[str | None, option('Learning rate, or several: "5e-5:100, 5e-6".', HOW, shown="preset")] = None
    schedule: Annotated[str | None, option("Shape of the rate: constant, cosine, ...", HOW, shown="preset")] = None
    warmup: Annotated[int | None, option("Steps in which the rate rises from 0.", HOW, shown="preset")] = None
    optimizer: Annotated[str | None, option("adamw, lion, adafactor, ...", HOW, shown="preset")] = None
    batch: Annotated[int | None, option("Pictures a step.", HOW, shown="preset")] = None
    pixels: Annotated[int | None, option("Pictures are cut to this size.", HOW, shown="the base's")] = None
    shape: Annotated[
        str | None, option("Square, or buckets: each in the nearest of several sizes.", HOW, shown="square")
    ] = None
    min_snr: Annotated[float | None, option("Min-SNR weighting; 5 is usual.", HOW)] = None
    precision: Annotated[str, option("Of the frozen base: float32, bfloat16.", HOW)] = "auto"
    seed: Annotated[int, option("All chance is drawn from it.", HOW)] = 0
    purpose: Annotated[
        str | None,
        option("Which preset: style or subject.", HOW, "--for", shown="style, of dreambooth subject"),
    ] = None
    set_: Annotated[
        list[str] | None, option("Any other field of the plan, as ema=0.999; see --dry-run.", HOW, "--set")
    ] = None
    out: Annotated[Path | None, option("The run's folder, a new one.", KEPT, shown="runs/NAME")] = None
    snapshot_every: Annotated[
        int | None, option("Steps between snapshots, 0: only when stopped.", KEPT, shown="preset")
    ] = None
    preview_every: Annotated[int, option("Steps between preview pictures, 0: none.", KEPT)] = 0
    preview: Annotated[
        list[str] | None, option("What previews show; give several for a column each.", KEPT, shown="the first caption")
    ] = None
    cache: Annotated[
        bool,
        option("Keep encoded pictures and captions for the next run, or encode them anew.", KEPT, "--cache/--no-cache"),
    ] = True
    dry_run: Annotated[bool, option("Print the plan and stop.", KEPT, "--dry-run")] = False
    processes: Annotated[int, processes_option(HOW)] = 1

    def fields_of_plan(self) -> dict[str, object]:
        """What the plan has, by its own names, where something is asked for."""
        same = ("template", "shuffle_tags", "tag_dropout", "keep_tags", "caption_dropout", "steps", "schedule")
        more = (
            "warmup",
            "optimizer",
            "pixels",
            "shape",
            "min_snr",
            "precision",
            "seed",
            "snapshot_every",
            "preview_every",
            "cache",
        )
        shown = "\n".join(self.preview or []) or None
        renamed: dict[str, object] = {"learning_rate": self.rate, "batch_size": self.batch, "preview_prompt": shown}
        wanted = renamed | {name: getattr(self, name) for name in (*same, *more)}
        if self.template:
            wanted["template"] = _template(self.template)
        return {field: value for field, value in wanted.items() if value is not None} | _set(self.set_ or [])


def asking(verb: Callable[..., None]) -> Callable[..., None]:
    """Let a verb's parameter `asked`, an Asked, come from one option for each of its fields."""
    hints = get_type_hints(Asked, include_extras=True)

    @wraps(verb)
    def with_options(**words: Any) -> None:
        verb(asked=Asked(**{each.name: words.pop(each.name) for each in fields(Asked)}), **words)

    own = [each for name, each in inspect.signature(verb, eval_str=True).parameters.items() if name != "asked"]
    shared = {
        each.name: inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name]
        )
        for each in fields(Asked)
        if each.default is not MISSING
    }
    first = ("base", "library", "name")
    arguments = [each for each in own if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    others = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]
    rest = [each for name, each in shared.items() if name not in first]
    taken = [*arguments, *(shared[name] for name in first), *others, *rest]
    with_options.__signature__ = inspect.Signature(taken)  # pyright: ignore[reportAttributeAccessIssue]
    with_options.__annotations__ = {each.name: each.annotation for each in taken}
    del with_options.__wrapped__  # whose signature typer would look at
    return with_options


def _template(said: str) -> str:
    """A template as the plan keeps it: its name, or the sentences of a file, which may change before a run goes on."""
    return said if said in TEMPLATES or "[" in said else "\n".join(template_lines(said))


def _set(words: Sequence[str]) -> dict[str, str | None]:
    """What --set says, by field."""
    pairs = [word.partition("=") for word in words]
    for field, sign, _ in pairs:
        if not (field and sign):
            raise BadPlan(f'"--set {field}" sets nothing; write a field of the plan and its value, "--set ema=0.999"')
    return {field: None if value == "none" and _may_be_none(field) else value for field, _, value in pairs}


def _may_be_none(field: str) -> bool:
    from velatura.training.plan import Plan

    return field in Plan.model_fields and type(None) in get_args(Plan.model_fields[field].annotation)
