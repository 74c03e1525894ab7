"""Run `velatura tune`."""

from pathlib import Path
from typing import Annotated

import typer

import velatura
from velatura.cli.base import base_option, open_base
from velatura.cli.compare.measure import MODEL_PANEL, AsJson, Clip, Dino
from velatura.cli.screen import progress_bar, say, say_json
from velatura.cli.train.options import LibraryFolders, bundled_or_given
from velatura.errors import BadFile, BadStrength
from velatura.files import suggest_similar

TUNE_PANEL = "What is painted"


def _bundled_or_given_or_none(folder: Path | None) -> Path | None:
    return None if folder is None else bundled_or_given(folder)


File = Annotated[Path, typer.Argument(help="The overlay's file, of any kind.", show_default=False)]
TrainedOn = Annotated[
    Path | None,
    typer.Option(
        "--pictures",
        help="The pictures that it was trained on, or a bundled set.",
        rich_help_panel=TUNE_PANEL,
        show_default="those of its run",
        callback=_bundled_or_given_or_none,
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="What is painted; give several.", rich_help_panel=TUNE_PANEL, show_default="fixed"),
]
Strengths = Annotated[
    str | None,
    typer.Option(help="Strengths to paint.", rich_help_panel=TUNE_PANEL, show_default="0.2,0.4,0.6,0.8,1,1.2,1.4"),
]
Seeds = Annotated[int, typer.Option(help="Pictures of each prompt.", min=1, max=64, rich_help_panel=TUNE_PANEL)]
Steps = Annotated[
    int | None, typer.Option(help="Sampling steps.", rich_help_panel=TUNE_PANEL, show_default="12 on tiny, else 20")
]
Write = Annotated[bool, typer.Option("--write/--no-write", help="Write it beside the file and into its metadata.")]


def tune(
    file: File,
    *,
    pictures: TrainedOn = None,
    base: Annotated[str, base_option(MODEL_PANEL)] = "tiny",
    library: LibraryFolders = None,
    clip: Clip = None,
    dino: Dino = None,
    prompt: Prompts = None,
    strengths: Strengths = None,
    seeds: Seeds = 1,
    steps: Steps = None,
    write: Write = True,
    as_json: AsJson = False,
) -> None:
    """Find the strength of an overlay that serves best: likeness to its pictures against the prompt kept.

    velatura tune runs/inca/inca.safetensors

    velatura tune ink.safetensors --pictures photos/ --base sd15 --library models/ --seeds 2
    """
    from velatura.compare.tune import STRENGTHS

    file = file.expanduser()
    if not file.is_file():
        raise BadFile(f"{file} does not exist{suggest_similar(file)}: name the file of an overlay")
    folder = pictures or _pictures_of_run(file)
    painted = STRENGTHS if strengths is None else _parse_strengths(strengths)
    opened_base = open_base(base, velatura.Library(*(library or [Path()])))
    with progress_bar("painting strengths") as on_strength:
        tuning = velatura.tune(
            opened_base,
            file,
            pictures=folder,
            prompts=prompt or None,
            seeds=seeds,
            steps=steps,
            clip=clip,
            dino=dino,
            on_strength=on_strength,
            strengths=painted,
        )
    sidecar = tuning.write(file) if write else None
    if as_json:
        say_json(tuning.as_json())
        return
    say(*str(tuning).splitlines())
    if sidecar is not None:
        say(f"written as the preferred weight into {sidecar}")


def _pictures_of_run(file: Path) -> Path | None:
    """Return the pictures that an overlay in a run folder was trained on, if they are still there."""
    from velatura.training.run.summary import is_run_folder, read_run

    folder = next((path for path in (file.parent, file.parent.parent) if is_run_folder(path)), None)
    pictures = "" if folder is None else read_run(folder).pictures
    return Path(pictures) if pictures and Path(pictures).is_dir() else None


def _parse_strengths(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BadStrength(f'the strengths "{text}" are not numbers: write 0.25,0.5,0.75,1') from None
