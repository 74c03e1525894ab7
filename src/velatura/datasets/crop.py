"""Pictures cut to the sizes that a training wants, with their captions and masks, into a new folder."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from velatura.datasets.boxes import Box, Size, bucket_sizes, longness, nearest_size, split_boxes
from velatura.datasets.focus import FOCUSES, best_box
from velatura.datasets.folder import Dataset, Example, read_dataset
from velatura.datasets.pictures import as_rgb, opened
from velatura.errors import BadDataset, UnknownName
from velatura.files import filling

SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
OTHER = {"left": "right", "right": "left"}
LEAST, MOST = 8, 4096  # pixels of a side


@dataclass(frozen=True)
class Cutting:
    """How pictures are cut.

    shape: all square, or each to the bucket of about pixels squared that is nearest to its own shape. focus: what the
    cut keeps, a name of FOCUSES. split_below: pictures that a square would keep less of than this share are split into
    several, that overlap. mirrors: each is written a second time, mirrored.
    """

    pixels: int = 512
    shape: Literal["square", "buckets"] = "square"
    focus: str = "salient"
    split_below: float = 0.0
    overlap: float = 0.2
    mirrors: bool = False

    def __post_init__(self) -> None:
        if self.focus not in FOCUSES:
            raise UnknownName.among("focus", self.focus, FOCUSES)
        if not LEAST <= self.pixels <= MOST or self.pixels % LEAST:
            raise BadDataset(f"pictures cannot be cut to {self.pixels} pixels; choose a multiple of 8 up to {MOST}")
        if not 0 <= self.split_below <= 1:
            raise BadDataset(f"a share of {self.split_below:g} is impossible; split pictures below one from 0 to 1")
        if not 0 <= self.overlap < 1:
            raise BadDataset(f"pieces cannot overlap by {self.overlap:g}; choose a share from 0 to below 1")

    def boxes(self, image: Image.Image) -> list[tuple[Box, Size]]:
        """The boxes to take from a picture, and the size that each is brought to."""
        square = self.pixels, self.pixels
        if longness(image.size, square) < self.split_below:
            (wide, high), pieces = split_boxes(image.size, square, self.overlap)
            across, down = image.width / wide, image.height / high
            return [((x * across, y * down, r * across, b * down), square) for x, y, r, b in pieces]
        chosen = nearest_size(image.size, bucket_sizes(self.pixels)) if self.shape == "buckets" else square
        assert chosen is not None
        return [(best_box(image.size, chosen, FOCUSES[self.focus](image)), chosen)]


@dataclass(frozen=True)
class Cut:
    """One picture written: where, from which, what of it was taken and at which size."""

    file: Path
    source: Path
    box: Box
    size: Size
    whole: Size  # of the source, upright

    @property
    def is_enlarged(self) -> bool:
        """Whether it has more pixels than were there."""
        return self.box[2] - self.box[0] < self.size[0] - 0.5

    @property
    def left_out(self) -> float:
        """The share of the source that is not in it."""
        return 1 - (self.box[2] - self.box[0]) * (self.box[3] - self.box[1]) / (self.whole[0] * self.whole[1])


def crop_folder(folder: str | Path, out: str | Path, cutting: Cutting) -> list[Cut]:
    """Cut all pictures of a folder into a new one, which appears when all is done; the old one stays as it is.

    They are called NNNNN-S-NAME.png as the webui's are, S counting what was made of one, each with its mask and a .txt
    of its caption, unless its name says that or nothing does. Folders that count their pictures and that of
    regularisation keep their names. What is transparent stays so. A mirrored picture's caption has left and right
    exchanged.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    if out.resolve().is_relative_to(folder.resolve()):
        raise BadDataset(f"{out} is inside {folder}, whose pictures it would mix with; choose a folder elsewhere")
    dataset = read_dataset(folder, needs_captions=False)
    with filling(out) as beside:
        cuts = list(_cut_all(dataset, folder, beside, cutting))
    return [replace(cut, file=out / cut.file) for cut in cuts]


def mirrored_caption(caption: str) -> str:
    """The caption of the mirror image: left is right."""

    def other(found: re.Match[str]) -> str:
        word = OTHER[found[0].lower()]
        return word.capitalize() if found[0][0].isupper() else word

    return SIDES.sub(other, caption)


def _cut_all(dataset: Dataset, folder: Path, out: Path, cutting: Cutting) -> Iterator[Cut]:
    for number, example in enumerate([*dataset.examples, *dataset.regularising]):
        inside = example.path.parent.relative_to(folder)
        yield from _cut(example, f"{number:05}", inside, out, cutting)


def _cut(example: Example, number: str, inside: Path, out: Path, cutting: Cutting) -> Iterator[Cut]:
    with opened(example.path) as image:
        upright = ImageOps.exif_transpose(image)
        whole = upright.convert("RGBA") if upright.has_transparency_data else as_rgb(upright)
    mask = _mask(example, whole.size)
    (out / inside).mkdir(parents=True, exist_ok=True)
    boxes = cutting.boxes(as_rgb(whole))
    for place, (box, size, turned) in enumerate(_with_mirrors(boxes, mirrors=cutting.mirrors)):
        name = f"{number}-{place}-{example.path.stem}.png"
        _piece(whole, box, size, mirrored=turned).save(out / inside / name)
        if mask:
            (out / inside / "mask").mkdir(exist_ok=True)
            _piece(mask, box, size, mirrored=turned).save(out / inside / "mask" / name)
        caption = mirrored_caption(example.caption) if turned else example.caption
        if caption and (turned or not example.is_named_so):  # a name still says the same, after its number
            (out / inside / name).with_suffix(".txt").write_text(caption + "\n", "utf-8")
        yield Cut(inside / name, example.path, box, size, whole.size)


def _with_mirrors(boxes: Sequence[tuple[Box, Size]], *, mirrors: bool) -> list[tuple[Box, Size, bool]]:
    return [(box, size, turned) for box, size in boxes for turned in ((False, True) if mirrors else (False,))]


def _mask(example: Example, size: Size) -> Image.Image | None:
    """The mask at its picture's size."""
    if example.mask is None:
        return None
    with opened(example.mask) as mask:
        return ImageOps.exif_transpose(mask).convert("L").resize(size)


def _piece(image: Image.Image, box: Box, size: Size, *, mirrored: bool) -> Image.Image:
    piece = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return ImageOps.mirror(piece) if mirrored else piece
