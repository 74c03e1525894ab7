"""Recipes in words: which field of a picture's text says what, in the webui's order, which programs read by place."""

import json
import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple, cast

from velatura.errors import VelaturaWarning
from velatura.sampling.recipe.fields import OverlayHash
from velatura.sampling.recipe.infotext import quote, unquote

# by kind, as the webui names them
HASH_FIELDS = {
    "hypernet": "Hypernet hashes",
    "lora": "Lora hashes",
    "embedding": "TI hashes",
    "aesthetic": "Aesthetic hashes",  # this and the next are our own, which the webui passes by
    "difference": "Difference hashes",
}
TAG_BRACKETS = set("<>")  # what belongs to tags

# Fields of other programs' pictures that a prompt's tags already say, or that leave the picture as it is
IGNORED_FIELDS = re.compile(r"Model|.* hash|.* hashes|VAE|User|Version|Script|. (Type|Values)|Hypernet( strength)?")


DEFAULT_MASK_PADDING = 32  # where only the masked part is painted and nothing says with how much around it
NEW_EDITING_VERSION = (1, 6)  # the webui's version before which words changed at other steps
DEFAULT_MASK_MODE = "Mask mode: Inpaint masked"


class InfotextField(NamedTuple):
    """A field of the text and the recipe's field that it carries.

    always: it stands there even where it is the default; beside: it does where one of these fields is set.
    """

    key: str
    field: str
    is_always_written: bool = False
    written_with: tuple[str, ...] = ()


INFOTEXT_FIELDS = (
    InfotextField("Steps", "steps", is_always_written=True),
    InfotextField("Sampler", "sampler", is_always_written=True),
    InfotextField("Schedule type", "scheduler"),
    InfotextField("CFG scale", "guidance", is_always_written=True),
    InfotextField("Seed", "seed", is_always_written=True),
    InfotextField("Size", "size", is_always_written=True),
    InfotextField("Model hash", "base_hash"),
    InfotextField("Model", "base"),
    InfotextField("VAE hash", "vae_hash"),
    InfotextField("VAE", "vae"),
    InfotextField("Variation seed", "variation_seed"),
    InfotextField("Variation seed strength", "variation_strength"),
    InfotextField("Seed resize from", "seed_size"),
    InfotextField("Denoising strength", "denoising"),
    InfotextField("Clip skip", "clip_skip"),
    InfotextField("ENSD", "ensd"),
    InfotextField("Init image hash", "image_hash"),
    InfotextField("RNG", "noise", is_always_written=True),
    InfotextField("NGMS", "skip_negative_below"),
    InfotextField("Tiling", "tiling"),
    InfotextField("Hires prompt", "hires_prompt"),
    InfotextField("Hires negative prompt", "hires_negative"),
    InfotextField("Hires upscale", "hires_scale"),
    InfotextField("Hires resize", "hires_size"),
    InfotextField("Hires steps", "hires_steps"),
    InfotextField("Hires upscaler", "hires_upscaler", written_with=("hires_scale", "hires_size")),
    InfotextField("Hires sampler", "hires_sampler"),
    InfotextField("Resize mode", "fit"),
    InfotextField("Mask blur", "mask_blur", written_with=("mask_hash",)),
    InfotextField("Masked content", "masked_content"),
    InfotextField("Inpaint area", "area"),
    InfotextField("Masked area padding", "mask_padding"),
    InfotextField("Mask hash", "mask_hash"),
    InfotextField("Noise multiplier", "noise_multiplier"),
    InfotextField("Extra noise", "extra_noise"),
    InfotextField("Eta", "eta"),
    InfotextField("Sigma churn", "churn"),
    InfotextField("Sigma tmin", "churn_from"),
    InfotextField("Sigma tmax", "churn_to"),
    InfotextField("Sigma noise", "churn_noise"),
    InfotextField("Schedule min sigma", "sigma_min"),
    InfotextField("Schedule max sigma", "sigma_max"),
    InfotextField("Schedule rho", "rho"),
    InfotextField("Discard penultimate sigma", "discards_penultimate"),
    InfotextField("SGM noise multiplier", "sgm_noise"),
    InfotextField("Quantised timesteps", "quantised"),
    InfotextField("UniPC variant", "unipc_variant"),
    InfotextField("UniPC skip type", "unipc_spacing"),
    InfotextField("UniPC order", "unipc_order"),
    InfotextField("UniPC lower order final", "unipc_lower_order_final"),
    InfotextField("Old prompt editing timelines", "old_editing"),
    InfotextField("Emphasis", "emphasis"),
    InfotextField("Keep layout", "keep_layout"),
    InfotextField("Keep layout until", "keep_layout_until"),
    InfotextField("Hypernet combine", "combine"),
)


