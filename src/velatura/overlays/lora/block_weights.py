"""Strengths of a LoRA block by block, as A1111's users write them: IN00 to IN11, MID, OUT00 to OUT11, and BASE."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from velatura.errors import BadStrength, UnknownName
from velatura.overlays.target import Target

BASE_BLOCK, MID_BLOCK = "BASE", "MID"
_UNET_LAYER = re.compile(r"(?:unet\.)(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


def _block_names(inputs: Sequence[int], outputs: Sequence[int]) -> tuple[str, ...]:
    return BASE_BLOCK, *(f"IN{index:02}" for index in inputs), MID_BLOCK, *(f"OUT{index:02}" for index in outputs)


# what so many numbers stand for, in their order; blocks that they leave out have no attention, and stay as they are
BLOCK_LAYOUTS: dict[int, tuple[str, ...]] = {
    12: _block_names((4, 5, 7, 8), range(6)),  # SDXL
    17: _block_names((1, 2, 4, 5, 7, 8), range(3, 12)),  # SD1 and SD2
    20: _block_names(range(9), range(9)),  # SDXL, with convolutions
    26: _block_names(range(12), range(12)),  # SD1 and SD2, with convolutions
}
LORA_BLOCKS = BLOCK_LAYOUTS[26]


def expand_block_weights(weights: Sequence[float]) -> dict[str, float]:
    """The blocks that 12, 17, 20 or 26 numbers are for, with those numbers; raises BadStrength."""
    if len(weights) not in BLOCK_LAYOUTS:
        known = ", ".join(map(str, BLOCK_LAYOUTS))
        raise BadStrength(f"{len(weights)} strengths of blocks are for no model: give {known} of them")
    return dict(zip(BLOCK_LAYOUTS[len(weights)], weights, strict=True))


def check_block_weights(block_weights: Mapping[str, float]) -> None:
    """Refuse names of blocks that no model has, and strengths that are no numbers."""
    for name, weight in block_weights.items():
        if name not in LORA_BLOCKS:
            raise UnknownName.with_suggestions("block of a LoRA", name[:40], LORA_BLOCKS)
        if not math.isfinite(weight):
            raise BadStrength(f"block {name} has a strength of {weight}: give a number")


def block_of(target: Target, name: str) -> str:
    """The block that a layer of a target is in; BASE for the text towers and what is in no block of the UNet."""
    if name.startswith("unet.mid_block."):
        return MID_BLOCK
    if name == "unet.conv_in":
        return "IN00"
    match = _UNET_LAYER.match(name)
    if match is None:
        return BASE_BLOCK
    config: Any = getattr(target.unet, "config", {})
    layers_per_block = (
        int(config.get("layers_per_block", 2)) if isinstance(config.get("layers_per_block", 2), int) else 2
    )
    direction, stage, module_kind, index = match[1], int(match[2]), match[3], int(match[4])
    if direction == "down":
        return f"IN{(layers_per_block + 1) * (stage + 1) if module_kind == 'downsamplers' else (layers_per_block + 1) * stage + index + 1:02}"
    return f"OUT{(layers_per_block + 1) * stage + (layers_per_block if module_kind == 'upsamplers' else index):02}"
