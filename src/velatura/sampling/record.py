"""Recipes in words: which field of a picture's text says what, in the webui's order, which programs read by place."""

import json
import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple, cast

from velatura.errors import VelaturaWarning
from velatura.sampling.fields import OverlayHash
from velatura.sampling.infotext import quote, unquote

# by kind, as the webui names them
HASH_FIELDS = {
    "hypernet": "Hypernet hashes",
    "lora": "Lora hashes",
    "embedding": "TI hashes",
    "aesthetic": "Aesthetic hashes",  # this and the next are our own, which the webui passes by
    "difference": "Difference hashes",
}
NO_NAME = set("<>")  # what belongs to tags

# Fields of other programs' pictures that a prompt's tags already say, or that leave the picture as it is
HARMLESS = re.compile(r"Model|.* hash|.* hashes|VAE|User|Version|Script|. (Type|Values)|Hypernet( strength)?")


MASK_PADDING = 32  # where only the masked part is painted and nothing says with how much around it
OLD_EDITING = (1, 6)  # the webui's version before which words changed at other steps
PLAIN_MASK = "Mask mode: Inpaint masked"


class Row(NamedTuple):
    """A field of the text and the recipe's field that it carries.

    always: it stands there even where it is the default; beside: it does where one of these fields is set.
    """

    key: str
    field: str
    always: bool = False
    beside: tuple[str, ...] = ()


ROWS = (
    Row("Steps", "steps", always=True),
    Row("Sampler", "sampler", always=True),
    Row("Schedule type", "scheduler"),
    Row("CFG scale", "guidance", always=True),
    Row("Seed", "seed", always=True),
    Row("Size", "size", always=True),
    Row("Model hash", "base_hash"),
    Row("Model", "base"),
    Row("VAE hash", "vae_hash"),
    Row("VAE", "vae"),
    Row("Variation seed", "variation_seed"),
    Row("Variation seed strength", "variation_strength"),
    Row("Seed resize from", "seed_size"),
    Row("Denoising strength", "denoising"),
    Row("Clip skip", "clip_skip"),
    Row("ENSD", "ensd"),
    Row("Init image hash", "image_hash"),
    Row("RNG", "noise", always=True),
    Row("NGMS", "skip_negative_below"),
    Row("Tiling", "tiling"),
    Row("Hires prompt", "hires_prompt"),
    Row("Hires negative prompt", "hires_negative"),
    Row("Hires upscale", "hires_scale"),
    Row("Hires resize", "hires_size"),
    Row("Hires steps", "hires_steps"),
    Row("Hires upscaler", "hires_upscaler", beside=("hires_scale", "hires_size")),
    Row("Hires sampler", "hires_sampler"),
    Row("Resize mode", "fit"),
    Row("Mask blur", "mask_blur", beside=("mask_hash",)),
    Row("Masked content", "masked_content"),
    Row("Inpaint area", "area"),
    Row("Masked area padding", "mask_padding"),
    Row("Mask hash", "mask_hash"),
    Row("Noise multiplier", "noise_multiplier"),
    Row("Extra noise", "extra_noise"),
    Row("Eta", "eta"),
    Row("Sigma churn", "churn"),
    Row("Sigma tmin", "churn_from"),
    Row("Sigma tmax", "churn_to"),
    Row("Sigma noise", "churn_noise"),
    Row("Schedule min sigma", "sigma_min"),
    Row("Schedule max sigma", "sigma_max"),
    Row("Schedule rho", "rho"),
    Row("Discard penultimate sigma", "discards_penultimate"),
    Row("SGM noise multiplier", "sgm_noise"),
    Row("Quantised timesteps", "quantised"),
    Row("UniPC variant", "unipc_variant"),
    Row("UniPC skip type", "unipc_spacing"),
    Row("UniPC order", "unipc_order"),
    Row("UniPC lower order final", "unipc_lower_order_final"),
    Row("Old prompt editing timelines", "old_editing"),
    Row("Emphasis", "emphasis"),
    Row("Keep layout", "keep_layout"),
    Row("Keep layout until", "keep_layout_until"),
    Row("Hypernet combine", "combine"),
)


