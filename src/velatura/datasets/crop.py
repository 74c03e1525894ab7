"""Crops of all pictures of a folder to training sizes, with captions and masks, in a new folder."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from velatura.datasets.boxes import CropBox, ImageSize, bucket_sizes, crop_coverage, nearest_size, split_boxes
from velatura.datasets.folder import Dataset, Example, read_dataset, resolve_folder
from velatura.datasets.pictures import OnPicture, as_rgb, load_upright, open_picture, read_upright, turn_upright
from velatura.datasets.saliency import FOCUSES, best_box
from velatura.errors import BadDataset, UnknownName, gather_warnings
from velatura.files import atomic_folder

LEFT_OR_RIGHT = re.compile(r"\b(left|right)\b", re.IGNORECASE)
OPPOSITE_SIDE = {"left": "right", "right": "left"}
MIN_PIXELS, MAX_PIXELS = 8, 4096  # of a side


@dataclass(frozen=True)
class CropOptions:
    """Options of `crop_folder`.

    Attributes:
        pixels: Side of the square, or the root of a bucket's largest area; a multiple of 8.
        shape: "square", or "buckets" to crop every picture to the bucket with the nearest aspect ratio.
        focus: What the crop keeps: "middle", "salient" or "faces".
        split_below: Split a picture into several squares if one square would cover less than this share of it.
        overlap: Least overlap of these squares, as a share of their side.
        mirrors: Also write every crop mirrored.

    Raises:
        BadDataset: A number is out of range.
        UnknownName: The focus is unknown.
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
                f"pictures cannot be cropped to {self.pixels} pixels: choose a multiple of 8 up to {MAX_PIXELS}"
            )
        if not 0 <= self.split_below <= 1:
            raise BadDataset(f"split_below is {self.split_below:g}: choose a share from 0 to 1")
        if not 0 <= self.overlap < 1:
            raise BadDataset(f"overlap is {self.overlap:g}: choose a share from 0 to below 1")

    def boxes(self, image: Image.Image) -> list[tuple[CropBox, ImageSize]]:
        """Return the boxes to crop from a picture, with the size to resize the crop to."""
        square = self.pixels, self.pixels
        if crop_coverage(image.size, square) < self.split_below:
            (resized_width, resized_height), pieces = split_boxes(image.size, square, self.overlap)
            x_scale, y_scale = image.width / resized_width, image.height / resized_height
            return [
                ((left * x_scale, top * y_scale, right * x_scale, bottom * y_scale), square)
                for left, top, right, bottom in pieces
            ]
        size = nearest_size(image.size, bucket_sizes(self.pixels)) if self.shape == "buckets" else square
        assert size is not None
        return [(best_box(image.size, size, FOCUSES[self.focus](image)), size)]


@dataclass(frozen=True)
class CroppedPicture:
    """One crop: its file, the source picture, the box in it and the size of the crop."""

    file: Path
    source: Path
    box: CropBox
    size: ImageSize
    source_size: ImageSize  # turned upright

    @property
    def is_enlarged(self) -> bool:
        """Return True if the crop has more pixels than the box."""
        return self.box[2] - self.box[0] < self.size[0] - 0.5

    @property
    def cropped_share(self) -> float:
        """Return the share of the source picture that is outside the box."""
        left, top, right, bottom = self.box
        width, height = self.source_size
        return 1 - (right - left) * (bottom - top) / (width * height)


def find_crop_boxes(path: str | Path, options: CropOptions) -> tuple[ImageSize, list[CropBox]]:
    """Return the size of a picture, turned upright, and the boxes that a crop would keep of it.

    Args:
        path: The picture.
        options: What to crop, and to which size.

    Raises:
        BadDataset: The picture cannot be read.
    """
    picture = read_upright(Path(path))
    return picture.size, [box for box, _ in options.boxes(picture)]


