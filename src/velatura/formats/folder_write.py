"""A base written as a whole diffusers folder, which any program of that family opens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from torch import nn

from velatura.base.base import Base
from velatura.base.text import Tower
from velatura.files import filling
from velatura.formats.folder import INDEX
from velatura.formats.ldm_text import LEVEL, PROJECTION
from velatura.tensors import StrPath, write_safetensors

Table = Mapping[str, object]

PLAIN, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
METADATA = {"format": "pt"}  # without it transformers refuses a file
SCHEDULER = "DDIMScheduler"


def write(base: Base, path: StrPath, *, dtype: torch.dtype | None = None) -> None:
    """Write a base as a folder, at once or not at all, in its own precision or another; nothing is replaced."""
    with filling(path) as folder:
        _write_model(folder / "unet", base.unet, {}, dtype)
        _write_model(folder / "vae", base.vae, {"scaling_factor": base.family.latent_scale}, dtype)
        for index, tower in enumerate(base.text.towers):
            _write_tower(folder, f"_{index + 1}" if index else "", tower, dtype)
        _write_table(folder / "scheduler" / "scheduler_config.json", _scheduler(base))
        _write_table(folder / INDEX, dict(_index(base)))


def _write_model(folder: Path, model: Any, more: Table, dtype: torch.dtype | None) -> None:
    """A model of diffusers' own."""
    _write_table(folder / "config.json", {**json.loads(model.to_json_string()), **more})
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", model.state_dict(), METADATA, dtype=dtype)


def _write_tower(folder: Path, number: str, tower: Tower, dtype: torch.dtype | None) -> None:
    """A text tower under the names that all versions of transformers read, and its tokenizer."""
    model: nn.Module = tower.model
    state = {
        key if key == PROJECTION else LEVEL + key.removeprefix(LEVEL): each for key, each in model.state_dict().items()
    }
    told = {**tower.model.config.to_dict(), "architectures": [type(model).__name__]}
    _write_table(folder / f"text_encoder{number}" / "config.json", told)
    write_safetensors(folder / f"text_encoder{number}" / "model.safetensors", state, METADATA, dtype=dtype)
    _write_tokenizer(folder / f"tokenizer{number}", tower.tokenizer)


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """A tokenizer as today's transformers writes it, and in the two files that older ones read."""
    tokenizer.save_pretrained(folder)
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    _write_table(folder / "vocab.json", model["vocab"])
    pairs: list[tuple[str, str]] = model["merges"]
    merges = "".join(f"{first} {second}\n" for first, second in pairs)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def _write_table(path: Path, table: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _scheduler(base: Base) -> Table:
    """The schedule of the base, and the steps that Stable Diffusions are run in."""
    schedule = base.schedule
    return {
        "_class_name": SCHEDULER,
        "_diffusers_version": diffusers_version,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "beta_start": schedule.beta_start,
        "clip_sample": False,
        "num_train_timesteps": len(schedule),
        "prediction_type": base.family.prediction,
        "rescale_betas_zero_snr": schedule.zero_snr,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if schedule.zero_snr else "leading",  # the last step is the one stretched
        "trained_betas": None,
    }


def _index(base: Base) -> Iterator[tuple[str, object]]:
    """What model_index.json says of each part."""
    is_sdxl = len(base.text.towers) > 1
    yield "_class_name", SDXL if is_sdxl else PLAIN
    yield "_diffusers_version", diffusers_version
    yield from (
        (part, ["diffusers", kind]) for part, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL"))
    )
    yield "scheduler", ["diffusers", SCHEDULER]
    for index, tower in enumerate(base.text.towers):
        number = f"_{index + 1}" if index else ""
        yield f"text_encoder{number}", ["transformers", type(tower.model).__name__]
        yield f"tokenizer{number}", ["transformers", "CLIPTokenizer"]
    yield from ((part, [None, None]) for part in ("feature_extractor", "image_encoder"))
    if is_sdxl:
        yield "force_zeros_for_empty_prompt", True
    else:
        yield from (("safety_checker", [None, None]), ("requires_safety_checker", False))
