"""What a DreamBooth training leaves: a whole checkpoint, a whole folder, or the difference that was learned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import torch

from velatura.base.base import Base
from velatura.errors import UnknownName
from velatura.formats import save
from velatura.merging.bake import copied
from velatura.merging.summed import LaidDeltas, add_deltas
from velatura.overlays.difference import Difference

Form = Literal["difference", "checkpoint", "folder"]
FORMS: tuple[Form, ...] = get_args(Form)


def with_difference(base: Base, difference: Difference, strength: float = 1.0, *, name: str = "") -> Base:
    """A base of its own that has a difference in its weights; the other one stays as it is."""
    made = copied(base, name or difference.card.name or base.name)
    add_deltas(base, made, [LaidDeltas.of(base, difference, strength)])
    return made


def save_as(
    form: str,
    base: Base,
    difference: Difference,
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Write what was learned on a base, and give back where: as a checkpoint in A1111's names, or a diffusers folder.

    path: without an ending. dtype: of a checkpoint or folder, the base's own if none is given.
    """
    if form not in FORMS:
        raise UnknownName.among("form of what DreamBooth leaves", form, FORMS)
    path = Path(path).expanduser()
    if form == "difference":
        save(difference, path.with_name(f"{path.name}.safetensors"))
        return path.with_name(f"{path.name}.safetensors")
    where = path if form == "folder" else path.with_name(f"{path.name}.safetensors")
    save(with_difference(base, difference), f"{where}/" if form == "folder" else where, dtype=dtype)
    return where
