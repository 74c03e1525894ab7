"""Ways to write down a change of a weight: one row here for each, in the order in which files are looked through."""

from collections.abc import Mapping

from torch import Tensor

from velatura.errors import BadOverlay
from velatura.overlays.deltas.biased import BiasedLowRank
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.deltas.generalised import GLoRA
from velatura.overlays.deltas.hadamard import LoHa
from velatura.overlays.deltas.kronecker import LoKr
from velatura.overlays.deltas.low_rank import Dora, LowRank
from velatura.overlays.deltas.peft import BiasedIA3, InputRotation
from velatura.overlays.deltas.rotations import Butterfly, Diagonal, Rotation
from velatura.overlays.deltas.whole import IA3, Full, Norm

DELTAS: dict[str, type[Delta]] = {
    each.algorithm: each
    for each in (
        *(Dora, BiasedLowRank, LowRank, LoHa, BiasedIA3, IA3, LoKr, Full, Norm, Rotation, Butterfly, Diagonal, GLoRA),
        InputRotation,
    )
}


def delta_of(tensors: Mapping[str, Tensor]) -> Delta:
    """The delta that a file's tensors for one layer make, by their suffixes; raises BadOverlay."""
    if "lambda_layer" in tensors:
        raise BadOverlay("T-LoRA's changes hang on the base that it was trained on: extract a LoRA from them there")
    for kind in DELTAS.values():
        if kind.knows(tensors):
            return kind.from_tensors(tensors)
    found = ", ".join(sorted(tensors))[:100]
    raise BadOverlay(f"{found} are of no algorithm that is known here: {', '.join(DELTAS)} are")
