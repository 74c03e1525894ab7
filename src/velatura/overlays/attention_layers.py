"""Attention layers of a UNet, and the blocks in which they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from torch import nn

from velatura.prompts.strengths import UNET_BLOCKS, UNetBlock

BLOCK_PREFIXES: dict[UNetBlock, str] = {"in": "down_blocks.", "mid": "mid_block.", "out": "up_blocks."}


def attention_layers(model: nn.Module, blocks: Iterable[UNetBlock] = UNET_BLOCKS) -> Iterator[tuple[str, nn.Module]]:
    """Yield all layers that read a context through to_k and to_v, with their names; only those of the given blocks."""
    selected_blocks = set(blocks)
    prefixes = tuple(BLOCK_PREFIXES[block] for block in selected_blocks)
    for name, layer in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        has_kv = isinstance(getattr(layer, "to_k", None), nn.Module) and isinstance(
            getattr(layer, "to_v", None), nn.Module
        )
        if has_kv and (selected_blocks == set(UNET_BLOCKS) or name.startswith(prefixes)):
            yield name, layer


def context_width(layer: nn.Module) -> int:
    """Return the number of features of the context that an attention layer reads."""
    width = layer.get_submodule("to_k").in_features
    assert isinstance(width, int)
    return width
