"""Hook on a text encoder's token table: reads vectors of embeddings for token ids below 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.overlays.strength import LiveStrength

VectorSource = Callable[[], Tensor]


class TokenVectors(NamedTuple):
    """Vectors of an embedding and the token ids that stand for them.

    Attributes:
        tokens: Consecutive ids below 0, descending.
        source: Returns the current vectors (count, width).
    """

    tokens: tuple[int, ...]
    source: VectorSource

    def token_mask(self, ids: Tensor) -> Tensor:
        """Return True where `ids` holds one of these tokens, in the shape of `ids`."""
        return (ids <= self.tokens[0]) & (ids >= self.tokens[-1])

    def insert_into(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        """Replace rows of a table's result (rows, tokens, width) by the vectors, where ids (rows, tokens) hold them."""
        indices = (self.tokens[0] - ids).clamp(0, len(self.tokens) - 1)
        chosen = F.embedding(indices, self.source().to(embeddings.device))
        return torch.where(self.token_mask(ids).unsqueeze(-1), chosen.to(embeddings.dtype), embeddings)


class HookSlot:
    """Hook that stays on a module while it has members.

    Attributes:
        members: What it applies, in order.
        undos: Remove the hook; they run with the last member.
    """

    def __init__(self) -> None:
        self.members: tuple[Any, ...] = ()
        self.undos: list[Callable[[], object]] = []

    def add_member(self, member: object) -> Callable[[], None]:
        """Add a member after the others, and return the undo; the last undo removes the hook too."""
        self.members = (*self.members, member)

        def undo() -> None:
            self.members = tuple(other for other in self.members if other is not member)
            while self.undos and not self.members:
                self.undos.pop()()

        return undo


class EmbeddingHook(HookSlot):
    """Replacement for the forward of a token table, which reads vectors of embeddings too."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self._look_up = table.forward  # the table's own, or a replacement by offloading or by the user

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids (rows, tokens); returns (rows, tokens, width)."""
        embeddings: Tensor = self._look_up(ids.clamp(min=0))
        for vectors in self.members:
            embeddings = vectors.insert_into(ids, embeddings)
        return embeddings


def is_active(strength: LiveStrength) -> bool:
    """Return True if the strength is not 0 for the current text; at 0 the name of an embedding is ordinary text."""
    return bool((strength.per_row(strength.tensor.new_empty(1, 1, 1)) != 0).any())


@torch.no_grad()
def measure_vectors(sources: Sequence[VectorSource], tables: Sequence[nn.Embedding]) -> tuple[int, float]:
    """Return the number of vectors, and their mean length relative to the long token vectors of the base."""
    vectors = [source() for source in sources]
    ratios = [
        vector_norms(tower_vectors).mean() / reference_norm(table)
        for tower_vectors, table in zip(vectors, tables, strict=True)
    ]
    return len(vectors[0]), float(torch.stack([ratio.cpu() for ratio in ratios]).mean())


def vector_norms(vectors: Tensor) -> Tensor:
    """Return the lengths (count,) of vectors (count, width)."""
    return vectors.float().square().sum(dim=1).sqrt()


@torch.no_grad()
def reference_norm(table: nn.Embedding) -> Tensor:
    """Return the 95th percentile of the lengths of a table's token vectors, 0-d.

    It is not the median, because tokens that a small base has never seen in training have short vectors.
    """
    return vector_norms(table.weight.detach()).quantile(0.95)
