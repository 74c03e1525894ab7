"""What safetensors files say of themselves in their metadata, as trainers, mergers and ModelSpec write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from velatura.base.families import Family

Metadata = Mapping[str, str]

FAMILY_BY_ARCHITECTURE = {
    "stable-diffusion-v1": "SD1",
    "stable-diffusion-v2": "SD2",
    "stable-diffusion-xl-v1-refiner": "SDXL refiner",
    "stable-diffusion-xl-v1": "SDXL",
}
FAMILY_BY_KOHYA_VERSION = {"sd_v1": "SD1", "sd_v2": "SD2", "sdxl_": "SDXL"}  # sd-scripts' words, by how they begin
VELATURA_VERSION_PREFIX = "velatura_"
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
MAX_TEXT_LENGTH = 4096  # letters of a text that are looked at
EMPTY_VALUES = {"", "None", "{}"}  # sd-scripts writes None as a word


def family_from_metadata(metadata: Metadata) -> str:
    """The family that a file says it is for, "" where it does not."""
    version = metadata.get("ss_base_model_version", "")
    if version.startswith(VELATURA_VERSION_PREFIX):
        return version.removeprefix(VELATURA_VERSION_PREFIX).removesuffix("_v")
    family = next((family for prefix, family in FAMILY_BY_KOHYA_VERSION.items() if version.startswith(prefix)), "")
    if family or metadata.get("ss_v2") == "True":
        return family or "SD2"
    architecture = metadata.get("modelspec.architecture", "")
    return next((family for prefix, family in FAMILY_BY_ARCHITECTURE.items() if architecture.startswith(prefix)), "")


def card_fields_from_metadata(metadata: Metadata) -> dict[str, object]:
    """The fields of a card that a file says something of."""
    steps = metadata.get("ss_steps", "")
    trigger = metadata.get("modelspec.trigger_phrase", "")
    note = _first_value(metadata, "ss_training_comment", "modelspec.description")
    fields = {
        "steps": int(steps) if steps.isdecimal() and len(steps) < 16 else 0,
        "base": _first_value(metadata, "ss_sd_model_name"),
        "base_hash": _first_value(metadata, "ss_new_sd_model_hash")[:10] or _first_value(metadata, "ss_sd_model_hash"),
        "trigger_words": (trigger,) if trigger else (),
        "note": note,
    }
    return {field: value for field, value in fields.items() if value}


def aliases(metadata: Metadata) -> tuple[str, ...]:
    """What else a file is called, as A1111 takes it of a LoRA."""
    return tuple(filter(None, (_first_value(metadata, key) for key in ("ss_output_name", "modelspec.title"))))


def claimed_hashes(metadata: Metadata) -> tuple[str, ...]:
    """The hash of its tensors that a file says it has; LyCORIS's own, which begins with 0x, is of no bytes in it."""
    model_hash = metadata.get("sshs_model_hash", "").lower()
    return (model_hash,) if len(model_hash) == 64 and not model_hash.startswith("0x") else ()


def metadata_details(metadata: Metadata) -> dict[str, str]:
    """What matters to people of a file's metadata, by a label."""
    values = {label: _first_value(metadata, key) for key, label in DETAIL_LABELS.items()}
    return {label: _format_value(text) for label, text in values.items() if text}


def _first_value(metadata: Metadata, *keys: str) -> str:
    return next((metadata[key][:MAX_TEXT_LENGTH] for key in keys if metadata.get(key, "") not in EMPTY_VALUES), "")


def _format_value(text: str) -> str:
    """A text, or of JSON what stands in it, without its brackets where it is a plain list."""
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return ", ".join(map(str, cast("list[object]", parsed))) if isinstance(parsed, list) else text


LDM_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"  # what the tensors are named after
ARCHITECTURE_BY_FAMILY = {
    ("SD1", "epsilon"): "stable-diffusion-v1",
    ("SD1", "v_prediction"): "stable-diffusion-v1",
    ("SD2", "epsilon"): "stable-diffusion-v2-512",
    ("SD2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("SDXL", "epsilon"): "stable-diffusion-xl-v1-base",
    ("SDXL", "v_prediction"): "stable-diffusion-xl-v1-base",
}
MODEL_SPEC_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word, ModelSpec's


def model_spec_fields(family: Family, title: str, *, kind: str = "") -> dict[str, str]:
    """The fields of a base, or of an overlay of a kind for such bases; no date, which would change the bytes."""
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
