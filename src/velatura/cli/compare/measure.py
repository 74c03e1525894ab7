"""Run `velatura measure`."""

from pathlib import Path
from typing import Annotated

import typer

import velatura
from velatura.cli.base import base_option, open_base
from velatura.cli.screen import say, say_json
from velatura.cli.train.options import LibraryFolders, bundled_or_given

MODEL_PANEL = "Models that look at the pictures"

Pictures = Annotated[
    Path, typer.Argument(help="A folder of pictures, or a bundled set.", callback=bundled_or_given, show_default=False)
]
References = Annotated[
    Path,
    typer.Argument(
        help="The pictures that they are compared with, or a bundled set.",
        callback=bundled_or_given,
        show_default=False,
    ),
]
Clip = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a whole CLIP, of transformers or open_clip.",
        rich_help_panel=MODEL_PANEL,
        show_default="the base's, if it is here",
    ),
]
Dino = Annotated[
    Path | None,
    typer.Option(help="Folder of a DINO, of transformers.", rich_help_panel=MODEL_PANEL, show_default="none"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def measure(
    pictures: Pictures,
    references: References,
    *,
    base: Annotated[str, base_option(MODEL_PANEL)] = "tiny",
    library: LibraryFolders = None,
    clip: Clip = None,
    dino: Dino = None,
    as_json: AsJson = False,
) -> None:
    """Measure how like pictures are to others: what they show, their style, their texts, and their diversity.

    velatura measure pictures/ photos/

    velatura measure pictures/ photos/ --base sd15 --clip clip-vit-large-patch14/ --dino dinov2-base/ --json
    """
    opened_base = open_base(base, velatura.Library(*(library or [Path()])))
    measurement = velatura.measure(pictures, references, base=opened_base, clip=clip, dino=dino)
    if as_json:
        say_json(measurement.as_json())
    else:
        say(*str(measurement).splitlines())
