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

from velatura.overlays.hooks.functional_copy import functional_copy

LEGACY_EOS_TOKEN_ID = 2  # what configurations of CLIP's first towers say; the end is the last word of their vocabulary


@dataclass(frozen=True)
class AestheticTuning:
    """How a tower is tuned: towards a direction (features,), which texts reach by a projection (features, width).

    steps of Adam at the rate, on all weights of the tower, in float32.
    """

    direction: Tensor
    projection: Tensor
    steps: int
    rate: float

    def tune(self, tower: nn.Module, ids: Tensor) -> nn.Module:
        """The tower with weights that bring a text (1, tokens) nearer to the direction; it is itself left alone."""
        weights = {name: _trainable_copy(parameter) for name, parameter in _text_model(tower).named_parameters()}
        text_model_copy = functional_copy(_text_model(tower), weights)
        optimizer = torch.optim.Adam(weights.values(), lr=self.rate)
        for _ in range(self.steps):
            loss = -(self.text_features(text_model_copy, ids) @ self.direction).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        return functional_copy(tower, _add_prefix(tower, weights))

    def text_features(self, tower: nn.Module, ids: Tensor) -> Tensor:
        """What a tower without projection says of texts as a whole, beside pictures: (texts, features), of length 1."""
        hidden: Tensor = cast("Any", tower)(input_ids=ids).last_hidden_state
        eos_positions = (ids == eos_token_id(tower)).int().argmax(dim=-1)
        pooled = hidden[torch.arange(len(ids), device=hidden.device), eos_positions]
        return F.normalize(pooled @ self.projection.T, dim=-1)


def eos_token_id(tower: nn.Module) -> int:
    """The token at which a text ends."""
    config = cast("Any", tower).config
    return int(config.vocab_size - 1 if config.eos_token_id == LEGACY_EOS_TOKEN_ID else config.eos_token_id)


def hidden_size(tower: nn.Module) -> int:
    """Features of a token's vector."""
    return int(cast("Any", tower).config.hidden_size)


def text_projection(tower: nn.Module) -> Tensor | None:
    """What a tower itself has to bring texts beside pictures: (features, width), or None."""
    return cast("Tensor | None", getattr(getattr(tower, "text_projection", None), "weight", None))


def _text_model(tower: nn.Module) -> nn.Module:
    """The tower without a projection, which stays fixed."""
    return cast("nn.Module", getattr(tower, "text_model", tower))


def _add_prefix(tower: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "" if _text_model(tower) is tower else "text_model."
    other_weights = {name: parameter.detach().float() for name, parameter in tower.named_parameters()}
    return other_weights | {prefix + name: weight.detach() for name, weight in weights.items()}


def _trainable_copy(weight: Tensor) -> Tensor:
    return weight.detach().clone().float().requires_grad_()


def slerp(start: Tensor, end: Tensor, t: float | Tensor) -> Tensor:
    """From one vector to another along an arc: the angle goes evenly, measured between their directions.

    Vectors lie along the last dimension; share: 0 is the start, 1 the end; (..., 1) or a number.
    """
    cosine = (F.normalize(start, dim=-1) * F.normalize(end, dim=-1)).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    t = torch.as_tensor(t, dtype=start.dtype, device=start.device)
    arc = (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()
    linear = start + t * (end - start)
    return torch.where(angle.sin() < 1e-4, linear, arc)  # of vectors that point one way no arc can be told
