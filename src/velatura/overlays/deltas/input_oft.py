"""OFT as in peft: rotates the input of a layer, and not its output as in LyCORIS."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Delta, Layer, TensorShape
from velatura.overlays.deltas.lokr import factor_dimension

linalg: Any = torch.linalg  # it has no type annotations

OFT_R, OFT_TERMS = "oft_R.weight", "oft_terms"
NEUMANN_TERMS = 5  # peft's default number of terms of the Neumann series


class InputOFT(Delta):
    """Rotation of a layer's input in blocks of n features, by R.

    oft_R.weight holds the numbers above the diagonal of Q, which is skew-symmetric. R is (I - Q)(I + Q)^-1. If
    oft_terms is not 0, R is that many terms of peft's Neumann series, which approximates the inverse rotation. A
    strength s rotates by I + s (R - I).
    """

    algorithm: ClassVar[str] = "oft-input"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({OFT_R, OFT_TERMS})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset()
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({OFT_TERMS})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:  # noqa: ARG003
        """Build an untrained delta for a layer; `rank` is the wanted size of the blocks."""
        in_features = layer.weight[0].numel()
        size, count = sorted(factor_dimension(in_features, rank), key=lambda factor: abs(factor - rank))
        upper = torch.zeros(count, size * (size - 1) // 2)
        return cls.from_tensors({OFT_R: upper, OFT_TERMS: torch.tensor(float(NEUMANN_TERMS))})

    @property
    def weight_shape(self) -> TensorShape:
        """Return (1, columns), as the number of rows does not follow from its tensors."""
        return 1, self.required_tensor(OFT_R).shape[0] * self._size

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a weight at a strength, in the weight's shape, in float32."""
        rows, offsets = weight.float().flatten(1), self.offsets_for(weight)
        count, rest = divmod(rows.shape[1], offsets.shape[1])
        if rest or offsets.shape[0] not in {1, count}:  # all groups may share one block
            raise ValueError(f"{offsets.shape[0]} blocks of {offsets.shape[1]} columns against {rows.shape[1]}")
        groups = rows.view(len(rows), count, -1)  # (out, blocks, n)
        rotated = torch.einsum("obn,bmn->obm", groups, offsets.expand(count, -1, -1))
        return rotated.reshape(weight.shape) * strength

    def offsets_for(self, weight: Tensor) -> Tensor:  # noqa: ARG002
        """Return R - I of all blocks for a weight, whose rows are multiplied by R^T."""
        return self.rotation_offsets()

    def rotation_offsets(self) -> Tensor:
        """Return R - I of all blocks, (blocks, n, n)."""
        upper, size = self.upper_triangle(), self._size
        rows, columns = torch.triu_indices(size, size, 1, device=upper.device)
        skew = upper.new_zeros(len(upper), size, size)
        skew[:, rows, columns] = upper
        skew = skew - skew.mT
        terms = self.neumann_terms()
        if terms:
            return _neumann_series(skew, terms)
        identity = torch.eye(size, device=upper.device)
        rotation: Tensor = linalg.solve(identity + skew, identity - skew, left=False)
        return rotation - identity

    def upper_triangle(self) -> Tensor:
        """Return the numbers above the diagonal of Q, (blocks, n (n - 1) / 2)."""
        return self.required_tensor(OFT_R)

    def neumann_terms(self) -> int:
        """Return the number of terms of the Neumann series, or 0 for the exact rotation."""
        terms = self.required_tensor(OFT_TERMS)
        return 0 if terms.is_meta else int(terms)

    @property
    def _size(self) -> int:
        """Return the n for which there are n (n - 1) / 2 numbers above the diagonal."""
        count = self.required_tensor(OFT_R).shape[-1]
        size = (1 + math.isqrt(1 + 8 * count)) // 2
        if size * (size - 1) // 2 != count:
            raise ValueError(f"{count} is not n (n - 1) / 2 for any n")
        return size


def _neumann_series(skew: Tensor, terms: int) -> Tensor:
    """Return `terms` terms of I + 2Q + 2Q^2 + ... + Q^k, without I.

    As in peft, the last term has the factor 1, and for 3 terms as for 4 the sum is 2Q + 2Q^2 + Q^3.
    """
    if terms == 1:
        return torch.zeros_like(skew)
    total, power = 2 * skew, skew
    if terms == 2:
        return total
    last_exponent = max(terms, 4) - 1
    for exponent in range(2, last_exponent + 1):
        power = power @ skew
        total = total + (1 if exponent == last_exponent else 2) * power
    return total
