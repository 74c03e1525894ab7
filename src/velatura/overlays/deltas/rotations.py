"""Orthogonal finetuning: blocks of a weight's rows, turned (Qiu et al. 2023); by butterflies (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from velatura.errors import BadOverlay
from velatura.overlays.deltas.delta import Delta, Layer, Ready, Shape
from velatura.overlays.deltas.kronecker import factorised
from velatura.overlays.deltas.whole import without_bias

linalg: Any = torch.linalg  # which has no types
BLOCKS, RESCALE = "oft_blocks", "rescale"


class Rotation(Delta):
    """Rows of a weight in groups of n, each turned by R^T, R = (I + Q)(I - Q)^-1, Q = B - B^T; alpha bounds Q.

    A strength turns by I + strength (R - I), and then all of rescale counts, unless it is 0.
    """

    algorithm: ClassVar[str] = "oft"
    needed: ClassVar[frozenset[str]] = frozenset({BLOCKS})
    optional: ClassVar[frozenset[str]] = frozenset({"alpha", RESCALE})
    dimensions: ClassVar[int] = 3

    @classmethod
    def knows(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these tensors are of this algorithm, which the dimensions of the blocks tell from the others."""
        return super().knows(tensors) and tensors[min(cls.needed)].ndim == cls.dimensions

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:
        """An untrained one for a layer, which turns nothing; rank: the size of its blocks; alpha 0 bounds nothing."""
        size, count = sorted(factorised(layer.weight.shape[0], rank), key=lambda each: abs(each - rank))
        return cls.from_tensors({BLOCKS: torch.zeros(count, size, size), "alpha": torch.tensor(alpha)})

    @property
    def shape(self) -> Shape:
        """A matrix of as many rows as it turns: it tells no more."""
        return self._blocks.shape[-3] * self._blocks.shape[-1], 1

    @property
    def _blocks(self) -> Tensor:
        return self.of(BLOCKS)

    def turns(self) -> Tensor:
        """R^T - I of every block, (..., blocks, n, n)."""
        blocks = self._blocks
        if blocks.ndim != self.dimensions or blocks.shape[-1] != blocks.shape[-2]:
            raise ValueError(f"blocks of shape {tuple(blocks.shape)}")
        skew = blocks - blocks.mT
        bound = self.tensor("alpha")
        if bound is not None:
            limit, size = bound * self.shape[0], skew.square().sum().clamp(min=1e-30).sqrt()
            skew = skew * torch.where((bound > 0) & (size > limit), limit / size, 1.0)
        unit = torch.eye(blocks.shape[-1], device=blocks.device)
        turned: Tensor = linalg.solve(unit + skew, unit - skew, left=False)
        return turned - unit

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32; of strength 0 nothing."""
        rows = weight.float().flatten(1)
        turned = self._turned(rows.T, strength).T
        rescale = self.tensor(RESCALE)
        if rescale is not None and strength:
            turned = turned * rescale.view(-1, 1)
        return (turned - rows).view(weight.shape)

    def ready(self, layer: Layer, dtype: torch.dtype) -> Ready:  # noqa: ARG002
        """R^T - I of every block, and rescale."""
        rescale = self.tensor(RESCALE)
        return self.turns().to(dtype), None if rescale is None else rescale.flatten().to(dtype)

    def output(self, layer: Layer, read: Tensor, made: Tensor, strength: Tensor, ready: Ready) -> Tensor:  # noqa: ARG002
        """What is added: turning a weight's rows turns what the layer makes, its bias aside."""
        turns, rescale = ready
        assert turns is not None
        own, is_conv = without_bias(layer, made), isinstance(layer, nn.Conv2d)
        features = own.movedim(1, -1) if is_conv else own
        turned = self._turn(features, self.thinned(turns), strength)
        turned = turned if rescale is None else turned * rescale
        return (turned.movedim(-1, 1) if is_conv else turned) - own

    def _turned(self, features: Tensor, strength: float) -> Tensor:
        if features.shape[-1] != self.shape[0]:
            raise ValueError(f"{self.shape[0]} turned rows against {features.shape[-1]}")
        return self._turn(features, self.turns(), torch.tensor(strength, device=features.device))

    def _turn(self, features: Tensor, turns: Tensor, strength: Tensor) -> Tensor:
        """Features (..., out) in groups of n, each turned in its own way."""
        groups = features.reshape(*features.shape[:-1], -1, turns.shape[-1], 1)
        return features + (turns @ groups).reshape(features.shape) * strength.to(features.dtype)


class Diagonal(Rotation):
    """The oldest of them: the rotations themselves, one for each block of rows."""

    algorithm: ClassVar[str] = "oft-diag"
    needed: ClassVar[frozenset[str]] = frozenset({"oft_diag"})

    @property
    def _blocks(self) -> Tensor:
        return self.of("oft_diag")

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:
        """An untrained one for a layer, which turns nothing; rank: the size of its blocks."""
        size, count = sorted(factorised(layer.weight.shape[0], rank), key=lambda each: abs(each - rank))
        tensors = {"oft_diag": torch.eye(size).repeat(count, 1, 1), "alpha": torch.tensor(alpha)}
        return cls.from_tensors(tensors)

    def turns(self) -> Tensor:
        """R^T - I of every block."""
        blocks = self._blocks.mT
        return blocks - torch.eye(blocks.shape[-1], device=blocks.device)


class Butterfly(Rotation):
    """Rotations one after another, each of other rows together; a strength tempers each of them."""

    algorithm: ClassVar[str] = "boft"
    dimensions: ClassVar[int] = 4

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float = 0.0) -> Self:
        """An untrained one for a layer, which turns nothing; rank: the size of its blocks, an even one."""
        out = layer.weight.shape[0]
        halvings = [each for each in range(out.bit_length()) if out % 2 ** (each + 1) == 0]
        if not halvings:
            raise BadOverlay(f"a layer of {out} rows has no halves to mix by butterflies: leave it out")
        steps = min(halvings, key=lambda each: abs(out // 2**each - rank))
        blocks = torch.zeros(steps + 1, 2**steps, out // 2**steps, out // 2**steps)
        return cls.from_tensors({BLOCKS: blocks, "alpha": torch.tensor(alpha)})

    def turns(self) -> Tensor:
        """R - I of every block: these turn the other way."""
        return super().turns().mT

    def _turn(self, features: Tensor, turns: Tensor, strength: Tensor) -> Tensor:
        size = turns.shape[-1]
        for step, each in enumerate(turns):
            stride = 2**step * size // 2
            mixed = features.reshape(*features.shape[:-1], -1, 2, stride).mT.reshape(features.shape)
            mixed = super()._turn(mixed, each, strength)
            features = mixed.reshape(*features.shape[:-1], -1, stride, 2).mT.reshape(features.shape)
        return features
