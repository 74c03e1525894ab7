"""Ways to write down a change of a weight: one row here for each, in the order in which files are looked through."""

from collections.abc import Mapping

from torch import Tensor

from velatura.errors import BadOverlay
from velatura.overlays.deltas.biased import BiasedLowRankDelta
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.deltas.generalised import GLoRA
from velatura.overlays.deltas.hadamard import LoHa
from velatura.overlays.deltas.kronecker import LoKr
from velatura.overlays.deltas.low_rank import Dora, LowRankDelta
from velatura.overlays.deltas.peft import BiasedIA3, InputOFT
from velatura.overlays.deltas.rotations import BOFT, OFT, OFTDiag
from velatura.overlays.deltas.whole import IA3, FullDelta, NormDelta

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
