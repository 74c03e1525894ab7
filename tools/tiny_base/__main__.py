"""python -m tools.tiny_base TASK [TASK ...]: make and measure the tiny base.

Trained in this order, each going on from its last snapshot and ending with its figures:

    vae      autoencoder
    decoder  its decoder alone, further, on latents that stay; its gate must be met before anything else starts
    clip     text and vision tower against each other
    unet     UNet, the text tower beside it
    vision   vision tower against the text tower as the UNet left it
    judge    classifier of drawings, apart from the base, with which tools compare trainings; it is then
             written to judge.safetensors beside this module

    adopt    begin from the weights in the package, where the work folder is lost
    export   write the base and the bundled pictures into the package
    measure  subject, colour and place of 500 generated pictures, by the judge
    overlay  share in a style, and subjects kept, over 100 prompts at four strengths (--file, --style)

A gate that is missed ends the command with exit status 1.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ..drawing.scene import HELD_OUT_STYLES
from . import clip, judge, unet, vae
from .export import adopt_base, export_base, export_pictures
from .gates import print_overlay_table, print_table
from .loop import run

DATA = Path(__file__).parents[2] / "src" / "velatura" / "data"

Asked = argparse.Namespace


def _vae(asked: Asked) -> bool:
    run(vae.VaeJob, vae.SCHEDULE, "vae", asked.work)
    return True


def _decoder(asked: Asked) -> bool:
    run(vae.DecoderJob, vae.DECODER_SCHEDULE, "decoder", asked.work)
    return print_table("decoder", vae.report(asked.work))


def _clip(asked: Asked) -> bool:
    run(clip.ClipJob, clip.SCHEDULE, "clip", asked.work)
    return print_table("clip", {"own of 100": clip.report(asked.work, "clip")})


def _unet(asked: Asked) -> bool:
    run(unet.UnetJob, unet.SCHEDULE, "unet", asked.work)
    return True


def _vision(asked: Asked) -> bool:
    run(clip.VisionJob, clip.VISION_SCHEDULE, "vision", asked.work)
    return print_table("vision", {"own of 100": clip.report(asked.work, "vision")})


def _judge(asked: Asked) -> bool:
    run(judge.JudgeJob, judge.SCHEDULE, "judge", asked.work)
    is_good = print_table("judge", judge.report(asked.work))
    if is_good:
        judge.export_judge(asked.work)
    return is_good


def _adopt(asked: Asked) -> bool:
    adopt_base(DATA / "tiny", asked.work)
    return True


def _export(asked: Asked) -> bool:
    export_base(asked.work, DATA / "tiny")
    export_pictures(DATA / "pictures")
    return True


def _measure(asked: Asked) -> bool:
    from .measure import base_table

    return print_table("measure", base_table(asked.work))


def _overlay(asked: Asked) -> bool:
    from .measure import overlay_table

    if asked.file is None:
        sys.exit("overlay needs --file, the overlay to measure")
    return print_overlay_table(asked.style, overlay_table(asked.work, asked.file, asked.style))


TASKS: dict[str, Callable[[Asked], bool]] = {
    "vae": _vae,
    "decoder": _decoder,
    "clip": _clip,
    "unet": _unet,
    "vision": _vision,
    "judge": _judge,
    "adopt": _adopt,
    "export": _export,
    "measure": _measure,
    "overlay": _overlay,
}


def main() -> None:
    """Do what the command line asks, one task after the other, up to a gate that is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny_base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", choices=list(TASKS), metavar="TASK")
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"), help="folder of drawings and snapshots")
    parser.add_argument("--file", type=Path, help="overlay to measure")
    parser.add_argument("--style", default="neon", choices=HELD_OUT_STYLES, help="what the overlay was trained on")
    asked = parser.parse_args()
    for task in asked.tasks:
        if not TASKS[task](asked):
            sys.exit(f"{task}: a gate is missed")


if __name__ == "__main__":
    main()
