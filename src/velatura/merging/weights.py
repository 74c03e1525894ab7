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
from velatura.formats import checkpoint, folder_weights, open_base
from velatura.tensors import Contents, Lazy, StrPath, open_state, sketches, used

# what the first checkpoints lack in the names of CLIP's tensors
OLD_CLIP = re.compile(r"(cond_stage_model\.transformer\.)((?:embeddings|encoder|final_layer_norm)\.)")


@dataclass(frozen=True, eq=False)
class Weights(Lazy):
    """A model's tensors by today's names; a file's are read as they are asked for.

    keys: the file's own names, by today's. path: the file, if there is one.
    """

    name: str
    contents: Contents
    keys_there: Mapping[str, str]
    path: Path | None = None

    @classmethod
    def of(cls, thing: Base | StrPath) -> Self:
        """Look at a base, or at a file of weights; a diffusers folder is loaded whole, as its names are others."""
        if isinstance(thing, Base):
            return cls._of(thing.name, checkpoint.contents_of(thing))
        path = Path(thing).expanduser()
        if path.is_dir():
            held = sketches(folder_weights.weights(path / "unet", "diffusion_pytorch_model").tensors)
            base = open_base(path, device="cpu", dtype=next(iter(held.values())).dtype)
            return cls._of(path.name, checkpoint.contents_of(base), path)
        contents = open_state(path)
        if not checkpoint.sniff(contents):
            raise BadFile(f"{path.name} is no Stable Diffusion checkpoint: give one, or a diffusers folder")
        return cls._of(path.stem, contents, path)

    @classmethod
    def _of(cls, name: str, contents: Contents, path: Path | None = None) -> Self:
        return cls(name, contents, {OLD_CLIP.sub(r"\1text_model.\2", key): key for key in contents.tensors}, path)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file tells of itself."""
        return self.contents.metadata

    def sketch(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        there, tensors = self.keys_there[key], self.contents.tensors
        return tensors.sketch(there) if isinstance(tensors, Lazy) else sketches({there: tensors[there]})[there]

    def used(self, key: str, use: Callable[[Tensor], Tensor]) -> Tensor:
        """What use makes of a tensor as it lies in the file."""
        return used(self.contents.tensors, self.keys_there[key], use)

    def __getitem__(self, key: str) -> Tensor:
        return self.contents.tensors[self.keys_there[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_there)

    def __len__(self) -> int:
        return len(self.keys_there)
