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

LARGEST_SELF = 32 * 32  # places of a picture; finer maps carry texture rather than layout, and cost most


@dataclass
class Layout:
    """Which attention maps are held; holds is switched off once enough steps are taken.

    sources: for each token of the context the one of the source's whose map it takes, -1 where it keeps its own. The
    rows of a batch are [negative prompts, prompts] or prompts only; each part holds the pictures, then their sources.
    """

    sources: Sequence[Tensor]
    holds: bool = True

    def held(self, maps: Tensor, heads: int, parts: int, *, crossing: bool) -> Tensor:
        """Attention maps (rows * heads, places, tokens) with those of the sources in the pictures' rows."""
        count = len(self.sources)
        rows = maps.clone().view(parts, 2, count, heads, *maps.shape[1:])
        source = rows[:, 1]
        if not crossing:
            rows[:, 0] = source
            return rows.view_as(maps)
        for picture, tokens in enumerate(self.sources):
            here = tokens.to(maps.device)
            taken = source[-1, picture].index_select(-1, here.clamp(min=0))
            kept: Tensor = rows[-1, 0, picture]
            rows[-1, 0, picture] = torch.where(here >= 0, taken, kept)  # the prompts' part only
        return rows.view_as(maps)


def aligned(tokens: Sequence[int], source: Sequence[int]) -> Tensor:
    """For each token the place of the same one in the source, or of the one that it replaces, or -1 where it is new."""
    places = torch.full((len(tokens),), -1, dtype=torch.long)
    for change, from_start, from_end, to_start, to_end in SequenceMatcher(None, source, tokens, False).get_opcodes():
        if change == "equal" or (change == "replace" and from_end - from_start == to_end - to_start):
            places[to_start:to_end] = torch.arange(from_start, from_end)
    return places


@contextmanager
def holding(unet: UNet2DConditionModel, layout: Layout, parts: int) -> Generator[None]:
    """Let the pictures of a batch take their sources' attention maps for as long as this lasts and layout.holds.

    parts: 2 for a guided batch, else 1.
    """
    own: dict[str, Any] = unet.attn_processors
    unet.set_attn_processor({name: _Holding(each, layout, parts) for name, each in own.items()})  # pyright: ignore
    try:
        yield
    finally:
        unet.set_attn_processor(own)


class _Holding:
    """An attention processor that lets maps be held, and leaves the rest to the one in whose place it stands."""

    def __init__(self, own: Any, layout: Layout, parts: int) -> None:
        self._own, self._layout, self._parts = own, layout, parts

    def __call__(
        self,
        layer: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: object,
    ) -> Tensor:
        crossing = encoder_hidden_states is not None
        if not self._layout.holds or not (crossing or hidden_states.shape[1] <= LARGEST_SELF):
            return self._own(layer, hidden_states, encoder_hidden_states, attention_mask, **others)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = layer.to_q(hidden_states), layer.to_k(context), layer.to_v(context)
        query, key, value = (layer.head_to_batch_dim(each) for each in (query, key, value))
        maps = layer.get_attention_scores(query, key, attention_mask)  # (rows * heads, places, tokens)
        maps = self._layout.held(maps, layer.heads, self._parts, crossing=crossing)
        mixed = layer.batch_to_head_dim(torch.bmm(maps, value))
        return layer.to_out[1](layer.to_out[0](mixed))
