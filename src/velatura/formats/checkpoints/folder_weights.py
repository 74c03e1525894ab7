"""The weights of one part of a diffusers folder: one file, or shards that an index lists; full, or a half variant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from velatura.errors import BadFile
from velatura.tensors import Contents, LazyTensors, meta_tensors, open_state_dict

MAX_INDEX_LENGTH = 2**24  # characters; an SDXL's has about 2**17
SHARD_NAME = re.compile(r"[\w.-]+-\d{5}-of-\d{5}\.(safetensors|bin)")


class ShardedTensors(LazyTensors):
    """The tensors of several files under one roof."""

    def __init__(self, files: Mapping[str, Contents]) -> None:
        self._files = files  # by the key of the tensor

    def __getitem__(self, key: str) -> Tensor:
        return self._files[key].tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def meta_tensor(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        tensors = self._files[key].tensors
        return tensors.meta_tensor(key) if isinstance(tensors, LazyTensors) else meta_tensors({key: tensors[key]})[key]


def open_weights(folder: Path, stem: str, torch_stem: str | None = None) -> Contents:
    """Open the weights of a part by the names its library gives them: safetensors first, the full before the half.

    torch_stem: what the older torch file is called, if not the same.
    """
    candidates = [(stem, "safetensors"), (torch_stem or stem, "bin")]
    for name, suffix in candidates:
        for variant in ("", ".fp16"):
            weights_file = folder / f"{name}{variant}.{suffix}"
            if weights_file.is_file():
                return open_state_dict(weights_file)
            index_file = folder / f"{name}.{suffix}.index{variant}.json"
            if index_file.is_file():
                return _open_shards(index_file)
    expected = " nor ".join(f"{name}{variant}.{suffix}" for name, suffix in candidates for variant in ("", ".fp16"))
    others = ", ".join(sorted(path.name for path in folder.glob("*.[sb][ai]*"))[:5]) or "no weights at all"
    raise BadFile(f"{folder} holds neither {expected} but {others}: download the whole folder again")


def _open_shards(index: Path) -> Contents:
    """The tensors of all shards that an index lists, each in the file where it says."""
    weight_map = _read_weight_map(index)
    files = {name: open_state_dict(index.with_name(name)) for name in sorted(set(weight_map.values()))}
    for key, name in weight_map.items():
        if key not in files[name].tensors:
            raise BadFile(f"{index} says that {key[:60]!r} is in {name}, where it is not: download the folder again")
    first_file = files[min(files)]
    return Contents(
        first_file.path, ShardedTensors({key: files[name] for key, name in weight_map.items()}), first_file.metadata
    )


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        text = index.read_text(encoding="utf-8")
        index_json: object = json.loads(text) if len(text) < MAX_INDEX_LENGTH else None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{index} cannot be read ({error}): download the whole folder again") from None
    stored_map = cast("dict[str, object]", index_json).get("weight_map") if isinstance(index_json, dict) else None
    weight_map = cast("dict[str, object]", stored_map) if isinstance(stored_map, dict) else {}
    for name in weight_map.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise BadFile(f"{index} sends to {str(name)[:60]!r}, which is no shard beside it: do not trust it")
    if not weight_map:
        raise BadFile(f"{index} lists no weights: download the whole folder again")
    return cast("dict[str, str]", weight_map)
