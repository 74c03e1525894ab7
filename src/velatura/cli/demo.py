"""Run `velatura demo`: train an overlay on the tiny base, paint with it, and write a page that shows both."""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import velatura
from velatura.cli.saving import picture_bar
from velatura.cli.screen import say
from velatura.cli.train.progress import training_progress
from velatura.files import atomic_write
from velatura.training.run.verdict import command_line

if TYPE_CHECKING:
    from torch import Tensor

    from velatura.base.base import Base
    from velatura.training.plan import Plan
    from velatura.training.train import Run

STRENGTHS = (0, 0.5, 1, 1.5)
SCENES = ("a red house on the beach", "a blue boat in the snow", "a green fish underwater", "an orange cat indoors")
PICTURE_SEED = 7

Out = Annotated[Path | None, typer.Option(help="A new folder for all of it.", show_default="runs/demo")]
Style = Annotated[str, typer.Option(help="Which bundled pictures to learn from: neon, blueprint or robot.")]
Steps = Annotated[int | None, typer.Option(help="Steps of training.", show_default="preset")]
Seed = Annotated[int, typer.Option(help="All chance of the training is drawn from it.")]


def demo(*, out: Out = None, style: Style = "neon", steps: Steps = None, seed: Seed = 0) -> None:
    """Train a hypernetwork on bundled pictures and see it at work, in two or three minutes on two cores.

    velatura demo

    velatura demo --style blueprint --out blueprint/
    """
    out = out or _free_path(Path("runs", "demo"))
    pictures, base = velatura.tiny_pictures(style), velatura.tiny()
    preset = velatura.Plan.preset("hypernet", base.family.name)
    # its own grid shows four scenes at the same strengths
    plan = preset.replace(seed=seed, steps=preset.steps if steps is None else steps, end_sheet=False, tune=False)
    hypernetwork = velatura.Hypernetwork.for_base(base, activation="relu", seed=seed, name=style)

    say(f"A hypernetwork learns {style} from the pictures in {pictures}")
    started = time.perf_counter()
    with training_progress() as progress:
        run = velatura.train(
            base, hypernetwork, pictures, plan, out=out, on_step=progress.on_step, on_stage=progress.on_stage
        )
    seconds = time.perf_counter() - started
    pt_file = run.file.with_suffix(".pt")
    velatura.save(run.overlay, pt_file)

    say(f"It took {seconds:.0f} seconds; now four prompts at the strengths {', '.join(map(str, STRENGTHS))}")
    grid = _save_grid(base, run)
    if not _is_as_on_disk(base):
        raise RuntimeError("the base is not what its files hold: an overlay was not taken off it, which is our mistake")
    page = _save_report(run, plan, pictures, grid, seconds)
    assert run.verdict is not None
    say(*str(replace(run.verdict, pictures=(grid,), sheet_command="", a1111_file=pt_file)).splitlines())

    say(f"The base is, bit for bit, what it was. Open {page} in a browser; beside it lie")
    say(
        f"  {grid.name}, {run.file.name}, {run.file.stem}.pt (for AUTOMATIC1111's web UI), the plan, the log, snapshots"
    )
    say("Try next:")
    for purpose, command in _commands(run).items():
        say(f"  {command:80}  # {purpose}")
    say("or try it in the browser: velatura serve")


def _free_path(path: Path) -> Path:
    """Return the path, or the first of path-2, path-3, ... that does not exist."""
    later = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], later) if not candidate.exists())


def _save_grid(base: "Base", run: "Run") -> Path:
    """Paint every scene at every strength, from one seed."""
    name = run.overlay.card.name
    prompts = [f"{scene} <{run.overlay.kind}:{name}:{{strength}}>" for scene in SCENES]
    recipe = velatura.Recipe(prompt=prompts[0], seed=PICTURE_SEED)
    columns, rows = ("strength", STRENGTHS), ("prompt", prompts)
    with picture_bar() as on_step:
        result = velatura.grid(base, recipe, x=columns, y=rows, overlays={name: run.overlay}, on_step=on_step)
    return result.save(run.folder / "grid.png")


def _is_as_on_disk(base: "Base") -> bool:
    """Return True if every tensor of the base equals its file, bit for bit."""
    from torch import equal

    return all(map(equal, _tensors(base), _tensors(velatura.tiny())))


def _tensors(base: "Base") -> "list[Tensor]":
    return [tensor for part in (base.unet, base.vae, base.text.model) for tensor in part.state_dict().values()]


def _save_report(run: "Run", plan: "Plan", pictures: Path, grid: Path, seconds: float) -> Path:
    """Write the page that shows what was done."""
    from PIL import Image

    from velatura.compare.training_report import Figure, TrainingReport

    examples = [Image.open(path) for path in sorted(pictures.glob("*.png"))]
    parameter_count = sum(weight.numel() for weight in run.overlay.parameters())
    grid_figure = Figure(
        "What it does", "A row is one prompt and one seed; only the strength changes.", [Image.open(grid)]
    )
    training_figure = Figure(
        "What it learned from", f"{len(examples)} pictures, each with a caption in words.", examples
    )
    report = TrainingReport(
        title=f"A hypernetwork for {run.overlay.card.name}",
        opening=(
            f"In {seconds:.0f} seconds a small network learned {run.overlay.card.name} from {len(examples)} pictures. "
            "Attached to a frozen Stable Diffusion it changes what attention reads; detached, it leaves no trace."
        ),
        figures=[grid_figure, training_figure],
        losses=run.losses,
        facts={
            "overlay": f"{run.overlay.card}",
            "size": f"{parameter_count:,} parameters, {run.file.stat().st_size / 1e6:.1f} MB",
            "training": f"{len(run.losses)} steps of {plan.batch_size} pictures at a rate of {plan.learning_rate}",
            "base": "tiny, each of its tensors bit for bit what it was before",
        },
        commands=_commands(run),
    )
    page = run.folder / "index.html"
    with atomic_write(page) as temporary:
        temporary.write_text(report.html(), "utf-8")
    return page


def _commands(run: "Run") -> dict[str, str]:
    """Return commands to try next, by what they do."""
    tag = f"<{run.overlay.kind}:{run.overlay.card.name}:1>"
    return {
        "a prompt of your own": command_line(
            "velatura", "generate", f"a yellow rocket in outer space {tag}", "--library", run.folder
        ),
        "what the file says of itself": command_line("velatura", "show", run.file),
        "another style": "velatura demo --style blueprint",
        "your own pictures": "velatura train hypernet photos/ --name inca --preview-every 50",
    }
