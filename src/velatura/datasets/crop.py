"""Pictures cut to the sizes that a training wants, with their captions and masks, into a new folder."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from velatura.datasets.boxes import CropBox, ImageSize, bucket_sizes, kept_ratio, nearest_size, split_boxes
from velatura.datasets.folder import Dataset, Example, read_dataset
from velatura.datasets.pictures import as_rgb, open_picture
from velatura.datasets.saliency import FOCUSES, best_box
from velatura.errors import BadDataset, UnknownName
from velatura.files import atomic_folder

LEFT_OR_RIGHT = re.compile(r"\b(left|right)\b", re.IGNORECASE)
OPPOSITE_SIDE = {"left": "right", "right": "left"}
MIN_PIXELS, MAX_PIXELS = 8, 4096  # pixels of a side


@dataclass(frozen=True)
class CropOptions:
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
            raise UnknownName.with_suggestions("focus", self.focus, FOCUSES)
        if not MIN_PIXELS <= self.pixels <= MAX_PIXELS or self.pixels % MIN_PIXELS:
            raise BadDataset(
                f"pictures cannot be cut to {self.pixels} pixels; choose a multiple of 8 up to {MAX_PIXELS}"
            )
        if not 0 <= self.split_below <= 1:
            raise BadDataset(f"a share of {self.split_below:g} is impossible; split pictures below one from 0 to 1")
        if not 0 <= self.overlap < 1:
            raise BadDataset(f"pieces cannot overlap by {self.overlap:g}; choose a share from 0 to below 1")

    def boxes(self, image: Image.Image) -> list[tuple[CropBox, ImageSize]]:
        """The boxes to take from a picture, and the size that each is brought to."""
        square = self.pixels, self.pixels
        if kept_ratio(image.size, square) < self.split_below:
            (resized_width, resized_height), pieces = split_boxes(image.size, square, self.overlap)
            x_scale, y_scale = image.width / resized_width, image.height / resized_height
            return [((x * x_scale, y * y_scale, r * x_scale, b * y_scale), square) for x, y, r, b in pieces]
        size = nearest_size(image.size, bucket_sizes(self.pixels)) if self.shape == "buckets" else square
        assert size is not None
        return [(best_box(image.size, size, FOCUSES[self.focus](image)), size)]


@dataclass(frozen=True)
class CroppedPicture:
    """One picture written: where, from which, what of it was taken and at which size."""

    file: Path
    source: Path
    box: CropBox
    size: ImageSize
    source_size: ImageSize  # of the source, upright

    @property
    def is_enlarged(self) -> bool:
        """Whether it has more pixels than were there."""
        return self.box[2] - self.box[0] < self.size[0] - 0.5

    @property
    def cropped_share(self) -> float:
        """The share of the source that is not in it."""
        return 1 - (self.box[2] - self.box[0]) * (self.box[3] - self.box[1]) / (
            self.source_size[0] * self.source_size[1]
        )


def crop_folder(folder: str | Path, out: str | Path, options: CropOptions) -> list[CroppedPicture]:
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
    with atomic_folder(out) as temporary:
        pictures = list(_crop_all(dataset, folder, temporary, options))
    return [replace(picture, file=out / picture.file) for picture in pictures]


def mirror_caption(caption: str) -> str:
    """The caption of the mirror image: left is right."""

    def swap_side(side_match: re.Match[str]) -> str:
        word = OPPOSITE_SIDE[side_match[0].lower()]
        return word.capitalize() if side_match[0][0].isupper() else word

    return LEFT_OR_RIGHT.sub(swap_side, caption)


def _crop_all(dataset: Dataset, folder: Path, out: Path, options: CropOptions) -> Iterator[CroppedPicture]:
    for number, example in enumerate([*dataset.examples, *dataset.regularisation]):
        subfolder = example.path.parent.relative_to(folder)
        yield from _crop_example(example, f"{number:05}", subfolder, out, options)


def _crop_example(
    example: Example, number: str, subfolder: Path, out: Path, options: CropOptions
) -> Iterator[CroppedPicture]:
    with open_picture(example.path) as image:
        upright = ImageOps.exif_transpose(image)
        picture = upright.convert("RGBA") if upright.has_transparency_data else as_rgb(upright)
    mask = _read_mask(example, picture.size)
    (out / subfolder).mkdir(parents=True, exist_ok=True)
    boxes = options.boxes(as_rgb(picture))
    for index, (box, size, is_mirrored) in enumerate(_add_mirrored(boxes, mirrors=options.mirrors)):
        name = f"{number}-{index}-{example.path.stem}.png"
        _crop(picture, box, size, is_mirrored=is_mirrored).save(out / subfolder / name)
        if mask:
            (out / subfolder / "mask").mkdir(exist_ok=True)
            _crop(mask, box, size, is_mirrored=is_mirrored).save(out / subfolder / "mask" / name)
        caption = mirror_caption(example.caption) if is_mirrored else example.caption
        if caption and (
            is_mirrored or not example.is_caption_from_name
        ):  # a name still says the same, after its number
            (out / subfolder / name).with_suffix(".txt").write_text(caption + "\n", "utf-8")
        yield CroppedPicture(subfolder / name, example.path, box, size, picture.size)


def _add_mirrored(
    boxes: Sequence[tuple[CropBox, ImageSize]], *, mirrors: bool
) -> list[tuple[CropBox, ImageSize, bool]]:
    return [(box, size, is_mirrored) for box, size in boxes for is_mirrored in ((False, True) if mirrors else (False,))]


def _read_mask(example: Example, size: ImageSize) -> Image.Image | None:
    """The mask at its picture's size."""
    if example.mask is None:
        return None
    with open_picture(example.mask) as mask:
        return ImageOps.exif_transpose(mask).convert("L").resize(size)


def _crop(image: Image.Image, box: CropBox, size: ImageSize, *, is_mirrored: bool) -> Image.Image:
    piece = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return ImageOps.mirror(piece) if is_mirrored else piece
