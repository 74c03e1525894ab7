"""Folders of adapters as peft writes them, and the conversion of peft's tensors to LyCORIS's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.checkpoints import INDEX_FILE
from velatura.formats.loras.keys import PEFT_PREFIX
from velatura.formats.loras.low_rank import MAGNITUDE_KEY
from velatura.formats.loras.peft_config import CONFIG_FILE, PeftConfig
from velatura.tensors import StateDict

WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PIPELINE_FOLDERS = ("unet", "text_encoder", "text_encoder_2")  # of adapters for the parts of one pipeline
OVERLAY_SUFFIXES = frozenset({".safetensors", ".pt", ".bin"})
MAX_NAMED_PATHS = 2  # in the message of a folder without an adapter
LOKR_W1 = "lokr_w1"


def find_adapters(folder: Path) -> dict[str, Path]:
    """Find the weights of the adapters in a folder.

    Returns:
        The files by the part of a pipeline, which is the name of their folder; "" for a file in the folder itself.

    Raises:
        BadFile: The folder holds no adapter.
    """
    paths = {part: _find_weights(folder / part) for part in ("", *PIPELINE_FOLDERS)}
    adapters = {part: path for part, path in paths.items() if path is not None}
    if not adapters:
        raise BadFile(_describe_other_folder(folder))
    return adapters


def join_adapters(adapters: Mapping[str, StateDict]) -> dict[str, Tensor]:
    """Join the tensors of several adapters under diffusers' keys, such as unet.mid_block...

    Args:
        adapters: Tensors by the part of a pipeline; those of "" keep their keys.
    """
    tensors: dict[str, Tensor] = {}
    for part, state in adapters.items():
        for key, tensor in state.items():
            tensors[f"{part}.{key.removeprefix(PEFT_PREFIX)}" if part else key] = tensor
    return tensors


def read_config_beside(path: Path) -> PeftConfig | None:
    """Read the configuration in the folder of an adapter's file, or return None if there is none."""
    config_path = path.parent / CONFIG_FILE
    return PeftConfig.from_file(config_path) if config_path.exists() else None


def to_lycoris(tensors: StateDict, config: PeftConfig | None) -> dict[str, Tensor]:
    """Convert the tensors of one layer to LyCORIS's names and shapes.

    Factors of (IA)^3, rotations of OFT and magnitudes of DoRA differ in peft; all others stay as they are. Rotations of
    a file without a configuration of peft are OneTrainer's.

    Args:
        tensors: The tensors by the suffixes that `keys` gives them.
        config: The configuration of peft's adapter, or None for a file of another program.
    """
    converted = dict(tensors)
    if "alpha" in converted and converted["alpha"].numel() == 1:
        converted["alpha"] = converted["alpha"].reshape(())
    if "ia3_l" in converted:
        return _ia3_tensors(converted["ia3_l"])
    if "oft_R.weight" in converted and "oft_terms" not in converted and config is not None:
        terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else 0
        return {**converted, "oft_terms": torch.tensor(float(terms))}
    if MAGNITUDE_KEY in converted and "lora_down.weight" in converted:
        rows = converted.pop(MAGNITUDE_KEY).flatten()  # peft's magnitudes are always of rows
        converted["dora_scale"] = rows.reshape(-1, *[1] * (converted["lora_down.weight"].ndim - 1))
    return converted


def apply_alpha(tensors: dict[str, Tensor], rank: int | None, config: PeftConfig, path: str) -> dict[str, Tensor]:
    """Add the alpha that a configuration has for a layer, if the tensors have none.

    Args:
        tensors: The layer's tensors as LyCORIS has them.
        rank: The layer's rank, or None for a LoKr whose two factors are both whole. LyCORIS does not scale those, but
            peft does, so the scale goes into the first factor.
        config: The adapter's configuration.
        path: The layer's path in the configuration's words.
    """
    if "alpha" in tensors:
        return tensors
    alpha = config.alpha_of(path, rank or config.r or 1)
    if alpha is None:
        return tensors
    if rank is not None:
        return {**tensors, "alpha": torch.tensor(float(alpha))}
    if LOKR_W1 in tensors and config.r:
        return {**tensors, LOKR_W1: tensors[LOKR_W1] * alpha / config.r}
    return tensors


def _ia3_tensors(factors: Tensor) -> dict[str, Tensor]:
    """Convert peft's factors: of rows, which act on the bias too, (out, 1); of columns (1, in). LyCORIS subtracts 1."""
    on_input = factors.shape[0] == 1 and factors.numel() > 1
    tensors = {"weight": factors.flatten() - 1, "on_input": torch.tensor(float(on_input))}
    return tensors if on_input else {**tensors, "on_bias": torch.tensor(1.0)}


def _describe_other_folder(folder: Path) -> str:
    """Say what a folder without an adapter holds instead, and what to give."""
    if (folder / INDEX_FILE).is_file():
        return f"{folder} is a base in a folder, not an overlay: open it as a base (--base)"
    found = [*folder.glob(f"*/{CONFIG_FILE}"), *folder.glob(f"*/*/{CONFIG_FILE}")]
    adapters = sorted({path.parent.parent if path.parent.name in PIPELINE_FOLDERS else path.parent for path in found})
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in OVERLAY_SUFFIXES and path.is_file())
    advice = "give the path of one"
    if inside := [*adapters, *files]:
        advice = f"give what is inside, such as {' or '.join(map(str, inside[:MAX_NAMED_PATHS]))}"
    return f"{folder} does not hold an adapter ({CONFIG_FILE} and {WEIGHTS_FILES[0]}): {advice}"


def _find_weights(folder: Path) -> Path | None:
    if not (folder / CONFIG_FILE).is_file():
        return None
    return next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
