"""Save overlays and bases in any format."""

from __future__ import annotations

from copy import deepcopy
from os import PathLike
from pathlib import Path

import torch

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.devices import find_dtype
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.errors import BadOverlay, UnknownName
from velatura.formats.checkpoints import write_folder, write_single_file
from velatura.formats.dialects import DIALECTS, Dialect
from velatura.overlays.attach import warn_of_overlays_left_out
from velatura.overlays.composition import Composition
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay

CHECKPOINT_SUFFIX = ".safetensors"


@freeze_models
@check_arguments()
def save(
    overlay_or_base: Overlay | AnyBase,
    path: str | PathLike[str],
    dialect: str | None = None,
    *,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Save an overlay or a base.

    The file is written beside its place and then renamed, so that a failure leaves nothing half written.

    Args:
        overlay_or_base: Any overlay except a composition, a base, or a diffusers pipeline.
        path: Where to write. For an overlay the ending chooses the format: ".safetensors" is velatura's own, ".pt" is
            A1111's, ".png" and ".bin" are for embeddings, a LoRA without an ending becomes the folder of a PEFT
            adapter. A base with ".safetensors" becomes one checkpoint under the names that A1111, ComfyUI and
            diffusers know; a path without an ending, or with "/" at its end, becomes a diffusers folder.
        dialect: Name of a format in DIALECTS, which overrules the ending. For overlays only.
        dtype: Precision of the file, such as "float16". For bases and LoRAs only; the default keeps their own.

    Raises:
        UnknownName: No such dialect, ending or precision, or a dialect for a base.
        BadOverlay: A composition, or `dtype` for an overlay that is not a LoRA.
        WrongBase: The format cannot hold an embedding for the two text encoders of SDXL.
        UnsupportedBase: The base has settings that the format cannot store.
        AlreadyExists: The folder for a base exists and is not empty.
        BadFile: The place cannot be written to.
    """
    if not isinstance(overlay_or_base, Overlay):
        _save_base(to_base(overlay_or_base, "overlay_or_base"), path, dialect, dtype)
        return
    _save_overlay(overlay_or_base, Path(path).expanduser(), dialect, dtype)


def _save_overlay(overlay: Overlay, path: Path, dialect: str | None, dtype: str | torch.dtype | None) -> None:
    if isinstance(overlay, Composition):
        name = overlay.card.name or "this overlay"
        raise BadOverlay(f"{name} is a composition of others: keep its .hns file, and save the others")
    if dtype is not None:
        if overlay.kind != Lora.kind:
            raise BadOverlay(
                f"only bases and LoRAs can be saved in another precision, not a {overlay.kind}: leave dtype out"
            )
        overlay = deepcopy(overlay).to(find_dtype(dtype, torch.device("cpu"), 0))
    _find_dialect_to_write(overlay.kind, path, dialect).write(overlay, path)


def _find_dialect_to_write(kind: str, path: Path, name: str | None) -> Dialect:
    """Return the dialect of a name, or without one the first dialect for the path's ending."""
    candidates = [candidate for candidate in DIALECTS if candidate.kind in {"", kind}]
    candidates.reverse()  # so that the first of two rows stays in the dictionaries below
    if name is not None:
        by_name = {candidate.name: candidate for candidate in candidates}
        if name not in by_name:
            raise UnknownName.with_suggestions("dialect", name, by_name)
        return by_name[name]
    by_suffix = {candidate.suffix: candidate for candidate in candidates}
    if path.suffix not in by_suffix:
        raise UnknownName.with_suggestions(f"file ending for a {kind}", path.suffix, filter(None, by_suffix))
    return by_suffix[path.suffix]


def _save_base(base: Base, path: str | PathLike[str], dialect: str | None, dtype: str | torch.dtype | None) -> None:
    if dialect is not None:
        raise UnknownName(f"a base has no dialect such as {dialect!r}: its path chooses the format; leave dialect out")
    precision = None if dtype is None else find_dtype(dtype, base.device, base.byte_count)
    is_folder = str(path).endswith(("/", "\\"))
    path = Path(path).expanduser()
    warn_of_overlays_left_out(base, f"{path.name} is written")
    if is_folder or not path.suffix or path.is_dir():
        write_folder.write(base, path, dtype=precision)
        return
    if path.suffix != CHECKPOINT_SUFFIX:
        raise UnknownName.with_suggestions("file ending for a checkpoint", path.suffix, [CHECKPOINT_SUFFIX])
    write_single_file.write(base, path, dtype=precision)
