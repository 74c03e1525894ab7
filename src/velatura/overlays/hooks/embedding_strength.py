"""Strength of embeddings: how much their vectors change the output of a text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from velatura.overlays.hooks.text_hooks import map_output
from velatura.overlays.hooks.token_hooks import HookSlot, TokenVectors
from velatura.overlays.strength import LiveStrength

NEUTRAL_WORD = "*"  # a word with almost no meaning; trainers initialise embeddings with it


class EmbeddingStrength(NamedTuple):
    """Vectors of an embedding, the token of the neutral word, and the strength."""

    vectors: TokenVectors
    neutral_token_id: int
    strength: LiveStrength


class EmbeddingStrengthHook(HookSlot):
    """Hook that multiplies the effect of embeddings by their strengths.

    The effect is the difference between the encoder's output with the vectors and with neutral words in their places.
    Multiplying the vectors themselves would not work: the encoder's layer norm removes their length.
    """

    def forward_hook(self, tower: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any], output: Any) -> Any:
        """Return the encoder's output at the strengths of all embeddings; `output` is that at full strength."""
        ids: Tensor = keywords["input_ids"] if "input_ids" in keywords else arguments[0]
        rest = arguments if "input_ids" in keywords else arguments[1:]
        result = output
        for member in self.members:
            mask = None if member.strength.number == 1 else member.vectors.token_mask(ids)
            if mask is None or not bool(mask.any()):
                continue
            neutral_output = tower.forward(
                *rest, **{**keywords, "input_ids": torch.where(mask, member.neutral_token_id, ids)}
            )
            result = map_output(partial(_apply_strength, member.strength), result, [output, neutral_output])
        return result


def _apply_strength(strength: LiveStrength, result: Tensor, others: Sequence[Tensor]) -> Tensor:
    output, neutral_output = others
    extra = strength.per_row(result).to(result.device) - 1
    extra = extra.flatten().view(-1, *(1,) * (result.ndim - 1)) if extra.ndim else extra
    return result + extra.to(result.dtype) * (output - neutral_output)
