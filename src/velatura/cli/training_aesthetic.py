"""The verb `train aesthetic`: nothing is trained, CLIP looks at the pictures once."""

from pathlib import Path
from typing import Annotated

import typer

import velatura
from velatura.cli.base import base_option, open_base
from velatura.cli.screen import say
from velatura.cli.training_options import KEPT, WHAT, Folders, option
from velatura.cli.training_run import command_line
from velatura.errors import Occupied

Name = Annotated[str | None, option("What the aesthetic is called.", WHAT, shown="the folder's name")]
Clip = Annotated[
    Path | None, option("The folder of the CLIP that the base's text encoder is from.", WHAT, shown="where it is known")
]
Steps = Annotated[int, option("Steps that the text encoder takes towards it, for each prompt.", WHAT)]
Rate = Annotated[float | None, option("How far each of them goes.", WHAT, shown="1e-4, on the tiny base 1e-3")]
Out = Annotated[Path | None, option("A new file, .safetensors or .pt as A1111 has it.", KEPT, shown="NAME.safetensors")]


def train_aesthetic(
    folder: Annotated[Path, typer.Argument(help="Pictures; captions are not needed.")],
    *,
    base: Annotated[str, base_option(WHAT)] = "tiny",
    library: Folders = None,
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
    from velatura.training.aesthetic import aesthetic_from
    from velatura.training.run import file_name

    name = name or folder.absolute().name
    out = out or Path(f"{file_name(name)}.safetensors")
    if out.exists():
        raise Occupied(f"{out} is there already: name another file, or remove that one")
    on = open_base(base, velatura.Library(*(library or [Path()])))
    how = {"steps": steps} | ({} if rate is None else {"rate": rate})
    made = aesthetic_from(on, folder, clip=clip, name=name, **how)
    velatura.save(made, out)
    say(f"{out}: {made.card}")
    prompt = f"a house by a lake <{made.kind}:{out.stem}:1>"
    say(f"try:  {command_line('velatura', 'generate', prompt, '--library', out.parent)}")
