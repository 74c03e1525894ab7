"""Writing of tensor files: atomically, and the same tensors always in the same bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import torch
from PIL.Image import Image
from torch import Tensor

from velatura.files import atomic_write
from velatura.tensors import pictures, safetensors_files
from velatura.tensors.open import StrPath


def write_safetensors(
    path: StrPath,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors and metadata as safetensors, atomically. The same tensors give the same bytes.

    Args:
        path: Target file; it is replaced if it exists.
        tensors: Tensors by name. Lazy tensors are read one by one.
        metadata: Texts by name.
        dtype: Precision of floating-point tensors in the file; None keeps each tensor's precision.

    Raises:
        BadFile: if the file cannot be written, or a value is too large for the precision.
    """
    with atomic_write(path) as temporary:
        safetensors_files.write(temporary, tensors, metadata or {}, dtype)


def write_torch(path: StrPath, payload: object) -> None:
    """Write an object with tensors as a torch zip that every torch since 1.6 and every A1111 opens, atomically."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    with zipfile.ZipFile(buffer) as modern, atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as classic:
        for name in modern.namelist():
            _, _, member = name.partition("/")
            # A1111 before 1.10 refuses files with any other member
            if member in {"data.pkl", "version"} or member.removeprefix("data/").isdigit():
                classic.writestr(zipfile.ZipInfo(f"archive/{member}"), modern.read(name))  # without a time, like torch


def write_picture(path: StrPath, picture: Image, payload: Mapping[str, object]) -> None:
    """Write a PNG with a dict of tensors in it, in A1111's format of embeddings, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(pictures.write(picture, payload))
