"""Algorithms that change one layer's weight: LoRA, DoRA, LoHa, LoKr, GLoRA, IA3, OFT, BOFT, T-LoRA, norm and full ones.

DELTAS lists those that can be trained, in the order in which a file's tensors are matched. Open delta.py first (the
base class), then low_rank.py.
"""

from collections.abc import Mapping

from torch import Tensor

from velatura.errors import BadOverlay
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.deltas.full import FullDelta, NormDelta
from velatura.overlays.deltas.glora import GLoRA
from velatura.overlays.deltas.ia3 import IA3, BiasedIA3
from velatura.overlays.deltas.input_oft import InputOFT
from velatura.overlays.deltas.loha import LoHa
from velatura.overlays.deltas.lokr import LoKr
from velatura.overlays.deltas.low_rank import BiasedLowRankDelta, Dora, LowRankDelta
from velatura.overlays.deltas.oft import BOFT, OFT, OFTDiag
from velatura.overlays.deltas.onetrainer_oft import OneTrainerOFT
from velatura.overlays.deltas.tlora import TLora

DELTAS: dict[str, type[Delta]] = {
    delta_class.algorithm: delta_class
    for delta_class in (
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
        InputOFT,
        OneTrainerOFT,
    )
}
# Algorithms that are read and not trained, and whose changes depend on more than the weight
READ_ONLY_DELTAS: tuple[type[Delta], ...] = (TLora,)


def build_delta(tensors: Mapping[str, Tensor]) -> Delta:
    """Build the delta of one layer from a file's tensors, by their suffixes.

    Raises:
        BadOverlay: If no algorithm has such tensors, or their shapes do not fit each other.
    """
    for delta_class in (*DELTAS.values(), *READ_ONLY_DELTAS):
        if delta_class.matches(tensors):
            return delta_class.from_tensors(tensors)
    suffixes = ", ".join(sorted(tensors))[:100]
    raise BadOverlay(f"the tensors {suffixes} belong to no known algorithm: {', '.join(DELTAS)} are known")
