"""Conditioning of the UNet: contexts and pooled vectors of prompts, and SDXL's picture sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts of a batch.

    Attributes:
        context: (batch, tokens, width), the input of cross-attention.
        pooled: (batch, width), one vector for each prompt. Only SDXL reads it; None for other families.
    """

    context: Tensor
    pooled: Tensor | None = None

    @classmethod
    def stack(cls, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Stack conditionings of single prompts, without a batch dimension, into a batch."""
        return cls(
            torch.stack([conditioning.context for conditioning in conditionings]),
            _combine_pooled(torch.stack, conditionings),
        )

    @classmethod
    def concatenate(cls, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Concatenate batches into one."""
        return cls(
            torch.cat([conditioning.context for conditioning in conditionings]),
            _combine_pooled(torch.cat, conditionings),
        )

    def __len__(self) -> int:
        return len(self.context)

    def select_rows(self, indices: Tensor) -> Conditioning:
        """Return the rows with these indices (rows,)."""
        return Conditioning(self.context[indices], None if self.pooled is None else self.pooled[indices])

    def zero_out(self) -> Conditioning:
        """Return zeros of the same shape: the unconditional input of bases that were trained with zeros."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Conditioning(torch.zeros_like(self.context), pooled)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """Move to a device and a precision. Tensors that are already there are not copied."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return replace(self, context=self.context.to(device, dtype), pooled=pooled)


def _combine_pooled(combine: Callable[[list[Tensor]], Tensor], conditionings: Sequence[Conditioning]) -> Tensor | None:
    pooled = [conditioning.pooled for conditioning in conditionings if conditioning.pooled is not None]
    assert len(pooled) in {0, len(conditionings)}
    return combine(pooled) if pooled else None


@dataclass(frozen=True)
class MicroConditioning:
    """Picture sizes that SDXL's UNet reads (micro-conditioning), in pixels, height first.

    Attributes:
        original_size: Size of the training picture before it was cropped.
        target_size: Size of the picture.
        crop_top_left: Offset of the crop from the original's top left corner: top, left.
    """

    original_size: tuple[int, int]
    target_size: tuple[int, int]
    crop_top_left: tuple[int, int] = (0, 0)

    @property
    def time_ids(self) -> tuple[int, ...]:
        """Return the six numbers in the order that the UNet reads (Podell et al. 2023, "SDXL", section 2.2)."""
        return *self.original_size, *self.crop_top_left, *self.target_size
