"""Aesthetic gradients: a copy of a text tower takes a few steps towards a direction among pictures, for one prompt.

Gallego 2022, Personalizing Text-to-Image Generation via Aesthetic Gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.overlays.shadow import shadow

LEGACY_END = 2  # what configurations of CLIP's first towers say; the end is the last word of their vocabulary


@dataclass(frozen=True)
class Tuning:
    """How a tower is tuned: towards a direction (features,), which texts reach by a projection (features, width).

    steps of Adam at the rate, on all weights of the tower, in float32.
    """

    direction: Tensor
    projection: Tensor
    steps: int
    rate: float

    def tuned(self, tower: nn.Module, ids: Tensor) -> nn.Module:
        """The tower with weights that bring a text (1, tokens) nearer to the direction; it is itself left alone."""
        weights = {name: _learnable(each) for name, each in _inner(tower).named_parameters()}
        copied = shadow(_inner(tower), weights)
        optimizer = torch.optim.Adam(weights.values(), lr=self.rate)
        for _ in range(self.steps):
            loss = -(self.features(copied, ids) @ self.direction).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        return shadow(tower, _named_within(tower, weights))

    def features(self, tower: nn.Module, ids: Tensor) -> Tensor:
        """What a tower without projection says of texts as a whole, beside pictures: (texts, features), of length 1."""
        hidden: Tensor = cast("Any", tower)(input_ids=ids).last_hidden_state
        ends = (ids == end_of(tower)).int().argmax(dim=-1)
        pooled = hidden[torch.arange(len(ids), device=hidden.device), ends]
        return F.normalize(pooled @ self.projection.T, dim=-1)


def end_of(tower: nn.Module) -> int:
    """The token at which a text ends."""
    config = cast("Any", tower).config
    return int(config.vocab_size - 1 if config.eos_token_id == LEGACY_END else config.eos_token_id)


def width_of(tower: nn.Module) -> int:
    """Features of a token's vector."""
    return int(cast("Any", tower).config.hidden_size)


def own_projection(tower: nn.Module) -> Tensor | None:
    """What a tower itself has to bring texts beside pictures: (features, width), or None."""
    return cast("Tensor | None", getattr(getattr(tower, "text_projection", None), "weight", None))


def _inner(tower: nn.Module) -> nn.Module:
    """The tower without a projection, which stays fixed."""
    return cast("nn.Module", getattr(tower, "text_model", tower))


def _named_within(tower: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "" if _inner(tower) is tower else "text_model."
    rest = {name: each.detach().float() for name, each in tower.named_parameters()}
    return rest | {prefix + name: each.detach() for name, each in weights.items()}


def _learnable(weight: Tensor) -> Tensor:
    return weight.detach().clone().float().requires_grad_()


def slerp(start: Tensor, end: Tensor, share: float | Tensor) -> Tensor:
    """From one vector to another along an arc: the angle goes evenly, measured between their directions.

    Vectors lie along the last dimension; share: 0 is the start, 1 the end; (..., 1) or a number.
    """
    alike = (F.normalize(start, dim=-1) * F.normalize(end, dim=-1)).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = alike.acos()
    share = torch.as_tensor(share, dtype=start.dtype, device=start.device)
    arc = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin()
    straight = start + share * (end - start)
    return torch.where(angle.sin() < 1e-4, straight, arc)  # of vectors that point one way no arc can be told
