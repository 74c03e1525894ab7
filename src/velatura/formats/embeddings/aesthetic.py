"""Aesthetic embeddings in the files of A1111's extension: a torch file of one tensor, (features,) or (1, features)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import WrongBase, warn
from velatura.formats.clip import TEXT_FEATURES, find_text_projection
from velatura.formats.load_state import check_tensor
from velatura.overlays.aesthetic import NO_TEXT_WIDTH, Aesthetic, AestheticSettings
from velatura.overlays.overlay import Card, Overlay
from velatura.overlays.strength import disable_inference_mode
from velatura.tensors import Contents, write_torch

VECTOR_LENGTHS = frozenset(TEXT_FEATURES.values())
FAMILY_BY_LENGTH = {64: "tiny", 768: "SD1", 1024: "SD2"}


def sniff(contents: Contents) -> bool:
    """Return True if the file holds nothing but one vector, as long as an image embedding of a known CLIP."""
    return is_image_embedding(contents.payload)


def is_image_embedding(payload: object) -> bool:
    """Return True for one vector, as long as an image embedding of a known CLIP."""
    if not isinstance(payload, Tensor) or payload.ndim not in {1, 2}:
        return False
    return payload.shape[-1] in VECTOR_LENGTHS and payload.shape[:-1].numel() == 1


def read(contents: Contents) -> Aesthetic:
    """Read an aesthetic embedding.

    Its CLIP's text projection is not in the file. It is read from that CLIP's folder, where it is on this machine.

    Raises:
        BadFile: The vector is not finite floating-point numbers.
    """
    assert isinstance(contents.payload, Tensor)
    vector = check_tensor(contents.path.name, "its vector", contents.payload, contents.payload.shape).flatten()
    projection = find_text_projection(len(vector))  # (features, text width)
    text_width = NO_TEXT_WIDTH if projection is None else projection.shape[-1]
    card = Card(
        kind=Aesthetic.kind,
        name=contents.path.stem,
        family=FAMILY_BY_LENGTH.get(len(vector), ""),
        structure={"width": len(vector), "text_width": text_width},
    )
    with disable_inference_mode():
        aesthetic = Aesthetic(card)
        aesthetic.load_state_dict({"vector": vector} | ({} if projection is None else {"projection": projection}))
    return aesthetic


def write(overlay: Overlay, path: Path) -> None:
    """Write the vector alone, in float32, and warn of settings that such a file cannot hold.

    Raises:
        WrongBase: The overlay is not an aesthetic embedding.
    """
    if not isinstance(overlay, Aesthetic):
        raise WrongBase(f"a .pt of one vector holds an aesthetic, not a {overlay.kind}: save it as .safetensors")
    defaults = AestheticSettings(width=overlay.settings.width, text_width=overlay.settings.text_width)
    if overlay.settings != defaults:
        warn(f"{path.name} holds the vector only, not its settings ({overlay.card.outline}): .safetensors keeps them")
    write_torch(path, overlay.vector.detach().to("cpu", torch.float32, copy=True)[None])
