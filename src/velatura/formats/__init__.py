"""How bases and overlays look on disk: one row here for each dialect; the first that knows a file reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from velatura.base.base import Base
from velatura.errors import BadFile, UnknownName
from velatura.formats import a1111_hypernetwork, folder, native
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, open_tensors


@dataclass(frozen=True)
class Dialect:
    """One way in which overlays are written down; ending is what its files are called."""

    ending: str
    sniff: Callable[[Contents], bool]
    read: Callable[[Contents], Overlay]
    write: Callable[[Overlay, Path], None]


DIALECTS = {
    "velatura": Dialect(".safetensors", native.sniff, native.read, native.write),
    "a1111": Dialect(".pt", a1111_hypernetwork.sniff, a1111_hypernetwork.read, a1111_hypernetwork.write),
}


def open_overlay(path: str | PathLike[str]) -> Overlay:
    """Open an overlay of any kind and dialect, by what is in the file; it comes in eval mode, on the CPU."""
    contents = open_tensors(Path(path).expanduser())
    for dialect in DIALECTS.values():
        if dialect.sniff(contents):
            overlay = dialect.read(contents)
            overlay.source = contents.path
            return overlay
    raise BadFile(f"{contents.path.name} is no overlay that is known here: {', '.join(DIALECTS)} files are")


def save(overlay: Overlay, path: str | PathLike[str], dialect: str | None = None) -> None:
    """Write an overlay, at once or not at all; the path's ending names the dialect, dialect overrules it."""
    path = Path(path).expanduser()
    endings = {each.ending: each for each in DIALECTS.values()}
    if dialect is None and path.suffix not in endings:
        raise UnknownName.among("ending of a file", path.suffix, endings)
    if dialect is not None and dialect not in DIALECTS:
        raise UnknownName.among("dialect", dialect, DIALECTS)
    chosen = endings[path.suffix] if dialect is None else DIALECTS[dialect]
    chosen.write(overlay, path)


def open_base(
    path: str | PathLike[str], *, dtype: str | torch.dtype = "auto", device: str | torch.device = "auto"
) -> Base:
    """Open a base from a diffusers folder.

    device "auto" is CUDA where there is one; dtype "auto" is float16 there, and float32 elsewhere.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise BadFile(f"{path} does not exist: give the folder of a Stable Diffusion in diffusers' layout")
    if not folder.sniff(path):
        raise BadFile(f"{path} is no diffusers folder (model_index.json, unet, vae, ...): give the path of one")
    place = _device(device)
    return folder.read(path).to(place, _dtype(dtype, place))


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise UnknownName.among("device", str(device), ["auto", "cpu", "cuda", "mps"]) from None


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    precisions = {
        "auto": torch.float16 if device.type == "cuda" else torch.float32,
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }
    if dtype not in precisions:
        raise UnknownName.among("precision", dtype, precisions)
    return precisions[dtype]
