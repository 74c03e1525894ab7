"""Picture files: find them in a folder, open them with clear errors, turn them upright, convert them to RGB."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from velatura.errors import BadDataset

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
MASK_LABEL = "-masklabel"  # cat-masklabel.png is the mask of cat.jpg, as OneTrainer names it


def picture_paths(folder: Path) -> list[Path]:
    """Return the pictures of a folder, sorted by name, without hidden files, masks and subfolders."""
    return sorted(_find_pictures(folder))


def read_picture(path: Path, pixels: int) -> Image.Image:
    """Return the middle square of a picture, resized to `pixels`, upright, in RGB, with white for transparency."""
    return ImageOps.fit(read_upright(path), (pixels, pixels), Image.Resampling.LANCZOS)


def read_upright(path: Path) -> Image.Image:
    """Return the whole picture, turned upright as its EXIF orientation says, in RGB, with white for transparency."""
    with open_picture(path) as image:
        return as_rgb(ImageOps.exif_transpose(image))


@contextmanager
def open_picture(path: Path) -> Generator[Image.Image]:
    """Open a picture.

    Raises:
        BadDataset: The file is not a picture, or is damaged; raised in the block too, where pixels are read.
    """
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is not a picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadDataset(f"{path} cannot be read ({reason}): replace it, or remove it from the folder") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB, with white for transparency."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips and does not scale
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
