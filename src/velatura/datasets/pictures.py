"""Picture files: which count, opened so that a broken one is named, brought upright and to RGB."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from velatura.errors import BadDataset

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
MASK_LABEL = "-masklabel"  # cat-masklabel.png is the mask of cat.jpg, as OneTrainer names it


def picture_paths(folder: Path) -> list[Path]:
    """The pictures of a folder by name, without hidden ones, masks and what lies in folders inside."""
    return sorted(_find_pictures(folder))


def read_picture(path: Path, pixels: int) -> Image.Image:
    """The picture upright, in RGB, its middle square brought to pixels x pixels; what was transparent is white."""
    return ImageOps.fit(read_upright(path), (pixels, pixels), Image.Resampling.LANCZOS)


def read_upright(path: Path) -> Image.Image:
    """The whole picture as its camera was held, in RGB; what was transparent is white."""
    with open_picture(path) as image:
        return as_rgb(ImageOps.exif_transpose(image))


@contextmanager
def open_picture(path: Path) -> Generator[Image.Image]:
    """The picture, opened; whatever Pillow says of a broken one becomes a BadDataset that names it."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadDataset(f"{path} cannot be read ({reason}); replace it or take it out of the folder") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, whatever its mode; what was transparent is white."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips instead of scaling
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _find_pictures(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        is_picture = path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
        if is_picture and not path.stem.endswith(MASK_LABEL) and path.is_file():
            yield path
