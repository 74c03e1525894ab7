"""Adapters as peft writes them: tensors and a configuration beside them, in a folder, and peft's own formulas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.loras.keys import PEFT_PREFIX
from velatura.formats.loras.peft_config import CONFIG_FILE, PeftConfig

WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
LOKR_W1 = "lokr_w1"
MAGNITUDE_KEY = "lora_magnitude_vector"
PIPELINE_FOLDERS = ("unet", "text_encoder", "text_encoder_2")  # folders that trainers put adapters of a pipeline into


def find_adapters(folder: Path) -> dict[str, Path]:
    """The files of adapters in a folder, by the part of a pipeline that they are for, "" where that is not said."""
    adapters = {part: path for part in ("", *PIPELINE_FOLDERS) if (path := _find_weights(folder / part))}
    if not adapters:
        raise BadFile(f"{folder} holds no adapter ({CONFIG_FILE} and {WEIGHTS_FILES[0]}): give the path of one")
    return adapters


def join_adapters(adapters: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of adapters by the part of a pipeline, under the keys that diffusers has for all of them."""
    return {
        f"{part}.{key.removeprefix(PEFT_PREFIX)}" if part else key: state[key]
        for part, state in adapters.items()
        for key in state
    }


def read_config_beside(path: Path) -> PeftConfig | None:
    """The configuration in a file's folder, if there is one."""
    config_path = path.parent / CONFIG_FILE
    return PeftConfig.from_file(config_path) if config_path.exists() else None


def to_lycoris(tensors: Mapping[str, Tensor], config: PeftConfig | None) -> dict[str, Tensor]:
    """One layer's tensors as LyCORIS has them: peft's factors, rotations and magnitudes have other shapes and names."""
    converted = dict(tensors)
    if "alpha" in converted and converted["alpha"].numel() == 1:
        converted["alpha"] = converted["alpha"].reshape(())
    if "ia3_l" in converted:
        return _ia3_tensors(converted["ia3_l"])
    if "oft_R.weight" in converted and "oft_terms" not in converted:
        config = config or PeftConfig()
        terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else 0
        return {**converted, "oft_terms": torch.tensor(float(terms))}
    if MAGNITUDE_KEY in converted and "lora_down.weight" in converted:  # of rows always
        rows = converted.pop(MAGNITUDE_KEY).flatten()
        converted["dora_scale"] = rows.reshape(-1, *[1] * (converted["lora_down.weight"].ndim - 1))
    return converted


def apply_alpha(tensors: dict[str, Tensor], rank: int | None, config: PeftConfig, path: str) -> dict[str, Tensor]:
    """One layer's tensors with the alpha that a configuration has for it, under the path by which that calls it.

    rank: of what is decomposed; where nothing is LyCORIS has no scale, and peft does.
    """
    if "alpha" in tensors:
        return tensors
    alpha = config.alpha_of(path, rank or config.r or 1)
    if alpha is None:
        return tensors
    if rank is None:
        return {**tensors, LOKR_W1: tensors[LOKR_W1] * alpha / config.r} if LOKR_W1 in tensors and config.r else tensors
    return {**tensors, "alpha": torch.tensor(float(alpha))}


def _ia3_tensors(factors: Tensor) -> dict[str, Tensor]:
    """(IA)^3's: peft's factors are whole ones, of rows and of the bias too (out, 1), or of columns (1, in)."""
    on_input = factors.shape[0] == 1 and factors.numel() > 1
    tensors = {"weight": factors.flatten() - 1, "on_input": torch.tensor(float(on_input))}
    return tensors if on_input else {**tensors, "on_bias": torch.tensor(1.0)}


def _find_weights(folder: Path) -> Path | None:
    if not (folder / CONFIG_FILE).is_file():
        return None
    return next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
