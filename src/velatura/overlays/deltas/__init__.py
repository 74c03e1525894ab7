"""Ways to write down a change of a weight: one row here for each, in the order in which files are looked through."""

from velatura.overlays.deltas.delta import Delta
from velatura.overlays.deltas.low_rank import LowRank

DELTAS: dict[str, type[Delta]] = {LowRank.algorithm: LowRank}
