"""Read the weights of any model under the keys of a single-file checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, to_base
from velatura.errors import BadFile, WrongBase, choose_number, quantity
from velatura.formats.checkpoints import folder_weights, single_file, vae_file, write_single_file
from velatura.formats.checkpoints.ldm_families import refuse_scaled_weights
from velatura.formats.checkpoints.ldm_keys import (
    VAE_ATTENTION_MARK,
    VAE_PREFIX,
    rename_vae_attention,
    vae_to_ldm,
)
from velatura.formats.open import open_base
from velatura.overlays.attach import warn_of_overlays_left_out
from velatura.tensors import Contents, LazyTensors, StrPath, apply_to, meta_tensors, open_state_dict

ModelSource = AnyBase | StrPath  # a base, a diffusers pipeline, or the path of a checkpoint file or a diffusers folder

VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # how the keys of a VAE begin

# The first checkpoints lack "text_model." in the keys of CLIP.
OLD_CLIP_KEY = re.compile(r"(cond_stage_model\.transformer\.)((?:embeddings|encoder|final_layer_norm)\.)")


def share_pipeline(model: ModelSource) -> Base | StrPath:
    """Return a base that shares the modules of a diffusers pipeline; a base or a path as it is.

    Raises:
        UnsupportedBase: It is none of them.
    """
    return model if isinstance(model, str | PathLike) else to_base(model, "model")


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
        model = share_pipeline(model)
        if isinstance(model, Base):
            warn_of_overlays_left_out(model, "its weights are read")
            return cls._from_contents(model.name, write_single_file.checkpoint_contents(model))
        path = Path(model).expanduser()
        if path.is_dir():
            unet_tensors = meta_tensors(folder_weights.open_weights(path / "unet", "diffusion_pytorch_model").tensors)
            dtype = next(iter(unet_tensors.values())).dtype
            base = open_base(path, device="cpu", dtype=torch.float16 if dtype.itemsize == 1 else dtype)
            return cls._from_contents(path.name, write_single_file.checkpoint_contents(base), path)
        contents = open_state_dict(path)
        if not single_file.sniff(contents):
            raise BadFile(f"{path.name} is not a Stable Diffusion checkpoint: give one, or a diffusers folder")
        refuse_scaled_weights(path.name, contents.tensors)
        return cls._from_contents(path.stem, contents, path)

    @classmethod
    def _from_contents(cls, name: str, contents: Contents, path: Path | None = None) -> Self:
        file_keys = {OLD_CLIP_KEY.sub(r"\1text_model.\2", key): key for key in contents.tensors}
        return cls(name, contents, rename_vae_attention(file_keys), path)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata of the file's header."""
        return self.contents.metadata

    def meta_tensor(self, key: str) -> Tensor:
        """Return the shape and precision of a tensor, on the meta device."""
        file_key, tensors = self.file_keys[key], self.contents.tensors
        if isinstance(tensors, LazyTensors):
            return _to_ldm_shape(key, tensors.meta_tensor(file_key))
        return _to_ldm_shape(key, meta_tensors({file_key: tensors[file_key]})[file_key])

    def apply(self, key: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the result of a function of a tensor, which may be mapped from the file while the function runs."""
        return apply_to(self.contents.tensors, self.file_keys[key], lambda tensor: function(_to_ldm_shape(key, tensor)))

    def __getitem__(self, key: str) -> Tensor:
        return _to_ldm_shape(key, self.contents.tensors[self.file_keys[key]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_keys)

    def __len__(self) -> int:
        return len(self.file_keys)


def load_vae(path: Path, model: ModelWeights) -> dict[str, Tensor]:
    """Load the VAE that replaces the one of a model, as a whole.

    Args:
        path: A file of a VAE under any program's keys, the diffusers folder of one or of a base, or a checkpoint.
        model: The model that gets the VAE.

    Returns:
        The tensors of the VAE, by the model's keys.

    Raises:
        BadFile: The file is damaged.
        WrongBase: The file holds no VAE, or one with other tensors or shapes than the model's.
    """
    tensors = _read_vae(vae_file.open_vae(path.expanduser()))
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    vae_keys = (key for key in model if key.startswith(tuple(VAE_PREFIX + part for part in VAE_PARTS)))
    expected_shapes = {key: model.meta_tensor(key).shape for key in vae_keys}
    differing = [key for key in shapes | expected_shapes if shapes.get(key) != expected_shapes.get(key)]
    if differing or not tensors:
        difference = (
            f" ({quantity(len(differing), 'tensor')} {choose_number(len(differing), 'differs', 'differ')} in name or "
            f"shape: {min(differing)[:80]})"
            if differing
            else ""
        )
        raise WrongBase(
            f"{path.name} does not hold a VAE that fits {model.name}{difference}: give one of the same family"
        )
    return tensors


def _read_vae(contents: Contents) -> dict[str, Tensor]:
    """Return the tensors of a VAE, alone or in a checkpoint, by the keys of checkpoints."""
    if any(vae_file.DIFFUSERS_MARK in key for key in contents.tensors):
        sources = vae_file.sources(contents)
        return vae_to_ldm({name: source.transform(contents.tensors[source.key]) for name, source in sources.items()})
    for prefix in vae_file.PREFIXES:
        parts = tuple(prefix + part for part in VAE_PARTS)
        file_keys = {VAE_PREFIX + key.removeprefix(prefix): key for key in contents.tensors if key.startswith(parts)}
        if file_keys:
            names = rename_vae_attention(file_keys)
            return {name: _to_ldm_shape(name, contents.tensors[key]) for name, key in names.items()}
    return {}


def _to_ldm_shape(key: str, tensor: Tensor) -> Tensor:
    """Return a matrix of a VAE's attention as the 1 x 1 convolution that checkpoints hold; others unchanged."""
    is_attention_matrix = key.startswith(VAE_PREFIX) and VAE_ATTENTION_MARK in key and tensor.ndim == 2
    return tensor[..., None, None] if is_attention_matrix else tensor
