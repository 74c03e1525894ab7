"""The weights of one model in a diffusers folder: one file, or shards with an index; in full precision, or fp16."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.checkpoints import SHARD_NUMBER, VARIANTS, WEIGHTS_SUFFIXES
from velatura.formats.json_files import read_json_object
from velatura.tensors import Contents, LazyTensors, meta_tensors, open_state_dict

SHARD_NAME = re.compile(rf"[\w.-]+{SHARD_NUMBER}\.({'|'.join(WEIGHTS_SUFFIXES)})")
MAX_INDEX_BYTES = 2**24  # an SDXL's index has about 2**17


class ShardedTensors(LazyTensors):
    """Tensors of several files as one mapping; a tensor is read whenever it is asked for."""

    def __init__(self, file_by_key: Mapping[str, Contents]) -> None:
        self._file_by_key = file_by_key

    def __getitem__(self, key: str) -> Tensor:
        return self._file_by_key[key].tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_by_key)

    def __len__(self) -> int:
        return len(self._file_by_key)

    def meta_tensor(self, key: str) -> Tensor:
        """Return a tensor on the meta device: its shape and precision without its values."""
        tensors = self._file_by_key[key].tensors
        return tensors.meta_tensor(key) if isinstance(tensors, LazyTensors) else meta_tensors({key: tensors[key]})[key]


def open_weights(folder: Path, stem: str, torch_stem: str | None = None) -> Contents:
    """Open the weights of one model of a diffusers or transformers folder.

    Args:
        folder: Folder of the model, such as unet/.
        stem: Name of the weights without ending, such as "diffusion_pytorch_model".
        torch_stem: The same for the older torch file, if it has another name.

    Returns:
        Tensors that are read when they are asked for, and the path of the file, or of the first shard.

    Raises:
        BadFile: No weights have these names, or an index or a shard is damaged.
    """
    candidates = [
        (torch_stem if torch_stem and suffix == "bin" else stem, variant, suffix)
        for suffix in WEIGHTS_SUFFIXES
        for variant in VARIANTS
    ]
    for name, variant, suffix in candidates:
        weights_file = folder / f"{name}{variant}.{suffix}"
        if weights_file.is_file():
            return open_state_dict(weights_file)
        index_file = folder / f"{name}.{suffix}.index{variant}.json"
        if index_file.is_file():
            return _open_shards(index_file)
    expected = " nor ".join(f"{name}{variant}.{suffix}" for name, variant, suffix in candidates)
    others = ", ".join(sorted(path.name for path in folder.glob("*.[sb][ai]*"))[:5]) or "no weights at all"
    raise BadFile(f"{folder} holds neither {expected} but {others}: download the whole folder again")


def _open_shards(index: Path) -> Contents:
    """Open all shards that an index lists."""
    weight_map = _read_weight_map(index)
    files = {name: open_state_dict(index.with_name(name)) for name in sorted(set(weight_map.values()))}
    for key, name in weight_map.items():
        if key not in files[name].tensors:
            raise BadFile(f"{index} says that {key[:60]!r} is in {name}, but it is not: download the folder again")
    first_file = files[min(files)]
    tensors = ShardedTensors({key: files[name] for key, name in weight_map.items()})
    return Contents(first_file.path, tensors, first_file.metadata)


def _read_weight_map(index: Path) -> dict[str, str]:
    """Return the names of the shards by tensor; a name of anything but a shard in the same folder is refused."""
    stored_map = read_json_object(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    weight_map = cast("dict[str, object]", stored_map) if isinstance(stored_map, dict) else {}
    for name in weight_map.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise BadFile(f"{index} lists {str(name)[:60]!r}, which is not a shard in the same folder: do not trust it")
    if not weight_map:
        raise BadFile(f"{index} lists no weights: download the whole folder again")
    return cast("dict[str, str]", weight_map)
