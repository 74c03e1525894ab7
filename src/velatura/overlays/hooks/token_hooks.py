"""Vectors in place of tokens: what becomes of a text tower's table of words while embeddings lie over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.overlays.strength import LiveStrength

VectorSource = Callable[[], Tensor]


class TokenVectors(NamedTuple):
    """Vectors (count, width) as they are whenever they are asked for, and the negative tokens that stand for them."""

    tokens: tuple[int, ...]
    source: VectorSource

    def token_mask(self, ids: Tensor) -> Tensor:
        """Where in ids their tokens stand, of the ids' shape."""
        return (ids <= self.tokens[0]) & (ids >= self.tokens[-1])

    def insert_into(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        """What a table found (rows, tokens, width), with the vectors where their tokens stand."""
        indices = (self.tokens[0] - ids).clamp(0, len(self.tokens) - 1)
        chosen = F.embedding(indices, self.source().to(embeddings.device))
        return torch.where(self.token_mask(ids).unsqueeze(-1), chosen.to(embeddings.dtype), embeddings)


class HookSlot:
    """What hangs in a module for as long as it has members; undos are what takes it off."""

    def __init__(self) -> None:
        self.members: tuple[Any, ...] = ()
        self.undos: list[Callable[[], object]] = []

    def add_member(self, member: object) -> Callable[[], None]:
        """Put a member behind the others, and give back what takes it out again, and with the last one all."""
        self.members = (*self.members, member)

        def undo() -> None:
            self.members = tuple(other for other in self.members if other is not member)
            while self.undos and not self.members:
                self.undos.pop()()

        return undo


class EmbeddingHook(HookSlot):
    """Looks up tokens of which some stand for vectors; it takes the place of a table's forward."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self._look_up = table.forward  # the table's own, or what offloading or a user has put in its place

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors (rows, tokens, width) of ids (rows, tokens)."""
        embeddings: Tensor = self._look_up(ids.clamp(min=0))
        for vectors in self.members:
            embeddings = vectors.insert_into(ids, embeddings)
        return embeddings


def is_active(strength: LiveStrength) -> bool:
    """Whether an overlay of a strength acts in the text that is read: where it is off, a name means what it says."""
    return bool((strength.per_row(strength.tensor.new_empty(1, 1, 1)) != 0).any())


@torch.no_grad()
def measure_vectors(sources: Sequence[VectorSource], tables: Sequence[nn.Embedding]) -> tuple[int, float]:
    """How many vectors there are, and how long they are in the mean, where those of long words are of length 1."""
    vectors = [source() for source in sources]
    ratios = [
        vector_norms(tower_vectors).mean() / reference_norm(table)
        for tower_vectors, table in zip(vectors, tables, strict=True)
    ]
    return len(vectors[0]), float(torch.stack([ratio.cpu() for ratio in ratios]).mean())


def vector_norms(vectors: Tensor) -> Tensor:
    """The lengths of vectors (count, width): (count,)."""
    return vectors.float().square().sum(dim=1).sqrt()


@torch.no_grad()
def reference_norm(table: nn.Embedding) -> Tensor:
    """The length that words' vectors hardly ever exceed, 0-d: all but 5 of 100 in a tower's table are shorter.

    Not that of the middle one: of words that a small base was never taught, vectors are short.
    """
    return vector_norms(table.weight.detach()).quantile(0.95)