def to_fields(values: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """The fields of a text from a recipe's: those that are not the defaults, or always stand there."""
    width, height = values["width"], values["height"]
    values = {
        **values,
        "size": f"{width}x{height}" if width and height else None,
        "area": None if values["mask_padding"] is None else "Only masked",
    }
    told = {
        row.key: _written(values[row.field])
        for row in ROWS
        if row.always or any(map(values.get, row.beside)) or values.get(row.field) != defaults.get(row.field)
    }
    hashes = cast("tuple[OverlayHash, ...]", values["overlay_hashes"])
    return {**told, **_hashes_told(hashes), "Version": values["version"]}


def from_fields(fields: Mapping[str, str], words: str = "") -> dict[str, object]:
    """A recipe's fields from those of a text; warns of what would change the picture and is not read.

    words: of its prompts, some of which meant something else in old versions of the webui.
    """
    left = dict(fields)
    found: dict[str, object] = {row.field: left.pop(row.key) for row in ROWS if row.key in left}
    size = re.fullmatch(r"(\d+)x(\d+)", str(found.pop("size", "")))
    if size:
        found |= {"width": size[1], "height": size[2]}
    area = found.pop("area", None)
    if area == "Only masked":
        found.setdefault("mask_padding", MASK_PADDING)
    elif area is not None:
        found.pop("mask_padding", None)
    found |= {"overlay_hashes": _hashes_read(left), "version": left.pop("Version", None)}
    if "[" in words and _is_old(found["version"]):
        found.setdefault("old_editing", True)
    if "seed" in found:
        found.setdefault("noise", "GPU")  # the webui's default, which it does not write
    _warn_of_unread(left)
    return {name: value for name, value in found.items() if value is not None}


def _is_old(version: object) -> bool:
    """Whether a picture is of a version of the webui whose words changed at other steps."""
    numbers = re.match(r"v(\d{1,4})\.(\d{1,4})", str(version))
    return numbers is not None and tuple(map(int, numbers.groups())) < OLD_EDITING


def _written(value: object) -> object:
    """A value as the text has it; what would lose its own quotes on the way gets another pair."""
    if isinstance(value, str) and unquote(quote(value)) != value:
        return json.dumps(value, ensure_ascii=False)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hashes_told(hashes: tuple[OverlayHash, ...]) -> dict[str, str]:
    """The hashes of overlays, "inca: 0123456789, neon: ...", in one field for each kind."""
    listed = {
        field: ", ".join(f"{each.name}: {each.hash}" for each in hashes if each.kind == kind)
        for kind, field in HASH_FIELDS.items()
    }
    return {field: text for field, text in listed.items() if text}


def _hashes_read(fields: dict[str, str]) -> tuple[OverlayHash, ...]:
    """The hashes of overlays of all kinds, taken out of the fields; entries that name no hash are left out."""
    found: list[OverlayHash] = []
    for kind, field in HASH_FIELDS.items():
        for entry in fields.pop(field, "").split(","):
            name, colon, digest = entry.rpartition(":")
            if colon and NO_NAME & set(name):
                said = f"{field} has an entry {entry.strip()[:60]!r} whose name no overlay can have: it is left out"
                warnings.warn(said, VelaturaWarning, 4)
            elif colon:
                found.append(OverlayHash.of(kind, name, digest.strip()))
    return tuple(found)


def _warn_of_unread(fields: Mapping[str, str]) -> None:
    """Say which fields would change the picture."""
    told = (f"{key}: {value}" for key, value in fields.items() if not HARMLESS.fullmatch(key))
    unread = [each for each in told if each != PLAIN_MASK]
    if unread:
        message = f"not read yet: {', '.join(unread)}; the picture will not come out the same"
        warnings.warn(message, VelaturaWarning, 4)
