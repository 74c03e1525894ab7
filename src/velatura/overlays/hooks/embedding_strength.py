"""How much a word that stands for vectors changes what a text tower says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from velatura.overlays.hooks.text_hooks import map_output
from velatura.overlays.hooks.token_hooks import HookSlot, TokenVectors
from velatura.overlays.strength import LiveStrength

NEUTRAL_WORD = "*"  # a word that says next to nothing; trainers begin with it


class EmbeddingStrength(NamedTuple):
    """A word's vectors, the token of a word that says nothing, and how much the difference counts."""

    vectors: TokenVectors
    neutral_token_id: int
    strength: LiveStrength


class EmbeddingStrengthHook(HookSlot):
    """Weighs what sets words' vectors apart from neutral words in their places.

    The difference between what a tower says with the ones and with the others counts as many times as the strength is.
    Multiplied vectors would not do: a tower norms what it reads, so that long ones say the same at half their length.
    """

    def forward_hook(self, tower: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any], output: Any) -> Any:
        """What a tower says, of what it says with all at full strength; whole is whatever its forward gave."""
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
