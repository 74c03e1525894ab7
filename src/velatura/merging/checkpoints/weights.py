"""The weights of a model under a checkpoint's names, wherever they come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadFile
from velatura.formats import open_base
from velatura.formats.checkpoints import folder_weights, single_file, write_single_file
from velatura.tensors import Contents, LazyTensors, StrPath, apply_to, meta_tensors, open_state_dict

# what the first checkpoints lack in the names of CLIP's tensors
OLD_CLIP_KEY = re.compile(r"(cond_stage_model\.transformer\.)((?:embeddings|encoder|final_layer_norm)\.)")


@dataclass(frozen=True, eq=False)
class ModelWeights(LazyTensors):
    """A model's tensors by today's names; a file's are read as they are asked for.

    keys: the file's own names, by today's. path: the file, if there is one.
    """

    name: str
    contents: Contents
    file_keys: Mapping[str, str]
    path: Path | None = None

    @classmethod
    def from_model(cls, model: Base | StrPath) -> Self:
        """Look at a base, or at a file of weights; a diffusers folder is loaded whole, as its names are others."""
        if isinstance(model, Base):
            return cls._from_contents(model.name, write_single_file.checkpoint_contents(model))
        path = Path(model).expanduser()
        if path.is_dir():
            tensors = meta_tensors(folder_weights.open_weights(path / "unet", "diffusion_pytorch_model").tensors)
            base = open_base(path, device="cpu", dtype=next(iter(tensors.values())).dtype)
            return cls._from_contents(path.name, write_single_file.checkpoint_contents(base), path)
        contents = open_state_dict(path)
        if not single_file.sniff(contents):
            raise BadFile(f"{path.name} is no Stable Diffusion checkpoint: give one, or a diffusers folder")
        return cls._from_contents(path.stem, contents, path)

    @classmethod
    def _from_contents(cls, name: str, contents: Contents, path: Path | None = None) -> Self:
        return cls(name, contents, {OLD_CLIP_KEY.sub(r"\1text_model.\2", key): key for key in contents.tensors}, path)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file tells of itself."""
        return self.contents.metadata

    def meta_tensor(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        file_key, tensors = self.file_keys[key], self.contents.tensors
        return (
            tensors.meta_tensor(file_key)
            if isinstance(tensors, LazyTensors)
            else meta_tensors({file_key: tensors[file_key]})[file_key]
        )

    def apply(self, key: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What use makes of a tensor as it lies in the file."""
        return apply_to(self.contents.tensors, self.file_keys[key], function)

    def __getitem__(self, key: str) -> Tensor:
        return self.contents.tensors[self.file_keys[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_keys)

    def __len__(self) -> int:
        return len(self.file_keys)
