"""Colours of PNG pictures without a colour profile: chunks sRGB, gAMA, cHRM and cICP (PNG, third edition, 11.3.2)."""

from itertools import islice
from pathlib import Path

from PIL import Image

from velatura.errors import warn_of_picture
from velatura.png_files import png_chunks

SRGB_GAMMA = 0.45455
GAMMA_TOLERANCE = 0.05  # relative; libpng ignores such a difference too
# Of sRGB (IEC 61966-2-1): x and y of white, red, green and blue
SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
CHROMATICITY_TOLERANCE = 0.005
CICP_KEY = "cicp"
SRGB_CICP = (1, 13)  # primaries and transfer function by ITU-T H.273
CICP_BYTES = 4
MAX_CHUNKS = 1000  # before the pixels
COLOUR_KEYS = ("gamma", "chromaticity", "srgb", CICP_KEY)


def read_cicp(path: Path) -> tuple[int, ...]:
    """Return the content of a PNG's chunk cICP, which Pillow does not read, or () if there is none.

    Args:
        path: A PNG. The chunk stands before the pixels.
    """
    with path.open("rb") as file:
        for kind, length in islice(png_chunks(file), MAX_CHUNKS):
            if kind == b"IDAT":
                return ()
            if kind == b"cICP" and length == CICP_BYTES:
                return tuple(file.read(CICP_BYTES))
    return ()


def apply_png_colours(image: Image.Image, name: str = "a PNG") -> Image.Image:
    """Convert a PNG whose gamma is not that of sRGB, and warn of other colours that its chunks state.

    Args:
        image: A picture without a colour profile, of 8 bits.
        name: What warnings call it.

    Returns:
        The picture without these chunks: a copy that is saved must not be converted once more.
    """
    found = {key: image.info[key] for key in COLOUR_KEYS if key in image.info}
    if not found:
        return image
    changed = image.copy()
    for key in found:
        changed.info.pop(key)
    cicp = found.get(CICP_KEY)
    if cicp is not None:
        if cicp[:2] != SRGB_CICP:
            _warn_of_colours(name, f"its chunk cICP states colours {cicp[0]} with the transfer function {cicp[1]}")
        return changed
    if "srgb" in found:
        return changed
    chromaticities = found.get("chromaticity", SRGB_CHROMATICITIES)
    pairs = zip(chromaticities, SRGB_CHROMATICITIES, strict=True)
    if any(abs(stated - expected) > CHROMATICITY_TOLERANCE for stated, expected in pairs):
        _warn_of_colours(name, "its chunk cHRM states other primary colours or another white")
    gamma = found.get("gamma", SRGB_GAMMA)
    if not gamma > 0:
        _warn_of_colours(name, f"its chunk gAMA states a gamma of {gamma:g}")
    elif abs(gamma / SRGB_GAMMA - 1) > GAMMA_TOLERANCE:
        return _convert_gamma(changed, gamma)
    return changed


def _warn_of_colours(name: str, reason: str) -> None:
    warn_of_picture(
        reason,
        f"the colours of {name} are not sRGB, and are taken for it, so they may shift ({reason}): save it in sRGB",
    )


def _convert_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Encode values anew by the curve of sRGB; a value is light to the power of `gamma`."""
    table = [round(255 * _encode_srgb((value / 255) ** (1 / gamma))) for value in range(256)]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image.point([*table * 3, *range(256)])
    return image.convert("RGB").point(table * 3)


def _encode_srgb(light: float) -> float:
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055