def to_infotext_fields(values: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """The fields of a text from a recipe's: those that are not the defaults, or always stand there."""
    width, height = values["width"], values["height"]
    values = {
        **values,
        "size": f"{width}x{height}" if width and height else None,
        "area": None if values["mask_padding"] is None else "Only masked",
    }
    written = {
        entry.key: _format_value(values[entry.field])
        for entry in INFOTEXT_FIELDS
        if entry.is_always_written
        or any(map(values.get, entry.written_with))
        or values.get(entry.field) != defaults.get(entry.field)
    }
    hashes = cast("tuple[OverlayHash, ...]", values["overlay_hashes"])
    return {**written, **_format_hashes(hashes), "Version": values["version"]}


def from_infotext_fields(fields: Mapping[str, str], prompts: str = "") -> dict[str, object]:
    """A recipe's fields from those of a text; warns of what would change the picture and is not read.

    words: of its prompts, some of which meant something else in old versions of the webui.
    """
    unread = dict(fields)
    values: dict[str, object] = {entry.field: unread.pop(entry.key) for entry in INFOTEXT_FIELDS if entry.key in unread}
    size = re.fullmatch(r"(\d+)x(\d+)", str(values.pop("size", "")))
    if size:
        values |= {"width": size[1], "height": size[2]}
    area = values.pop("area", None)
    if area == "Only masked":
        values.setdefault("mask_padding", DEFAULT_MASK_PADDING)
    elif area is not None:
        values.pop("mask_padding", None)
    values |= {"overlay_hashes": _parse_hashes(unread), "version": unread.pop("Version", None)}
    if "[" in prompts and _is_old(values["version"]):
        values.setdefault("old_editing", True)
    if "seed" in values:
        values.setdefault("noise", "GPU")  # the webui's default, which it does not write
    _warn_of_unread(unread)
    return {name: value for name, value in values.items() if value is not None}


def _is_old(version: object) -> bool:
    """Whether a picture is of a version of the webui whose words changed at other steps."""
    numbers = re.match(r"v(\d{1,4})\.(\d{1,4})", str(version))
    return numbers is not None and tuple(map(int, numbers.groups())) < NEW_EDITING_VERSION


def _format_value(value: object) -> object:
    """A value as the text has it; what would lose its own quotes on the way gets another pair."""
    if isinstance(value, str) and unquote(quote(value)) != value:
        return json.dumps(value, ensure_ascii=False)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _format_hashes(hashes: tuple[OverlayHash, ...]) -> dict[str, str]:
    """The hashes of overlays, "inca: 0123456789, neon: ...", in one field for each kind."""
    entries_by_field = {
        field: ", ".join(
            f"{overlay_hash.name}: {overlay_hash.hash}" for overlay_hash in hashes if overlay_hash.kind == kind
        )
        for kind, field in HASH_FIELDS.items()
    }
    return {field: text for field, text in entries_by_field.items() if text}


def _parse_hashes(fields: dict[str, str]) -> tuple[OverlayHash, ...]:
    """The hashes of overlays of all kinds, taken out of the fields; entries that name no hash are left out."""
    hashes: list[OverlayHash] = []
    for kind, field in HASH_FIELDS.items():
        for entry in fields.pop(field, "").split(","):
            name, colon, digest = entry.rpartition(":")
            if colon and TAG_BRACKETS & set(name):
                message = f"{field} has an entry {entry.strip()[:60]!r} whose name no overlay can have: it is left out"
                warnings.warn(message, VelaturaWarning, 4)
            elif colon:
                hashes.append(OverlayHash.of(kind, name, digest.strip()))
    return tuple(hashes)


def _warn_of_unread(fields: Mapping[str, str]) -> None:
    """Say which fields would change the picture."""
    entries = (f"{key}: {value}" for key, value in fields.items() if not IGNORED_FIELDS.fullmatch(key))
    unread = [entry for entry in entries if entry != DEFAULT_MASK_MODE]
    if unread:
        message = f"not read yet: {', '.join(unread)}; the picture will not come out the same"
        warnings.warn(message, VelaturaWarning, 4)
