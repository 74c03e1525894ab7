"""Holding the layout of one prompt's picture while another prompt is painted (prompt-to-prompt, Hertz et al. 2022)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

MAX_SELF_ATTENTION_PIXELS = 32 * 32  # places of a picture; finer maps carry texture rather than layout, and cost most


@dataclass
class AttentionReplacement:
    """Which attention maps are held; holds is switched off once enough steps are taken.

    sources: for each token of the context the one of the source's whose map it takes, -1 where it keeps its own. The
    rows of a batch are [negative prompts, prompts] or prompts only; each part holds the pictures, then their sources.
    """

    token_mappers: Sequence[Tensor]
    is_active: bool = True

    def replace_maps(self, maps: Tensor, heads: int, parts: int, *, is_cross: bool) -> Tensor:
        """Attention maps (rows * heads, places, tokens) with those of the sources in the pictures' rows."""
        picture_count = len(self.token_mappers)
        rows = maps.clone().view(parts, 2, picture_count, heads, *maps.shape[1:])
        source = rows[:, 1]
        if not is_cross:
            rows[:, 0] = source
            return rows.view_as(maps)
        for picture, mapper in enumerate(self.token_mappers):
            indices = mapper.to(maps.device)
            source_maps = source[-1, picture].index_select(-1, indices.clamp(min=0))
            original_maps: Tensor = rows[-1, 0, picture]
            rows[-1, 0, picture] = torch.where(indices >= 0, source_maps, original_maps)  # the prompts' part only
        return rows.view_as(maps)


def map_tokens(tokens: Sequence[int], source_tokens: Sequence[int]) -> Tensor:
    """For each token the place of the same one in the source, or of the one that it replaces, or -1 where it is new."""
    mapper = torch.full((len(tokens),), -1, dtype=torch.long)
    for change, from_start, from_end, to_start, to_end in SequenceMatcher(
        None, source_tokens, tokens, False
    ).get_opcodes():
        if change == "equal" or (change == "replace" and from_end - from_start == to_end - to_start):
            mapper[to_start:to_end] = torch.arange(from_start, from_end)
    return mapper


@contextmanager
def replace_attention(unet: UNet2DConditionModel, replacement: AttentionReplacement, parts: int) -> Generator[None]:
    """Let the pictures of a batch take their sources' attention maps for as long as this lasts and layout.holds.

    parts: 2 for a guided batch, else 1.
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
    """An attention processor that lets maps be held, and leaves the rest to the one in whose place it stands."""

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
        maps = attn.get_attention_scores(query, key, attention_mask)  # (rows * heads, places, tokens)
        maps = self._replacement.replace_maps(maps, attn.heads, self._parts, is_cross=is_cross)
        mixed = attn.batch_to_head_dim(torch.bmm(maps, value))
        return attn.to_out[1](attn.to_out[0](mixed))
