"""What single-file checkpoints (LDM, SGM) call the tensors of a UNet and of an autoencoder, and diffusers' names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.checkpoints.tensor_sources import TensorSource, as_matrix, identity

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

# within a module: diffusers' name, LDM's
RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_OUTER_NAMES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL's sizes and pooled text
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION_MARK = ".attn_1."  # in the name of an autoencoder's tensor
VAE_ATTENTION_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

ModuleNames = Mapping[str, str]  # a module's name here: its name there

MAX_LEVELS = 16  # levels, and layers of one: twice what any has; every level and layer multiplies the names below


@dataclass(frozen=True)
class UNetLayout:
    """How many levels a UNet has, how many residual blocks each has on the way down, and which of them attend.

    The way up has one residual block more in each level; attends_up starts with the deepest level.
    """

    layers: int
    attends_down: tuple[bool, ...]
    attends_up: tuple[bool, ...]

    @classmethod
    def from_diffusers(cls, keys: Iterable[str]) -> Self:
        """Read the layout off diffusers' names."""
        key_set = set(keys)
        levels = _count_indices(key_set, r"down_blocks\.(\d+)\.")
        attends = [
            tuple(f"{direction}_blocks.{level}.attentions.0.proj_in.weight" in key_set for level in range(levels))
            for direction in ("down", "up")
        ]
        return cls(_count_indices(key_set, r"down_blocks\.0\.resnets\.(\d+)\."), *attends)

    @classmethod
    def from_ldm(cls, keys: Iterable[str]) -> Self:
        """Read the layout off LDM's names (without their prefix), where the first downsampler ends the first level."""
        key_set = set(keys)
        downsamplers = [index for index in range(len(key_set)) if f"input_blocks.{index}.0.op.weight" in key_set]
        layers = (downsamplers[0] if downsamplers else _count_indices(key_set, r"input_blocks\.(\d+)\.")) - 1
        levels = range(len(downsamplers) + 1)
        if max(len(levels), layers) > MAX_LEVELS:
            raise BadFile(f"a Stable Diffusion has no UNet of {len(levels)} levels of {layers} layers: do not trust it")
        down = tuple(f"input_blocks.{1 + level * (layers + 1)}.1.proj_in.weight" in key_set for level in levels)
        up = tuple(f"output_blocks.{level * (layers + 1)}.1.proj_in.weight" in key_set for level in levels)
        return cls(layers, down, up)

    def module_names(self) -> dict[str, str]:
        """LDM's names of the modules, by diffusers'; what is inside the attentions is called the same."""
        return dict(self._module_names())

    def _module_names(self) -> Iterator[tuple[str, str]]:
        yield from UNET_OUTER_NAMES.items()
        for level in range(len(self.attends_down)):
            yield from self._level_down(level)
        yield from _resnet_modules("mid_block.resnets.0", "middle_block.0")
        yield "mid_block.attentions.0", "middle_block.1"
        yield from _resnet_modules("mid_block.resnets.1", "middle_block.2")
        for level, attends in enumerate(self.attends_up):
            yield from self._level_up(level, attends)

    def _level_down(self, level: int) -> Iterator[tuple[str, str]]:
        first = 1 + level * (self.layers + 1)
        for index in range(self.layers):
            diffusers_name, ldm_name = f"down_blocks.{level}", f"input_blocks.{first + index}"
            yield from _resnet_modules(f"{diffusers_name}.resnets.{index}", f"{ldm_name}.0")
            yield f"{diffusers_name}.attentions.{index}", f"{ldm_name}.1"
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{first + self.layers}.0.op"

    def _level_up(self, level: int, attends: bool) -> Iterator[tuple[str, str]]:
        first = level * (self.layers + 1)
        for index in range(self.layers + 1):
            diffusers_name, ldm_name = f"up_blocks.{level}", f"output_blocks.{first + index}"
            yield from _resnet_modules(f"{diffusers_name}.resnets.{index}", f"{ldm_name}.0")
            if attends:
                yield f"{diffusers_name}.attentions.{index}", f"{ldm_name}.1"
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{first + self.layers}.{1 + attends}.conv"


# Layouts of the published models. Where both have a name of LDM's, it is the name of the same module of diffusers.
SD_LAYOUT = UNetLayout(2, (True, True, True, False), (False, True, True, True))  # SD1 and SD2
SDXL_LAYOUT = UNetLayout(2, (False, True, True), (True, True, False))


def unet_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers UNet's tensors under LDM's names, with their prefix."""
    modules = UNetLayout.from_diffusers(state).module_names()
    return {UNET_PREFIX + name: state[key] for key, name in rename_keys(state, modules).items()}


def unet_from_ldm(keys: Iterable[str]) -> dict[str, TensorSource]:
    """Where diffusers' tensors of the UNet are in a checkpoint of these keys."""
    ldm_keys = keys_below(UNET_PREFIX, keys)
    modules = UNetLayout.from_ldm(ldm_keys).module_names()
    return {name: TensorSource(ldm_keys[key]) for key, name in rename_keys(ldm_keys, _invert(modules)).items()}