def crop_folder(
    folder: str | Path, out: str | Path, options: CropOptions, *, on_picture: OnPicture | None = None
) -> list[CroppedPicture]:
    """Crop all pictures of a folder into a new folder, which appears when all are done.

    Crops are named NNNNN-S-NAME.png as in the web UI, S counting the crops of a picture. Masks and pictures before an
    edit are cropped too. The caption goes to a .txt file, unless the file name is the caption; in that of a mirrored
    crop, left and right are swapped. Folders such as 10_NAME and reg keep their names, and transparency is kept.

    Args:
        folder: Folder of pictures; captions may be missing.
        out: New folder, not inside `folder`.
        options: What to crop, and to which size.
        on_picture: Called after each picture with how many are cropped, and how many there are. What it raises ends the
            work, and `out` does not appear.

    Raises:
        BadDataset: The folder is missing, or has no pictures or a broken one, or `out` is inside it.
        AlreadyExists: `out` contains something.
    """
    folder, out = resolve_folder(folder), Path(out).expanduser()
    if out.resolve().is_relative_to(folder.resolve()):
        raise BadDataset(f"{out} is inside {folder}, where crops would mix with pictures: choose a folder elsewhere")
    dataset = read_dataset(folder, needs_captions=False)
    with atomic_folder(out) as temporary, gather_warnings():
        pictures = list(_crop_all(dataset, folder, temporary, options, on_picture))
    return [replace(picture, file=out / picture.file) for picture in pictures]


def mirror_caption(caption: str) -> str:
    """Return the caption of the mirrored picture: "left" becomes "right" and the other way round."""

    def swap_side(match: re.Match[str]) -> str:
        word = OPPOSITE_SIDE[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    return LEFT_OR_RIGHT.sub(swap_side, caption)


def _crop_all(
    dataset: Dataset, folder: Path, out: Path, options: CropOptions, on_picture: OnPicture | None
) -> Iterator[CroppedPicture]:
    examples = [*dataset.examples, *dataset.regularisation]
    for number, example in enumerate(examples):
        subfolder = example.path.parent.relative_to(folder)
        yield from _crop_example(example, f"{number:05}", subfolder, out, options)
        if on_picture is not None:
            on_picture(number + 1, len(examples))


def _crop_example(
    example: Example, number: str, subfolder: Path, out: Path, options: CropOptions
) -> Iterator[CroppedPicture]:
    with open_picture(example.path) as image:
        upright = load_upright(example.path, image)
        picture = upright.convert("RGBA") if upright.has_transparency_data else as_rgb(upright, example.path.name)
    mask = _read_mask(example, picture.size)
    before = None if example.before is None else read_upright(example.before).resize(picture.size)
    (out / subfolder).mkdir(parents=True, exist_ok=True)
    boxes = options.boxes(as_rgb(picture, example.path.name))
    for index, (box, size, is_mirrored) in enumerate(_add_mirrored(boxes, mirrors=options.mirrors)):
        name = f"{number}-{index}-{example.path.stem}.png"
        _crop(picture, box, size, is_mirrored=is_mirrored).save(out / subfolder / name)
        if mask:
            (out / subfolder / "mask").mkdir(exist_ok=True)
            _crop(mask, box, size, is_mirrored=is_mirrored).save(out / subfolder / "mask" / name)
        if before:
            (out / subfolder / "before").mkdir(exist_ok=True)
            _crop(before, box, size, is_mirrored=is_mirrored).save(out / subfolder / "before" / name)
        caption = mirror_caption(example.caption) if is_mirrored else example.caption
        # A caption from the file name needs no text: it is still read from the new name, after the number
        if caption and (is_mirrored or not example.is_caption_from_name):
            (out / subfolder / name).with_suffix(".txt").write_text(caption + "\n", "utf-8")
        yield CroppedPicture(subfolder / name, example.path, box, size, picture.size)


def _add_mirrored(
    boxes: Sequence[tuple[CropBox, ImageSize]], *, mirrors: bool
) -> list[tuple[CropBox, ImageSize, bool]]:
    variants = (False, True) if mirrors else (False,)
    return [(box, size, is_mirrored) for box, size in boxes for is_mirrored in variants]


def _read_mask(example: Example, size: ImageSize) -> Image.Image | None:
    """Return the mask resized to its picture's size, or None."""
    if example.mask is None:
        return None
    with open_picture(example.mask) as mask:
        return turn_upright(mask).convert("L").resize(size)


def _crop(image: Image.Image, box: CropBox, size: ImageSize, *, is_mirrored: bool) -> Image.Image:
    piece = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return ImageOps.mirror(piece) if is_mirrored else piece
