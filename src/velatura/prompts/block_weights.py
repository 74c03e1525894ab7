"""Factors for the strength of a LoRA block by block, as users of the webui write them in a tag: lbw=1,0,0.5,..."""

import math

from velatura.prompts.passage import Passage

BLOCK_COUNTS = (12, 17, 20, 26)  # SDXL, SD1 and SD2, and each with convolutions
# names that users have for seventeen of them: BASE, six blocks in, the middle, nine out
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
    """The factors that a tag says, as many as it has blocks for; raises BadPrompt that points at the mistake."""
    if argument.text in BLOCK_WEIGHT_PRESETS:
        return tuple(map(float, BLOCK_WEIGHT_PRESETS[argument.text]))
    weights = tuple(_parse_weight(entry.strip()) for entry in argument.split(","))
    if len(weights) not in BLOCK_COUNTS:
        counts = ", ".join(map(str, BLOCK_COUNTS))
        raise argument.error(
            f"lbw= has {len(weights)} numbers; give {counts} of them, or one of {', '.join(BLOCK_WEIGHT_PRESETS)}"
        )
    return weights


def _parse_weight(argument: Passage) -> float:
    try:
        weight = float(argument.text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise argument.error(
            f"{argument.text!r} is no factor of a block; write numbers, or one of {', '.join(BLOCK_WEIGHT_PRESETS)}"
        )
    return weight
