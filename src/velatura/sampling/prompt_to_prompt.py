"""Prompt-to-prompt: keep the layout of one prompt's picture while another prompt is painted.

Hertz et al. 2022, "Prompt-to-Prompt Image Editing with Cross Attention Control".
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

# Finer self-attention maps carry texture rather than layout, and cost the most
MAX_SELF_ATTENTION_PIXELS = 32 * 32


class AttentionReplacement:
    """Replaces the attention maps of edited pictures by those of their source pictures, in the first steps.

    A batch holds the rows [negative prompts, prompts], or the prompts alone without guidance; with image guidance it
    holds the negative prompts twice. Each part holds the edited pictures first, and then the source pictures in the
    same order.
    """

    def __init__(self, token_mappers: Sequence[Tensor], until_fraction: float = 1.0) -> None:
        """Start before the first step.

        Args:
            token_mappers: For each edited picture the result of map_tokens, (tokens,).
            until_fraction: The fraction of the steps, 0 to 1, after which maps are no longer replaced. 1: never.
        """
        self._token_mappers = token_mappers
        self._until_fraction = until_fraction
        self.is_active = until_fraction > 0

    def start_step(self, fraction: float) -> None:
        """Prepare for the step that starts when this fraction of the steps has been taken."""
        self.is_active = fraction < self._until_fraction

    def replace_maps(self, maps: Tensor, heads: int, parts: int, *, is_cross: bool) -> Tensor:
        """Return attention maps in which the edited pictures have those of their sources.

        Args:
            maps: (rows * heads, pixels, tokens); for self-attention the tokens are pixels too.
            heads: Number of attention heads.
            parts: 2 for a guided batch, 1 without negative prompts, 3 with image guidance.
            is_cross: True for cross-attention, where only the rows of the prompts change, token by token.
        """
        picture_count = len(self._token_mappers)
        rows = maps.clone().view(parts, 2, picture_count, heads, *maps.shape[1:])
        source = rows[:, 1]
        if not is_cross:
            rows[:, 0] = source
            return rows.view_as(maps)
        for picture, mapper in enumerate(self._token_mappers):
            indices = mapper.to(maps.device)
            source_maps = source[-1, picture].index_select(-1, indices.clamp(min=0))
            original_maps: Tensor = rows[-1, 0, picture]
            rows[-1, 0, picture] = torch.where(indices >= 0, source_maps, original_maps)
        return rows.view_as(maps)


def map_tokens(tokens: Sequence[int], source_tokens: Sequence[int]) -> Tensor:
    """Return for each token the index of its counterpart in the source prompt, or -1 where the token is new.

    The counterpart is the same token, or the one that it replaces where as many tokens replace as are replaced.
    """
    mapper = torch.full((len(tokens),), -1, dtype=torch.long)
    matcher = SequenceMatcher(None, source_tokens, tokens, autojunk=False)
    for change, from_start, from_end, to_start, to_end in matcher.get_opcodes():
        if change == "equal" or (change == "replace" and from_end - from_start == to_end - to_start):
            mapper[to_start:to_end] = torch.arange(from_start, from_end)
    return mapper


@contextmanager
def replace_attention(unet: UNet2DConditionModel, replacement: AttentionReplacement, parts: int) -> Generator[None]:
    """Replace attention maps in a UNet until the context ends, whenever the replacement is active.

    Args:
        unet: Its attention processors are wrapped, and restored at the end, also after an error.
        replacement: Decides which maps are replaced, and when.
        parts: 2 for a guided batch, 1 without negative prompts, 3 with image guidance.
    """
    original_processors: dict[str, Any] = unet.attn_processors
    unet.set_attn_processor(
        {  # pyright: ignore[reportArgumentType]
            name: _P2PAttnProcessor(processor, replacement, parts) for name, processor in original_processors.items()
        }
    )
    try:
        yield
    finally:
        unet.set_attn_processor(original_processors)


class _P2PAttnProcessor:
    """An attention processor that replaces maps where it should, and else calls the processor that it wraps."""

    def __init__(self, processor: Any, replacement: AttentionReplacement, parts: int) -> None:
        self._processor, self._replacement, self._parts = processor, replacement, parts

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: object,
    ) -> Tensor:
        is_cross = encoder_hidden_states is not None
        if not self._replacement.is_active or not (is_cross or hidden_states.shape[1] <= MAX_SELF_ATTENTION_PIXELS):
            return self._processor(attn, hidden_states, encoder_hidden_states, attention_mask, **others)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(projection) for projection in (query, key, value))
        maps = attn.get_attention_scores(query, key, attention_mask)  # (rows * heads, pixels, tokens)
        maps = self._replacement.replace_maps(maps, attn.heads, self._parts, is_cross=is_cross)
        mixed = attn.batch_to_head_dim(torch.bmm(maps, value))
        return attn.to_out[1](attn.to_out[0](mixed))
