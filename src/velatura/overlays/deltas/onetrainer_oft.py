"""OFT_2 of OneTrainer: peft's rotations, with other directions, scales and magnitudes."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Layer, TensorShape
from velatura.overlays.deltas.input_oft import NEUMANN_TERMS, OFT_R, InputOFT
from velatura.overlays.deltas.product import DORA_SCALE, weight_norm

SCALED_OFT = "oft_R.scaled_oft"  # its presence counts, not its value
CONV_DIMENSIONS = 4  # of a convolution's weight
INITIAL_NORM, DORA_MULTIPLIER = "initial_norm", "dora_multiplier"


class OneTrainerOFT(InputOFT):
    """Rotation of a Linear layer's input by R, and of a convolution's weight by R^T.

    R is five terms of peft's Neumann series. So a Linear layer's weight is multiplied by R^T, and a convolution's, as a
    matrix of (out, in * height * width), by R. With scaled_oft, Q is divided by the root of the number of its elements
    above the diagonal. With DoRA, the rows of the rotated weight are multiplied by dora_scale / initial_norm, where
    initial_norm are the rows' norms in the base of the training, or by dora_multiplier.
    """

    algorithm: ClassVar[str] = "oft-2"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({OFT_R})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({SCALED_OFT, DORA_SCALE, INITIAL_NORM, DORA_MULTIPLIER})
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({SCALED_OFT, INITIAL_NORM})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:
        """Build an untrained delta for a layer; `rank` is the wanted size of the blocks."""
        upper = InputOFT.for_layer(layer, rank=rank, alpha=alpha).required_tensor(OFT_R).detach()
        return cls.from_tensors({OFT_R: upper, SCALED_OFT: torch.tensor(1.0)})

    @property
    def weight_shape(self) -> TensorShape:
        """Return (rows, columns) of a weight that it fits; the rows follow from magnitudes only, else there is 1."""
        magnitudes = [tensor for tensor in map(self.raw_tensor, (DORA_SCALE, DORA_MULTIPLIER)) if tensor is not None]
        return max((tensor.numel() for tensor in magnitudes), default=1), super().weight_shape[1]

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a weight at a strength, in the weight's shape, in float32."""
        change, factors = super().weight_delta(weight), self._row_factors(weight)
        if factors is not None:
            base = weight.float()
            change = (base + change) * factors - base
        return change * strength

    def offsets_for(self, weight: Tensor) -> Tensor:
        """Return R - I of all blocks for a Linear layer's weight, R^T - I for a convolution's."""
        offsets = self.rotation_offsets()
        return offsets.mT if weight.ndim == CONV_DIMENSIONS else offsets

    def upper_triangle(self) -> Tensor:
        """Return the numbers above the diagonal of Q, scaled: (blocks, n (n - 1) / 2)."""
        upper = super().upper_triangle()
        return upper if self.raw_tensor(SCALED_OFT) is None else upper / math.sqrt(upper.shape[-1])

    def neumann_terms(self) -> int:
        """Return the number of terms of the Neumann series."""
        return NEUMANN_TERMS

    def _row_factors(self, weight: Tensor) -> Tensor | None:
        """Return the factors of a weight's rows, (out, 1, ...), or None without magnitudes."""
        multiplier, magnitude, initial_norm = map(self.tensor, (DORA_MULTIPLIER, DORA_SCALE, INITIAL_NORM))
        if magnitude is not None:
            norm = weight_norm(weight, rows=True) if initial_norm is None else initial_norm
            magnitude = magnitude.flatten() / norm.flatten()
        factors = magnitude if multiplier is None else multiplier.flatten()
        if factors is not None and len(factors) != len(weight):
            raise ValueError(f"{len(factors)} magnitudes against {tuple(weight.shape)}")
        return None if factors is None else factors.view(-1, *[1] * (weight.ndim - 1))
