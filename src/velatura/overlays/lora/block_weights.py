"""Block weights of LoRAs, with the names of A1111's block weight extension: BASE, IN00 to IN11, MID, OUT00 to OUT11."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from velatura.errors import BadStrength, UnknownName, choose_number, quantity
from velatura.overlays.target import Target

BASE_BLOCK, MID_BLOCK = "BASE", "MID"
_UNET_LAYER = re.compile(r"(?:unet\.)(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


def _block_names(inputs: Sequence[int], outputs: Sequence[int]) -> tuple[str, ...]:
    return BASE_BLOCK, *(f"IN{index:02}" for index in inputs), MID_BLOCK, *(f"OUT{index:02}" for index in outputs)


# Blocks by the number of weights in a list, in order; blocks that a layout leaves out have no attention
BLOCK_LAYOUTS: dict[int, tuple[str, ...]] = {
    12: _block_names((4, 5, 7, 8), range(6)),  # SDXL
    17: _block_names((1, 2, 4, 5, 7, 8), range(3, 12)),  # SD1 and SD2
    20: _block_names(range(9), range(9)),  # SDXL, with convolutions
    26: _block_names(range(12), range(12)),  # SD1 and SD2, with convolutions
}
LORA_BLOCKS = BLOCK_LAYOUTS[26]


def expand_block_weights(weights: Sequence[float]) -> dict[str, float]:
    """Map a list of 12, 17, 20 or 26 block weights to the names of the blocks; raises BadStrength for other counts."""
    if len(weights) not in BLOCK_LAYOUTS:
        known = ", ".join(map(str, BLOCK_LAYOUTS))
        raise BadStrength(
            f"{quantity(len(weights), 'block weight')} {choose_number(len(weights), 'fits', 'fit')} no model: give "
            f"{known} of them"
        )
    return dict(zip(BLOCK_LAYOUTS[len(weights)], weights, strict=True))


def check_block_weights(block_weights: Mapping[str, float]) -> None:
    """Refuse unknown names of blocks, and weights that are not finite."""
    for name, weight in block_weights.items():
        if name not in LORA_BLOCKS:
            raise UnknownName.with_suggestions("block of a LoRA", name[:40], LORA_BLOCKS)
        if not math.isfinite(weight):
            raise BadStrength(f"the block weight of {name} is {weight}: give a finite number")


def block_of(target: Target, name: str) -> str:
    """Return the block of a target's layer; BASE for text encoders and for layers outside the blocks of the UNet."""
    if name.startswith("unet.mid_block."):
        return MID_BLOCK
    if name == "unet.conv_in":
        return "IN00"
    match = _UNET_LAYER.match(name)
    if match is None:
        return BASE_BLOCK
    config: Any = getattr(target.unet, "config", {})
    configured = config.get("layers_per_block")
    layers_per_block = configured if isinstance(configured, int) else 2
    direction, stage, module_kind, index = match[1], int(match[2]), match[3], int(match[4])
    if module_kind in {"downsamplers", "upsamplers"}:
        index = layers_per_block  # they come after the layers of their stage
    number = (layers_per_block + 1) * stage + index
    return f"IN{number + 1:02}" if direction == "down" else f"OUT{number:02}"  # IN00 is conv_in
