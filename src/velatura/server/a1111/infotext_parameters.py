"""The fields of an infotext as A1111 tells them: all texts, with its defaults for those that are not written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

SIZE = re.compile(r"^(\d+)x(\d+)$")
VERSION = re.compile(r"v(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:-(\d{1,6}))?")
NEW_EDITING, FULL_ALPHAS = (1, 6, 0, 0), (1, 7, 0, 225)  # versions from which A1111 made other pictures
OLD_FIRST_PASS_AREA, OLD_FIRST_PASS_MULTIPLE = 512 * 512, 64
# What A1111 fills in, see its "infotext" tests
DEFAULTS: Mapping[str, object] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Emphasis": "Original",
}


def infotext_parameters(prompt: str, negative: str, fields: Mapping[str, str]) -> dict[str, object]:
    """Return the fields of an infotext with sizes in two parts, and with A1111's defaults.

    Args:
        prompt, negative: Its prompts.
        fields: Its fields.
    """
    parameters: dict[str, object] = {"Prompt": prompt, "Negative prompt": negative}
    for key, value in fields.items():
        size = SIZE.match(value)
        if size:
            parameters[f"{key}-1"], parameters[f"{key}-2"] = size.groups()
        else:
            parameters[key] = value
    return {**DEFAULTS} | parameters | _old_first_pass(parameters) | _old_version(parameters)


def _old_first_pass(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return the sizes of both passes, where an old infotext has the second one as `Size`."""
    try:
        first = int(str(parameters["First pass size-1"])), int(str(parameters["First pass size-2"]))
        width, height = int(str(parameters["Size-1"])), int(str(parameters["Size-2"]))
    except (KeyError, ValueError):
        return {}
    if not all(first) and width and height:
        scale = math.sqrt(OLD_FIRST_PASS_AREA / (width * height))
        first = _round_up(width * scale), _round_up(height * scale)
    return {"Size-1": first[0], "Size-2": first[1], "Hires resize-1": width, "Hires resize-2": height}


def _round_up(pixels: float) -> int:
    return math.ceil(pixels / OLD_FIRST_PASS_MULTIPLE) * OLD_FIRST_PASS_MULTIPLE


def _old_version(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return the settings by which a new version of A1111 makes the pictures of the one that wrote an infotext."""
    match = VERSION.match(str(parameters.get("Version", "")))
    if match is None:
        return {}
    version = tuple(int(number or 0) for number in match.groups())
    found: dict[str, object] = {}
    if version < NEW_EDITING:
        if "[" in f"{parameters['Prompt']}{parameters['Negative prompt']}":
            found["Old prompt editing timelines"] = True
        if parameters.get("Sampler") in {"DDIM", "PLMS"}:
            found["Pad conds v0"] = True
    if version < FULL_ALPHAS:
        found["Downcast alphas_cumprod"] = True
    return found
