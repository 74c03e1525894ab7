"""Vectors in place of tokens: what becomes of a text tower's table of words while embeddings lie over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.base.words import Place
from velatura.errors import BadStrength
from velatura.overlays.strength import LiveStrength

Source = Callable[[], Tensor]


class Vectors(NamedTuple):
    """Vectors (count, width) as they are whenever they are asked for, and the negative tokens that stand for them."""

    tokens: tuple[int, ...]
    now: Source
    strength: LiveStrength

    def laid(self, ids: Tensor, found: Tensor) -> Tensor:
        """What a table found (rows, tokens, width), with the vectors where their tokens stand."""
        places = self.tokens[0] - ids
        ours = (places >= 0) & (places < len(self.tokens))
        vectors = self.now().to(found.device)
        chosen = F.embedding(places.clamp(0, len(self.tokens) - 1), vectors) * self._strength(found)
        return torch.where(ours.unsqueeze(-1), chosen.to(found.dtype), found)

    def _strength(self, found: Tensor) -> Tensor:
        """0-d, or (rows, 1, 1)."""
        strength = self.strength.tensor.to(found.device)
        if strength.ndim == 0:
            return strength
        if len(found) % len(strength):
            raise BadStrength(
                f"{len(strength)} strengths do not fit {len(found)} texts: give one, or one for each of them"
            )
        return strength.repeat(len(found) // len(strength)).view(-1, 1, 1)


class Splice:
    """Looks up tokens of which some stand for vectors; it takes the place of a table's forward."""

    def __init__(self, table: nn.Module) -> None:
        self._look_up = table.forward  # the table's own, or what offloading or a user has put in its place
        self.vectors: tuple[Vectors, ...] = ()
        self.undos: list[Callable[[], object]] = []

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors (rows, tokens, width) of ids (rows, tokens)."""
        found: Tensor = self._look_up(ids.clamp(min=0))
        for each in self.vectors:
            found = each.laid(ids, found)
        return found


def acts(strength: LiveStrength, place: Place) -> bool:
    """Whether an overlay of a strength acts in a text: where it is off, a name means what it says."""
    if place.negative is not None and strength.tensor.ndim == 0:
        return float(strength.tensor) != 0 and strength.side in {"both", "negative" if place.negative else "prompt"}
    rows = torch.empty(place.rows, 1, 1, device=strength.tensor.device)
    return bool(strength.per_row(rows).expand(place.rows, 1, 1)[place.row] != 0)
