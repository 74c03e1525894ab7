"""What safetensors files say of themselves in their metadata, as trainers, mergers and ModelSpec write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

Metadata = Mapping[str, str]

ARCHITECTURES = {
    "stable-diffusion-v1": "SD1",
    "stable-diffusion-v2": "SD2",
    "stable-diffusion-xl-v1-refiner": "SDXL refiner",
    "stable-diffusion-xl-v1": "SDXL",
}
BASE_MODELS = {"sd_v1": "SD1", "sd_v2": "SD2", "sdxl_": "SDXL"}  # sd-scripts' words, by how they begin
OURS = "velatura_"
DETAILS = {
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
LONGEST = 4096  # letters of a text that are looked at
NOTHING = {"", "None", "{}"}  # sd-scripts writes None as a word


def said_family(metadata: Metadata) -> str:
    """The family that a file says it is for, "" where it does not."""
    version = metadata.get("ss_base_model_version", "")
    if version.startswith(OURS):
        return version.removeprefix(OURS).removesuffix("_v")
    found = next((family for word, family in BASE_MODELS.items() if version.startswith(word)), "")
    if found or metadata.get("ss_v2") == "True":
        return found or "SD2"
    architecture = metadata.get("modelspec.architecture", "")
    return next((family for word, family in ARCHITECTURES.items() if architecture.startswith(word)), "")


def said_in_card(metadata: Metadata) -> dict[str, object]:
    """The fields of a card that a file says something of."""
    steps = metadata.get("ss_steps", "")
    trigger = metadata.get("modelspec.trigger_phrase", "")
    note = _first(metadata, "ss_training_comment", "modelspec.description")
    fields = {
        "steps": int(steps) if steps.isdecimal() and len(steps) < 16 else 0,
        "base": _first(metadata, "ss_sd_model_name"),
        "base_hash": _first(metadata, "ss_new_sd_model_hash")[:10] or _first(metadata, "ss_sd_model_hash"),
        "trigger_words": (trigger,) if trigger else (),
        "note": note,
    }
    return {field: value for field, value in fields.items() if value}


def aliases(metadata: Metadata) -> tuple[str, ...]:
    """What else a file is called, as A1111 takes it of a LoRA."""
    return tuple(filter(None, (_first(metadata, each) for each in ("ss_output_name", "modelspec.title"))))


def claimed_hashes(metadata: Metadata) -> tuple[str, ...]:
    """The hash of its tensors that a file says it has; LyCORIS's own, which begins with 0x, is of no bytes in it."""
    said = metadata.get("sshs_model_hash", "").lower()
    return (said,) if len(said) == 64 and not said.startswith("0x") else ()


def details(metadata: Metadata) -> dict[str, str]:
    """What matters to people of a file's metadata, by a label."""
    found = {label: _first(metadata, key) for key, label in DETAILS.items()}
    return {label: _short(text) for label, text in found.items() if text}


def _first(metadata: Metadata, *keys: str) -> str:
    return next((metadata[key][:LONGEST] for key in keys if metadata.get(key, "") not in NOTHING), "")


def _short(text: str) -> str:
    """A text, or of JSON what stands in it, without its brackets where it is a plain list."""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return ", ".join(map(str, cast("list[object]", found))) if isinstance(found, list) else text
