"""What tests of bases on disk share: the tensors of a base by name, and checkpoints with a few tensors changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import velatura
from velatura.tensors import Contents, open_tensors


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Return True if both have equal tensors under equal names."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def all_tensors(models: Mapping[str, torch.nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of all models, with the model's name as prefix."""
    return {f"{part}.{key}": tensor for part, model in models.items() for key, tensor in model.state_dict().items()}


def weights(base: velatura.Base) -> dict[str, Tensor]:
    """Return all tensors of a base."""
    text = {f"text{index}": encoder.model for index, encoder in enumerate(base.text.encoders)}
    return all_tensors({"unet": base.unet, "vae": base.vae, **text})


def changed(file: Path, *, metadata: Mapping[str, str] | None = None, **tensors: Tensor | None) -> Contents:
    """Return a checkpoint's contents with other tensors (None removes one), and with other metadata if it is given."""
    contents = open_tensors(file)
    merged = {key: tensor for key, tensor in (dict(contents.tensors) | tensors).items() if tensor is not None}
    return Contents(file, merged, contents.metadata if metadata is None else metadata)
