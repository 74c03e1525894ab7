"""The verbs `train` and `resume`: an overlay from a folder of pictures."""

import shlex
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

import velatura
from velatura.cli.base import base_option, open_base
from velatura.cli.screen import say
from velatura.datasets.folder import read_folder, read_picture
from velatura.errors import BadOverlay, BadPlan

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.overlays.overlay import Overlay
    from velatura.training.plan import Plan
    from velatura.training.train import Step

WHAT, HOW, KEPT = "What is trained", "How it learns", "What is kept"

GLANCE = 16  # pixels: enough to read a picture to its end and see whether it is whole
MEAN_OF = 20  # steps; the loss of one alone says little

Number = TypeVar("Number", int, float)

train = typer.Typer(no_args_is_help=True, help="Train an overlay on a folder of captioned pictures.")

Folder = Annotated[Path, typer.Argument(help="Pictures, each with its caption in a .txt file beside it.")]
BaseName = Annotated[str, base_option(WHAT)]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--library", help="Folders in which --base is found.", rich_help_panel=WHAT, show_default="this folder"
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="What the overlay is called.", rich_help_panel=WHAT, show_default="the folder's name"),
]
Layers = Annotated[str, typer.Option(help="Widths of its layers, in widths of the context.", rich_help_panel=WHAT)]
Activation = Annotated[
    str, typer.Option(help="Between its layers: relu, mish, linear (A1111's own default), ...", rich_help_panel=WHAT)
]
LayerNorm = Annotated[bool, typer.Option("--layer-norm", help="Normalise after each layer.", rich_help_panel=WHAT)]
Init = Annotated[
    str, typer.Option(help="How its weights begin: normal, xavier_normal, kaiming_uniform, ...", rich_help_panel=WHAT)
]
ActivateOutput = Annotated[
    bool, typer.Option("--activate-output", help="Activate its last layer too.", rich_help_panel=WHAT)
]
Dropout = Annotated[float, typer.Option(help="Share of its hidden features that rest.", rich_help_panel=WHAT)]
LastLayerDropout = Annotated[
    bool,
    typer.Option(
        "--last-layer-dropout/--no-last-layer-dropout",
        help="Whether those of the last hidden layer rest too.",
        rich_help_panel=WHAT,
    ),
]
Widths = Annotated[
    str | None,
    typer.Option(
        help="Widths of the contexts it changes: 768 or 320,640.", rich_help_panel=WHAT, show_default="all of the base"
    ),
]
Steps = Annotated[int | None, typer.Option(help="Steps of the optimizer.", rich_help_panel=HOW, show_default="preset")]
Rate = Annotated[
    str | None,
    typer.Option(help='Learning rate, or several: "5e-5:100, 5e-6".', rich_help_panel=HOW, show_default="preset"),
]
Optimizer = Annotated[
    str | None, typer.Option(help="adamw, lion, adafactor, ...", rich_help_panel=HOW, show_default="preset")
]
Schedule = Annotated[
    str | None,
    typer.Option(help="Shape of the rate: constant, cosine, ...", rich_help_panel=HOW, show_default="preset"),
]
Warmup = Annotated[
    int | None, typer.Option(help="Steps in which the rate rises from 0.", rich_help_panel=HOW, show_default="preset")
]
Purpose = Annotated[str, typer.Option("--for", help="Which preset: style or subject.", rich_help_panel=HOW)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field of the plan, as ema=0.999; see --dry-run.", rich_help_panel=HOW),
]
Batch = Annotated[int | None, typer.Option(help="Pictures a step.", rich_help_panel=HOW, show_default="preset")]
Side = Annotated[
    int | None, typer.Option(help="Pictures are cut to this size.", rich_help_panel=HOW, show_default="the base's")
]
MinSnr = Annotated[float | None, typer.Option(help="Min-SNR weighting; 5 is usual.", rich_help_panel=HOW)]
Bits = Annotated[str, typer.Option(help="Of the frozen base: float32, bfloat16.", rich_help_panel=HOW)]
Seed = Annotated[int, typer.Option(help="All chance is drawn from it.", rich_help_panel=HOW)]
Out = Annotated[
    Path | None, typer.Option(help="The run's folder, a new one.", rich_help_panel=KEPT, show_default="runs/NAME")
]
SnapshotEvery = Annotated[
    int | None,
    typer.Option(help="Steps between snapshots, 0: only when stopped.", rich_help_panel=KEPT, show_default="preset"),
]
PreviewEvery = Annotated[int, typer.Option(help="Steps between preview pictures, 0: none.", rich_help_panel=KEPT)]
Preview = Annotated[
    str | None, typer.Option(help="What previews show.", rich_help_panel=KEPT, show_default="the first caption")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.", rich_help_panel=KEPT)]


@train.callback()
def _train() -> None:
    """Train an overlay on a folder of captioned pictures."""


@train.command("hypernet")
def train_hypernet(
    folder: Folder,
    *,
    base: BaseName = "tiny",
    library: Folders = None,
    name: Name = None,
    layers: Layers = "1,2,1",
    activation: Activation = "relu",
    layer_norm: LayerNorm = False,
    activate_output: ActivateOutput = False,
    dropout: Dropout = 0.0,
    last_layer_dropout: LastLayerDropout = True,
    init: Init = "normal",
    widths: Widths = None,
    steps: Steps = None,
    rate: Rate = None,
    schedule: Schedule = None,
    warmup: Warmup = None,
    optimizer: Optimizer = None,
    batch: Batch = None,
    pixels: Side = None,
    min_snr: MinSnr = None,
    precision: Bits = "auto",
    seed: Seed = 0,
    purpose: Purpose = "style",
    set_: Set = None,
    out: Out = None,
    snapshot_every: SnapshotEvery = None,
    preview_every: PreviewEvery = 0,
    preview: Preview = None,
    dry_run: DryRun = False,
) -> None:
    """Train a hypernetwork: a small network in front of every K and V of the base, good at styles.

    velatura train hypernet photos/ --name inca --steps 300 --out runs/inca

    velatura train hypernet photos/ --base sd15/ --layers 1,2,1 --activation mish --rate "5e-5:100, 5e-6" --dry-run
    """
    from velatura.overlays.target import Target
    from velatura.training.run import file_name, vacant

    name = name or folder.absolute().name
    out = vacant(out or Path("runs", file_name(name)))
    for example in read_folder(folder):  # what is wrong with it is said before anything is printed or loaded
        read_picture(example.path, GLANCE)
    on = open_base(base, velatura.Library(*(library or [Path()])))
    wanted = {"steps": steps, "learning_rate": rate, "batch_size": batch, "pixels": pixels, "min_snr": min_snr}
    wanted |= {"schedule": schedule, "warmup": warmup, "optimizer": optimizer, "precision": precision, "seed": seed}
    kept = {"snapshot_every": snapshot_every, "preview_every": preview_every, "preview_prompt": preview}
    preset = velatura.Plan.preset("hypernet", on.family.name, purpose)
    plan = _changed(preset, wanted | kept | _fields(set_ or []))
    overlay = velatura.Hypernetwork.for_base(
        on,
        layers=_numbers("layers", layers, float, "1,2,1"),
        activation=activation,
        layer_norm=layer_norm,
        activate_output=activate_output,
        dropout=dropout,
        last_layer_dropout=last_layer_dropout,
        init=init,
        widths=None if widths is None else _numbers("widths", widths, int, "768,320"),
        seed=seed,
        name=name,
    )
    if dry_run:  # a run says the same where it attaches
        overlay.refuse_misfit(Target.of(on))
    _run(on, overlay, folder, plan, out=out, dry_run=dry_run)


def resume(
    run: Annotated[Path, typer.Argument(help="The folder of a run that was broken off.")],
    *,
    base: Annotated[str | None, base_option(WHAT, "the one that it began on")] = None,
    library: Folders = None,
    data_changed: Annotated[
        bool, typer.Option("--data-changed", help="Go on though the pictures changed.", rich_help_panel=WHAT)
    ] = False,
) -> None:
    """Go on with a run that was stopped, killed or out of room, to the very end that it would have had.

    velatura resume runs/inca

    velatura resume runs/inca --base sd15 --library models/
    """
    from velatura.training.run import began_on

    on = open_base(base or began_on(run), velatura.Library(*(library or [Path()])))
    with training_bar() as on_step:
        done = velatura.resume(on, run, on_step=on_step, data_changed=data_changed)
    say(f"{done.file}: {done.overlay.card}")


def _run(base: "Base", overlay: "Overlay", folder: Path, plan: "Plan", *, out: Path, dry_run: bool) -> None:
    """Print what will be done, do it, and say where it is: the same for every kind."""
    examples = read_folder(folder)
    seen = plan.rates().end * plan.batch_size * plan.accumulation / len(examples)
    parameter_count = sum(each.numel() for each in overlay.parameters())
    rows = {
        "overlay": f"{overlay.card.name}, {overlay.card}, {parameter_count:,} parameters",
        "base": f"{base.name} {base.hash}",
        "folder": f"{folder}, {len(examples)} pictures, each seen {seen:g} times",
        "captions": f"from file names: {sum(each.is_named_so for each in examples)}",
        **{field.replace("_", " "): value for field, value in plan if value is not None},
        "steps": _steps(plan),
        "out": out,
    }
    for label, value in rows.items():
        say(f"{label:21}{value}")
    if dry_run:
        from velatura.training.estimate import estimate

        say(f"{'takes':21}{estimate(base, overlay, plan)}")
        return
    with training_bar() as on_step:
        run = velatura.train(base, overlay, folder, plan, out=out, on_step=on_step)
    say(f"{run.file}: {overlay.card}")
    prompt = f"{examples[0].caption} <{overlay.kind}:{run.file.stem}:1>"
    say(f"try:  {command_line('velatura', 'generate', prompt, '--library', out)}")


def command_line(*words: str | Path) -> str:
    """A command to copy into a shell, where captions and paths mean no more than they say."""
    one_line = (" ".join(str(word).split()) for word in words)
    return shlex.join("".join(filter(str.isprintable, word)) for word in one_line)


def _steps(plan: "Plan") -> str:
    end = plan.rates().end
    return f"{end}" if end == plan.steps else f"{end}, where the rate ends, not {plan.steps}"


@contextmanager
def training_bar() -> Generator[Callable[["Step"], None]]:
    """A bar of the steps done, on stderr, with the running mean of the loss and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress("training", *columns, *times, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=None, loss=float("nan"))
        losses = list[float]()

        def on_step(step: "Step") -> None:
            losses.append(step.loss)
            recent = losses[-MEAN_OF:]
            progress.update(task, completed=step.done, total=step.total, loss=sum(recent) / len(recent))

        yield on_step


def _changed(preset: "Plan", wanted: Mapping[str, object]) -> "Plan":
    """The preset with what the command line says otherwise."""
    return preset.but(**{field: value for field, value in wanted.items() if value is not None})


def _fields(words: Sequence[str]) -> dict[str, str]:
    """What --set says, by field."""
    pairs = [word.partition("=") for word in words]
    for field, sign, _ in pairs:
        if not (field and sign):
            raise BadPlan(f'"--set {field}" sets nothing; write a field of the plan and its value, "--set ema=0.999"')
    return {field: value for field, _, value in pairs}


def _numbers(what: str, text: str, kind: type[Number], example: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise BadOverlay(f'the {what} "{text}" are no list of numbers; write "{example}"') from None
