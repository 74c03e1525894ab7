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
from velatura.formats.fill import is_finite
from velatura.formats.ldm_keys import UNetLayout, renamed
from velatura.formats.lora_header import MODULE, header_of, said_of_base, said_of_ranks, with_hashes
from velatura.formats.lora_keys import BUNDLED
from velatura.formats.lora_names import UNET, flattened, ldm_layer
from velatura.formats.native import CARD
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import StrPath, write_safetensors

LDM_NAMED = frozenset({"SDXL"})  # whose UNet modules have LDM's names in kohya's files, not diffusers'
TOWERS = frozenset({"clip_l", "clip_g"})  # of an SDXL, by which embeddings in a LoRA are told apart
OWN = frozenset({"oft-input", "ia3-bias"})  # algorithms of peft that kohya's files have no form for

Pair = tuple[Tensor, Tensor]


def save(overlay: Overlay, path: Path) -> None:
    """Write a LoRA or a relative of it with what its file said of it, in its own precision, at once or not at all."""
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"kohya's files hold LoRAs and their relatives, not a {overlay.kind}: leave the dialect out")
    tensors = dict(_tensors(overlay))
    for key, each in tensors.items():
        if not is_finite(each):
            raise BadFile(f"{path} would hold {key} beyond {each.dtype}: write it in another precision")
    if strange := sorted({each.algorithm for each in overlay.layers.values()} & OWN):
        said = f"{path.name} holds {' and '.join(strange)}, which only velatura reads here: write it in dialect peft"
        warnings.warn(said, VelaturaWarning, 2)
    header = with_hashes(tensors, header_of(overlay, path.stem))
    write_safetensors(path, tensors, {**header, CARD: overlay.card.model_dump_json()})


def write(
    path: StrPath,
    pairs: Mapping[str, Pair],
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
        halves = {"lora_up.weight": up.half(), "lora_down.weight": down.half()}
        tensors |= {f"{key}.{suffix}": each for suffix, each in halves.items()}
        tensors[f"{key}.alpha"] = torch.tensor(float(down.shape[0]), dtype=torch.float16)
        if not all(bool(each.isfinite().all()) for each in halves.values()):
            raise BadFile(f"{path} would hold a {module} beyond half precision: use a lower strength")
    network = {"ss_network_module": MODULE, "ss_network_args": json.dumps({}), **said_of_ranks(ranks, ranks)}
    header = {key: each for key, each in {**network, **said_of_base(family, family.name, name)}.items() if each}
    write_safetensors(path, tensors, {**with_hashes(tensors, header), **(metadata or {})})


def module_keys(modules: Mapping[str, object], family: Family, layout: UNetLayout | None = None) -> dict[str, str]:
    """The name of each module of a UNet in kohya's files, by diffusers' name."""
    names = {module: module for module in modules}
    if family.name in LDM_NAMED:
        assert layout is not None
        names = renamed(modules, layout.modules())
    return {module: UNET + flattened(name) for module, name in names.items()}


def _tensors(lora: Lora) -> dict[str, Tensor]:
    """Its tensors by their keys in kohya's files, and those of the embeddings that go with it."""
    moved = lora.card.family in LDM_NAMED
    found: dict[str, Tensor] = {}
    for layer, delta in lora.layers.items():
        name = ldm_layer(layer) if moved else layer
        own = delta.state_dict()
        if delta.rank and "alpha" not in own:  # which sd-scripts always write
            own["alpha"] = torch.tensor(float(delta.rank), dtype=next(iter(own.values())).dtype)
        found |= {f"{name}.{suffix}": each for suffix, each in own.items()}
    for word, vectors in lora.bundled.items():
        for tower, each in vectors.items():
            rest = tower if tower in TOWERS else f"string_to_param.{tower}"
            found[f"{BUNDLED}{word}.{rest}"] = each
    return found
