"""The fields of infotext and the recipe fields that they correspond to, in A1111's order.

Some programs read the fields by their position.
"""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple, cast

from velatura.card import printable_text
from velatura.errors import warn
from velatura.files import is_path_outside
from velatura.sampling.recipe.fields import OverlayHash, OverlayResource
from velatura.sampling.recipe.infotext import NEGATIVE_TEMPLATE, TEMPLATE, quote, unquote
from velatura.sampling.recipe.programs.civitai_resources import (
    CIVITAI_RESOURCES,
    civitai_model,
    read_resources,
    write_resources,
)
from velatura.sampling.recipe.unread_fields import warn_of_unread_fields

# Names of the fields that hold the hashes of overlays, by kind
HASH_FIELDS = {
    "hypernet": "Hypernet hashes",
    "lora": "Lora hashes",
    "embedding": "TI hashes",
    "aesthetic": "Aesthetic hashes",  # this field and the next are our own; A1111 ignores them
    "difference": "Difference hashes",
}
TAG_BRACKETS = set("<>")

DEFAULT_MASK_PADDING = 32  # A1111's default, which it does not write
NEW_EDITING_VERSION = (1, 6)  # before this version, A1111 timed prompt editing differently
DDIM_ETA = "Eta DDIM"  # A1111's name of eta with the sampler DDIM, which has another default
ETA = "Eta"
NOISE_SCHEDULE = "Noise Schedule"  # A1111's, which knows the first of these values; with others it forces nothing
NOISE_SCHEDULES = {"Zero Terminal SNR": True, "Without zero terminal SNR": False}
HASHES, MODEL, VAE = "Hashes", "Model", "VAE"
FACE_RESTORATION = "Face restoration"  # the name of what restored them
# Values that stand for "as in the first pass", or for nothing
UNSET_VALUES = {
    "Sampler": ("Undefined", "None", "Default"),
    "Schedule type": ("Undefined", "None", "Default"),
    "Hires sampler": ("Use same sampler", "None"),
    "Clip skip": ("0",),
    "VAE": ("Automatic", "None", "Default"),
    NOISE_SCHEDULE: ("Default",),  # as the file says
    FACE_RESTORATION: ("None", "False"),
}
# Names of other programs for fields of A1111
FIELD_ALIASES = {
    "Scheduler": "Schedule type",
    "CFG Scale": "CFG scale",
    "CLIP Skip": "Clip skip",
    "Guidance Scale": "CFG scale",
    "Hires. upscale": "Hires upscale",
}
# Fields without which a picture cannot be made again, and what is used instead
NEEDED_FIELDS = {
    "Steps": "20",
    "Sampler": "Euler a",
    "CFG scale": "7",
    "Seed": "a new one",
    "Size": "the base's own",
}

NUMBER_FIELDS = ("Steps", "CFG scale", "Seed")


