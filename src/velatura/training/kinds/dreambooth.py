"""What a DreamBooth training leaves: a whole checkpoint, a whole folder, or the difference that was learned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import torch

from velatura.base.base import Base
from velatura.errors import UnknownName
from velatura.formats import save
from velatura.merging.bake.bake import copy_base
from velatura.merging.bake.weight_deltas import WeightDeltas, add_deltas
from velatura.overlays.difference import Difference

OutputFormat = Literal["difference", "checkpoint", "folder"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)


def apply_difference(base: Base, difference: Difference, strength: float = 1.0, *, name: str = "") -> Base:
    """A base of its own that has a difference in its weights; the other one stays as it is."""
    result = copy_base(base, name or difference.card.name or base.name)
    add_deltas(base, result, [WeightDeltas.from_overlay(base, difference, strength)])
    return result


def save_dreambooth(
    output_format: str,
    base: Base,
    difference: Difference,
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Write what was learned on a base, and give back where: as a checkpoint in A1111's names, or a diffusers folder.

    path: without an ending. dtype: of a checkpoint or folder, the base's own if none is given.
    """
    if output_format not in OUTPUT_FORMATS:
        raise UnknownName.with_suggestions("form of what DreamBooth leaves", output_format, OUTPUT_FORMATS)
    path = Path(path).expanduser()
    if output_format == "difference":
        save(difference, path.with_name(f"{path.name}.safetensors"))
        return path.with_name(f"{path.name}.safetensors")
    target = path if output_format == "folder" else path.with_name(f"{path.name}.safetensors")
    save(apply_difference(base, difference), f"{target}/" if output_format == "folder" else target, dtype=dtype)
    return target
