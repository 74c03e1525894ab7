"""Write a base as a whole diffusers folder, which all programs built on diffusers open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from velatura.base.base import Base
from velatura.base.image_condition import ImageConditionKind
from velatura.base.text_encoder import ClipTextEncoder
from velatura.files import atomic_folder
from velatura.formats.checkpoints import INDEX_FILE
from velatura.formats.checkpoints.ldm_text import PROJECTION_KEY, TEXT_MODEL_PREFIX
from velatura.tensors import StrPath, write_safetensors

JsonTable = Mapping[str, object]

PIPELINE_NAMES: dict[ImageConditionKind | None, str] = {
    None: "Pipeline",
    "inpainting": "InpaintPipeline",
    "pix2pix": "InstructPix2PixPipeline",
}
WEIGHTS_METADATA = {"format": "pt"}  # transformers refuses a file without it
SCHEDULER_CLASS = "DDIMScheduler"


def write(base: Base, path: StrPath, *, dtype: torch.dtype | None = None) -> None:
    """Write a base as a diffusers folder. It is written beside its place and then renamed.

    Args:
        base: The base.
        path: A folder that does not exist or is empty.
        dtype: Precision of the weights; the default is the base's own.

    Raises:
        AlreadyExists: The folder is not empty.
        BadFile: The folder cannot be written.
    """
    with atomic_folder(path) as folder:
        _write_model(folder / "unet", base.unet, {}, dtype)
        _write_model(folder / "vae", base.vae, {"scaling_factor": base.family.scaling_factor}, dtype)
        for index, encoder in enumerate(base.text.encoders):
            _write_text_encoder(folder, f"_{index + 1}" if index else "", encoder, dtype)
        _write_json(folder / "scheduler" / "scheduler_config.json", _scheduler_config(base))
        _write_json(folder / INDEX_FILE, dict(_index_entries(base)))


def _write_model(folder: Path, model: Any, extra_config: JsonTable, dtype: torch.dtype | None) -> None:
    """Write a model of diffusers: the UNet or the autoencoder."""
    _write_json(folder / "config.json", {**json.loads(model.to_json_string()), **extra_config})
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", model.state_dict(), WEIGHTS_METADATA, dtype=dtype)


def _write_text_encoder(folder: Path, suffix: str, encoder: ClipTextEncoder, dtype: torch.dtype | None) -> None:
    """Write a text encoder under the names that all versions of transformers read, and its tokenizer."""
    model: nn.Module = encoder.model
    state = {
        key if key == PROJECTION_KEY else TEXT_MODEL_PREFIX + key.removeprefix(TEXT_MODEL_PREFIX): tensor
        for key, tensor in model.state_dict().items()
    }
    config = {**encoder.model.config.to_dict(), "architectures": [type(model).__name__]}
    _write_json(folder / f"text_encoder{suffix}" / "config.json", config)
    write_safetensors(folder / f"text_encoder{suffix}" / "model.safetensors", state, WEIGHTS_METADATA, dtype=dtype)
    _write_tokenizer(folder / f"tokenizer{suffix}", encoder.tokenizer)


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer as transformers 5 does, and in the two files that older versions read."""
    tokenizer.save_pretrained(folder)
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    _write_json(folder / "vocab.json", model["vocab"])
    pairs: list[tuple[str, str]] = model["merges"]
    merges = "".join(f"{first} {second}\n" for first, second in pairs)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def _write_json(path: Path, table: JsonTable) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _scheduler_config(base: Base) -> JsonTable:
    """Return scheduler_config.json: the base's noise schedule, and Stable Diffusion's usual timestep settings."""
    schedule = base.schedule
    return {
        "_class_name": SCHEDULER_CLASS,
        "_diffusers_version": version("diffusers"),
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "beta_start": schedule.beta_start,
        "clip_sample": False,
        "num_train_timesteps": len(schedule),
        "prediction_type": base.family.prediction,
        "rescale_betas_zero_snr": schedule.zero_snr,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing"
        if schedule.zero_snr
        else "leading",  # a schedule to zero SNR must start at the last step
        "trained_betas": None,
    }


def _index_entries(base: Base) -> Iterator[tuple[str, object]]:
    """Yield the entries of model_index.json."""
    is_sdxl = len(base.text.encoders) > 1
    yield "_class_name", f"StableDiffusion{'XL' if is_sdxl else ''}{PIPELINE_NAMES[base.image_condition]}"
    yield "_diffusers_version", version("diffusers")
    yield "unet", ["diffusers", "UNet2DConditionModel"]
    yield "vae", ["diffusers", "AutoencoderKL"]
    yield "scheduler", ["diffusers", SCHEDULER_CLASS]
    for index, encoder in enumerate(base.text.encoders):
        suffix = f"_{index + 1}" if index else ""
        yield f"text_encoder{suffix}", ["transformers", type(encoder.model).__name__]
        yield f"tokenizer{suffix}", ["transformers", "CLIPTokenizer"]
    yield "feature_extractor", [None, None]
    yield "image_encoder", [None, None]
    if is_sdxl:
        yield "force_zeros_for_empty_prompt", True
    else:
        yield "safety_checker", [None, None]
        yield "requires_safety_checker", False