class InfotextField(NamedTuple):
    """A field of infotext and the recipe field that it holds.

    Attributes:
        key: Name in infotext.
        field: Name in the recipe.
        is_always_written: Write it even if it has its default value.
        written_with: Write it too if one of these recipe fields is set.
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
    InfotextField("Image CFG scale", "image_guidance"),
    InfotextField("Seed", "seed", is_always_written=True),
    InfotextField(FACE_RESTORATION, "face_restoration"),
    InfotextField("Size", "size", is_always_written=True),
    InfotextField("Model hash", "base_hash"),
    InfotextField("Model", "base"),
    InfotextField("VAE hash", "vae_hash"),
    InfotextField("VAE", "vae"),
    InfotextField("Text encoder hash", "text_hash"),
    InfotextField("Text encoder", "text"),
    InfotextField("Prediction", "prediction"),  # our own; A1111 ignores it
    InfotextField("Model weights", "weights"),  # our own too
    InfotextField(NOISE_SCHEDULE, "zero_snr"),
    InfotextField("Variation seed", "variation_seed"),
    InfotextField("Variation seed strength", "variation_strength"),
    InfotextField("Seed resize from", "seed_size"),
    InfotextField("Denoising strength", "denoising"),
    InfotextField("Conditional mask weight", "inpainting_mask_weight"),
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
    InfotextField("CodeFormer weight", "codeformer_weight"),  # as in A1111's extras
    InfotextField("Resize mode", "fit"),
    InfotextField("Mask blur", "mask_blur", written_with=("mask_hash",)),
    InfotextField("Unrounded mask", "unrounded_mask"),  # our own: A1111 has it in its API alone
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
    """Convert recipe fields into the fields of infotext.

    Args:
        values: All fields of a recipe.
        defaults: Their defaults; fields with their default value are left out, unless they are always written.
    """
    width, height = values["width"], values["height"]
    values = {
        **values,
        "size": f"{width}x{height}" if width and height else None,
        "area": None if values["mask_padding"] is None else "Only masked",
        "face_restoration": (values["face_restorer"] or "True") if values["restore_faces"] else None,
        "zero_snr": next((word for word, value in NOISE_SCHEDULES.items() if value is values["zero_snr"]), None),
    }
    written = {
        DDIM_ETA if entry.key == ETA and _is_ddim(values["sampler"]) else entry.key: _format_value(values[entry.field])
        for entry in INFOTEXT_FIELDS
        if entry.is_always_written
        or any(map(values.get, entry.written_with))
        or values.get(entry.field) != defaults.get(entry.field)
    }
    hashes = cast("tuple[OverlayHash, ...]", values["overlay_hashes"])
    resources = write_resources(cast("tuple[OverlayResource, ...]", values["resources"]))
    return {**written, **_format_hashes(hashes), CIVITAI_RESOURCES: resources, "Version": values["version"]}


def from_infotext_fields(fields: Mapping[str, str], prompts: str = "") -> dict[str, object]:
    """Convert the fields of infotext into recipe fields.

    Warns of fields that would change the picture and are not supported.

    Args:
        fields: The fields of infotext.
        prompts: Both prompts as one text. Prompt editing in them was timed differently by old versions of A1111.
    """
    unread = _normalize_fields(fields)
    if fields:
        _warn_of_missing(unread)
    _warn_of_nonsense(unread)
    unread = _drop_words(unread)
    others = dict(unread)
    resources = unread.pop(CIVITAI_RESOURCES, None)
    values: dict[str, object] = {entry.field: unread.pop(entry.key) for entry in INFOTEXT_FIELDS if entry.key in unread}
    if resources is not None:
        values["resources"] = read_resources(resources, prompts)
        values.setdefault("base", civitai_model(resources))
    values |= _parse_size(values.pop("size", None))
    values |= _parse_noise_schedule(values.pop("zero_snr", None))
    values |= _parse_face_restoration(values.pop("face_restoration", None))
    area = values.pop("area", None)
    if area == "Only masked":
        values.setdefault("mask_padding", DEFAULT_MASK_PADDING)
    elif area is not None:
        values.pop("mask_padding", None)
    values |= {"overlay_hashes": _parse_hashes(unread), "version": unread.pop("Version", None)}
    templates = {"template": unread.pop(TEMPLATE, None), "negative_template": unread.pop(NEGATIVE_TEMPLATE, None)}
    values |= {field: text for field, text in templates.items() if text}
    if "[" in prompts and _is_old(values["version"]):
        values.setdefault("old_editing", True)
    if "seed" in values:
        values.setdefault("noise", "GPU")  # A1111's default, which it does not write
    warn_of_unread_fields(unread, others)
    return {name: value for name, value in values.items() if value is not None}


def _normalize_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields by their names in A1111, without those whose value stands for nothing."""
    normalized = dict(fields)
    for alias, key in FIELD_ALIASES.items():
        if alias in normalized:
            normalized.setdefault(key, normalized.pop(alias))
    normalized = {key: value for key, value in normalized.items() if value not in UNSET_VALUES.get(key, ())}
    ddim_eta = normalized.pop(DDIM_ETA, None)
    if ddim_eta is not None and _is_ddim(normalized.get("Sampler")):  # with other samplers it changes nothing
        normalized[ETA] = ddim_eta
    return normalized


def _is_ddim(sampler: object) -> bool:
    return str(sampler).lower() == "ddim"


