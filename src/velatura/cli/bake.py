"""Run `velatura bake`, and write hypernetworks as LoRAs for `convert --as lora`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import velatura
from velatura.base.families import PredictionWord
from velatura.cli.arguments import open_overlay_argument, refuse_unknown_overlay
from velatura.cli.base import (
    DEFAULT_LOAD_OPTIONS,
    LoadOptions,
    open_base,
    part_option,
    prediction_option,
    refuse_unknown_base,
    zero_snr_option,
)
from velatura.cli.saving import picture_bar, prepare_output, print_report
from velatura.errors import BadFile

if TYPE_CHECKING:
    from velatura.overlays.overlay import Overlay

REPORT_KEY = "velatura.bake"  # where the report is kept in a file's header
PART_PANEL = "A base in several files"
BASE_PANEL, FITTING_PANEL = "A base that does not say what it predicts", "Where a hypernetwork is not linear"

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
    unet: Annotated[Path | None, part_option("unet", PART_PANEL)] = None,
    text: Annotated[list[Path] | None, part_option("text", PART_PANEL)] = None,
    vae: Annotated[Path | None, part_option("vae", PART_PANEL)] = None,
    prediction: Annotated[PredictionWord | None, prediction_option(BASE_PANEL)] = None,
    zero_snr: Annotated[bool | None, zero_snr_option(BASE_PANEL)] = None,
    library: Annotated[
        list[Path] | None, typer.Option(help="Where names are looked for.", show_default="this folder")
    ] = None,
    prompts: Prompts = None,
    steps: Steps = 10,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Bake overlays into the weights of a base and write it as an ordinary checkpoint.

    LoRAs, LyCORIS and differences are exact, and so are hypernetworks with linear activations. Other hypernetworks are
    fitted while the base paints; the report gives the error.

    velatura bake tiny inca.pt:0.8 --out baked.safetensors

    velatura bake sd15 ink:0.5:0.8 inca:0.6 --library ~/models --prompts mine.txt --out baked.safetensors
    """
    is_folder = not out.suffix
    prepare_output(out, overwrite=overwrite, takes_folders=True)
    prompt_lines = _read_prompts(prompts)
    model_library = velatura.Library(*(library or [Path()]))
    refuse_unknown_base(base, model_library)
    for argument in overlays:
        refuse_unknown_overlay(argument, model_library)
    from velatura.formats.checkpoints import write_single_file
    from velatura.merging.bake.bake import bake as bake_overlays

    opened_overlays = [open_overlay_argument(argument, model_library) for argument in overlays]
    load_options = LoadOptions(vae=vae, prediction=prediction, zero_snr=zero_snr, unet=unet, text=tuple(text or ()))
    opened_base = open_base(base, model_library, load_options)
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
    load_options: LoadOptions = DEFAULT_LOAD_OPTIONS,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Write a hypernetwork as a LoRA for a base, under kohya's names, and print how well it fits."""
    from velatura.formats.checkpoints.ldm_keys import UNetLayout
    from velatura.formats.loras import write_kohya
    from velatura.merging.lora.from_hypernetwork import lora_from_hypernetwork

    prepare_output(target, overwrite=overwrite)
    opened_base = open_base(base, load_options=load_options)
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


def _read_prompts(path: Path | None) -> Sequence[str] | None:
    if path is None:
        return None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} cannot be read as text ({error}): give a file with one prompt on each line") from None
    return [line.strip() for line in lines if line.strip()]
