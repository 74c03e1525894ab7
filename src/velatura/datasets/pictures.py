"""Picture files: find them in a folder, open them with clear errors, turn them upright, convert them to RGB."""

import math
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from velatura.errors import BadDataset, BadFile, warn_of_picture
from velatura.image_files import open_image, refuse_bomb, shrink_image
from velatura.png_colours import (
    CICP_KEY,
    COLOUR_KEYS,
    apply_png_colours,
    read_cicp,
)
from velatura.png_files import has_all_pixels, has_wrong_checksum

OnPicture = Callable[[int, int], None]  # called with how many pictures are done, and how many there are

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
# Formats that are often found under the ending of another; any other is refused there, as the file is not what it says
COMMON_FORMATS = frozenset({"PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "AVIF"})
ANIMATED_FORMATS = frozenset({"PNG", "GIF", "WEBP", "AVIF"})  # not MPO, a photograph with a second view or a preview
MIN_SIDE_PIXELS = 8  # of which the VAE makes one latent pixel
MAX_SHOWN_CHARACTERS = 20
MAX_ASPECT = 20
SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height
MASK_LABEL = "-masklabel"  # cat-masklabel.png is the mask of cat.jpg, as OneTrainer names it
BEFORE_LABEL = ".before"  # cat.before.png is what cat.jpg was before an edit
REPEATS_FOLDER = re.compile(r"(\d+)_.+")  # 10_inca: every picture in it counts ten times, as in kohya's scripts
MAX_REPEATS = 1000  # a larger number, 20231105_holiday, is a date
REGULARISATION_FOLDERS = frozenset({"reg", "regularisation", "regularization"})
MASK_FOLDERS = ("mask", "masks")
BEFORE_FOLDERS = ("before",)

# Largest values of pictures in 32-bit integers and floats, and the factors to 8 bits. Floats beyond 1 and far below 255
# are light beyond white, whose exposure is unknown
RANGES: dict[str, tuple[tuple[float, float], ...]] = {
    "I": ((255, 1), (65535, 1 / 257)),
    "F": ((1, 255), (16, math.nan), (255, 1), (65535, 1 / 257)),
}
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB", "LAB": "LAB"}
SRGB_DESCRIPTIONS = frozenset({"sRGB", "sRGB IEC61966-2.1", "sRGB built-in", "sRGB2014", "c2"})


def picture_paths(folder: Path) -> list[Path]:
    """Return the pictures of a folder, by name, without hidden files, masks, pictures before an edit and subfolders."""
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
        return as_rgb(load_upright(path, image), path.name)


def load_upright(path: Path, image: Image.Image) -> Image.Image:
    """Return a picture from `open_picture` turned upright, with warnings of what would spoil its pixels.

    Args:
        path: The file.
        image: The picture, whose pixels are not read yet.

    Raises:
        ValueError: Its pixels end early. `open_picture` names the file.
    """
    is_png = image.format == "PNG"
    upright = turn_upright(image)
    for kind, problem in find_pixel_problems(path, upright, is_png=is_png):
        warn_of_picture(kind, f"{path} {problem}")
    return upright


def find_pixel_problems(path: Path, upright: Image.Image, *, is_png: bool) -> Iterator[tuple[str, str]]:
    """Yield what would spoil the pixels of a picture: a word for programs, and the rest of a sentence.

    Args:
        path: The file.
        upright: Its picture, as `turn_upright` returns it.
        is_png: The file is a PNG, whose checksums are verified.

    Raises:
        ValueError: Its pixels end early.
    """
    if is_png and has_black_end(upright) and not has_all_pixels(path):
        raise ValueError("its pixels end early")
    if is_png and has_wrong_checksum(path):
        yield "checksum", "has a wrong checksum, so its pixels may be damaged: look at it"
    if is_transparent(upright):
        yield "transparent", "is fully transparent, so it is learned as white: replace it"


def names_folder_role(name: str) -> bool:
    """Return True for the name of a folder that says what its pictures are for: 10_inca, reg, mask or before."""
    repeats = REPEATS_FOLDER.fullmatch(name)
    if repeats is not None:
        return int(repeats[1]) <= MAX_REPEATS
    return name.lower() in {*REGULARISATION_FOLDERS, *MASK_FOLDERS, *BEFORE_FOLDERS}


def warn_of_header(path: Path, image: Image.Image) -> None:
    """Warn of what the header of a picture from `open_picture` tells: that it is animated, tiny, or turned nowhere."""
    if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
        warn_of_picture("animated", f"{path} is animated: only its first frame is learned")
    if min(image.size) < MIN_SIDE_PIXELS:
        warn_of_picture("tiny", f"{path} is {image.width} x {image.height} pixels, too few to learn from: replace it")
    elif max(image.size) > MAX_ASPECT * min(image.size):
        warn_of_picture("long", f"{path} is {image.width} x {image.height} pixels: only a small part of it is learned")
    orientation = None if _hides_exif(image) else image.getexif().get(ExifTags.Base.Orientation)
    if orientation not in {None, 0, *range(1, 9)}:  # some cameras write 0
        shown = str(orientation)[:MAX_SHOWN_CHARACTERS]
        warn_of_picture("orientation", f"{path} has the EXIF orientation {shown}, which is none: it is not turned")


def _hides_exif(image: Image.Image) -> bool:
    """Return True for a PNG without EXIF before its pixels: Pillow would decode it to look behind them."""
    return image.format == "PNG" and "exif" not in image.info


def has_black_end(image: Image.Image) -> bool:
    """Return True if a side of a picture is black, as where Pillow finds no more pixels and says nothing."""
    width, height = image.size
    sides = ((0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height))
    return any(image.crop(side).getbbox() is None for side in sides)


def is_transparent(image: Image.Image) -> bool:
    """Return True for a picture of which nothing is to be seen."""
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() == (0, 0)


def turn_upright(image: Image.Image) -> Image.Image:
    """Return a picture from `open_picture` as its EXIF orientation says, a very large one shrunk with a warning."""
    return ImageOps.exif_transpose(shrink_image(image))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of a picture from `open_picture` turned upright, without reading its pixels."""
    if image.format == "TIFF":  # Pillow states the upright size of a TIFF, and turns it when it is read
        return image.size
    is_sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
    return (image.height, image.width) if is_sideways else image.size


@contextmanager
def open_picture(path: Path) -> Generator[Image.Image]:
    """Open a picture.

    Raises:
        BadDataset: The file is not a picture, or is damaged; raised in the block too, where pixels are read.
    """
    try:
        with open_image(path) as image:
            if image.format == "PNG" and (cicp := read_cicp(path)):
                image.info[CICP_KEY] = cicp  # which copies of the picture have too
            refuse_bomb(image)
            if image.format not in COMMON_FORMATS and _format_of_name(path) != image.format:
                raise ValueError(f"it is {image.format}, which {path.suffix} does not say; rename it")
            yield image
    except BadFile as error:  # it is too large, or a bomb
        raise BadDataset(str(error)) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = "it is not a picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadDataset(f"{path} cannot be read ({reason}): replace it, or remove it from the folder") from None


def _format_of_name(path: Path) -> str | None:
    return Image.registered_extensions().get(path.suffix.lower())


def as_rgb(image: Image.Image, name: str = "a picture") -> Image.Image:
    """Convert a picture of any mode to RGB in sRGB, with white for transparency.

    Args:
        image: The picture.
        name: What warnings call it.

    Raises:
        ValueError: The picture holds numbers whose range is unknown.
    """
    if image.mode[0] in "IF":
        image = _as_8_bits(image)
    image = _as_srgb(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _as_8_bits(image: Image.Image) -> Image.Image:
    """Convert integers of 16 or 32 bits and floats to L, which Pillow's own conversion clips and does not scale."""
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L")
    import numpy as np

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())  # NaN if any value is
    factor = next((factor for limit, factor in RANGES[image.mode] if high <= limit), math.nan)
    if not low >= 0 or math.isnan(factor):
        found = f"its values go from {low:g} to {high:g}"
        raise ValueError(f"{found}, and only 0 to 1, 255 or 65535 are understood; save it with 8 or 16 bits")
    scaled = Image.fromarray(np.minimum(values * factor + 0.5, 255).astype(np.uint8))
    scaled.info = dict(image.info)
    return scaled


def _as_srgb(image: Image.Image, name: str) -> Image.Image:
    """Convert to sRGB from the colour profile in a picture, or else from what the chunks of a PNG state."""
    content: object = image.info.get("icc_profile")
    if not isinstance(content, bytes) or not content:
        return apply_png_colours(image, name)
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(content))
        space = str(cast("Any", profile.profile).xcolor_space).strip()  # pyright: ignore[reportUnknownMemberType]
        is_srgb = ImageCms.getProfileDescription(profile).strip() in SRGB_DESCRIPTIONS
        converted = image if is_srgb else _convert_profile(image, profile, PROFILE_MODES.get(space))
    except (ImageCms.PyCMSError, OSError) as error:
        warn_of_picture(
            "colour profile",
            f"the colour profile of {name} cannot be used ({error}): its colours are taken for sRGB, and may shift",
        )
        converted = image
    converted = converted.copy()
    for key in ("icc_profile", *COLOUR_KEYS):  # a copy that is saved must not be converted once more
        converted.info.pop(key, None)
    return converted


def _convert_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile, mode: str | None) -> Image.Image:
    has_alpha = image.has_transparency_data
    if mode is None or (image.mode in {"CMYK", "LAB"}) != (mode in {"CMYK", "LAB"}):
        raise ImageCms.PyCMSError(f"it is not for a picture of mode {image.mode}")
    alpha = image.convert("RGBA").getchannel("A") if has_alpha else None
    colours = (image.convert("RGBA") if has_alpha else image).convert(mode)
    cms: Any = ImageCms  # parts of which have no types
    transform = ImageCms.buildTransform(profile, cms.createProfile("sRGB"), mode, "RGB")
    converted = ImageCms.applyTransform(colours, transform)
    assert converted is not None  # it is only None for a change in place
    if alpha:
        converted.putalpha(alpha)
    return converted


def _find_pictures(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        is_picture = path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
        if is_picture and not path.stem.endswith((MASK_LABEL, BEFORE_LABEL)) and path.is_file():
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
