"""OFT: rotates blocks of a weight's rows (Qiu et al. 2023). BOFT: does so in butterflies (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from velatura.errors import BadOverlay
from velatura.overlays.deltas.delta import Delta, Layer, Operands, TensorShape, subtract_bias
from velatura.overlays.deltas.lokr import factor_dimension

linalg: Any = torch.linalg  # it has no type annotations
OFT_BLOCKS, RESCALE = "oft_blocks", "rescale"


class OFTOperands(NamedTuple):
    """R^T - I of all blocks, (..., blocks, n, n), and factors of the rows, (out,) or None."""

    offsets: Tensor
    rescale: Tensor | None


class OFT(Delta):
    """Rotation of a weight's rows in blocks of n, by R^T with R = (I + Q)(I - Q)^-1, Q = B - B^T (Cayley transform).

    alpha bounds the norm of Q. A strength s rotates by I + s (R - I). The rescale factors are not multiplied by the
    strength: they apply fully unless it is 0.
    """

    algorithm: ClassVar[str] = "oft"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({OFT_BLOCKS})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha", RESCALE})
    block_ndim: ClassVar[int] = 3

    @classmethod
    def matches(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Return True if the tensors belong to this algorithm; the variants differ in the dimensions of the blocks."""
        return super().matches(tensors) and tensors[min(cls.required_suffixes)].ndim == cls.block_ndim

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:
        """Build an untrained delta for a layer; `rank` is the wanted size of the blocks, alpha 0 sets no bound."""
        size, count = sorted(factor_dimension(layer.weight.shape[0], rank), key=lambda factor: abs(factor - rank))
        return cls.from_tensors({OFT_BLOCKS: torch.zeros(count, size, size), "alpha": torch.tensor(alpha)})

    @property
    def weight_shape(self) -> TensorShape:
        """Return (rows, 1), as the number of columns does not follow from its tensors."""
        return self._blocks.shape[-3] * self._blocks.shape[-1], 1

    @property
    def _blocks(self) -> Tensor:
        return self.required_tensor(OFT_BLOCKS)

    def rotation_offsets(self) -> Tensor:
        """Return R^T - I of all blocks, (..., blocks, n, n)."""
        blocks = self._blocks
        if blocks.ndim != self.block_ndim or blocks.shape[-1] != blocks.shape[-2]:
            raise ValueError(f"blocks of shape {tuple(blocks.shape)} are not square")
        skew = blocks - blocks.mT
        bound = self.tensor("alpha")
        if bound is not None:
            limit, norm = bound * self.weight_shape[0], skew.square().sum().clamp(min=1e-30).sqrt()
            skew = skew * torch.where((bound > 0) & (norm > limit), limit / norm, 1.0)
        identity = torch.eye(blocks.shape[-1], device=blocks.device)
        rotation: Tensor = linalg.solve(identity + skew, identity - skew, left=False)
        return rotation - identity

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a weight at a strength, in the weight's shape, in float32; zeros at strength 0."""
        rows = weight.float().flatten(1)
        rotated = self._rotate_features(rows.T, strength).T
        rescale = self.tensor(RESCALE)
        if rescale is not None and strength:
            rotated = rotated * rescale.view(-1, 1)
        return (rotated - rows).view(weight.shape)

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:  # noqa: ARG002
        """Return R^T - I of all blocks, and the rescale factors."""
        rescale = self.tensor(RESCALE)
        offsets = self.rotation_offsets().to(dtype)
        return OFTOperands(offsets, None if rescale is None else rescale.flatten().to(dtype))

    def output_delta(
        self,
        layer: Layer,
        inputs: Tensor,  # noqa: ARG002
        base_output: Tensor,
        strength: Tensor,
        operands: Operands,
    ) -> Tensor:
        """Return the change of a layer's output: rotated rows of the weight rotate the output without its bias."""
        assert isinstance(operands, OFTOperands)
        offsets, rescale = operands
        unbiased_output, is_conv = subtract_bias(layer, base_output), isinstance(layer, nn.Conv2d)
        features = unbiased_output.movedim(1, -1) if is_conv else unbiased_output
        rotated = self._rotate(features, self.drop_rows(offsets), strength)
        rotated = rotated if rescale is None else rotated * rescale
        return (rotated.movedim(-1, 1) if is_conv else rotated) - unbiased_output

    def _rotate_features(self, features: Tensor, strength: float) -> Tensor:
        if features.shape[-1] != self.weight_shape[0]:
            raise ValueError(f"{self.weight_shape[0]} rotated rows against {features.shape[-1]}")
        return self._rotate(features, self.rotation_offsets(), torch.tensor(strength, device=features.device))

    def _rotate(self, features: Tensor, offsets: Tensor, strength: Tensor) -> Tensor:
        """Rotate features (..., out) in blocks of n."""
        groups = features.reshape(*features.shape[:-1], -1, offsets.shape[-1], 1)
        return features + (offsets @ groups).reshape(features.shape) * strength.to(features.dtype)


class OFTDiag(OFT):
    """Oldest variant of OFT, whose files hold the rotations themselves, one for each block of rows."""

    algorithm: ClassVar[str] = "oft-diag"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"oft_diag"})

    @property
    def _blocks(self) -> Tensor:
        return self.required_tensor("oft_diag")

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:
        """Build an untrained delta for a layer; `rank` is the wanted size of the blocks."""
        size, count = sorted(factor_dimension(layer.weight.shape[0], rank), key=lambda factor: abs(factor - rank))
        tensors = {"oft_diag": torch.eye(size).repeat(count, 1, 1), "alpha": torch.tensor(alpha)}
        return cls.from_tensors(tensors)

    def rotation_offsets(self) -> Tensor:
        """Return R^T - I of all blocks."""
        blocks = self._blocks.mT
        return blocks - torch.eye(blocks.shape[-1], device=blocks.device)


class BOFT(OFT):
    """Butterfly OFT: several rotations in series, which mix different rows; a strength applies to each of them."""

    algorithm: ClassVar[str] = "boft"
    block_ndim: ClassVar[int] = 4

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:
        """Build an untrained delta for a layer; `rank` is the wanted size of the blocks, which is even."""
        out = layer.weight.shape[0]
        exponents = [exponent for exponent in range(out.bit_length()) if out % 2 ** (exponent + 1) == 0]
        if not exponents:
            raise BadOverlay(f"a layer has {out} rows, and BOFT needs an even number: leave that layer out")
        steps = min(exponents, key=lambda exponent: abs(out // 2**exponent - rank))
        blocks = torch.zeros(steps + 1, 2**steps, out // 2**steps, out // 2**steps)
        return cls.from_tensors({OFT_BLOCKS: blocks, "alpha": torch.tensor(alpha)})

    def rotation_offsets(self) -> Tensor:
        """Return R - I of all blocks: BOFT rotates by R, not by R^T."""
        steps, count = self._blocks.shape[:2]
        if steps != (count - 1).bit_count() + 1:  # LyCORIS's number of butterflies
            raise ValueError(f"{steps} butterflies of {count} blocks")
        return super().rotation_offsets().mT

    def _rotate(self, features: Tensor, offsets: Tensor, strength: Tensor) -> Tensor:
        size = offsets.shape[-1]
        for step, step_offsets in enumerate(offsets):
            spacing = 2**step * size // 2
            mixed = features.reshape(*features.shape[:-1], -1, 2, spacing).mT.reshape(features.shape)
            mixed = super()._rotate(mixed, step_offsets, strength)
            features = mixed.reshape(*features.shape[:-1], -1, spacing, 2).mT.reshape(features.shape)
        return features
