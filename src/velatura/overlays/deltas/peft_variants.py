"""Two algorithms as peft has them, other than LyCORIS: factors of the bias too, and rotations of what is read."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Delta, Layer, Operands, TensorShape, broadcast_channels
from velatura.overlays.deltas.full import IA3
from velatura.overlays.deltas.lokr import factor_dimension

linalg: Any = torch.linalg  # which has no types

OFT_R, OFT_TERMS = "oft_R.weight", "oft_terms"
NEUMANN_TERMS = 5  # terms of the series that peft takes for an inverse


class BiasedIA3(IA3):
    """(IA)^3 as in its paper: a factor less one for all of what a layer makes, its bias too."""

    algorithm: ClassVar[str] = "ia3-bias"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"weight", "on_input", "on_bias"})
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({"on_input", "on_bias"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0, on_input: bool = False) -> Self:  # noqa: ARG003
        """Zeros for each row of a layer."""
        weight = torch.zeros(layer.weight.shape[0])
        return cls.from_tensors({"weight": weight, "on_input": torch.tensor(0.0), "on_bias": torch.tensor(1.0)})

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
        """The bias itself, times the factors, times the strength."""
        return None if bias is None else bias.float() * self.required_tensor("weight").flatten() * strength

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """What is added: a share of what the layer made."""
        if len(operands) == 2:
            return super().output_delta(layer, inputs, base_output, strength, operands)
        assert operands[0] is not None
        return base_output * broadcast_channels(self.drop_rows(operands[0]), layer) * strength


class InputOFT(Delta):
    """What a layer reads in groups of n features, each turned by R; oft_R.weight is what stands above Q's diagonal.

    Q is skew. R is (I - Q)(I + Q)^-1, or, where oft_terms is not 0, so many terms of the series that peft takes for it,
    which is that of the rotation back. A strength turns by I + strength (R - I).
    """

    algorithm: ClassVar[str] = "oft-input"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({OFT_R, OFT_TERMS})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset()
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({OFT_TERMS})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:  # noqa: ARG003
        """An untrained one for a layer, which turns nothing; rank: the size of its blocks."""
        in_features = layer.weight[0].numel()
        size, count = sorted(factor_dimension(in_features, rank), key=lambda factor: abs(factor - rank))
        upper = torch.zeros(count, size * (size - 1) // 2)
        return cls.from_tensors({OFT_R: upper, OFT_TERMS: torch.tensor(float(NEUMANN_TERMS))})

    @property
    def weight_shape(self) -> TensorShape:
        """A matrix of as many columns as it turns: it tells no more."""
        return 1, self.required_tensor(OFT_R).shape[0] * self._size

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32."""
        rows, offsets = weight.float().flatten(1), self.rotation_offsets()
        count, rest = divmod(rows.shape[1], offsets.shape[1])
        if rest or offsets.shape[0] not in {1, count}:  # one block may be shared by all groups
            raise ValueError(f"{offsets.shape[0]} blocks of {offsets.shape[1]} columns against {rows.shape[1]}")
        groups = rows.view(len(rows), count, -1)  # (out, blocks, n)
        rotated = torch.einsum("obn,bmn->obm", groups, offsets.expand(count, -1, -1))
        return rotated.reshape(weight.shape) * strength

    def rotation_offsets(self) -> Tensor:
        """R - I of every block, (blocks, n, n)."""
        upper, size = self.required_tensor(OFT_R), self._size
        rows, columns = torch.triu_indices(size, size, 1, device=upper.device)
        skew = upper.new_zeros(len(upper), size, size)
        skew[:, rows, columns] = upper
        skew = skew - skew.mT
        terms = 0 if upper.is_meta else int(self.required_tensor(OFT_TERMS))
        if terms:
            return _neumann_series(skew, terms)
        identity = torch.eye(size, device=upper.device)
        rotation: Tensor = linalg.solve(identity + skew, identity - skew, left=False)
        return rotation - identity

    @property
    def _size(self) -> int:
        """The n of which there are n (n - 1) / 2 numbers above a diagonal."""
        count = self.required_tensor(OFT_R).shape[-1]
        size = (1 + math.isqrt(1 + 8 * count)) // 2
        if size * (size - 1) // 2 != count:
            raise ValueError(f"{count} numbers stand above no diagonal")
        return size


def _neumann_series(skew: Tensor, terms: int) -> Tensor:
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
