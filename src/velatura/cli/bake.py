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
from velatura.errors import AlreadyExists, BadFile, UnknownName

if TYPE_CHECKING:
    from velatura.merging.bake.report import BakeReport
    from velatura.merging.checkpoints.report import MergeReport
    from velatura.merging.lora.extract import ExtractReport
    from velatura.overlays.overlay import Overlay
    from velatura.overlays.strength import Strength

    WeightsReport = BakeReport | MergeReport | ExtractReport

REPORT_KEY = "velatura.bake"  # where the report is kept in a file's header
FITTING_PANEL = "Where a hypernetwork is not linear"
NUMBER_PATTERN = r"[+-]?(?:\d+\.?\d*|\.\d+)"

Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Texts to fit by, one a line, at least 4.", rich_help_panel=FITTING_PANEL, show_default="built-in ones"
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Steps of each picture painted.", rich_help_panel=FITTING_PANEL)]
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
    from velatura.formats.checkpoints import write_single_file
    from velatura.merging.bake.bake import bake as bake_overlays

    is_folder = not out.suffix
    prepare_output(out, overwrite=overwrite, takes_folders=True)
    prompt_lines = _read_prompts(prompts)
    model_library = velatura.Library(*(library or [Path()]))
    opened_overlays = [open_overlay_argument(argument, model_library) for argument in overlays]
    opened_base = open_base(base, model_library)
    with picture_bar() as on_step:
        baked, report = bake_overlays(opened_base, opened_overlays, prompts=prompt_lines, steps=steps, on_step=on_step)
    if is_folder:
        velatura.save(baked, out)
    else:
        write_single_file.write(baked, out, {REPORT_KEY: report.model_dump_json()})
    print_report(report, out, as_json=as_json)


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
    from velatura.formats.checkpoints.ldm_keys import UNetLayout
    from velatura.formats.loras import write_kohya
    from velatura.merging.lora.from_hypernetwork import lora_from_hypernetwork

    prepare_output(target, overwrite=overwrite)
    opened_base = open_base(base)
    with picture_bar() as on_step:
        pairs, report = lora_from_hypernetwork(
            overlay, opened_base, rank=rank, prompts=_read_prompts(prompts), steps=steps, on_step=on_step
        )
    comment = f"made of the {overlay.kind} {overlay.card.name or target.stem} on {opened_base.name}"
    write_kohya.write_low_rank(
        target,
        {name: (low_rank.up, low_rank.down) for name, low_rank in pairs.items()},
        opened_base.family,
        layout=UNetLayout.from_diffusers(opened_base.unet.state_dict()),
        name=target.stem,
        metadata={REPORT_KEY: report.model_dump_json(), "ss_training_comment": comment},
    )
    print_report(report, target, as_json=as_json)


def prepare_output(path: Path, *, overwrite: bool, takes_folders: bool = False) -> None:
    """See before the work that the file can be written after it, or the folder, which must be new."""
    if takes_folders and not path.suffix:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise AlreadyExists(f"{path} holds something already: choose a new folder")
    elif path.suffix != ".safetensors":
        raise UnknownName.with_suggestions("ending of a file of weights", path.suffix, [".safetensors"])
    elif path.exists() and not overwrite:
        raise AlreadyExists(f"{path} is there already; choose another name, or add --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=path.parent).close()


def _read_prompts(path: Path | None) -> Sequence[str] | None:
    if path is None:
        return None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} cannot be read as text ({error}): give a file of prompts, one a line") from None
    return [line.strip() for line in lines if line.strip()]


def open_overlay_argument(text: str, library: "velatura.Library") -> tuple["Overlay", "float | Strength"]:
    """Open "inca.pt:0.5", or "inca.pt" at strength 1, or the same by name; one without a name is called as its file.

    Two numbers are the strengths in the text towers and in the UNet, as in a LoRA's tag.
    """
    name, numbers = split_strengths(text)
    strength = velatura.Strength(text=numbers[0], unet=numbers[1]) if len(numbers) > 1 else (*numbers, 1.0)[0]
    is_path = Path(name).exists() or bool(Path(name).suffix) or len(Path(name).parts) > 1
    overlay = velatura.open_overlay(name) if is_path else library.overlay(name)
    overlay.card = overlay.card.replace(name=overlay.card.name or Path(name).stem)
    return overlay, strength


def split_strengths(text: str) -> tuple[str, list[float]]:
    """Take "ink:0.5:0.8" apart into a name and the numbers behind it, of which there may be none."""
    match = None if Path(text).exists() else re.fullmatch(rf"(.+?):({NUMBER_PATTERN})(?::({NUMBER_PATTERN}))?", text)
    return (match[1], [float(number) for number in match.groups()[1:] if number is not None]) if match else (text, [])


def print_report(report: "WeightsReport", path: Path, *, as_json: bool) -> None:
    """Print a report, and where the file is."""
    if as_json:
        say_json(report.model_dump_json(indent=2))
    else:
        say(*str(report).splitlines(), path)
