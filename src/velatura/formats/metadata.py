"""Metadata of safetensors files as trainers (sd-scripts), mergers and Stability AI's ModelSpec write it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from velatura.base.families import FAMILIES, Family
from velatura.card import Card

Metadata = Mapping[str, str]

# Families by the beginning of ModelSpec's architecture, of sd-scripts' ss_base_model_version, and of what other
# trainers write there (sd_1.5, SD 2.1, sdxl), in small letters and digits
STATED_MODELS = {
    re.compile(r"(stablediffusionxl|sdxl)(base)?(v?10?)?refiner"): "SDXL refiner",
    re.compile(r"stablediffusionxl|sdxl"): "SDXL",
    re.compile(r"(stablediffusion|sd)v?1"): "SD1",
    re.compile(r"(stablediffusion|sd)v?2"): "SD2",
}
STATED_FAMILIES = frozenset(STATED_MODELS.values())
# Other models that trainers of LoRAs name there
OTHER_MODELS = re.compile(
    r"(stablediffusion|sd)v?3|(stable)?cascade|flux|auraflow|chroma|hidream|hunyuan|kolors|ltx|lumina|pixart|qwen|sana|wan(video)?[0-9]"
)
# ModelSpec's architecture of a family, by what it predicts
ARCHITECTURE_BY_FAMILY = {
    ("SD1", "epsilon"): "stable-diffusion-v1",
    ("SD1", "v_prediction"): "stable-diffusion-v1",
    ("SD2", "epsilon"): "stable-diffusion-v2-512",
    ("SD2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("SDXL", "epsilon"): "stable-diffusion-xl-v1-base",
    ("SDXL", "v_prediction"): "stable-diffusion-xl-v1-base",
}
MODEL_SPEC_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # by diffusers' names
LDM_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"  # the code whose tensor names are used

# sd-scripts' ss_base_model_version, for writing
KOHYA_BASE_MODELS = {"SD1": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0"}
VELATURA_VERSION_PREFIX = "velatura_"  # of ss_base_model_version for families that sd-scripts does not know
DETAIL_LABELS = {
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.description": "description",
    "modelspec.license": "license",
    "modelspec.usage_hint": "usage",
    "modelspec.date": "date",
    "modelspec.merged_from": "merged from",
    "modelspec.resolution": "resolution",
    "modelspec.prediction_type": "predicts",
    "ss_sd_model_name": "trained on",
    "ss_network_module": "network",
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_network_args": "arguments",
    "ss_resolution": "trained at",
    "ss_clip_skip": "clip skip",
    "ss_num_train_images": "pictures",
    "ss_epoch": "epochs",
    "ss_steps": "steps",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "UNet's rate",
    "ss_text_encoder_lr": "text's rate",
    "ss_optimizer": "optimizer",
    "ss_training_comment": "comment",
    "sd_merge_recipe": "merge recipe",
}
MAX_MODEL_NAME_LENGTH = 64  # characters of the name of a base that are read
MAX_TEXT_LENGTH = 4096  # characters of a value that are read
EMPTY_VALUES = {"", "None", "{}"}  # sd-scripts writes None as a word


def family_from_metadata(metadata: Metadata) -> str:
    """Return the name of the family that a file says it is for, or "" if it does not say."""
    version = metadata.get("ss_base_model_version", "")
    if version.startswith(VELATURA_VERSION_PREFIX):
        return version.removeprefix(VELATURA_VERSION_PREFIX).removesuffix("_v")
    family = stated_model(version)
    if family in STATED_FAMILIES:
        return family
    if metadata.get("ss_v2") == "True":
        return "SD2"
    family = stated_model(metadata.get("modelspec.architecture", ""))
    return family if family in STATED_FAMILIES else ""


def stated_model(text: str) -> str:
    """Return the family that a base's name in metadata is of, the name itself of another known model, or "".

    Args:
        text: A value of ss_base_model_version or of ModelSpec's architecture, as "sd_v1", "SD 1.5" or "flux1".
    """
    words = re.sub(r"[^a-z0-9]", "", text[:MAX_MODEL_NAME_LENGTH].lower())
    family = next((family for pattern, family in STATED_MODELS.items() if pattern.match(words)), "")
    return family or (text[:MAX_MODEL_NAME_LENGTH] if OTHER_MODELS.match(words) else "")


def card_fields_from_metadata(metadata: Metadata) -> dict[str, object]:
    """Return those fields of a card that the metadata gives a value for."""
    steps = metadata.get("ss_steps", "")
    trigger = metadata.get("modelspec.trigger_phrase", "")
    note = _first_value(metadata, "ss_training_comment", "modelspec.description")
    fields = {
        "steps": int(steps) if steps.isascii() and steps.isdecimal() and len(steps) < 16 else 0,
        "base": _first_value(metadata, "ss_sd_model_name"),
        "base_hash": _first_value(metadata, "ss_new_sd_model_hash")[:10] or _first_value(metadata, "ss_sd_model_hash"),
        "trigger_words": (trigger,) if trigger else (),
        "note": note,
    }
    return {field: value for field, value in fields.items() if value}


def aliases(metadata: Metadata) -> tuple[str, ...]:
    """Return the other names of a LoRA, by which A1111 finds it too."""
    return tuple(filter(None, (_first_value(metadata, key) for key in ("ss_output_name", "modelspec.title"))))


def claimed_hashes(metadata: Metadata) -> tuple[str, ...]:
    """Return the sha256 of the tensors that a file states, in hex.

    LyCORIS states hashes that begin with 0x and match no bytes of the file: they are left out.
    """
    model_hash = metadata.get("sshs_model_hash", "").lower()
    return (model_hash,) if len(model_hash) == 64 and not model_hash.startswith("0x") else ()


def metadata_details(metadata: Metadata) -> dict[str, str]:
    """Return the values that interest people, by a label in plain words."""
    values = {label: _first_value(metadata, key) for key, label in DETAIL_LABELS.items()}
    return {label: _format_value(text) for label, text in values.items() if text}


def family_of_card(card: Card) -> Family | None:
    """Return the family of an overlay's base with the base's own prediction, or None if it is not known here."""
    family = FAMILIES.get(card.family)
    return replace(family, prediction=card.prediction) if family and card.prediction else family


def model_spec_fields(family: Family, title: str, *, kind: str = "") -> dict[str, str]:
    """Return ModelSpec's fields for a base, or for an overlay on bases of the family.

    The date is left out, because equal models are to become equal bytes.

    Args:
        family: The family of the base, also of an overlay's base.
        title: Name of the model for people.
        kind: Kind of overlay in ModelSpec's words, such as "lora"; "" for a base.
    """
    architecture = ARCHITECTURE_BY_FAMILY.get((family.name, family.prediction), f"velatura-{family.name}")
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": "/".join(filter(None, (architecture, kind))),
        "implementation": LDM_IMPLEMENTATION,
        "title": title,
        "resolution": f"{family.default_pixels}x{family.default_pixels}",
        "prediction_type": MODEL_SPEC_PREDICTIONS[family.prediction],
    }
    return {f"modelspec.{key}": value for key, value in fields.items() if value}


def _first_value(metadata: Metadata, *keys: str) -> str:
    """Return the first value that is not empty, cut to MAX_TEXT_LENGTH, or ""."""
    return next((metadata[key][:MAX_TEXT_LENGTH] for key in keys if metadata.get(key, "") not in EMPTY_VALUES), "")


def _format_value(text: str) -> str:
    """Return a JSON list without its brackets, and any other text unchanged."""
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return ", ".join(map(str, cast("list[object]", parsed))) if isinstance(parsed, list) else text