def vae_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers autoencoder's tensors under LDM's names, with their prefix; attention is 1 x 1 convolutions."""
    modules = _vae_modules(_count_indices(state, r"decoder\.up_blocks\.(\d+)\."), state)
    tensors = {name: state[key] for key, name in rename_keys(state, modules).items()}
    return {
        VAE_PREFIX + name: tensor[..., None, None] if _is_attention_matrix(name, tensor) else tensor
        for name, tensor in tensors.items()
    }


def vae_from_ldm(keys: Iterable[str], prefix: str = VAE_PREFIX) -> dict[str, TensorSource]:
    """Where diffusers' tensors of the autoencoder are in a file of these keys; it attends by matrix products."""
    ldm_keys = keys_below(prefix, keys)
    modules = _invert(_vae_modules(_count_indices(ldm_keys, r"decoder\.up\.(\d+)\."), ldm_keys))
    names = rename_keys(ldm_keys, modules)
    return {
        name: TensorSource(ldm_keys[key], as_matrix if VAE_ATTENTION_MARK in key else identity)
        for key, name in names.items()
    }


def rename_keys(keys: Iterable[str], modules: ModuleNames) -> dict[str, str]:
    """The new name of each tensor whose module, or a module around it, is in the table; other tensors are refused."""
    names: dict[str, str] = {}
    for key in keys:
        module, rest = key, ""
        while module not in modules:
            module, dot, last = module.rpartition(".")
            if not dot:
                raise BadFile(f"a Stable Diffusion has no tensor {key[:80]!r}: open another checkpoint")
            rest = f".{last}{rest}"
        names[key] = modules[module] + rest
    return names


def _resnet_modules(diffusers_name: str, ldm_name: str) -> Iterator[tuple[str, str]]:
    return (
        (f"{diffusers_name}.{diffusers_part}", f"{ldm_name}.{ldm_part}")
        for diffusers_part, ldm_part in RESNET_NAMES.items()
    )


def _vae_modules(levels: int, keys: Iterable[str]) -> dict[str, str]:
    """LDM's names of an autoencoder's modules, by diffusers'; its decoder's first level is the last."""
    indices = {index for key in keys for index in re.findall(r"(?:resnets|block)\.(\d+)\.", key)}
    if max(levels, len(indices)) > MAX_LEVELS:
        raise BadFile(f"a Stable Diffusion has no autoencoder of {levels} levels of {len(indices)}: do not trust it")
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side, direction, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        modules |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        modules |= {f"{side}.conv_norm_out": f"{side}.norm_out"}
        for level in range(levels):
            diffusers_name = f"{side}.{direction}_blocks.{level}"
            ldm_name = f"{side}.{direction}.{level if direction == 'down' else levels - 1 - level}"
            modules[f"{diffusers_name}.{sampler}rs.0.conv"] = f"{ldm_name}.{sampler}.conv"
            for index in indices:
                modules |= _vae_resnet_modules(f"{diffusers_name}.resnets.{index}", f"{ldm_name}.block.{index}")
        for index in (0, 1):
            modules |= _vae_resnet_modules(f"{side}.mid_block.resnets.{index}", f"{side}.mid.block_{index + 1}")
        attention = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        modules |= {
            f"{attention[0]}.{diffusers_part}": f"{attention[1]}.{ldm_part}"
            for diffusers_part, ldm_part in VAE_ATTENTION_NAMES.items()
        }
    return modules


def _vae_resnet_modules(diffusers_name: str, ldm_name: str) -> dict[str, str]:
    return {
        f"{diffusers_name}.conv_shortcut": f"{ldm_name}.nin_shortcut",
        **{f"{diffusers_name}.{name}": f"{ldm_name}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")},
    }


def _is_attention_matrix(name: str, tensor: Tensor) -> bool:
    return VAE_ATTENTION_MARK in name and tensor.ndim == 2


def _invert(modules: ModuleNames) -> dict[str, str]:
    return {ldm_name: diffusers_name for diffusers_name, ldm_name in modules.items()}


def keys_below(prefix: str, keys: Iterable[str]) -> dict[str, str]:
    """The keys that start with a prefix, by what follows it."""
    return {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}


def _count_indices(keys: Collection[str], pattern: str) -> int:
    """How many there are of what the pattern counts from 0, never more than there are keys."""
    found = {found[1] for key in keys if (found := re.match(pattern, key))}
    return next(index for index in range(len(keys) + 1) if str(index) not in found)
