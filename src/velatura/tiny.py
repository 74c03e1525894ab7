"""Data that ships with the package: the tiny base, and small folders of training pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from velatura.arguments import check_arguments
from velatura.errors import UnknownName
from velatura.imports import pause_garbage_collection

if TYPE_CHECKING:
    import torch

    from velatura.base.base import Base

DATA_FOLDER = Path(__file__).parent / "data"
TINY_HASH = "4e79e44e20"  # of the bundled UNet


@check_arguments()
def tiny(dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> Base:
    """Open the tiny base: a complete Stable Diffusion for pictures of 64 pixels, ready in seconds on a laptop.

    Args:
        dtype: Precision of the weights. "auto" is float32 on a CPU, where the same seed then gives the same picture
            bit for bit.
        device: Device to compute on.
    """
    with pause_garbage_collection():
        from velatura.formats.open import open_base

    return open_base(DATA_FOLDER / "tiny", dtype=dtype, device=device)


@check_arguments()
def bundled_picture_sets() -> list[str]:
    """Return the names of the bundled sets of pictures, sorted."""
    return sorted(path.name for path in (DATA_FOLDER / "pictures").glob("*/"))


@check_arguments()
def tiny_pictures(name: str) -> Path:
    """Return the folder of a bundled set of pictures: a style or a subject that the tiny base does not know.

    Raises:
        UnknownName: No set has that name.
    """
    folders = {folder: DATA_FOLDER / "pictures" / folder for folder in bundled_picture_sets()}
    if name not in folders:
        raise UnknownName.with_suggestions("set of pictures", name, folders)
    return folders[name]
