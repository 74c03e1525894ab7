"""Strengths of a LoRA block by block, as A1111's users write them: IN00 to IN11, MID, OUT00 to OUT11, and BASE."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from velatura.errors import BadStrength, UnknownName
from velatura.overlays.target import Target

BASE, MID = "BASE", "MID"
_NAME = re.compile(r"(?:unet\.)(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


def _rows(inputs: Sequence[int], outputs: Sequence[int]) -> tuple[str, ...]:
    return BASE, *(f"IN{each:02}" for each in inputs), MID, *(f"OUT{each:02}" for each in outputs)


# what so many numbers stand for, in their order; blocks that they leave out have no attention, and stay as they are
LAYOUTS: dict[int, tuple[str, ...]] = {
    12: _rows((4, 5, 7, 8), range(6)),  # SDXL
    17: _rows((1, 2, 4, 5, 7, 8), range(3, 12)),  # SD1 and SD2
    20: _rows(range(9), range(9)),  # SDXL, with convolutions
    26: _rows(range(12), range(12)),  # SD1 and SD2, with convolutions
}
BLOCKS = LAYOUTS[26]


def block_strengths(numbers: Sequence[float]) -> dict[str, float]:
    """The blocks that 12, 17, 20 or 26 numbers are for, with those numbers; raises BadStrength."""
    if len(numbers) not in LAYOUTS:
        known = ", ".join(map(str, LAYOUTS))
        raise BadStrength(f"{len(numbers)} strengths of blocks are for no model: give {known} of them")
    return dict(zip(LAYOUTS[len(numbers)], numbers, strict=True))


def refuse_unknown(blocks: Mapping[str, float]) -> None:
    """Refuse names of blocks that no model has, and strengths that are no numbers."""
    for name, each in blocks.items():
        if name not in BLOCKS:
            raise UnknownName.among("block of a LoRA", name[:40], BLOCKS)
        if not math.isfinite(each):
            raise BadStrength(f"block {name} has a strength of {each}: give a number")


def block_of(target: Target, name: str) -> str:
    """The block that a layer of a target is in; BASE for the text towers and what is in no block of the UNet."""
    if name.startswith("unet.mid_block."):
        return MID
    if name == "unet.conv_in":
        return "IN00"
    found = _NAME.match(name)
    if found is None:
        return BASE
    config: Any = getattr(target.unet, "config", {})
    layers = int(config.get("layers_per_block", 2)) if isinstance(config.get("layers_per_block", 2), int) else 2
    side, stage, what, place = found[1], int(found[2]), found[3], int(found[4])
    if side == "down":
        return f"IN{(layers + 1) * (stage + 1) if what == 'downsamplers' else (layers + 1) * stage + place + 1:02}"
    return f"OUT{(layers + 1) * stage + (layers if what == 'upsamplers' else place):02}"
