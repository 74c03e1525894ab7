"""LoRAs as kohya's trainer writes them, which every program loads."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.base.families import Family
from velatura.errors import BadFile, BadOverlay, VelaturaWarning
from velatura.formats.checkpoints.ldm_keys import UNetLayout, rename_keys
from velatura.formats.load_state import is_finite
from velatura.formats.loras.header import LORA_MODULE, add_hashes, base_fields, build_header, rank_fields
from velatura.formats.loras.keys import BUNDLE_PREFIX
from velatura.formats.loras.names import KOHYA_UNET, flatten_path, ldm_layer
from velatura.formats.native import CARD_KEY
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import StrPath, write_safetensors

LDM_NAMED_FAMILIES = frozenset({"SDXL"})  # whose UNet modules have LDM's names in kohya's files, not diffusers'
SDXL_TEXT_ENCODERS = frozenset({"clip_l", "clip_g"})  # of an SDXL, by which embeddings in a LoRA are told apart
PEFT_ONLY_ALGORITHMS = frozenset({"oft-input", "ia3-bias"})  # algorithms of peft that kohya's files have no form for

UpDownPair = tuple[Tensor, Tensor]


def write(overlay: Overlay, path: Path) -> None:
    """Write a LoRA or a relative of it with what its file said of it, in its own precision, at once or not at all."""
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"kohya's files hold LoRAs and their relatives, not a {overlay.kind}: leave the dialect out")
    tensors = dict(_to_kohya_tensors(overlay))
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise BadFile(f"{path} would hold {key} beyond {tensor.dtype}: write it in another precision")
    if unsupported := sorted({delta.algorithm for delta in overlay.layers.values()} & PEFT_ONLY_ALGORITHMS):
        message = (
            f"{path.name} holds {' and '.join(unsupported)}, which only velatura reads here: write it in dialect peft"
        )
        warnings.warn(message, VelaturaWarning, 2)
    header = add_hashes(tensors, build_header(overlay, path.stem))
    write_safetensors(path, tensors, {**header, CARD_KEY: overlay.card.model_dump_json()})


def write_low_rank(
    path: StrPath,
    pairs: Mapping[str, UpDownPair],
    family: Family,
    *,
    layout: UNetLayout | None = None,
    name: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA of a UNet's Linear layers in float16, at once or not at all.

    pairs: for each module by diffusers' name, up (out features, rank) and down (rank, in features), so that up @ down
    is added to its weight; alpha is the rank, so that nothing is scaled. layout: the UNet's, which SDXL's names need.
    metadata goes into the header beside kohya's and ModelSpec's fields.
    """
    if not pairs:
        raise BadFile(f"{path} would be a LoRA of no layers at all: give at least one")
    keys = module_keys(pairs, family, layout)
    ranks = {down.shape[0] for _, down in pairs.values()}
    tensors: dict[str, Tensor] = {}
    for module, (up, down) in pairs.items():
        key = keys[module]
        half_tensors = {"lora_up.weight": up.half(), "lora_down.weight": down.half()}
        tensors |= {f"{key}.{suffix}": tensor for suffix, tensor in half_tensors.items()}
        tensors[f"{key}.alpha"] = torch.tensor(float(down.shape[0]), dtype=torch.float16)
        if not all(bool(tensor.isfinite().all()) for tensor in half_tensors.values()):
            raise BadFile(f"{path} would hold a {module} beyond half precision: use a lower strength")
    network_fields = {"ss_network_module": LORA_MODULE, "ss_network_args": json.dumps({}), **rank_fields(ranks, ranks)}
    header = {
        key: value for key, value in {**network_fields, **base_fields(family, family.name, name)}.items() if value
    }
    write_safetensors(path, tensors, {**add_hashes(tensors, header), **(metadata or {})})


def module_keys(modules: Mapping[str, object], family: Family, layout: UNetLayout | None = None) -> dict[str, str]:
    """The name of each module of a UNet in kohya's files, by diffusers' name."""
    names = {module: module for module in modules}
    if family.name in LDM_NAMED_FAMILIES:
        assert layout is not None
        names = rename_keys(modules, layout.module_names())
    return {module: KOHYA_UNET + flatten_path(name) for module, name in names.items()}


def _to_kohya_tensors(lora: Lora) -> dict[str, Tensor]:
    """Its tensors by their keys in kohya's files, and those of the embeddings that go with it."""
    uses_ldm_names = lora.card.family in LDM_NAMED_FAMILIES
    tensors: dict[str, Tensor] = {}
    for layer, delta in lora.layers.items():
        name = ldm_layer(layer) if uses_ldm_names else layer
        delta_tensors = delta.state_dict()
        if delta.rank and "alpha" not in delta_tensors:  # which sd-scripts always write
            delta_tensors["alpha"] = torch.tensor(float(delta.rank), dtype=next(iter(delta_tensors.values())).dtype)
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in delta_tensors.items()}
    for embedding, vectors in lora.bundled_embeddings.items():
        for encoder, tensor in vectors.items():
            tensor_name = encoder if encoder in SDXL_TEXT_ENCODERS else f"string_to_param.{encoder}"
            tensors[f"{BUNDLE_PREFIX}{embedding}.{tensor_name}"] = tensor
    return tensors
