"""Recognise a UNet in a file by the names of its tensors, whatever prefix they have."""

from __future__ import annotations

from collections.abc import Collection

from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.checkpoints import single_file
from velatura.formats.checkpoints.ldm_families import (
    FOREIGN_BLOCKS,
    FOREIGN_PREFIXES,
    V_MARKER,
    ZERO_SNR_MARKER,
    refuse_scaled_weights,
)
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX, keys_below, unet_from_ldm
from velatura.formats.checkpoints.tensor_sources import TensorSource, TensorSources
from velatura.tensors import Contents, meta_tensors

# A tensor that every UNet has, under LDM's names and under diffusers'; what stands before it is the prefix
LDM_MARK = "input_blocks.0.0.weight"
DIFFUSERS_MARK = "time_embedding.linear_1.weight"
LAST_LAYER = "conv_out.weight"  # which a ControlNet lacks
GUIDANCE_MARK = "cond_proj.weight"


def has_unet(contents: Contents) -> bool:
    """Return True if a file holds a UNet, alone or in a checkpoint."""
    if single_file.sniff(contents):
        return True
    return any(_find_prefix(contents.tensors.keys(), mark) is not None for mark in (LDM_MARK, DIFFUSERS_MARK))


def unet_tensor_sources(contents: Contents, weights: single_file.WeightsKind = "last") -> TensorSources:
    """Return the sources of a UNet's tensors in a file.

    Args:
        contents: A checkpoint, or a file of a UNet alone: LDM's names with their prefix (model.diffusion_model.), with
            another one or without, or diffusers' names.
        weights: "last" for the weights of the last training step, "ema" for their average, of checkpoints only.

    Raises:
        BadFile: The file holds no UNet, or a tensor that is not a Stable Diffusion UNet's.
        UnsupportedBase: The UNet of another kind of model.
    """
    name, keys = contents.path.name, contents.tensors.keys()
    refuse_scaled_weights(name, keys)
    _refuse_foreign(name, keys)
    sources = _sources(contents, weights)
    if any(key.endswith(GUIDANCE_MARK) for key in sources):
        raise UnsupportedBase(
            f"{name} is the UNet of a model distilled with its guidance, which velatura does not open: use a plain one"
        )
    if LAST_LAYER not in sources:
        raise UnsupportedBase(f"{name} is not a whole UNet but a part of one, such as a ControlNet: give a UNet")
    return sources


def _sources(contents: Contents, weights: single_file.WeightsKind) -> TensorSources:
    name, keys = contents.path.name, contents.tensors.keys()
    if single_file.sniff(contents):
        return single_file.unet_sources(name, meta_tensors(contents.tensors), weights)
    if weights != "last":
        raise UnsupportedBase(f"{name} is a UNet alone, with one kind of weights: leave out weights={weights!r}")
    prefix = _find_prefix(keys, LDM_MARK)
    if prefix is not None:
        file_keys = {UNET_PREFIX + key: file_key for key, file_key in _keys_of_model(prefix, keys).items()}
        return {key: TensorSource(file_keys[source.key]) for key, source in unet_from_ldm(file_keys).items()}
    prefix = _find_prefix(keys, DIFFUSERS_MARK)
    if prefix is not None:
        return {key: TensorSource(file_key) for key, file_key in _keys_of_model(prefix, keys).items()}
    raise BadFile(f"{name} holds no UNet of a Stable Diffusion: give a file or folder that holds one")


def _keys_of_model(prefix: str, keys: Collection[str]) -> dict[str, str]:
    """Return a file's keys below a prefix, by the names of the model; markers of the prediction are not tensors."""
    return {key: file_key for key, file_key in keys_below(prefix, keys).items() if key not in MARKERS}


MARKERS = {V_MARKER, ZERO_SNR_MARKER}


def _find_prefix(keys: Collection[str], mark: str) -> str | None:
    """Return what stands before a tensor's name in a file, or None if no name ends with it as a whole."""
    prefixes = (key.removesuffix(mark) for key in keys if key.endswith(mark))
    return next((prefix for prefix in prefixes if not prefix or prefix.endswith(".")), None)


def _refuse_foreign(name: str, keys: Collection[str]) -> None:
    bare_blocks = {f"{block}.": model for block, model in FOREIGN_BLOCKS.items()}
    for prefix, model in {**FOREIGN_PREFIXES, **bare_blocks}.items():
        if any(key.startswith(prefix) for key in keys):
            raise UnsupportedBase(
                f"{name} is {model}, which velatura does not open: give the UNet of an SD1, SD2 or SDXL"
            )
