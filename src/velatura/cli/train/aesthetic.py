"""Run `velatura train aesthetic`: CLIP reads the pictures once; no steps are taken."""

from pathlib import Path
from typing import Annotated

import typer

import velatura
from velatura.base.families import PredictionWord
from velatura.cli.base import LoadOptions, base_option, open_base, prediction_option, zero_snr_option
from velatura.cli.screen import say
from velatura.cli.train.options import OUTPUT_PANEL, OVERLAY_PANEL, LibraryFolders, bundled_or_given, option
from velatura.errors import AlreadyExists
from velatura.training.run.verdict import command_line

Name = Annotated[str | None, option("What the aesthetic is called.", OVERLAY_PANEL, default="the folder's name")]
Clip = Annotated[
    Path | None,
    option("The folder of the CLIP that the base's text encoder is from.", OVERLAY_PANEL, default="where it is known"),
]
Steps = Annotated[int, option("Steps that the text encoder takes towards it, for each prompt.", OVERLAY_PANEL)]
Rate = Annotated[
    float | None, option("How far each of them goes.", OVERLAY_PANEL, default="1e-4, on the tiny base 1e-3")
]
Out = Annotated[
    Path | None, option("A new file, .safetensors or .pt as A1111 has it.", OUTPUT_PANEL, default="NAME.safetensors")
]


def train_aesthetic(
    folder: Annotated[
        Path, typer.Argument(help="Pictures, or a bundled set; captions are not needed.", callback=bundled_or_given)
    ],
    *,
    base: Annotated[str, base_option(OVERLAY_PANEL)] = "tiny",
    prediction: Annotated[PredictionWord | None, prediction_option(OVERLAY_PANEL)] = None,
    zero_snr: Annotated[bool | None, zero_snr_option(OVERLAY_PANEL)] = None,
    library: LibraryFolders = None,
    name: Name = None,
    clip: Clip = None,
    steps: Steps = 5,
    rate: Rate = None,
    out: Out = None,
) -> None:
    """Make an aesthetic (aesthetic gradient) of pictures: the mean of what CLIP sees in them, in seconds.

    velatura train aesthetic photos/ --name dusk --out dusk.safetensors

    velatura train aesthetic photos/ --base sd15/ --clip clip-vit-large-patch14/ --out dusk.pt
    """
    from velatura.training.kinds.aesthetic import aesthetic_from
    from velatura.training.run.folder import file_name

    name = name or folder.absolute().name
    out = out or Path(f"{file_name(name)}.safetensors")
    if out.exists():
        raise AlreadyExists(f"{out} is there already: name another file, or remove that one")
    load_options = LoadOptions(prediction=prediction, zero_snr=zero_snr)
    opened_base = open_base(base, velatura.Library(*(library or [Path()])), load_options)
    options = {"steps": steps} | ({} if rate is None else {"rate": rate})
    aesthetic = aesthetic_from(opened_base, folder, clip=clip, name=name, **options)
    velatura.save(aesthetic, out)
    say(f"{out}: {aesthetic.card}")
    prompt = f"a house by a lake <{aesthetic.kind}:{out.stem}:1>"
    say(f"try:  {command_line('velatura', 'generate', prompt, '--library', out.parent)}")
