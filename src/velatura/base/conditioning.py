"""What the UNet is told beside the noisy latents and the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What prompts say to the UNet, a row for each picture of a batch.

    context: (batch, tokens, width), which cross-attention reads; pooled: (batch, width), each prompt as one vector,
    None where the base reads none. Only an SDXL does.
    """

    context: Tensor
    pooled: Tensor | None = None

    @classmethod
    def stack(cls, conditionings: Sequence[Conditioning]) -> Conditioning:
        """One batch of what single prompts say, which have no batch dimension."""
        return cls(
            torch.stack([conditioning.context for conditioning in conditionings]),
            _combine_pooled(torch.stack, conditionings),
        )

    @classmethod
    def concatenate(cls, conditionings: Sequence[Conditioning]) -> Conditioning:
        """One batch of several."""
        return cls(
            torch.cat([conditioning.context for conditioning in conditionings]),
            _combine_pooled(torch.cat, conditionings),
        )

    def __len__(self) -> int:
        return len(self.context)

    def select_rows(self, indices: Tensor) -> Conditioning:
        """Some of its rows, by their places (rows,)."""
        return Conditioning(self.context[indices], None if self.pooled is None else self.pooled[indices])

    def zero_out(self) -> Conditioning:
        """Zeros in its place, which stand for no prompt where a base was trained so."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Conditioning(torch.zeros_like(self.context), pooled)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """The same elsewhere; itself, with the same tensors, where it is there already."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return replace(self, context=self.context.to(device, dtype), pooled=pooled)


def _combine_pooled(combine: Callable[[list[Tensor]], Tensor], conditionings: Sequence[Conditioning]) -> Tensor | None:
    pooled = [conditioning.pooled for conditioning in conditionings if conditioning.pooled is not None]
    assert len(pooled) in {0, len(conditionings)}
    return combine(pooled) if pooled else None


@dataclass(frozen=True)
class MicroConditioning:
    """Sizes in pixels, height first, that an SDXL is told: of the picture before it was cropped, and of the picture.

    crop: how far its top left corner lies from that of the picture before.
    """

    original_size: tuple[int, int]
    target_size: tuple[int, int]
    crop_top_left: tuple[int, int] = (0, 0)

    @property
    def time_ids(self) -> tuple[int, ...]:
        """The six numbers in the order that the UNet reads (Podell et al. 2023, "SDXL", section 2.2)."""
        return *self.original_size, *self.crop_top_left, *self.target_size
