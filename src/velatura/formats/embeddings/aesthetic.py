"""Aesthetic embeddings as A1111's extension keeps them: a torch file of one tensor, (features,) or (1, features)."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import VelaturaWarning, WrongBase
from velatura.formats.clip import TEXT_FEATURES, find_text_projection
from velatura.formats.load_state import check_tensor
from velatura.overlays.aesthetic import Aesthetic, AestheticSettings
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, write_torch

VECTOR_LENGTHS = frozenset(TEXT_FEATURES.values())
FAMILY_BY_LENGTH = {64: "tiny", 768: "SD1", 1024: "SD2"}


def sniff(contents: Contents) -> bool:
    """Whether the file is nothing but one vector, as long as those of a CLIP that Stable Diffusions are from."""
    return is_image_embedding(contents.payload)


def is_image_embedding(payload: object) -> bool:
    """Whether this is what CLIP says of pictures."""
    if not isinstance(payload, Tensor) or payload.ndim not in {1, 2}:
        return False
    return payload.shape[-1] in VECTOR_LENGTHS and payload.shape[:-1].numel() == 1


def read(contents: Contents) -> Aesthetic:
    """Read a vector; how its CLIP reads texts is not in the file, and taken from that CLIP where it is at hand."""
    assert isinstance(contents.payload, Tensor)
    vector = check_tensor(contents.path.name, "its vector", contents.payload, contents.payload.shape).flatten()
    aesthetic = Aesthetic.from_vector(vector, find_text_projection(len(vector)), name=contents.path.stem)
    aesthetic.card = aesthetic.card.replace(family=FAMILY_BY_LENGTH.get(len(vector), ""))
    return aesthetic


def write(overlay: Overlay, path: Path) -> None:
    """Write the vector alone, in float32; warns of settings that have no place in such a file."""
    if not isinstance(overlay, Aesthetic):
        raise WrongBase(f"a .pt of one vector holds an aesthetic, not a {overlay.kind}: save it as .safetensors")
    defaults = AestheticSettings(width=overlay.settings.width, text_width=overlay.settings.text_width)
    if overlay.settings != defaults:
        message = (
            f"{path.name} holds the vector only, not its settings ({overlay.card.outline}): .safetensors keeps them"
        )
        warnings.warn(message, VelaturaWarning, stacklevel=3)
    write_torch(path, overlay.vector.detach().to("cpu", torch.float32, copy=True)[None])
