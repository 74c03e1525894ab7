"""Adapters as peft writes them: tensors and a configuration beside them, in a folder, and peft's own formulas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.lora_keys import PEFT
from velatura.formats.peft_config import CONFIG, PeftConfig

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
W1 = "lokr_w1"
MAGNITUDES = "lora_magnitude_vector"
PARTS = ("unet", "text_encoder", "text_encoder_2")  # folders that trainers put adapters of a pipeline into


def adapters_in(folder: Path) -> dict[str, Path]:
    """The files of adapters in a folder, by the part of a pipeline that they are for, "" where that is not said."""
    found = {part: path for part in ("", *PARTS) if (path := _weights(folder / part))}
    if not found:
        raise BadFile(f"{folder} holds no adapter ({CONFIG} and {WEIGHTS[0]}): give the path of one")
    return found


def joined(adapters: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of adapters by the part of a pipeline, under the keys that diffusers has for all of them."""
    return {
        f"{part}.{key.removeprefix(PEFT)}" if part else key: state[key]
        for part, state in adapters.items()
        for key in state
    }


def config_beside(path: Path) -> PeftConfig | None:
    """The configuration in a file's folder, if there is one."""
    beside = path.parent / CONFIG
    return PeftConfig.read(beside) if beside.exists() else None


def as_lycoris(tensors: Mapping[str, Tensor], config: PeftConfig | None) -> dict[str, Tensor]:
    """One layer's tensors as LyCORIS has them: peft's factors, rotations and magnitudes have other shapes and names."""
    found = dict(tensors)
    if "alpha" in found and found["alpha"].numel() == 1:
        found["alpha"] = found["alpha"].reshape(())
    if "ia3_l" in found:
        return _multiplying(found["ia3_l"])
    if "oft_R.weight" in found and "oft_terms" not in found:
        config = config or PeftConfig()
        terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else 0
        return {**found, "oft_terms": torch.tensor(float(terms))}
    if MAGNITUDES in found and "lora_down.weight" in found:  # of rows always
        rows = found.pop(MAGNITUDES).flatten()
        found["dora_scale"] = rows.reshape(-1, *[1] * (found["lora_down.weight"].ndim - 1))
    return found


def scaled(tensors: dict[str, Tensor], rank: int | None, config: PeftConfig, path: str) -> dict[str, Tensor]:
    """One layer's tensors with the alpha that a configuration has for it, under the path by which that calls it.

    rank: of what is decomposed; where nothing is LyCORIS has no scale, and peft does.
    """
    if "alpha" in tensors:
        return tensors
    alpha = config.alpha_of(path, rank or config.r or 1)
    if alpha is None:
        return tensors
    if rank is None:
        return {**tensors, W1: tensors[W1] * alpha / config.r} if W1 in tensors and config.r else tensors
    return {**tensors, "alpha": torch.tensor(float(alpha))}


def _multiplying(factors: Tensor) -> dict[str, Tensor]:
    """(IA)^3's: peft's factors are whole ones, of rows and of the bias too (out, 1), or of columns (1, in)."""
    on_input = factors.shape[0] == 1 and factors.numel() > 1
    own = {"weight": factors.flatten() - 1, "on_input": torch.tensor(float(on_input))}
    return own if on_input else {**own, "on_bias": torch.tensor(1.0)}


def _weights(folder: Path) -> Path | None:
    if not (folder / CONFIG).is_file():
        return None
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
