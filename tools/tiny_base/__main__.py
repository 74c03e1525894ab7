"""python -m tools.tiny_base TASK [TASK ...]: make and measure the tiny base.

Trained in this order, each resuming from its last snapshot and ending with its figures:

    vae      autoencoder                          clip     text and vision tower against each other
    unet     UNet, the text tower beside it       vision   vision tower against the text tower as the UNet left it
    judge    classifier of drawings, apart from the base

    export   write the base and the bundled pictures into the package
    measure  subject, colour and place of 500 generated pictures, by the judge
    overlay  share in a style, and subjects kept, over 100 prompts at four strengths (--file, --style)
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from . import clip, judge, unet, vae
from .export import export_base, export_pictures
from .loop import run

DATA = Path(__file__).parents[2] / "src" / "velatura" / "data"


def _vae(asked: argparse.Namespace) -> object:
    run(vae.VaeJob, vae.SCHEDULE, "vae", asked.work)
    return vae.report(asked.work)


def _clip(asked: argparse.Namespace) -> object:
    run(clip.ClipJob, clip.SCHEDULE, "clip", asked.work)
    return clip.report(asked.work, "clip")


def _unet(asked: argparse.Namespace) -> object:
    run(unet.UnetJob, unet.SCHEDULE, "unet", asked.work)
    return "done"


def _vision(asked: argparse.Namespace) -> object:
    run(clip.VisionJob, clip.VISION_SCHEDULE, "vision", asked.work)
    return clip.report(asked.work, "vision")


def _judge(asked: argparse.Namespace) -> object:
    run(judge.JudgeJob, judge.SCHEDULE, "judge", asked.work)
    return judge.report(asked.work)


def _export(asked: argparse.Namespace) -> object:
    export_base(asked.work, DATA / "tiny")
    export_pictures(DATA / "pictures")
    return DATA


def _measure(asked: argparse.Namespace) -> object:
    from .measure import base_table

    return base_table(asked.work)


def _overlay(asked: argparse.Namespace) -> object:
    from .measure import overlay_table

    return overlay_table(asked.work, asked.file, asked.style)


TASKS: dict[str, Callable[[argparse.Namespace], object]] = {
    "vae": _vae,
    "clip": _clip,
    "unet": _unet,
    "vision": _vision,
    "judge": _judge,
    "export": _export,
    "measure": _measure,
    "overlay": _overlay,
}


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny_base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", choices=list(TASKS), metavar="TASK")
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"), help="folder of drawings and snapshots")
    parser.add_argument("--file", type=Path, help="overlay to measure")
    parser.add_argument("--style", default="neon", help="held-out style that the overlay was trained on")
    asked = parser.parse_args()
    for task in asked.tasks:
        print(task, TASKS[task](asked), flush=True)


if __name__ == "__main__":
    main()
