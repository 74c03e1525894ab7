"""Run `velatura compare`: train every kind on the same pictures, and say which one serves best."""

from pathlib import Path
from typing import Annotated

import typer

import velatura
from velatura.cli.arguments import refuse_unknown_overlay, single_strength, split_strengths
from velatura.cli.base import base_option, is_path, open_base
from velatura.cli.compare.measure import MODEL_PANEL, AsJson, Clip, Dino
from velatura.cli.options import ray_option
from velatura.cli.screen import print_error, say, say_json
from velatura.cli.train.options import Folder, LibraryFolders
from velatura.errors import BadStrength

BUDGET_PANEL = "Budget"


Kinds = Annotated[
    str, typer.Option(help="Kinds to compare: embedding, hypernet, lora, dreambooth, aesthetic.", show_default=True)
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Minutes of the whole study, shared evenly.", rich_help_panel=BUDGET_PANEL, show_default="12"),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Steps of each training instead, at most its preset's.", rich_help_panel=BUDGET_PANEL, show_default="none"
    ),
]
Seeds = Annotated[int, typer.Option(help="Trainings of each kind.", min=1, max=100, rich_help_panel=BUDGET_PANEL)]
Purpose = Annotated[str, typer.Option("--for", help="Which presets: style or subject.")]
Together = Annotated[
    str | None,
    typer.Option(
        help="Another overlay, a file or its name in --library, with its strength: ink.safetensors:0.8. Each kind is "
        "measured with it attached too.",
        show_default="none",
    ),
]
Out = Annotated[Path, typer.Option(help="The folder of the study; an unfinished one goes on.")]
Ray = Annotated[str | None, ray_option("Run trials", BUDGET_PANEL)]


def compare(
    folder: Folder,
    *,
    kinds: Kinds = "embedding,hypernet,lora,dreambooth,aesthetic",
    purpose: Purpose = "style",
    base: Annotated[str, base_option(MODEL_PANEL)] = "tiny",
    library: LibraryFolders = None,
    clip: Clip = None,
    dino: Dino = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seeds: Seeds = 3,
    together: Together = None,
    ray: Ray = None,
    out: Out = Path("study"),
    as_json: AsJson = False,
) -> None:
    """Train every kind of overlay on your pictures under one budget, and measure which one serves best.

    velatura compare photos/ --out study/

    velatura compare photos/ --kinds lora,hypernet --base sd15 --library models/ --minutes 120 --seeds 2 --out study/

    velatura compare photos/ --together ink.safetensors:0.6 --out study/
    """
    if minutes is not None and steps is not None:
        raise typer.BadParameter("--minutes and --steps both give the budget: give one of them")
    from velatura.studies.study import DEFAULT_MINUTES

    folders = velatura.Library(*(library or [Path()]))
    other, other_strength = (None, 1.0) if together is None else _find_overlay(together, folders)
    opened_base = open_base(base, folders)
    results = velatura.study(
        opened_base,
        folder,
        out=out,
        kinds=[kind.strip() for kind in kinds.split(",") if kind.strip()],
        seeds=seeds,
        steps=steps,
        minutes=DEFAULT_MINUTES if minutes is None else minutes,
        purpose=purpose,
        clip=clip,
        dino=dino,
        together=other,
        together_strength=other_strength,
        ray=ray,
        on_trial=lambda name, done, total: print_error(_progress_line(name, done, total, is_done=ray is not None)),
    )
    if as_json:
        say_json(results.model_dump_json(indent=2))
        return
    say(*str(results).splitlines())
    say(f"report: {out / 'index.html'}")


def _progress_line(name: str, done: int, total: int, *, is_done: bool) -> str:
    """Say which trial begins, or on a cluster, where several run at once, which one is done."""
    return f"{done} of {total} trials done: {name}" if is_done else f"trial {done + 1} of {total}: {name}"


def _find_overlay(text: str, library: velatura.Library) -> tuple[Path, float]:
    """Return the path and the strength of "inca.pt:0.5", or of "inca:0.5" in the library; 1 if no number follows."""
    refuse_unknown_overlay(text, library)
    name, numbers = split_strengths(text)
    if len(numbers) > 1:
        raise BadStrength(f"{text} has two strengths: give one, which counts in the text encoders and in the UNet")
    path = Path(name) if is_path(name) else library.path(name)
    return path, single_strength(numbers)
