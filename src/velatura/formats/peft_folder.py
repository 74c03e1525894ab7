"""Adapters as peft's save_pretrained writes them: a folder of tensors and a configuration, or one for each part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import BadOverlay
from velatura.files import filling
from velatura.formats.lora_keys import PEFT
from velatura.formats.lora_names import dotted
from velatura.formats.lora_products import LOW_RANK, low_rank, warn_of_embeddings
from velatura.formats.peft_config import CONFIG
from velatura.formats.peft_lora import MAGNITUDES, WEIGHTS
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_safetensors

Layers = Mapping[str, Delta]  # by diffusers' paths
FIRST = WEIGHTS[0]
LEVEL = "text_model."


def save(overlay: Overlay, path: Path) -> None:
    """Write a new folder for a LoRA, a DoRA or a LoHa: with its one adapter in it, or with a folder for each part."""
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"peft's folders hold no {overlay.kind}: leave the dialect out")
    warn_of_embeddings(overlay, "peft")
    parts: dict[str, dict[str, Delta]] = {}
    for layer, delta in overlay.layers.items():
        part, module = dotted(layer)
        # transformers has no such level in CLIPTextModel since 5, which is the first tower of a pipeline
        module = module.removeprefix(LEVEL) if part == "text_encoder" else module
        parts.setdefault(part, {})[module] = delta
    written = {part: (_tensors(layers), _config(layers)) for part, layers in parts.items()}
    with filling(path) as folder:
        for part, (tensors, config) in written.items():
            own = folder if len(parts) == 1 else folder / part
            write_safetensors(own / FIRST, {PEFT + key: each for key, each in tensors.items()}, {"format": "pt"})
            (own / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _tensors(layers: Layers) -> dict[str, Tensor]:
    """All tensors of a part, scaled so that alpha is the rank."""
    found: dict[str, Tensor] = {}
    for module, delta in layers.items():
        made = _of_loha(delta) if delta.algorithm == "loha" else _of_lora(module, delta)
        found |= {f"{module}.{suffix}": each for suffix, each in made.items()}
    return found


def _of_lora(module: str, delta: Delta) -> dict[str, Tensor]:
    if delta.algorithm not in LOW_RANK:
        raise BadOverlay(f"peft has no {delta.algorithm} as this is: write it in dialect kohya, or bake it")
    found = low_rank(module, delta, "peft")
    both = {"lora_A.weight": found.down, "lora_B.weight": found.up}
    if found.magnitudes is None:
        return both
    return {**both, MAGNITUDES: found.magnitudes}


@torch.no_grad()
def _of_loha(delta: Delta) -> dict[str, Tensor]:
    state = {suffix: each for suffix, each in delta.state_dict().items() if suffix != "alpha"}
    if "dora_scale" in state:
        raise BadOverlay("peft has no LoHa with DoRA: write it in dialect kohya, or bake it")
    scaled = state["hada_w1_a"].float() * delta.scale(delta.rank or 1)
    return {**state, "hada_w1_a": scaled.to(state["hada_w1_a"].dtype)}


def _config(layers: Layers) -> dict[str, object]:
    """The configuration of a part's adapter, of one algorithm, with the rank of each layer."""
    algorithms = {"lora" if each.algorithm in LOW_RANK else each.algorithm for each in layers.values()}
    decomposed = {each.tensor("dora_scale") is not None for each in layers.values()}
    if len(algorithms) > 1 or len(decomposed) > 1:
        raise BadOverlay("an adapter of peft is of one algorithm, this is of several: write it in dialect kohya")
    ranks = {module: each.rank or 1 for module, each in layers.items()}
    rank = max(ranks.values())
    other = {module: each for module, each in ranks.items() if each != rank}
    shared = {"r": rank, "rank_pattern": other, "alpha_pattern": other, "target_modules": sorted(layers)}
    if algorithms == {"lora"}:
        return {"peft_type": "LORA", "lora_alpha": rank, "use_dora": decomposed == {True}, "bias": "none", **shared}
    cores = any(each.tensor("hada_t1") is not None for each in layers.values())
    return {"peft_type": "LOHA", "alpha": rank, "use_effective_conv2d": cores, **shared}
