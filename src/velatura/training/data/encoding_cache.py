"""Encoded pictures and captions on disk, under a hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from velatura.errors import BadFile, warn
from velatura.library.index import cache_folder
from velatura.tensors import open_tensors, write_safetensors

CACHE_FOLDER = "encodings"
MAX_CACHE_BYTES = 4 * 2**30  # 30,000 pictures of 512 pixels, or 17,000 captions of SD1
CHECKSUM_KEY = "sum"

EncodedTensors = Mapping[str, Tensor]


class EncodingCache:
    """Tensors by key in a folder, which several processes may share and which may be deleted at any time.

    No fault of the folder stops a training: what cannot be read is computed again, and what cannot be written leads to
    one warning.

    Args:
        folder: Folder of the cache; None to compute everything.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @classmethod
    def open_default(cls) -> EncodingCache:
        """Open the cache in VELATURA_CACHE, or in the user's cache folder."""
        return cls(cache_folder(None) / CACHE_FOLDER)

    def get_or_make(self, key: str | None, make: Callable[[], EncodedTensors]) -> EncodedTensors:
        """Return the tensors under a key, and compute and store them if there are none.

        Args:
            key: See `cache_key`; None to compute without the cache.
            make: Computes the tensors.
        """
        if self._folder is None or key is None:
            return make()
        path = self._folder / key[:2] / f"{key}.safetensors"
        tensors = _read(path)
        if tensors is None:
            tensors = make()
            self._write(path, tensors)
        return tensors

    def trim(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        """Remove the least recently used entries until at most `max_bytes` are left."""
        if self._folder is None:
            return
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*/*.safetensors"):
            with suppress(OSError):  # another process may remove the same file
                stat = path.stat()
                entries.append((stat.st_mtime, stat.st_size, path))
        total_bytes = sum(byte_count for _, byte_count, _ in entries)
        for _, byte_count, path in sorted(entries):
            if total_bytes <= max_bytes:
                return
            with suppress(OSError):
                path.unlink()
            total_bytes -= byte_count

    def _write(self, path: Path, tensors: EncodedTensors) -> None:
        try:
            write_safetensors(path, tensors, {CHECKSUM_KEY: _checksum(tensors)})
        except BadFile as error:
            warn(f"encoded pictures and captions cannot be cached ({error}); set VELATURA_CACHE to another folder")
            self._folder = None


def cache_key(inputs: Mapping[str, object], model_fingerprint: str | None) -> str | None:
    """Return a hash of everything that an encoding depends on, or None if the model has no fingerprint.

    Args:
        inputs: Values by name; their JSON or repr must tell them apart.
        model_fingerprint: See `fingerprint_models`.
    """
    if model_fingerprint is None:
        return None
    text = json.dumps(
        {"torch": torch.__version__, "made by": model_fingerprint, **inputs}, sort_keys=True, default=repr
    )
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def fingerprint_models(models: Iterable[nn.Module]) -> str | None:
    """Return a hash of the weights and configs of models, or None if hooks of others change what they compute."""
    digest = hashlib.sha256()
    for model in models:
        if any(map(_is_hooked, model.modules())):
            return None
        digest.update(_model_config(model).encode())
        for name, weight in model.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {weight.device.type}".encode())
            digest.update(_bytes(weight))
    return digest.hexdigest()


def _model_config(model: nn.Module) -> str:
    """Return the model's config as JSON, without its path and library version."""
    config: Any = getattr(model, "config", {})
    values: dict[str, object] = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.dumps({name: value for name, value in values.items() if name[0] != "_"}, sort_keys=True, default=repr)


def _is_hooked(module: nn.Module) -> bool:
    """Return True if a module has a hook or a replaced forward, apart from hooks of transformers itself."""
    attributes = vars(module)
    hooks: list[object] = [*attributes["_forward_hooks"].values(), *attributes["_forward_pre_hooks"].values()]
    return "forward" in attributes or not all(
        str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks
    )


def _read(path: Path) -> EncodedTensors | None:
    """Return the tensors of an entry and mark it as used; return None if it is missing or damaged."""
    if not path.is_file():
        return None
    with suppress(BadFile, OSError):
        contents = open_tensors(path)
        tensors = {name: contents.tensors[name] for name in contents.tensors}
        if contents.metadata.get(CHECKSUM_KEY) == _checksum(tensors):
            with suppress(OSError):
                os.utime(path)
            return tensors
    return None


def _checksum(tensors: EncodedTensors) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in logical order, whatever its strides."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    numbers: Any = flat.view(torch.uint8).numpy()
    return memoryview(numbers)
