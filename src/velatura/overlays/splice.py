"""Vectors in place of tokens: what becomes of a text tower's table of words while embeddings lie over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.overlays.strength import LiveStrength

Source = Callable[[], Tensor]


class Vectors(NamedTuple):
    """Vectors (count, width) as they are whenever they are asked for, and the negative tokens that stand for them."""

    tokens: tuple[int, ...]
    now: Source

    def found_in(self, ids: Tensor) -> Tensor:
        """Where in ids their tokens stand, of the ids' shape."""
        return (ids <= self.tokens[0]) & (ids >= self.tokens[-1])

    def laid(self, ids: Tensor, found: Tensor) -> Tensor:
        """What a table found (rows, tokens, width), with the vectors where their tokens stand."""
        places = (self.tokens[0] - ids).clamp(0, len(self.tokens) - 1)
        chosen = F.embedding(places, self.now().to(found.device))
        return torch.where(self.found_in(ids).unsqueeze(-1), chosen.to(found.dtype), found)


class Seam:
    """What hangs in a module for as long as it has members; undos are what takes it off."""

    def __init__(self) -> None:
        self.members: tuple[Any, ...] = ()
        self.undos: list[Callable[[], object]] = []

    def join(self, member: object) -> Callable[[], None]:
        """Put a member behind the others, and give back what takes it out again, and with the last one all."""
        self.members = (*self.members, member)

        def undo() -> None:
            self.members = tuple(each for each in self.members if each is not member)
            while self.undos and not self.members:
                self.undos.pop()()

        return undo


class Splice(Seam):
    """Looks up tokens of which some stand for vectors; it takes the place of a table's forward."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self._look_up = table.forward  # the table's own, or what offloading or a user has put in its place

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors (rows, tokens, width) of ids (rows, tokens)."""
        found: Tensor = self._look_up(ids.clamp(min=0))
        for each in self.members:
            found = each.laid(ids, found)
        return found


def acts(strength: LiveStrength) -> bool:
    """Whether an overlay of a strength acts in the text that is read: where it is off, a name means what it says."""
    return bool((strength.per_row(strength.tensor.new_empty(1, 1, 1)) != 0).any())


@torch.no_grad()
def lengths(sources: Sequence[Source], tables: Sequence[nn.Embedding]) -> tuple[int, float]:
    """How many vectors there are, and how long they are in the mean, where those of long words are of length 1."""
    found = [source() for source in sources]
    shares = [lengths_of(each).mean() / usual_length(table) for each, table in zip(found, tables, strict=True)]
    return len(found[0]), float(torch.stack([each.cpu() for each in shares]).mean())


def lengths_of(vectors: Tensor) -> Tensor:
    """The lengths of vectors (count, width): (count,)."""
    return vectors.float().square().sum(dim=1).sqrt()


@torch.no_grad()
def usual_length(table: nn.Embedding) -> Tensor:
    """The length that words' vectors hardly ever exceed, 0-d: all but 5 of 100 in a tower's table are shorter.

    Not that of the middle one: of words that a small base was never taught, vectors are short.
    """
    return lengths_of(table.weight.detach()).quantile(0.95)
