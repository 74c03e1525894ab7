"""The weights of one part of a diffusers folder: one file, or shards that an index lists; full, or a half variant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from velatura.errors import BadFile
from velatura.tensors import Contents, Lazy, open_state, sketches

LONGEST_INDEX = 2**24  # characters; an SDXL's has about 2**17
SHARD = re.compile(r"[\w.-]+-\d{5}-of-\d{5}\.(safetensors|bin)")


class Shards(Lazy):
    """The tensors of several files under one roof."""

    def __init__(self, files: Mapping[str, Contents]) -> None:
        self._files = files  # by the key of the tensor

    def __getitem__(self, key: str) -> Tensor:
        return self._files[key].tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def sketch(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        tensors = self._files[key].tensors
        return tensors.sketch(key) if isinstance(tensors, Lazy) else sketches({key: tensors[key]})[key]


def weights(folder: Path, stem: str, torch_stem: str | None = None) -> Contents:
    """Open the weights of a part by the names its library gives them: safetensors first, the full before the half.

    torch_stem: what the older torch file is called, if not the same.
    """
    places = [(stem, "safetensors"), (torch_stem or stem, "bin")]
    for name, ending in places:
        for variant in ("", ".fp16"):
            whole = folder / f"{name}{variant}.{ending}"
            if whole.is_file():
                return open_state(whole)
            index = folder / f"{name}.{ending}.index{variant}.json"
            if index.is_file():
                return _joined(index)
    wanted = " nor ".join(f"{name}{variant}.{ending}" for name, ending in places for variant in ("", ".fp16"))
    others = ", ".join(sorted(path.name for path in folder.glob("*.[sb][ai]*"))[:5]) or "no weights at all"
    raise BadFile(f"{folder} holds neither {wanted} but {others}: download the whole folder again")


def _joined(index: Path) -> Contents:
    """The tensors of all shards that an index lists, each in the file where it says."""
    places = _listed(index)
    files = {name: open_state(index.with_name(name)) for name in sorted(set(places.values()))}
    for key, name in places.items():
        if key not in files[name].tensors:
            raise BadFile(f"{index} says that {key[:60]!r} is in {name}, where it is not: download the folder again")
    first = files[min(files)]
    return Contents(first.path, Shards({key: files[name] for key, name in places.items()}), first.metadata)


def _listed(index: Path) -> dict[str, str]:
    try:
        text = index.read_text(encoding="utf-8")
        found: object = json.loads(text) if len(text) < LONGEST_INDEX else None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{index} cannot be read ({error}): download the whole folder again") from None
    named = cast("dict[str, object]", found).get("weight_map") if isinstance(found, dict) else None
    places = cast("dict[str, object]", named) if isinstance(named, dict) else {}
    for name in places.values():
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise BadFile(f"{index} sends to {str(name)[:60]!r}, which is no shard beside it: do not trust it")
    if not places:
        raise BadFile(f"{index} lists no weights: download the whole folder again")
    return cast("dict[str, str]", places)
