"""Captions from the names of pictures, as the web UI reads them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from velatura.errors import BadDataset, MissingCaption

# Names given by cameras and phones: IMG_1234, IMG_E1234, P1010012, PXL_20230101_120000000.PORTRAIT
CAMERA_NAME = re.compile(
    r"_?(fb_)?(img|dsc[fn]?|pxl|mvimg|gopr|g[hpx]|dji|cimg|hpim|imgp|pict|pano|sam_|vid|p(?=\d{7}))[-_ ]?e?\d{3,}",
    re.IGNORECASE,
)
HASH_NAME = re.compile(r"(?=.*\d)[0-9a-f-]{16,}", re.IGNORECASE)

# Letters with digits only at the end: "robot12" is a word, part of a hash is not
WORD = re.compile(r"(?<![^\W_])([^\W\d_]+)\d*(?![^\W_])")
IDEOGRAM = re.compile("[\u3040-\u9fff\uac00-\ud7af]")  # a single one may be a word

# Words that cameras, phones and programs put into names, and that do not describe the picture
MEANINGLESS_WORD = re.compile(
    r"""img | images? | dsc[fn]? | pxl | mvimg | gopr | dji | pano | burst | photos? | pic | pictures? | video | vid
    | scan | scanned | screenshot | screen | shot | snapshot | capture | bildschirmfoto | écran | captura | pantalla
    | schermata | 截屏 | 屏幕截图 | スクリーンショット | copy | copie | kopie | copia | file | untitled | unnamed
    | download | downloaded | new | final | edit | edited | crop | cropped | resized | whatsapp | signal | telegram
    | unknown | snapchat | comfyui | tmp | temp | jpe?g | png | webp | gif | bmp | heic""",
    re.IGNORECASE | re.VERBOSE,
)

# The web UI drops a number before the words, "0001-a cat" (dataset.py, run on eight names)
LEADING_NUMBER = re.compile(r"^[-\d]+\s*")


@dataclass(frozen=True)
class NameRules:
    """Options for captions from file names, as in the web UI.

    Attributes:
        pattern: Regular expression for words (dataset_filename_word_regex); empty for the whole name.
        join_string: Put between the words (dataset_filename_join_string).
    """

    pattern: str = ""
    join_string: str = " "

    def words(self, stem: str) -> str:
        """Return the words of a file name: what the pattern, or a group in it, matches after the leading number.

        Raises:
            BadDataset: The pattern is not a valid regular expression.
        """
        caption = LEADING_NUMBER.sub("", stem)
        if not self.pattern:
            return caption
        try:
            matches = cast("list[str | tuple[str, ...]]", re.findall(self.pattern, caption))
        except re.error as error:
            raise BadDataset(
                f"the pattern {self.pattern!r} for words in file names is not a regular expression: {error}"
            ) from None
        return self.join_string.join(match if isinstance(match, str) else "".join(match) for match in matches)


def caption_from_name(path: Path, rules: NameRules) -> str:
    """Return the caption in a picture's name.

    Raises:
        BadDataset: The name has no words, or was given by a camera or program.
    """
    caption = rules.words(path.stem).strip()
    has_words = any(map(_is_meaningful, WORD.findall(caption)))
    if not has_words or CAMERA_NAME.match(path.stem) or HASH_NAME.fullmatch(path.stem):
        raise MissingCaption(
            f"{path} has no caption, because there is no {path.stem}.txt and the name does not describe the picture: "
            "write what the picture shows into that file, or rename the picture"
        )
    return caption


def _is_meaningful(word: str) -> bool:
    return not MEANINGLESS_WORD.fullmatch(word) and (len(word) >= 3 or IDEOGRAM.search(word) is not None)
