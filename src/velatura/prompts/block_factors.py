"""Factors for the strength of a LoRA block by block, as users of the webui write them in a tag: lbw=1,0,0.5,..."""

import math

from velatura.prompts.passage import Passage

COUNTS = (12, 17, 20, 26)  # SDXL, SD1 and SD2, and each with convolutions
# names that users have for seventeen of them: BASE, six blocks in, the middle, nine out
PRESETS = {
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


def block_factors(written: Passage) -> tuple[float, ...]:
    """The factors that a tag says, as many as it has blocks for; raises BadPrompt that points at the mistake."""
    if written.text in PRESETS:
        return tuple(map(float, PRESETS[written.text]))
    found = tuple(_factor(each.strip()) for each in written.split(","))
    if len(found) not in COUNTS:
        counts = ", ".join(map(str, COUNTS))
        raise written.misread(f"lbw= has {len(found)} numbers; give {counts} of them, or one of {', '.join(PRESETS)}")
    return found


def _factor(written: Passage) -> float:
    try:
        found = float(written.text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise written.misread(
            f"{written.text!r} is no factor of a block; write numbers, or one of {', '.join(PRESETS)}"
        )
    return found
