"""Collect the commands `train KIND`, and run `resume`: open the base of a run again, with all its parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import velatura
from velatura.base.families import PredictionWord
from velatura.cli.base import (
    PART_FLAGS,
    LoadOptions,
    base_option,
    open_base,
    part_option,
    prediction_option,
    zero_snr_option,
)
from velatura.cli.train.aesthetic import train_aesthetic
from velatura.cli.train.dreambooth import train_dreambooth
from velatura.cli.train.embedding import train_embedding
from velatura.cli.train.hypernet import train_hypernet
from velatura.cli.train.lora import train_lora
from velatura.cli.train.options import OVERLAY_PANEL, LibraryFolders, option, processes_option
from velatura.cli.train.progress import training_progress
from velatura.cli.train.session import print_run
from velatura.errors import BadFile, UnknownName

if TYPE_CHECKING:
    from velatura.training.run.recorded_base import RecordedBase

ORIGINAL = "the one that it began on"
PART_NAMES = {"unet": "UNet", "text": "text encoder", "vae": "autoencoder"}

train = typer.Typer(no_args_is_help=True, help="Train an overlay on a folder of captioned pictures.")
train.command("aesthetic")(train_aesthetic)
train.command("dreambooth")(train_dreambooth)
train.command("embedding")(train_embedding)
train.command("hypernet")(train_hypernet)
train.command("lora")(train_lora)


@train.callback()
def _train() -> None:
    """Train an overlay on a folder of captioned pictures."""


def resume(
    run: Annotated[
        Path, typer.Argument(help="The folder of an interrupted run; of a folder of runs, they are listed.")
    ],
    *,
    base: Annotated[str | None, base_option(OVERLAY_PANEL, ORIGINAL)] = None,
    unet: Annotated[Path | None, part_option("unet", OVERLAY_PANEL)] = None,
    text: Annotated[list[Path] | None, part_option("text", OVERLAY_PANEL)] = None,
    vae: Annotated[Path | None, part_option("vae", OVERLAY_PANEL)] = None,
    prediction: Annotated[PredictionWord | None, prediction_option(OVERLAY_PANEL)] = None,
    zero_snr: Annotated[bool | None, zero_snr_option(OVERLAY_PANEL)] = None,
    library: LibraryFolders = None,
    data_changed: Annotated[
        bool, option("Continue although the pictures changed.", OVERLAY_PANEL, "--data-changed")
    ] = False,
    steps: Annotated[
        int | None,
        option("Make the run longer, a finished one too: steps in all.", OVERLAY_PANEL, default="as planned"),
    ] = None,
    processes: Annotated[int, processes_option(OVERLAY_PANEL)] = 1,
) -> None:
    """Continue an interrupted run to the same end, bit for bit, that it would have had.

    velatura resume runs/inca

    velatura resume runs/

    velatura resume runs/inca --steps 400

    velatura resume runs/inca --base sd15 --library models/
    """
    from velatura.cli.train.runs import choose_run
    from velatura.training.run.recorded_base import RecordedBase

    chosen = choose_run(run)
    if chosen is None:
        return
    run = chosen
    assert processes >= 1  # looked at before, see processes_option
    searched = velatura.Library(*(library or [Path()]))
    given = LoadOptions(vae=vae, prediction=prediction, zero_snr=zero_snr, unet=unet, text=tuple(text or ()))
    recorded = RecordedBase.of_run(run, may_be_finished=steps is not None)
    opened_base = open_base(base or recorded.location, searched, _complete_options(given, recorded, searched))
    with training_progress() as progress:
        finished_run = velatura.resume(
            opened_base,
            run,
            on_step=progress.on_step,
            on_stage=progress.on_stage,
            data_changed=data_changed,
            steps=steps,
        )
    print_run(finished_run)


def _complete_options(given: LoadOptions, recorded: RecordedBase, library: velatura.Library) -> LoadOptions:
    """Return the options of opening the base: those that were given, and for the others those that the run records.

    Raises:
        BadFile: A part is needed that is neither at its place nor in the library.
    """

    def find(part: str, path: str, file_hash: str) -> Path:
        return _find_part(part, path, file_hash, library)

    options, text_hashes = recorded.options, recorded.text_hashes
    if len(text_hashes) != len(options.text):  # one file may hold both of an SDXL
        text_hashes = ("",) * len(options.text)
    return given._replace(
        unet=given.unet or (options.unet and find("unet", options.unet, recorded.unet_hash)),
        text=given.text or tuple(map(find, ("text",) * len(options.text), options.text, text_hashes)),
        vae=given.vae or (options.vae and find("vae", options.vae, recorded.vae_hash)),
        weights=options.weights,
        prediction=given.prediction or options.prediction,
        zero_snr=options.zero_snr if given.zero_snr is None else given.zero_snr,
    )


def _find_part(part: str, path: str, file_hash: str, library: velatura.Library) -> Path:
    """Return where a part of a run's base is: at its place, or in the library under its hash."""
    if path.startswith("hub:") or Path(path).exists():
        return Path(path)
    if file_hash:
        try:
            return library.part_path(file_hash, part)
        except UnknownName:
            pass
    name = PART_NAMES[part]
    hash_words = f" (hash {file_hash})" if file_hash else ""
    raise BadFile(
        f"the run began with the {name} {path}{hash_words}, which is not there any more, nor in --library: put it "
        f"back, or give its new path ({PART_FLAGS[part][0]})"
    )
