"""Writing of adapters as peft's save_pretrained does: a folder with tensors and a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import BadOverlay
from velatura.files import atomic_folder
from velatura.formats.checkpoints.ldm_text import TEXT_MODEL_PREFIX
from velatura.formats.loras.keys import PEFT_PREFIX
from velatura.formats.loras.low_rank import (
    MAGNITUDE_KEY,
    TWO_MATRIX_ALGORITHMS,
    low_rank_of,
    warn_of_embeddings,
)
from velatura.formats.loras.names import diffusers_path
from velatura.formats.loras.peft_config import CONFIG_FILE
from velatura.formats.loras.read_peft import WEIGHTS_FILES
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_safetensors

DeltasByPath = Mapping[str, Delta]  # by diffusers' paths
WEIGHTS_FILE = WEIGHTS_FILES[0]


def write(overlay: Overlay, path: Path) -> None:
    """Write a LoRA, a DoRA or a LoHa as a new folder, by way of a temporary one.

    An adapter for one part of a pipeline is written into the folder itself, and several into unet, text_encoder and
    text_encoder_2 inside it. Embeddings in the LoRA are left out with a warning.

    Args:
        overlay: A LoRA with one algorithm for every part.
        path: The folder, which must be new or empty.

    Raises:
        BadOverlay: The overlay is not a LoRA, or peft has no adapter for its algorithms.
        AlreadyExists: The folder is not empty.
        BadFile: The folder cannot be written.
    """
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"a folder of peft cannot store a {overlay.kind}: leave the dialect out")
    warn_of_embeddings(overlay, "peft")
    parts = _split_by_part(overlay)
    adapters = {part: (_adapter_tensors(layers), _adapter_config(layers)) for part, layers in parts.items()}
    with atomic_folder(path) as folder:
        for part, (tensors, config) in adapters.items():
            _write_adapter(folder if len(parts) == 1 else folder / part, tensors, config)


def _split_by_part(lora: Lora) -> dict[str, dict[str, Delta]]:
    """Return the layers' changes by the part of diffusers' pipeline and the path in it."""
    parts: dict[str, dict[str, Delta]] = {}
    for layer, delta in lora.layers.items():
        part, module = diffusers_path(layer)
        # CLIPTextModel, which is the first text encoder, lost the level text_model in transformers 5
        module = module.removeprefix(TEXT_MODEL_PREFIX) if part == "text_encoder" else module
        parts.setdefault(part, {})[module] = delta
    return parts


def _write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
    named_tensors = {PEFT_PREFIX + key: tensor for key, tensor in tensors.items()}
    write_safetensors(folder / WEIGHTS_FILE, named_tensors, {"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _adapter_tensors(layers: DeltasByPath) -> dict[str, Tensor]:
    """Return the tensors of an adapter, scaled so that every alpha equals its rank."""
    tensors: dict[str, Tensor] = {}
    for module, delta in layers.items():
        layer_tensors = _loha_tensors(delta) if delta.algorithm == "loha" else _lora_tensors(module, delta)
        tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in layer_tensors.items()}
    return tensors


def _lora_tensors(module: str, delta: Delta) -> dict[str, Tensor]:
    if delta.algorithm not in TWO_MATRIX_ALGORITHMS:
        raise BadOverlay(f"peft cannot store {delta.algorithm} in this form: write it in dialect kohya, or bake it")
    matrices = low_rank_of(module, delta, "peft")
    tensors = {"lora_A.weight": matrices.down, "lora_B.weight": matrices.up}
    if matrices.magnitudes is None:
        return tensors
    return {**tensors, MAGNITUDE_KEY: matrices.magnitudes}


@torch.no_grad()
def _loha_tensors(delta: Delta) -> dict[str, Tensor]:
    state = {suffix: tensor for suffix, tensor in delta.state_dict().items() if suffix != "alpha"}
    if "dora_scale" in state:
        raise BadOverlay("peft cannot store a LoHa with DoRA: write it in dialect kohya, or bake it")
    scaled = state["hada_w1_a"].float() * delta.scale(delta.rank or 1)
    return {**state, "hada_w1_a": scaled.to(state["hada_w1_a"].dtype)}


def _adapter_config(layers: DeltasByPath) -> dict[str, object]:
    """Return the configuration of an adapter with the rank of every layer.

    Raises:
        BadOverlay: The layers have different algorithms.
    """
    algorithms = {"lora" if delta.algorithm in TWO_MATRIX_ALGORITHMS else delta.algorithm for delta in layers.values()}
    uses_dora = {delta.tensor("dora_scale") is not None for delta in layers.values()}
    if len(algorithms) > 1 or len(uses_dora) > 1:
        raise BadOverlay(
            "an adapter of peft has one algorithm, and the layers of this LoRA have several: write it in dialect kohya"
        )
    ranks = {module: delta.rank or 1 for module, delta in layers.items()}
    rank = max(ranks.values())
    other_ranks = {module: layer_rank for module, layer_rank in ranks.items() if layer_rank != rank}
    shared = {"r": rank, "rank_pattern": other_ranks, "alpha_pattern": other_ranks, "target_modules": sorted(layers)}
    if algorithms == {"lora"}:
        return {"peft_type": "LORA", "lora_alpha": rank, "use_dora": uses_dora == {True}, "bias": "none", **shared}
    uses_tucker = any(delta.tensor("hada_t1") is not None for delta in layers.values())
    return {"peft_type": "LOHA", "alpha": rank, "use_effective_conv2d": uses_tucker, **shared}
