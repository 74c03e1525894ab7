"""Picture files: find them in a folder, open them with clear errors, turn them upright, convert them to RGB."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from velatura.errors import BadDataset

# Pictures that Pillow reads alone; it runs Ghostscript for EPS, which can do more than draw
PICTURE_SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".webp", ".avif", ".avifs", ".gif", ".tif", ".tiff", ".bmp", ".dib", ".ico", ".psd"),
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".pcx", ".sgi", ".dds"),
    }
)
# Pictures of phones, cameras and drawing programs that Pillow does not read
UNREAD_SUFFIXES = frozenset(
    {
        *(".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl", ".jxr", ".exr", ".hdr"),
        *(
            ".dng",
            ".raw",
            ".cr2",
            ".cr3",
            ".crw",
            ".nef",
            ".nrw",
            ".arw",
            ".srf",
            ".sr2",
            ".raf",
            ".orf",
            ".rw2",
            ".pef",
            ".srw",
            ".x3f",
            ".3fr",
        ),
        *(".svg", ".svgz", ".eps", ".ai", ".pdf", ".psb", ".xcf", ".kra", ".clip", ".afphoto"),
    }
)
# First bytes of PNG, JPEG, GIF, TIFF and JPEG 2000; AVIF and HEIC have theirs after 4 bytes, WebP after 8
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
BOX_SIGNATURES = (b"ftypavif", b"ftyphei", b"ftypmif1")
MASK_LABEL = "-masklabel"  # cat-masklabel.png is the mask of cat.jpg, as OneTrainer names it


def picture_paths(folder: Path) -> list[Path]:
    """Return the pictures of a folder, sorted by name, without hidden files, masks and subfolders."""
    return sorted(_find_pictures(folder))


def unread_pictures(folder: Path) -> list[Path]:
    """Return the files of a folder that are pictures by their ending or first bytes, but are not read, by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_unread(path))


def describe_unread(paths: Sequence[Path]) -> str:
    """Say how many pictures are left out, and what to do."""
    if len(paths) == 1:
        return f"1 picture, {paths[0].name}, cannot be read and is left out: save it as PNG or JPEG"
    return f"{len(paths)} pictures, such as {paths[0].name}, cannot be read and are left out: save them as PNG or JPEG"


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


def _is_unread(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES or not path.is_file():
        return False
    return suffix in UNREAD_SUFFIXES or _has_signature(path)


def _has_signature(path: Path) -> bool:
    """Return True for a picture without an ending, or with one such as .jpg_large."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(SIGNATURES) or start[4:].startswith(BOX_SIGNATURES) or start[8:].startswith(b"WEBP")
