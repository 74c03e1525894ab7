"""Algorithms that change one layer's weight: LoRA, DoRA, LoHa, LoKr, GLoRA, IA3, OFT, BOFT, norm and full
differences.

DELTAS lists them in the order in which a file's tensors are matched. Open delta.py first (the base class), then
low_rank.py.
"""

from collections.abc import Mapping

from torch import Tensor

from velatura.errors import BadOverlay
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.deltas.full import IA3, FullDelta, NormDelta
from velatura.overlays.deltas.glora import GLoRA
from velatura.overlays.deltas.loha import LoHa
from velatura.overlays.deltas.lokr import LoKr
from velatura.overlays.deltas.low_rank import BiasedLowRankDelta, Dora, LowRankDelta
from velatura.overlays.deltas.oft import BOFT, OFT, OFTDiag
from velatura.overlays.deltas.peft_variants import BiasedIA3, InputOFT

DELTAS: dict[str, type[Delta]] = {
    delta_class.algorithm: delta_class
    for delta_class in (
        *(
            Dora,
            BiasedLowRankDelta,
            LowRankDelta,
            LoHa,
            BiasedIA3,
            IA3,
            LoKr,
            FullDelta,
            NormDelta,
            OFT,
            BOFT,
            OFTDiag,
            GLoRA,
        ),
        InputOFT,
    )
}


def build_delta(tensors: Mapping[str, Tensor]) -> Delta:
    """The delta that a file's tensors for one layer make, by their suffixes; raises BadOverlay."""
    if "lambda_layer" in tensors:
        raise BadOverlay("T-LoRA's changes hang on the base that it was trained on: extract a LoRA from them there")
    for delta_class in DELTAS.values():
        if delta_class.matches(tensors):
            return delta_class.from_tensors(tensors)
    suffixes = ", ".join(sorted(tensors))[:100]
    raise BadOverlay(f"{suffixes} are of no algorithm that is known here: {', '.join(DELTAS)} are")
