"""How much a word that stands for vectors changes what a text tower says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from velatura.overlays.conditioned import mapped
from velatura.overlays.splice import Seam, Vectors
from velatura.overlays.strength import LiveStrength

NEUTRAL = "*"  # a word that says next to nothing; trainers begin with it


class WeighedWord(NamedTuple):
    """A word's vectors, the token of a word that says nothing, and how much the difference counts."""

    vectors: Vectors
    neutral: int
    strength: LiveStrength


class WeighedWords(Seam):
    """Weighs what sets words' vectors apart from neutral words in their places.

    The difference between what a tower says with the ones and with the others counts as many times as the strength is.
    Multiplied vectors would not do: a tower norms what it reads, so that long ones say the same at half their length.
    """

    def said(self, tower: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any], whole: Any) -> Any:
        """What a tower says, of what it says with all at full strength; whole is whatever its forward gave."""
        ids: Tensor = named["input_ids"] if "input_ids" in named else arguments[0]
        rest = arguments if "input_ids" in named else arguments[1:]
        found = whole
        for word in self.members:
            ours = None if word.strength.number == 1 else word.vectors.found_in(ids)
            if ours is None or not bool(ours.any()):
                continue
            without = tower.forward(*rest, **{**named, "input_ids": torch.where(ours, word.neutral, ids)})
            found = mapped(partial(_weighed, word.strength), found, [whole, without])
        return found


def _weighed(strength: LiveStrength, found: Tensor, others: Sequence[Tensor]) -> Tensor:
    whole, without = others
    more = strength.per_row(found).to(found.device) - 1
    more = more.flatten().view(-1, *(1,) * (found.ndim - 1)) if more.ndim else more
    return found + more.to(found.dtype) * (whole - without)
