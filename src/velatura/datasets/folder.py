"""A folder of pictures with their captions, as trainers everywhere expect it: cat.png beside cat.txt."""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from velatura.errors import BadDataset

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})

# Names that a camera or a phone gave: IMG_1234, IMG_E1234, P1010012, PXL_20230101_120000000.PORTRAIT
BY_CAMERA = re.compile(
    r"_?(fb_)?(img|dsc[fn]?|pxl|mvimg|gopr|g[hpx]|dji|cimg|hpim|imgp|pict|pano|sam_|vid|p(?=\d{7}))[-_ ]?e?\d{3,}",
    re.IGNORECASE,
)
HASHED = re.compile(r"(?=.*\d)[0-9a-f-]{16,}", re.IGNORECASE)

# Letters that may end in a number, between spaces or signs: "robot12" is a word, a piece of a hash is none
WORD = re.compile(r"(?<![^\W_])([^\W\d_]+)\d*(?![^\W_])")
IDEOGRAM = re.compile("[\u3040-\u9fff\uac00-\ud7af]")  # one of these may be a word alone

# Words that a camera, a phone or a program puts into names: none says what is in the picture
SAYING_NOTHING = re.compile(
    r"""img | images? | dsc[fn]? | pxl | mvimg | gopr | dji | pano | burst | photos? | pic | pictures? | video | vid
    | scan | scanned | screenshot | screen | shot | snapshot | capture | bildschirmfoto | écran | captura | pantalla
    | schermata | 截屏 | 屏幕截图 | スクリーンショット | copy | copie | kopie | copia | file | untitled | unnamed
    | download | downloaded | new | final | edit | edited | crop | cropped | resized | whatsapp | signal | telegram
    | unknown | snapchat | comfyui | tmp | temp | jpe?g | png | webp | gif | bmp | heic""",
    re.IGNORECASE | re.VERBOSE,
)

# The webui drops a number that stands before the words, "0001-a cat" (dataset.py, run on eight names)
LEADING_NUMBER = re.compile(r"^[-\d]+\s*")


@dataclass(frozen=True)
class Example:
    """One picture file and what it shows, in words."""

    path: Path
    caption: str
    is_named_so: bool = False  # the caption is the file's name, for lack of a text


def read_folder(folder: str | os.PathLike[str]) -> list[Example]:
    """The pictures of a folder by name, each with its caption; the pictures are looked at, not yet read.

    The caption is the text of the .txt file of the same name, else the words of the picture's own name. Files that are
    no pictures are left alone, folders inside are not entered. Raises BadDataset for a missing folder, one without
    pictures, a broken picture and a picture without a caption.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise BadDataset(f"{folder} {found}; name a folder of pictures, each with its caption in a .txt file beside it")
    paths = sorted(_picture_paths(folder))
    if not paths:
        endings = ", ".join(sorted(PICTURE_SUFFIXES))
        raise BadDataset(f"{folder} holds no pictures; put some in ({endings}), each with its caption in a .txt file")
    return [_example(path) for path in paths]


def read_picture(path: Path, pixels: int) -> Image.Image:
    """The picture upright, in RGB, its middle square brought to pixels x pixels; what was transparent is white."""
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        return ImageOps.fit(_as_rgb(upright), (pixels, pixels), Image.Resampling.LANCZOS)


def _picture_paths(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            yield path


def _example(path: Path) -> Example:
    with _opened(path):  # reads the header: what is no picture at all is known before anything is loaded
        pass
    written = path.with_suffix(".txt")
    if written.is_file():
        return Example(path, _written_caption(written))
    return Example(path, _caption_in_name(path), is_named_so=True)


def _written_caption(path: Path) -> str:
    try:
        caption = path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise BadDataset(f"{path} is not UTF-8 text; save the caption as UTF-8") from None
    if not caption:
        raise BadDataset(f"{path} is empty; write what the picture shows into it, or remove it")
    return caption


def _caption_in_name(path: Path) -> str:
    caption = LEADING_NUMBER.sub("", path.stem).strip()
    in_words = any(map(_says_something, WORD.findall(caption)))
    if not in_words or BY_CAMERA.match(path.stem) or HASHED.fullmatch(path.stem):
        raise BadDataset(
            f"{path} has no caption: its name says nothing and there is no {path.stem}.txt; "
            "write what the picture shows into that file, or name the picture so"
        )
    return caption


def _says_something(word: str) -> bool:
    return not SAYING_NOTHING.fullmatch(word) and (len(word) >= 3 or IDEOGRAM.search(word) is not None)


@contextmanager
def _opened(path: Path) -> Generator[Image.Image]:
    """The picture, opened; whatever Pillow says of a broken one becomes a BadDataset that names it."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadDataset(f"{path} cannot be read ({reason}); replace it or take it out of the folder") from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips instead of scaling
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
