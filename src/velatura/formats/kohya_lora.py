"""LoRAs as kohya's trainer writes them, which every program loads."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from velatura.base.families import Family
from velatura.errors import BadFile
from velatura.formats.ldm_keys import UNetLayout, renamed
from velatura.formats.model_spec import model_spec
from velatura.tensors import StrPath, write_safetensors

UNET = "lora_unet_"
MODULE = "networks.lora"
# what A1111 and others tell the family by: sd-scripts' names of base models
BASE_MODELS = {"SD1": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0"}
LDM_NAMED = frozenset({"SDXL"})  # whose UNet modules have LDM's names in kohya's files, not diffusers'

Pair = tuple[Tensor, Tensor]


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
    ranks = sorted({down.shape[0] for _, down in pairs.values()})
    tensors: dict[str, Tensor] = {}
    for module, (up, down) in pairs.items():
        key = keys[module]
        halves = {"lora_up.weight": up.half(), "lora_down.weight": down.half()}
        tensors |= {f"{key}.{suffix}": each for suffix, each in halves.items()}
        tensors[f"{key}.alpha"] = torch.tensor(float(down.shape[0]), dtype=torch.float16)
        if not all(bool(each.isfinite().all()) for each in halves.values()):
            raise BadFile(f"{path} would hold a {module} beyond half precision: use a lower strength")
    write_safetensors(path, tensors, {**_header(family, name, ranks), **(metadata or {})})


def module_keys(modules: Mapping[str, object], family: Family, layout: UNetLayout | None = None) -> dict[str, str]:
    """The name of each module of a UNet in kohya's files, by diffusers' name."""
    names = {module: module for module in modules}
    if family.name in LDM_NAMED:
        assert layout is not None
        names = renamed(modules, layout.modules())
    return {module: UNET + name.replace(".", "_") for module, name in names.items()}


def _header(family: Family, name: str, ranks: list[int]) -> dict[str, str]:
    """The fields by which programs tell what a LoRA is; those of sd-scripts are text, also where they are numbers."""
    rank = str(ranks[0]) if len(ranks) == 1 else "Dynamic"  # sd-scripts' own word
    velocity = "_v" if family.prediction == "v_prediction" else ""
    fields = {
        "ss_network_module": MODULE,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": json.dumps({}),
        "ss_base_model_version": BASE_MODELS.get(family.name, f"velatura_{family.name}") + velocity,
        "ss_v2": str(family.name == "SD2"),
        "ss_output_name": name,
    }
    return {key: each for key, each in fields.items() if each} | model_spec(family, name, kind="lora")
