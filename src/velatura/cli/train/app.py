"""Collect the commands `train KIND`, and run `resume`."""

from pathlib import Path
from typing import Annotated

import typer

import velatura
from velatura.base.families import PredictionWord
from velatura.cli.base import LoadOptions, base_option, open_base, part_option, prediction_option, zero_snr_option
from velatura.cli.train.aesthetic import train_aesthetic
from velatura.cli.train.dreambooth import train_dreambooth
from velatura.cli.train.embedding import train_embedding
from velatura.cli.train.hypernet import train_hypernet
from velatura.cli.train.lora import train_lora
from velatura.cli.train.options import OVERLAY_PANEL, LibraryFolders, option, processes_option
from velatura.cli.train.progress import training_progress
from velatura.cli.train.session import print_run

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
    base: Annotated[str | None, base_option(OVERLAY_PANEL, "the one that it began on")] = None,
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
    from velatura.training.run.folder import base_of_run

    chosen = choose_run(run)
    if chosen is None:
        return
    run = chosen
    assert processes >= 1  # looked at before, see processes_option
    load_options = LoadOptions(vae=vae, prediction=prediction, zero_snr=zero_snr, unet=unet, text=tuple(text or ()))
    opened_base = open_base(
        base or base_of_run(run, may_be_finished=steps is not None),
        velatura.Library(*(library or [Path()])),
        load_options,
    )
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
