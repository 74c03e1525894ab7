"""Block weights of a LoRA in a tag: lbw=1,0,0.5,... as in A1111's extension "LoRA Block Weight"."""

import math

from velatura.errors import quantity
from velatura.prompts.passage import Passage

BLOCK_COUNTS = (12, 17, 20, 26)  # LoRA of SDXL, of SD1 and SD2; with convolutions of SDXL, of SD1 and SD2
# The extension's presets of 17 weights: BASE, six input blocks, the middle block, nine output blocks
BLOCK_WEIGHT_PRESETS = {
    "NONE": (0,) * 17,
    "ALL": (1,) * 17,
    "INS": (1,) * 3 + (0,) * 14,
    "IND": (1, 0, 0, 0) + (1,) * 3 + (0,) * 10,
    "INALL": (1,) * 7 + (0,) * 10,
    "MIDD": (1, 0, 0, 0) + (1,) * 8 + (0,) * 5,
    "OUTD": (1,) + (0,) * 7 + (1,) * 4 + (0,) * 5,
    "OUTS": (1,) + (0,) * 11 + (1,) * 5,
    "OUTALL": (1,) + (0,) * 7 + (1,) * 9,
}


def parse_block_weights(argument: Passage) -> tuple[float, ...]:
    """Parse the block weights of a tag: numbers between commas, or the name of a preset.

    Returns:
        12, 17, 20 or 26 factors.

    Raises:
        BadPrompt: if the count or a number is wrong; the error points at the position.
    """
    if argument.text in BLOCK_WEIGHT_PRESETS:
        return tuple(map(float, BLOCK_WEIGHT_PRESETS[argument.text]))
    weights = tuple(_parse_weight(entry.strip()) for entry in argument.split(","))
    if len(weights) not in BLOCK_COUNTS:
        counts = " or ".join(map(str, BLOCK_COUNTS))
        raise argument.error(
            f"lbw= has {quantity(len(weights), 'number')}; write {counts} numbers, or one of "
            f"{', '.join(BLOCK_WEIGHT_PRESETS)}"
        )
    return weights


def _parse_weight(argument: Passage) -> float:
    try:
        weight = float(argument.text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise argument.error(
            f"{argument.text!r} is not a block weight; write numbers, or one of {', '.join(BLOCK_WEIGHT_PRESETS)}"
        )
    return weight
