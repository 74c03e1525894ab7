"""Writing of LoRAs as kohya's sd-scripts do, which every program can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.base.families import Family
from velatura.errors import BadFile, BadOverlay, warn
from velatura.formats.checkpoints.ldm_keys import UNetLayout, rename_keys
from velatura.formats.load_state import is_finite
from velatura.formats.loras.header import LORA_MODULE, add_hashes, base_fields, build_header, rank_fields
from velatura.formats.loras.keys import BUNDLE_PREFIX
from velatura.formats.loras.names import KOHYA_UNET, flatten_path, ldm_layer
from velatura.formats.native import CARD_KEY
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import StrPath, write_safetensors

LDM_NAMED_FAMILIES = frozenset({"SDXL"})  # families whose UNet layers kohya's files name as LDM does
SDXL_TEXT_ENCODERS = frozenset({"clip_l", "clip_g"})  # names of vectors in embeddings for an SDXL
PEFT_ONLY_ALGORITHMS = frozenset({"oft-input", "ia3-bias"})  # kohya's files have no form of their own for these

UpDownPair = tuple[Tensor, Tensor]


def write(overlay: Overlay, path: Path) -> None:
    """Write a LoRA or one of its relatives in its own precision, with its embeddings and the metadata of its file.

    The file is written by way of a temporary one.

    Args:
        overlay: A LoRA of any algorithms.
        path: The file, which is replaced if it exists.

    Raises:
        BadOverlay: The overlay is not a LoRA.
        BadFile: A tensor has NaN or infinite values, or the file cannot be written.
    """
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"a LoRA file of kohya cannot store a {overlay.kind}: leave the dialect out")
    tensors = _layer_tensors(overlay) | _embedding_tensors(overlay)
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise BadFile(
                f"{path} would hold infinite values in {key}, beyond {tensor.dtype}: write it in another precision"
            )
    unsupported = sorted({delta.algorithm for delta in overlay.layers.values()} & PEFT_ONLY_ALGORITHMS)
    if unsupported:
        warn(
            f"{path.name} holds {' and '.join(unsupported)}, which only velatura reads from such a file: write it in "
            "dialect peft"
        )
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
    """Write a LoRA of a UNet's Linear layers in float16, by way of a temporary file.

    Args:
        path: The file, which is replaced if it exists.
        pairs: By diffusers' name of a module: up (out features, rank) and down (rank, in features). up @ down is
            added to the module's weight; the alpha that is written equals the rank, so that nothing is scaled.
        family: Family of the UNet.
        layout: Layout of the UNet; only an SDXL's names need it.
        name: Name of the LoRA for people.
        metadata: Metadata beside kohya's and ModelSpec's fields.

    Raises:
        BadFile: No pair is given, a value is too large for float16, or the file cannot be written.
    """
    if not pairs:
        raise BadFile(f"{path} would be a LoRA of no layers: give one pair of matrices or more")
    keys = module_keys(pairs, family, layout)
    tensors: dict[str, Tensor] = {}
    for module, (up, down) in pairs.items():
        half_tensors = {f"{keys[module]}.lora_up.weight": up.half(), f"{keys[module]}.lora_down.weight": down.half()}
        if not all(bool(tensor.isfinite().all()) for tensor in half_tensors.values()):
            raise BadFile(f"{path} would hold infinite values in {module}, beyond half precision: use a lower strength")
        tensors |= half_tensors
        tensors[f"{keys[module]}.alpha"] = torch.tensor(float(down.shape[0]), dtype=torch.float16)
    ranks = {down.shape[0] for _, down in pairs.values()}
    header = {
        "ss_network_module": LORA_MODULE,
        "ss_network_args": json.dumps({}),
        **rank_fields(ranks, ranks),
        **base_fields(family, family.name, name),
    }
    header = {key: value for key, value in header.items() if value}
    write_safetensors(path, tensors, {**add_hashes(tensors, header), **(metadata or {})})


def module_keys(modules: Mapping[str, object], family: Family, layout: UNetLayout | None = None) -> dict[str, str]:
    """Return kohya's names of a UNet's modules.

    Args:
        modules: Anything by diffusers' names of the modules.
        family: Family of the UNet.
        layout: Layout of the UNet, needed for an SDXL.

    Returns:
        Kohya's names by diffusers'.
    """
    names = {module: module for module in modules}
    if family.name in LDM_NAMED_FAMILIES:
        assert layout is not None
        names = rename_keys(modules, layout.module_names())
    return {module: KOHYA_UNET + flatten_path(name) for module, name in names.items()}


def _layer_tensors(lora: Lora) -> dict[str, Tensor]:
    """Return the tensors of all layers by their keys in kohya's files."""
    has_ldm_names = lora.card.family in LDM_NAMED_FAMILIES
    tensors: dict[str, Tensor] = {}
    for layer, delta in lora.layers.items():
        name = ldm_layer(layer) if has_ldm_names else layer
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in _delta_tensors(delta).items()}
    return tensors


def _delta_tensors(delta: Delta) -> dict[str, Tensor]:
    """Return the tensors of a layer's change, with an alpha if it has a rank, as sd-scripts always write one."""
    tensors = dict(delta.state_dict())
    if delta.rank and "alpha" not in tensors:
        tensors["alpha"] = torch.tensor(float(delta.rank), dtype=next(iter(tensors.values())).dtype)
    return tensors


def _embedding_tensors(lora: Lora) -> dict[str, Tensor]:
    """Return the vectors of the embeddings in a LoRA by their keys in kohya's files."""
    tensors: dict[str, Tensor] = {}
    for embedding, vectors in lora.bundled_embeddings.items():
        for encoder, tensor in vectors.items():
            tensor_name = encoder if encoder in SDXL_TEXT_ENCODERS else f"string_to_param.{encoder}"
            tensors[f"{BUNDLE_PREFIX}{embedding}.{tensor_name}"] = tensor
    return tensors
