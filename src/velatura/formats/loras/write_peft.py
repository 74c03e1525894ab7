"""Adapters as peft's save_pretrained writes them: a folder of tensors and a configuration, or one for each part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import BadOverlay
from velatura.files import atomic_folder
from velatura.formats.loras.keys import PEFT_PREFIX
from velatura.formats.loras.low_rank import TWO_MATRIX_ALGORITHMS, low_rank_of, warn_of_embeddings
from velatura.formats.loras.names import diffusers_path
from velatura.formats.loras.peft_config import CONFIG_FILE
from velatura.formats.loras.read_peft import MAGNITUDE_KEY, WEIGHTS_FILES
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_safetensors

DeltasByPath = Mapping[str, Delta]  # by diffusers' paths
WEIGHTS_FILE = WEIGHTS_FILES[0]
TEXT_MODEL_PREFIX = "text_model."


def write(overlay: Overlay, path: Path) -> None:
    """Write a new folder for a LoRA, a DoRA or a LoHa: with its one adapter in it, or with a folder for each part."""
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"peft's folders hold no {overlay.kind}: leave the dialect out")
    warn_of_embeddings(overlay, "peft")
    parts: dict[str, dict[str, Delta]] = {}
    for layer, delta in overlay.layers.items():
        part, module = diffusers_path(layer)
        # transformers has no such level in CLIPTextModel since 5, which is the first tower of a pipeline
        module = module.removeprefix(TEXT_MODEL_PREFIX) if part == "text_encoder" else module
        parts.setdefault(part, {})[module] = delta
    adapters = {part: (_adapter_tensors(layers), _adapter_config(layers)) for part, layers in parts.items()}
    with atomic_folder(path) as folder:
        for part, (tensors, config) in adapters.items():
            adapter_folder = folder if len(parts) == 1 else folder / part
            write_safetensors(
                adapter_folder / WEIGHTS_FILE,
                {PEFT_PREFIX + key: tensor for key, tensor in tensors.items()},
                {"format": "pt"},
            )
            (adapter_folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _adapter_tensors(layers: DeltasByPath) -> dict[str, Tensor]:
    """All tensors of a part, scaled so that alpha is the rank."""
    tensors: dict[str, Tensor] = {}
    for module, delta in layers.items():
        layer_tensors = _loha_tensors(delta) if delta.algorithm == "loha" else _lora_tensors(module, delta)
        tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in layer_tensors.items()}
    return tensors


def _lora_tensors(module: str, delta: Delta) -> dict[str, Tensor]:
    if delta.algorithm not in TWO_MATRIX_ALGORITHMS:
        raise BadOverlay(f"peft has no {delta.algorithm} as this is: write it in dialect kohya, or bake it")
    matrices = low_rank_of(module, delta, "peft")
    tensors = {"lora_A.weight": matrices.down, "lora_B.weight": matrices.up}
    if matrices.magnitudes is None:
        return tensors
    return {**tensors, MAGNITUDE_KEY: matrices.magnitudes}


@torch.no_grad()
def _loha_tensors(delta: Delta) -> dict[str, Tensor]:
    state = {suffix: tensor for suffix, tensor in delta.state_dict().items() if suffix != "alpha"}
    if "dora_scale" in state:
        raise BadOverlay("peft has no LoHa with DoRA: write it in dialect kohya, or bake it")
    scaled = state["hada_w1_a"].float() * delta.scale(delta.rank or 1)
    return {**state, "hada_w1_a": scaled.to(state["hada_w1_a"].dtype)}


def _adapter_config(layers: DeltasByPath) -> dict[str, object]:
    """The configuration of a part's adapter, of one algorithm, with the rank of each layer."""
    algorithms = {"lora" if delta.algorithm in TWO_MATRIX_ALGORITHMS else delta.algorithm for delta in layers.values()}
    uses_dora = {delta.tensor("dora_scale") is not None for delta in layers.values()}
    if len(algorithms) > 1 or len(uses_dora) > 1:
        raise BadOverlay("an adapter of peft is of one algorithm, this is of several: write it in dialect kohya")
    ranks = {module: delta.rank or 1 for module, delta in layers.items()}
    rank = max(ranks.values())
    other_ranks = {module: layer_rank for module, layer_rank in ranks.items() if layer_rank != rank}
    shared = {"r": rank, "rank_pattern": other_ranks, "alpha_pattern": other_ranks, "target_modules": sorted(layers)}
    if algorithms == {"lora"}:
        return {"peft_type": "LORA", "lora_alpha": rank, "use_dora": uses_dora == {True}, "bias": "none", **shared}
    uses_tucker = any(delta.tensor("hada_t1") is not None for delta in layers.values())
    return {"peft_type": "LOHA", "alpha": rank, "use_effective_conv2d": uses_tucker, **shared}
