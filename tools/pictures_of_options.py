"""python -m tools.pictures_of_options WORK: draw what each option of a hypernetwork does, for docs/hypernetworks.md.

One hypernetwork is trained for every option, all else alike: the bundled neon pictures, the tiny base's preset with
twice the pictures a step and no weights by SNR, the same pictures, noise and timesteps at every step. Each takes a
minute or two on one core, and is kept in WORK; what is there already is not trained again. Then come the strips, and
for each network a line of figures.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

import velatura
from velatura.sampling.image_grid import BACKGROUND_COLOUR, CELL_PIXELS, GAP_PIXELS, draw_grid

IMAGES = Path(__file__).parents[1] / "docs" / "images" / "options"
STYLE = "neon"
SCENES = ("a red house on the beach", "a blue boat in the snow", "a green fish underwater", "an orange cat indoors")
SEED = 7
WEBP_QUALITY = 85  # of WebP, where no seam is to be seen yet
LOSS_STEPS = 100  # steps whose mean loss is told
LABEL_PIXELS = 170  # pixels for what stands beside a strip

START_OPTIONS: dict[str, object] = {"layers": (1, 2, 1), "activation": "relu"}
OPTIONS: dict[str, dict[str, object]] = {
    "start": {},
    "linear": {"activation": "linear"},
    "deeper": {"layers": (1, 2, 2, 1)},
    "layer-norm": {"layer_norm": True},
    "output-activated": {"activate_output": True},
    "dropout": {"dropout": 0.3},
    "xavier": {"init": "xavier_normal"},
    "prompt-only": {"widths": (96,)},
    "picture-only": {"widths": (64, 128, 192)},
}
LABELS = {
    "start": "1,2,1 relu",
    "linear": "activation linear",
    "deeper": "layers 1,2,2,1",
    "layer-norm": "layer norm",
    "output-activated": "output activated",
    "dropout": "dropout 0.3",
    "xavier": "init xavier_normal",
    "prompt-only": "width 96 only",
    "picture-only": "all widths but 96",
}
STRENGTHS = (0, 0.5, 1, 1.5)


def make_network(base: velatura.Base, option: str) -> velatura.Hypernetwork:
    """The network of an option, as it is before its training."""
    return velatura.Hypernetwork.for_base(base, **START_OPTIONS | OPTIONS[option], seed=0, name=option)


def train_network(base: velatura.Base, option: str, work: Path) -> velatura.Hypernetwork:
    """The network of an option, trained if WORK does not hold it yet."""
    folder = work / option
    file = folder / f"{option}.safetensors"
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        plan = velatura.Plan.preset("hypernet", base.family.name)
        plan = plan.replace(batch_size=16, inverse_snr=0, snapshot_every=0, tune=False)
        velatura.train(base, make_network(base, option), velatura.tiny_pictures(STYLE), plan, out=folder)
    return velatura.open_overlay(file)


def paint_scenes(base: velatura.Base, overlay: velatura.Overlay, strength: float) -> list[Image.Image]:
    """The four scenes with an overlay."""
    recipes = [velatura.Recipe(prompt=f"{scene} <hypernet:it:{strength}>", seed=SEED) for scene in SCENES]
    return [picture.image for picture in velatura.generate_many(base, recipes, overlays={"it": overlay})]


def strip(label: str, pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row beside their label, as wide as any other such strip."""
    row = draw_grid([pictures], rows=[label])
    sheet = Image.new(
        "RGB", (LABEL_PIXELS + len(pictures) * (CELL_PIXELS + GAP_PIXELS) + GAP_PIXELS, row.height), BACKGROUND_COLOUR
    )
    sheet.paste(row, (sheet.width - row.width, 0))
    return sheet


def strips(base: velatura.Base, work: Path) -> Iterator[tuple[str, Image.Image]]:
    """Every strip with its name: the start at all strengths, then the other networks at strength 1."""
    for option in OPTIONS:
        overlay = train_network(base, option, work)
        print(figures(overlay, work / option / "log.jsonl"), flush=True)
        yield option, strip(LABELS[option], paint_scenes(base, overlay, 1))
        if option == "start":
            for strength in STRENGTHS:
                yield f"strength-{strength}", strip(f"strength {strength}", paint_scenes(base, overlay, strength))


def figures(overlay: velatura.Overlay, log: Path) -> str:
    """A network's size and how well it learned: losses compare, since all see the same pictures and noise."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    loss = sum(line["loss"] for line in steps[-LOSS_STEPS:]) / LOSS_STEPS
    count = sum(weight.numel() for weight in overlay.parameters())
    return f"{overlay.card.name:17} {count:>9,} parameters  loss {loss:.4f}  {steps[-1]['seconds']:.0f} s"


def main(words: Sequence[str] | None = None, open_base: Callable[[], velatura.Base] = velatura.tiny) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the trained networks")
    work = parser.parse_args(words).work
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, picture in strips(open_base(), work):
        picture.save(IMAGES / f"{name}.webp", quality=WEBP_QUALITY, method=6)


if __name__ == "__main__":
    main()
