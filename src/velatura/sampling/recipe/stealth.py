"""Read texts hidden in pixels: stealth PNG info, which survives where the text chunks of a picture are removed.

The lowest bits of the alpha channel, column after column, hold a signature of 15 letters, the number of bits that
follow in 32 bits, and the text in UTF-8, plain or compressed by gzip. A variant uses red, green and blue. NovelAI
hides its text chunks as one JSON object; the extension sd_webui_stealth_pnginfo hides infotext.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from velatura.errors import BadRecipe
from velatura.sampling.recipe.programs.settings import parse_object

SIGNATURE_BITS, LENGTH_BITS = 15 * 8, 32
MAX_HIDDEN_BYTES = 2**22
GZIP_WINDOW = zlib.MAX_WBITS + 16
NOVELAI_CHUNKS = {"Software", "Comment", "Description", "Title", "Source"}


@dataclass(frozen=True)
class HiddenForm:
    """A form in which a text is hidden.

    Attributes:
        modes: Modes of pictures that have its channels.
        channels: The channels whose lowest bits are read.
        is_compressed: The text is compressed by gzip.
    """

    modes: tuple[str, ...]
    channels: slice
    is_compressed: bool


ALPHA, COLOURS = slice(3, 4), slice(0, 3)
FORMS = {
    b"stealth_pnginfo": HiddenForm(("RGBA",), ALPHA, is_compressed=False),
    b"stealth_pngcomp": HiddenForm(("RGBA",), ALPHA, is_compressed=True),
    b"stealth_rgbinfo": HiddenForm(("RGB", "RGBA"), COLOURS, is_compressed=False),
    b"stealth_rgbcomp": HiddenForm(("RGB", "RGBA"), COLOURS, is_compressed=True),
}


def read_hidden_texts(image: Image.Image) -> Mapping[str, str]:
    """Return the texts hidden in the pixels of a picture, by the names of chunks, or none.

    Args:
        image: A picture whose pixels are read.

    Raises:
        BadRecipe: The hidden text is cut short, damaged or too long.
    """
    for signature, form in FORMS.items():
        if image.mode in form.modes and _read_bits(image, form.channels, 0, SIGNATURE_BITS) == signature:
            text = _read_text(image, form)
            values = parse_object(text) or {}
            if NOVELAI_CHUNKS & values.keys():
                return {key: value for key, value in values.items() if isinstance(value, str)}
            return {"parameters": text}
    return {}


def _read_text(image: Image.Image, form: HiddenForm) -> str:
    length = int.from_bytes(_read_bits(image, form.channels, SIGNATURE_BITS, LENGTH_BITS), "big")
    start = SIGNATURE_BITS + LENGTH_BITS
    capacity = image.width * image.height * (form.channels.stop - form.channels.start) - start
    if not 0 < length <= min(capacity, MAX_HIDDEN_BYTES * 8) or length % 8:
        raise _damaged(f"it should have {length} bits, and there is room for {max(capacity, 0)}")
    content = _read_bits(image, form.channels, start, length)
    if form.is_compressed:
        content = _decompress(content)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged("it is not UTF-8") from None


def _decompress(content: bytes) -> bytes:
    decompressor = zlib.decompressobj(GZIP_WINDOW)
    try:
        text = decompressor.decompress(content, MAX_HIDDEN_BYTES)
    except zlib.error as error:
        raise _damaged(str(error)) from None
    if not decompressor.eof:
        raise _damaged(f"it is cut short, or longer than {MAX_HIDDEN_BYTES >> 20} MiB")
    return text


def _read_bits(image: Image.Image, channels: slice, start: int, count: int) -> bytes:
    """Return the lowest bits of channels from `start` on, column after column; fewer if the picture ends."""
    bits_in_column = image.height * (channels.stop - channels.start)
    first, last = start // bits_in_column, min(math.ceil((start + count) / bits_in_column), image.width)
    if first >= last:
        return b""
    import numpy as np

    columns = np.asarray(image.crop((first, 0, last, image.height)))[:, :, channels]  # (height, columns, channels)
    bits = columns.transpose(1, 0, 2).reshape(-1) & 1
    offset = start - first * bits_in_column
    return np.packbits(bits[offset : offset + count]).tobytes()


def _damaged(reason: str) -> BadRecipe:
    return BadRecipe(
        f"the recipe hidden in its pixels (stealth PNG info) is damaged ({reason}); use the picture as it was saved"
    )
