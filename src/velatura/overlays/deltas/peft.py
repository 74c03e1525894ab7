"""Two algorithms as peft has them, other than LyCORIS: factors of the bias too, and rotations of what is read."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Delta, Layer, Ready, Shape, along
from velatura.overlays.deltas.kronecker import factorised
from velatura.overlays.deltas.whole import IA3

linalg: Any = torch.linalg  # which has no types

UPPER, TERMS = "oft_R.weight", "oft_terms"
SERIES = 5  # terms of the series that peft takes for an inverse


class BiasedIA3(IA3):
    """(IA)^3 as in its paper: a factor less one for all of what a layer makes, its bias too."""

    algorithm: ClassVar[str] = "ia3-bias"
    needed: ClassVar[frozenset[str]] = frozenset({"weight", "on_input", "on_bias"})
    constants: ClassVar[frozenset[str]] = frozenset({"on_input", "on_bias"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0, on_input: bool = False) -> Self:  # noqa: ARG003
        """Zeros for each row of a layer."""
        weight = torch.zeros(layer.weight.shape[0])
        return cls.from_tensors({"weight": weight, "on_input": torch.tensor(0.0), "on_bias": torch.tensor(1.0)})

    def bias_change(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
        """The bias itself, times the factors, times the strength."""
        return None if bias is None else bias.float() * self.of("weight").flatten() * strength

    def output(self, layer: Layer, read: Tensor, made: Tensor, strength: Tensor, ready: Ready) -> Tensor:
        """What is added: a share of what the layer made."""
        if len(ready) == 2:
            return super().output(layer, read, made, strength, ready)
        assert ready[0] is not None
        return made * along(self.thinned(ready[0]), layer) * strength


class InputRotation(Delta):
    """What a layer reads in groups of n features, each turned by R; oft_R.weight is what stands above Q's diagonal.

    Q is skew. R is (I - Q)(I + Q)^-1, or, where oft_terms is not 0, so many terms of the series that peft takes for it,
    which is that of the rotation back. A strength turns by I + strength (R - I).
    """

    algorithm: ClassVar[str] = "oft-input"
    needed: ClassVar[frozenset[str]] = frozenset({UPPER, TERMS})
    optional: ClassVar[frozenset[str]] = frozenset()
    constants: ClassVar[frozenset[str]] = frozenset({TERMS})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:  # noqa: ARG003
        """An untrained one for a layer, which turns nothing; rank: the size of its blocks."""
        into = layer.weight[0].numel()
        size, count = sorted(factorised(into, rank), key=lambda each: abs(each - rank))
        upper = torch.zeros(count, size * (size - 1) // 2)
        return cls.from_tensors({UPPER: upper, TERMS: torch.tensor(float(SERIES))})

    @property
    def shape(self) -> Shape:
        """A matrix of as many columns as it turns: it tells no more."""
        return 1, self.of(UPPER).shape[0] * self._size

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32."""
        rows, turns = weight.float().flatten(1), self.turns()
        count, rest = divmod(rows.shape[1], turns.shape[1])
        if rest or turns.shape[0] not in {1, count}:  # one block may be shared by all groups
            raise ValueError(f"{turns.shape[0]} blocks of {turns.shape[1]} columns against {rows.shape[1]}")
        groups = rows.view(len(rows), count, -1)  # (out, blocks, n)
        turned = torch.einsum("obn,bmn->obm", groups, turns.expand(count, -1, -1))
        return turned.reshape(weight.shape) * strength

    def turns(self) -> Tensor:
        """R - I of every block, (blocks, n, n)."""
        upper, size = self.of(UPPER), self._size
        rows, columns = torch.triu_indices(size, size, 1, device=upper.device)
        skew = upper.new_zeros(len(upper), size, size)
        skew[:, rows, columns] = upper
        skew = skew - skew.mT
        terms = 0 if upper.is_meta else int(self.of(TERMS))
        if terms:
            return _series(skew, terms)
        unit = torch.eye(size, device=upper.device)
        turned: Tensor = linalg.solve(unit + skew, unit - skew, left=False)
        return turned - unit

    @property
    def _size(self) -> int:
        """The n of which there are n (n - 1) / 2 numbers above a diagonal."""
        count = self.of(UPPER).shape[-1]
        size = (1 + math.isqrt(1 + 8 * count)) // 2
        if size * (size - 1) // 2 != count:
            raise ValueError(f"{count} numbers stand above no diagonal")
        return size


def _series(skew: Tensor, terms: int) -> Tensor:
    """So many terms of I + 2Q + 2Q^2 + ... without I, the last one of them once only; of Q^2 there are always two."""
    if terms == 1:
        return torch.zeros_like(skew)
    total, power = 2 * skew, skew
    if terms == 2:
        return total
    for number in range(2, max(terms, 4)):
        power = power @ skew
        total = total + (1 if number == max(terms, 4) - 1 else 2) * power
    return total
