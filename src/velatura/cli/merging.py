"""The verb `bake`, and what `convert --as lora` does: overlays into weights."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated

import typer

import velatura
from velatura.cli.base import open_base
from velatura.cli.saving import picture_bar
from velatura.cli.screen import say, say_json
from velatura.errors import BadFile, Occupied, UnknownName

if TYPE_CHECKING:
    from velatura.merging.extract import ExtractReport
    from velatura.merging.merge_report import MergeReport
    from velatura.merging.report import BakeReport
    from velatura.overlays.overlay import Overlay
    from velatura.overlays.strength import Strength

    Report = BakeReport | MergeReport | ExtractReport

REPORT = "velatura.bake"  # where the report is kept in a file's header
FITTING = "Where a hypernetwork is not linear"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"

Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Texts to fit by, one a line, at least 4.", rich_help_panel=FITTING, show_default="built-in ones"
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Steps of each picture painted.", rich_help_panel=FITTING)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")]


def bake(
    base: Annotated[str, typer.Argument(help="The base: tiny, a checkpoint, a folder, or its name in --library.")],
    overlays: Annotated[
        list[str],
        typer.Argument(help="Overlay files, or names in --library, with strengths: inca.pt:0.5, or text and UNet's."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="The checkpoint to write, a .safetensors file, or a new folder.")],
    library: Annotated[
        list[Path] | None, typer.Option(help="Where names are looked for.", show_default="this folder")
    ] = None,
    prompts: Prompts = None,
    steps: Steps = 10,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Put overlays into the weights of a base, and write it as an ordinary checkpoint.

    LoRAs, LyCORIS and differences are added exactly, and so are hypernetworks whose activations are linear. Others are
    fitted while the base paints, and the report tells the error.

    velatura bake tiny inca.pt:0.8 --out baked.safetensors

    velatura bake sd15 ink:0.5:0.8 inca:0.6 --library ~/models --prompts mine.txt --out baked.safetensors
    """
    from velatura.formats import checkpoint
    from velatura.merging.bake import bake as baked_with

    is_folder = not out.suffix
    make_room(out, overwrite=overwrite, takes_folders=True)
    texts = _texts(prompts)
    shelf = velatura.Library(*(library or [Path()]))
    laid = [overlay_of(each, shelf) for each in overlays]
    on = open_base(base, shelf)
    with picture_bar() as on_step:
        baked, report = baked_with(on, laid, prompts=texts, steps=steps, on_step=on_step)
    if is_folder:
        velatura.save(baked, out)
    else:
        checkpoint.write(baked, out, {REPORT: report.model_dump_json()})
    tell(report, out, as_json=as_json)


def write_lora(
    overlay: "Overlay",
    target: Path,
    *,
    base: str = "tiny",
    rank: int = 32,
    prompts: Path | None = None,
    steps: int = 10,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Write a hypernetwork as a LoRA for a base, under kohya's names, and print how well it stands for it."""
    from velatura.formats import kohya_lora
    from velatura.formats.ldm_keys import UNetLayout
    from velatura.merging.lora import as_lora

    make_room(target, overwrite=overwrite)
    on = open_base(base)
    with picture_bar() as on_step:
        pairs, report = as_lora(overlay, on, rank=rank, prompts=_texts(prompts), steps=steps, on_step=on_step)
    made_of = f"made of the {overlay.kind} {overlay.card.name or target.stem} on {on.name}"
    kohya_lora.write(
        target,
        {name: (each.up, each.down) for name, each in pairs.items()},
        on.family,
        layout=UNetLayout.of_diffusers(on.unet.state_dict()),
        name=target.stem,
        metadata={REPORT: report.model_dump_json(), "ss_training_comment": made_of},
    )
    tell(report, target, as_json=as_json)


def make_room(path: Path, *, overwrite: bool, takes_folders: bool = False) -> None:
    """See before the work that the file can be written after it, or the folder, which must be new."""
    if takes_folders and not path.suffix:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise Occupied(f"{path} holds something already: choose a new folder")
    elif path.suffix != ".safetensors":
        raise UnknownName.among("ending of a file of weights", path.suffix, [".safetensors"])
    elif path.exists() and not overwrite:
        raise Occupied(f"{path} is there already; choose another name, or add --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=path.parent).close()


def _texts(path: Path | None) -> Sequence[str] | None:
    if path is None:
        return None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} cannot be read as text ({error}): give a file of prompts, one a line") from None
    return [line.strip() for line in lines if line.strip()]


def overlay_of(text: str, library: "velatura.Library") -> tuple["Overlay", "float | Strength"]:
    """Open "inca.pt:0.5", or "inca.pt" at strength 1, or the same by name; one without a name is called as its file.

    Two numbers are the strengths in the text towers and in the UNet, as in a LoRA's tag.
    """
    name, numbers = name_and_numbers(text)
    strength = velatura.Strength(text=numbers[0], unet=numbers[1]) if len(numbers) > 1 else (*numbers, 1.0)[0]
    is_path = Path(name).exists() or bool(Path(name).suffix) or len(Path(name).parts) > 1
    overlay = velatura.open_overlay(name) if is_path else library.overlay(name)
    overlay.card = overlay.card.but(name=overlay.card.name or Path(name).stem)
    return overlay, strength


def name_and_numbers(text: str) -> tuple[str, list[float]]:
    """Take "ink:0.5:0.8" apart into a name and the numbers behind it, of which there may be none."""
    found = None if Path(text).exists() else re.fullmatch(rf"(.+?):({NUMBER})(?::({NUMBER}))?", text)
    return (found[1], [float(each) for each in found.groups()[1:] if each is not None]) if found else (text, [])


def tell(report: "Report", path: Path, *, as_json: bool) -> None:
    """Print a report, and where the file is."""
    if as_json:
        say_json(report.model_dump_json(indent=2))
    else:
        say(*str(report).splitlines(), path)
