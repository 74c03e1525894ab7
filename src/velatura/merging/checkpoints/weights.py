"""Read the weights of any model under the keys of a single-file checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadFile, WrongBase
from velatura.formats import open_base
from velatura.formats.checkpoints import folder_weights, single_file, vae_file, write_single_file
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX, vae_to_ldm
from velatura.tensors import Contents, LazyTensors, StrPath, apply_to, meta_tensors, open_state_dict

ModelSource = Base | StrPath  # a base, or the path of a checkpoint file or a diffusers folder

# The first checkpoints lack "text_model." in the keys of CLIP.
OLD_CLIP_KEY = re.compile(r"(cond_stage_model\.transformer\.)((?:embeddings|encoder|final_layer_norm)\.)")


@dataclass(frozen=True, eq=False)
class ModelWeights(LazyTensors):
    """Tensors of a model by checkpoint key; those of a file are read when they are asked for.

    Attributes:
        name: The name of the model, a file's stem.
        contents: The file or base that holds the tensors.
        file_keys: The file's own keys, by today's keys.
        path: The file or folder, None for a base in memory.
    """

    name: str
    contents: Contents
    file_keys: Mapping[str, str]
    path: Path | None = None

    @classmethod
    def from_model(cls, model: ModelSource) -> Self:
        """Open a base or a checkpoint file without reading tensors; a diffusers folder is loaded, as its keys differ.

        Raises:
            BadFile: The file is not a Stable Diffusion checkpoint.
        """
        if isinstance(model, Base):
            return cls._from_contents(model.name, write_single_file.checkpoint_contents(model))
        path = Path(model).expanduser()
        if path.is_dir():
            unet_tensors = meta_tensors(folder_weights.open_weights(path / "unet", "diffusion_pytorch_model").tensors)
            base = open_base(path, device="cpu", dtype=next(iter(unet_tensors.values())).dtype)
            return cls._from_contents(path.name, write_single_file.checkpoint_contents(base), path)
        contents = open_state_dict(path)
        if not single_file.sniff(contents):
            raise BadFile(f"{path.name} is not a Stable Diffusion checkpoint: give one, or a diffusers folder")
        return cls._from_contents(path.stem, contents, path)

    @classmethod
    def _from_contents(cls, name: str, contents: Contents, path: Path | None = None) -> Self:
        file_keys = {OLD_CLIP_KEY.sub(r"\1text_model.\2", key): key for key in contents.tensors}
        return cls(name, contents, file_keys, path)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata of the file's header."""
        return self.contents.metadata

    def meta_tensor(self, key: str) -> Tensor:
        """Return the shape and precision of a tensor, on the meta device."""
        file_key, tensors = self.file_keys[key], self.contents.tensors
        if isinstance(tensors, LazyTensors):
            return tensors.meta_tensor(file_key)
        return meta_tensors({file_key: tensors[file_key]})[file_key]

    def apply(self, key: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the result of a function of a tensor, which may be mapped from the file while the function runs."""
        return apply_to(self.contents.tensors, self.file_keys[key], function)

    def __getitem__(self, key: str) -> Tensor:
        return self.contents.tensors[self.file_keys[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_keys)

    def __len__(self) -> int:
        return len(self.file_keys)


def load_vae(path: Path, model: ModelWeights) -> dict[str, Tensor]:
    """Load the VAE that replaces the one of a model.

    Args:
        path: A file or folder of a VAE under diffusers' keys, a file under a checkpoint's VAE keys, or a checkpoint.
        model: The model that gets the VAE.

    Returns:
        The tensors of the VAE that the model has, by the model's keys.

    Raises:
        WrongBase: The file does not hold a VAE of the model's structure.
    """
    path = path.expanduser()
    contents = folder_weights.open_weights(path, "diffusion_pytorch_model") if path.is_dir() else open_state_dict(path)
    if any(key.startswith(vae_file.DIFFUSERS_MARK) for key in contents.tensors):
        sources = vae_file.sources(contents)
        tensors = vae_to_ldm({name: source.transform(contents.tensors[source.key]) for name, source in sources.items()})
    else:
        tensors = _read_ldm_vae(contents, model)
    fitting = {
        key: tensor for key, tensor in tensors.items() if key in model and tensor.shape == model.meta_tensor(key).shape
    }
    if not fitting or len(fitting) < len(tensors):
        raise WrongBase(f"{path.name} does not hold a VAE that fits {model.name}: give one of the same family")
    return fitting


def _read_ldm_vae(contents: Contents, model: ModelWeights) -> dict[str, Tensor]:
    """Read the VAE tensors that a model has, from a checkpoint or from a VAE file with or without the prefix."""
    file_keys = {
        key.removeprefix(VAE_PREFIX): key
        for key in contents.tensors
        if not key.removeprefix(VAE_PREFIX).startswith(vae_file.IGNORED_PREFIXES)
    }
    return {
        VAE_PREFIX + key: contents.tensors[file_key] for key, file_key in file_keys.items() if VAE_PREFIX + key in model
    }