def _warn_of_missing(fields: Mapping[str, str]) -> None:
    missing = [f"{key} ({default})" for key, default in NEEDED_FIELDS.items() if key not in fields]
    if missing:
        warn(f"the recipe does not say all that made the picture; these are used instead: {', '.join(missing)}")


def _warn_of_nonsense(fields: Mapping[str, str]) -> None:
    """Warn of fields that only record something, and hold what no program writes there."""
    if HASHES in fields and not isinstance(_try_json(fields[HASHES]), dict):
        warn(f"{HASHES} is not an object in JSON: it is ignored, so files are not compared with it")
    paths = [key for key in (MODEL, VAE) if is_path_outside(fields.get(key, ""))]
    if paths:
        warn(f"{' and '.join(paths)} hold a path in place of a name: it is shown, and never opened")


def _drop_words(fields: Mapping[str, str]) -> dict[str, str]:
    """Leave out words in place of the numbers that a picture needs, with a warning."""
    words = {key for key in NUMBER_FIELDS if key in fields and not _is_number(fields[key])}
    for key in sorted(words):
        warn(
            f"the recipe's {key} is {printable_text(fields[key])[:40]!r} and not a number: {NEEDED_FIELDS[key]} is "
            "used instead"
        )
    return {key: value for key, value in fields.items() if key not in words}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _try_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _parse_size(size: object) -> dict[str, object]:
    if size is None:
        return {}
    match = re.fullmatch(r"\s*(-?\d+)\s*[x×]\s*(-?\d+)\s*", str(size))
    if match is None or "0" in {match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"}:
        warn(
            f"the recipe's Size is {str(size)[:40]!r} and not width x height, such as 512x768: "
            f"{NEEDED_FIELDS['Size']} is used instead"
        )
        return {}
    return {"width": match[1], "height": match[2]}


def _parse_noise_schedule(name: object) -> dict[str, object]:
    """Return whether a noise schedule to zero terminal SNR is asked for; warn of a schedule with another name."""
    if name is None:
        return {}
    if name not in NOISE_SCHEDULES:
        known = " and ".join(NOISE_SCHEDULES)
        warn(f"{NOISE_SCHEDULE} {str(name)[:40]!r} is not known (known are {known}): the picture may be different")
        return {}
    return {"zero_snr": NOISE_SCHEDULES[str(name)]}


def _parse_face_restoration(name: object) -> dict[str, object]:
    if name is None:
        return {}
    return {"restore_faces": True, "face_restorer": None if name == "True" else name}


def _is_old(version: object) -> bool:
    """Return True for a version of A1111 that timed prompt editing differently."""
    numbers = re.match(r"v(\d{1,4})\.(\d{1,4})", str(version))
    return numbers is not None and tuple(map(int, numbers.groups())) < NEW_EDITING_VERSION


def _format_value(value: object) -> object:
    """Format a value for infotext; a text that has quotes of its own gets another pair, so that it keeps them."""
    if isinstance(value, str) and unquote(quote(value)) != value:
        return json.dumps(value, ensure_ascii=False)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _format_hashes(hashes: tuple[OverlayHash, ...]) -> dict[str, str]:
    """Format the hashes of overlays as one field per kind, such as "inca: 0123456789, neon: ..."."""
    entries_by_field = {
        field: ", ".join(
            f"{overlay_hash.name}: {overlay_hash.hash}" for overlay_hash in hashes if overlay_hash.kind == kind
        )
        for kind, field in HASH_FIELDS.items()
    }
    return {field: text for field, text in entries_by_field.items() if text}


def _parse_hashes(fields: dict[str, str]) -> tuple[OverlayHash, ...]:
    """Remove the hashes of overlays from the fields and parse them; entries without a hash are ignored."""
    hashes: list[OverlayHash] = []
    for kind, field in HASH_FIELDS.items():
        for entry in fields.pop(field, "").split(","):
            name, colon, digest = entry.rpartition(":")
            if colon and TAG_BRACKETS & set(name):
                warn(f"{field} has an entry {entry.strip()[:60]!r} whose name no overlay can have: it is left out")
            elif colon:
                hashes.append(OverlayHash.of(kind, name, digest.strip()))
    return tuple(hashes)
