"""What a base makes of a picture or of words, kept on disk between runs, by all that it was made of."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from velatura.errors import BadFile, VelaturaWarning
from velatura.library.index import cache_folder
from velatura.tensors import open_tensors, write_safetensors

CACHE_FOLDER = "encodings"
MAX_CACHE_BYTES = 4 * 2**30  # bytes: 30,000 pictures of 512 pixels, or 17,000 captions of an SD1
CHECKSUM_KEY = "sum"

EncodedTensors = Mapping[str, Tensor]


class EncodingCache:
    """Tensors by what they were made of, in a folder that several processes may share, and that may be lost any time.

    Nothing that is wrong with the folder stops a training: what cannot be read is made anew, what cannot be written is
    warned of once. Without a folder everything is made anew.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @classmethod
    def open_default(cls) -> EncodingCache:
        """Those in the folder of VELATURA_CACHE, or where the system keeps a user's caches."""
        return cls(cache_folder(None) / CACHE_FOLDER)

    def get_or_make(self, key: str | None, make: Callable[[], EncodedTensors]) -> EncodedTensors:
        """What was made before under a key, see key_of, or else what is made now; a key of None stands for no other."""
        if self._folder is None or key is None:
            return make()
        path = self._folder / key[:2] / f"{key}.safetensors"
        tensors = _read(path)
        if tensors is None:
            tensors = make()
            self._write(path, tensors)
        return tensors

    def trim(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        """Remove what has not been used for longest until no more than so many bytes are left."""
        if self._folder is None:
            return
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*/*.safetensors"):
            with suppress(OSError):  # another process may be at it too
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
            message = f"encoded pictures and captions are not kept ({error}); set VELATURA_CACHE to another folder"
            warnings.warn(message, VelaturaWarning, stacklevel=4)
            self._folder = None


def cache_key(inputs: Mapping[str, object], model_fingerprint: str | None) -> str | None:
    """The key of all that an encoding depends on; None where that cannot be told.

    what: values with a repr that tells them apart; made_by: the fingerprint of the model.
    """
    if model_fingerprint is None:
        return None
    text = json.dumps(
        {"torch": torch.__version__, "made by": model_fingerprint, **inputs}, sort_keys=True, default=repr
    )
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def fingerprint_models(models: Iterable[nn.Module]) -> str | None:
    """A hash of the weights and settings of models; None where anything hangs on them, which no weight tells of."""
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
    """The model's config, without where it came from and who wrote it."""
    config: Any = getattr(model, "config", {})
    values: dict[str, object] = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.dumps({name: value for name, value in values.items() if name[0] != "_"}, sort_keys=True, default=repr)


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody lies over a module, other than transformers itself, which listens to its layers."""
    attributes = vars(module)
    hooks: list[object] = [*attributes["_forward_hooks"].values(), *attributes["_forward_pre_hooks"].values()]
    return "forward" in attributes or not all(
        str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks
    )


def _read(path: Path) -> EncodedTensors | None:
    """The tensors of an entry, marked as used; None where there is none, or a damaged one."""
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
    """The numbers of a tensor in their order, however it lies in memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    numbers: Any = flat.view(torch.uint8).numpy()
    return memoryview(numbers)
