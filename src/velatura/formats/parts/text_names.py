"""Recognise CLIP text encoders in a file by the names of their tensors, whatever prefix they have."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from velatura.formats.checkpoints.ldm_keys import keys_below
from velatura.formats.checkpoints.ldm_text import (
    NON_WEIGHTS,
    PROJECTION_KEY,
    TEXT_MODEL_PREFIX,
    clip_from_ldm,
    open_clip_from_ldm,
)
from velatura.formats.checkpoints.tensor_sources import TensorSource, TensorSources

# Transformers' names, with the level "text_model." that CLIPTextModel has lacked since transformers 5, or without
CLIP_MARK = re.compile(
    rf"(?P<prefix>(?:.*?\.)??)(?:{re.escape(TEXT_MODEL_PREFIX)})?embeddings\.token_embedding\.weight"
)
OPEN_CLIP_MARK = re.compile(r"(?P<prefix>(?:.*\.)?)token_embedding\.weight")
CLIP_MODULES = ("embeddings.", "encoder.layers.", "final_layer_norm.")
OPEN_CLIP_MODULES = (
    "token_embedding.",
    "positional_embedding",
    "transformer.resblocks.",
    "ln_final.",
    "text_projection",
)


def find_text_encoders(keys: Collection[str]) -> list[TensorSources]:
    """Return the sources of every CLIP text encoder in a file, in the order of its prefixes.

    Args:
        keys: All keys: of a checkpoint, of a file such as ComfyUI's clip_l.safetensors and clip_g.safetensors, of a
            whole CLIP with its image encoder, under the names of transformers or of OpenCLIP.

    Returns:
        For each encoder the sources by transformers' names without "text_model."; with the projection, if there is one.
    """
    return [sources for _, sources in sorted(_encoders(keys), key=lambda encoder: encoder[0])]


def _encoders(keys: Collection[str]) -> Iterator[tuple[str, TensorSources]]:
    for key in keys:
        if match := CLIP_MARK.fullmatch(key):
            yield match["prefix"], _clip_sources(match["prefix"], keys)
        elif match := OPEN_CLIP_MARK.fullmatch(key):
            yield match["prefix"], _open_clip_sources(match["prefix"], keys)


def _clip_sources(prefix: str, keys: Iterable[str]) -> TensorSources:
    below = keys_below(prefix, keys)
    modules = [
        file_key for key, file_key in below.items() if key.removeprefix(TEXT_MODEL_PREFIX).startswith(CLIP_MODULES)
    ]
    projection = {PROJECTION_KEY: TensorSource(below[PROJECTION_KEY])} if PROJECTION_KEY in below else {}
    return {**clip_from_ldm(modules, prefix), **projection}


def _open_clip_sources(prefix: str, keys: Iterable[str]) -> TensorSources:
    below = keys_below(prefix, keys)
    modules = [
        file_key
        for key, file_key in below.items()
        if key.startswith(OPEN_CLIP_MODULES) and not key.endswith(NON_WEIGHTS)
    ]
    sources = open_clip_from_ldm(modules, prefix, has_projection=True)
    return {key.removeprefix(TEXT_MODEL_PREFIX): source for key, source in sources.items()}
