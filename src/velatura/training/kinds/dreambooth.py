"""Results of a DreamBooth training: the difference that was learned, or a whole base with it, as file or folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import torch

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.errors import UnknownName
from velatura.formats.save import save
from velatura.merging.bake.bake import copy_base
from velatura.merging.bake.weight_deltas import WeightDeltas, add_deltas
from velatura.overlays.difference import Difference

OutputFormat = Literal["difference", "checkpoint", "folder"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)


def apply_difference(base: Base, difference: Difference, strength: float = 1.0, *, name: str = "") -> Base:
    """Return a copy of the base with a difference added to its weights.

    Args:
        base: Stays as it is.
        difference: What DreamBooth learned on the base.
        strength: Factor on the difference.
        name: Name of the copy; by default the difference's.
    """
    result = copy_base(base, name or difference.card.name or base.name)
    add_deltas(base, result, [WeightDeltas.from_overlay(base, difference, strength)])
    return result


@freeze_models
@check_arguments()
def save_dreambooth(
    output_format: str,
    base: AnyBase,
    difference: Difference,
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Write the result of a DreamBooth training.

    Args:
        output_format: "difference" for the difference alone, "checkpoint" for a single file with A1111's keys, "folder"
            for a diffusers folder.
        base: Base that the difference was learned on.
        difference: What was learned.
        path: Path without a suffix.
        dtype: dtype of a checkpoint or folder; by default the base's.

    Returns:
        Path of the file or folder written.

    Raises:
        UnknownName: The output format is unknown.
    """
    base = to_base(base)
    if output_format not in OUTPUT_FORMATS:
        raise UnknownName.with_suggestions("output format of DreamBooth", output_format, OUTPUT_FORMATS)
    path = Path(path).expanduser()
    file = path.with_name(f"{path.name}.safetensors")
    if output_format == "difference":
        save(difference, file)
        return file
    merged = apply_difference(base, difference)
    if output_format == "folder":
        save(merged, f"{path}/", dtype=dtype)
        return path
    save(merged, file, dtype=dtype)
    return file
