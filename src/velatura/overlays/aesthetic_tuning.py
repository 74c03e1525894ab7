"""Gradient steps of aesthetic gradients: a copy of a text encoder is tuned towards a direction, for one prompt.

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

LEGACY_EOS_TOKEN_ID = 2  # in the configs of the first CLIPs, whose EOS is the last token of the vocabulary


@dataclass(frozen=True)
class AestheticTuning:
    """Tuning of a text encoder: steps of Adam on all of its weights, in float32.

    Attributes:
        direction: (features,), of length 1: the image embedding to which texts are moved.
        projection: (features, width): projects the encoder's hidden states to image embeddings.
        steps: Number of steps.
        rate: Learning rate.
    """

    direction: Tensor
    projection: Tensor
    steps: int
    rate: float

    def tune(self, tower: nn.Module, ids: Tensor) -> nn.Module:
        """Return a copy of the text encoder, tuned so that one text is nearer to the direction.

        Args:
            tower: The text encoder, which is not changed.
            ids: Token ids of the text, (1, tokens).
        """
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
        """Encode texts as CLIP embeddings, by a text encoder without a projection.

        Args:
            tower: The text encoder.
            ids: Token ids, (texts, tokens).

        Returns:
            (texts, features), of length 1.
        """
        hidden: Tensor = cast("Any", tower)(input_ids=ids).last_hidden_state
        eos_positions = (ids == eos_token_id(tower)).int().argmax(dim=-1)
        pooled = hidden[torch.arange(len(ids), device=hidden.device), eos_positions]
        return F.normalize(pooled @ self.projection.T, dim=-1)


def eos_token_id(tower: nn.Module) -> int:
    """Return the id of the token that ends a text."""
    config = cast("Any", tower).config
    return int(config.vocab_size - 1 if config.eos_token_id == LEGACY_EOS_TOKEN_ID else config.eos_token_id)


def hidden_size(tower: nn.Module) -> int:
    """Return the number of features of a text encoder's hidden states."""
    return int(cast("Any", tower).config.hidden_size)


def text_projection(tower: nn.Module) -> Tensor | None:
    """Return the text encoder's own projection (features, width), or None if it has none."""
    return cast("Tensor | None", getattr(getattr(tower, "text_projection", None), "weight", None))


def _text_model(tower: nn.Module) -> nn.Module:
    """Return the text encoder without its projection, which is not tuned."""
    return cast("nn.Module", getattr(tower, "text_model", tower))


def _add_prefix(tower: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "" if _text_model(tower) is tower else "text_model."
    other_weights = {name: parameter.detach().float() for name, parameter in tower.named_parameters()}
    return other_weights | {prefix + name: weight.detach() for name, weight in weights.items()}


def _trainable_copy(weight: Tensor) -> Tensor:
    return weight.detach().clone().float().requires_grad_()


def slerp(start: Tensor, end: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate spherically between vectors: the angle between their directions changes linearly with t.

    Args:
        start, end: (..., features).
        t: 0 is the start, 1 is the end; a number, or (..., 1).

    Returns:
        (..., features). Vectors that are almost parallel are interpolated linearly.
    """
    cosine = (F.normalize(start, dim=-1) * F.normalize(end, dim=-1)).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    t = torch.as_tensor(t, dtype=start.dtype, device=start.device)
    arc = (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()
    linear = start + t * (end - start)
    return torch.where(angle.sin() < 1e-4, linear, arc)  # parallel vectors determine no arc
