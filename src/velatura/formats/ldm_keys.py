"""What single-file checkpoints (LDM, SGM) call the tensors of a UNet and of an autoencoder, and diffusers' names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.sources import Source, as_product, unchanged

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

# within a module: diffusers' name, LDM's
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL's sizes and pooled text
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENDS = ".attn_1."  # in the name of an autoencoder's tensor
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

Modules = Mapping[str, str]  # a module's name here: its name there

DEEPEST = 16  # levels, and layers of one: twice what any has; every level and layer multiplies the names below


@dataclass(frozen=True)
class UNetLayout:
    """How many levels a UNet has, how many residual blocks each has on the way down, and which of them attend.

    The way up has one residual block more in each level; attends_up starts with the deepest level.
    """

    layers: int
    attends_down: tuple[bool, ...]
    attends_up: tuple[bool, ...]

    @classmethod
    def of_diffusers(cls, keys: Iterable[str]) -> Self:
        """Read the layout off diffusers' names."""
        known = set(keys)
        levels = _count(known, r"down_blocks\.(\d+)\.")
        attends = [
            tuple(f"{way}_blocks.{level}.attentions.0.proj_in.weight" in known for level in range(levels))
            for way in ("down", "up")
        ]
        return cls(_count(known, r"down_blocks\.0\.resnets\.(\d+)\."), *attends)

    @classmethod
    def of_ldm(cls, keys: Iterable[str]) -> Self:
        """Read the layout off LDM's names (without their prefix), where the first downsampler ends the first level."""
        known = set(keys)
        ends = [index for index in range(len(known)) if f"input_blocks.{index}.0.op.weight" in known]
        layers = (ends[0] if ends else _count(known, r"input_blocks\.(\d+)\.")) - 1
        levels = range(len(ends) + 1)
        if max(len(levels), layers) > DEEPEST:
            raise BadFile(f"a Stable Diffusion has no UNet of {len(levels)} levels of {layers} layers: do not trust it")
        down = tuple(f"input_blocks.{1 + level * (layers + 1)}.1.proj_in.weight" in known for level in levels)
        up = tuple(f"output_blocks.{level * (layers + 1)}.1.proj_in.weight" in known for level in levels)
        return cls(layers, down, up)

    def modules(self) -> dict[str, str]:
        """LDM's names of the modules, by diffusers'; what is inside the attentions is called the same."""
        return dict(self._modules())

    def _modules(self) -> Iterator[tuple[str, str]]:
        yield from UNET_ENDS.items()
        for level in range(len(self.attends_down)):
            yield from self._level_down(level)
        yield from _resnet("mid_block.resnets.0", "middle_block.0")
        yield "mid_block.attentions.0", "middle_block.1"
        yield from _resnet("mid_block.resnets.1", "middle_block.2")
        for level, attends in enumerate(self.attends_up):
            yield from self._level_up(level, attends)

    def _level_down(self, level: int) -> Iterator[tuple[str, str]]:
        first = 1 + level * (self.layers + 1)
        for index in range(self.layers):
            here, there = f"down_blocks.{level}", f"input_blocks.{first + index}"
            yield from _resnet(f"{here}.resnets.{index}", f"{there}.0")
            yield f"{here}.attentions.{index}", f"{there}.1"
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{first + self.layers}.0.op"

    def _level_up(self, level: int, attends: bool) -> Iterator[tuple[str, str]]:
        first = level * (self.layers + 1)
        for index in range(self.layers + 1):
            here, there = f"up_blocks.{level}", f"output_blocks.{first + index}"
            yield from _resnet(f"{here}.resnets.{index}", f"{there}.0")
            if attends:
                yield f"{here}.attentions.{index}", f"{there}.1"
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{first + self.layers}.{1 + attends}.conv"


def unet_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers UNet's tensors under LDM's names, with their prefix."""
    modules = UNetLayout.of_diffusers(state).modules()
    return {UNET_PREFIX + name: state[key] for key, name in renamed(state, modules).items()}


def unet_from_ldm(keys: Iterable[str]) -> dict[str, Source]:
    """Where diffusers' tensors of the UNet are in a checkpoint of these keys."""
    bare = below(UNET_PREFIX, keys)
    modules = UNetLayout.of_ldm(bare).modules()
    return {name: Source(bare[key]) for key, name in renamed(bare, _turned(modules)).items()}


def vae_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers autoencoder's tensors under LDM's names, with their prefix; attention is 1 x 1 convolutions."""
    modules = _vae_modules(_count(state, r"decoder\.up_blocks\.(\d+)\."), state)
    named = {name: state[key] for key, name in renamed(state, modules).items()}
    return {
        VAE_PREFIX + name: each[..., None, None] if _is_product(name, each) else each for name, each in named.items()
    }


def vae_from_ldm(keys: Iterable[str], prefix: str = VAE_PREFIX) -> dict[str, Source]:
    """Where diffusers' tensors of the autoencoder are in a file of these keys; it attends by matrix products."""
    bare = below(prefix, keys)
    modules = _turned(_vae_modules(_count(bare, r"decoder\.up\.(\d+)\."), bare))
    named = renamed(bare, modules)
    return {name: Source(bare[key], as_product if ATTENDS in key else unchanged) for key, name in named.items()}


def renamed(keys: Iterable[str], modules: Modules) -> dict[str, str]:
    """The new name of each tensor whose module, or a module around it, is in the table; other tensors are refused."""
    found: dict[str, str] = {}
    for key in keys:
        module, rest = key, ""
        while module not in modules:
            module, dot, last = module.rpartition(".")
            if not dot:
                raise BadFile(f"a Stable Diffusion has no tensor {key[:80]!r}: open another checkpoint")
            rest = f".{last}{rest}"
        found[key] = modules[module] + rest
    return found


def _resnet(here: str, there: str) -> Iterator[tuple[str, str]]:
    return ((f"{here}.{ours}", f"{there}.{theirs}") for ours, theirs in RESNET.items())


def _vae_modules(levels: int, keys: Iterable[str]) -> dict[str, str]:
    """LDM's names of an autoencoder's modules, by diffusers'; its decoder's first level is the last."""
    indices = {each for key in keys for each in re.findall(r"(?:resnets|block)\.(\d+)\.", key)}
    if max(levels, len(indices)) > DEEPEST:
        raise BadFile(f"a Stable Diffusion has no autoencoder of {levels} levels of {len(indices)}: do not trust it")
    modules = {each: each for each in ("quant_conv", "post_quant_conv")}
    for side, way, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        modules |= {f"{side}.{each}": f"{side}.{each}" for each in ("conv_in", "conv_out")}
        modules |= {f"{side}.conv_norm_out": f"{side}.norm_out"}
        for level in range(levels):
            here = f"{side}.{way}_blocks.{level}"
            there = f"{side}.{way}.{level if way == 'down' else levels - 1 - level}"
            modules[f"{here}.{sampler}rs.0.conv"] = f"{there}.{sampler}.conv"
            for index in indices:
                modules |= _vae_resnet(f"{here}.resnets.{index}", f"{there}.block.{index}")
        for index in (0, 1):
            modules |= _vae_resnet(f"{side}.mid_block.resnets.{index}", f"{side}.mid.block_{index + 1}")
        attention = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        modules |= {f"{attention[0]}.{ours}": f"{attention[1]}.{theirs}" for ours, theirs in VAE_ATTENTION.items()}
    return modules


def _vae_resnet(here: str, there: str) -> dict[str, str]:
    return {
        f"{here}.conv_shortcut": f"{there}.nin_shortcut",
        **{f"{here}.{each}": f"{there}.{each}" for each in ("norm1", "conv1", "norm2", "conv2")},
    }


def _is_product(name: str, tensor: Tensor) -> bool:
    return ATTENDS in name and tensor.ndim == 2


def _turned(modules: Modules) -> dict[str, str]:
    return {there: here for here, there in modules.items()}


def below(prefix: str, keys: Iterable[str]) -> dict[str, str]:
    """The keys that start with a prefix, by what follows it."""
    return {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}


def _count(keys: Collection[str], pattern: str) -> int:
    """How many there are of what the pattern counts from 0, never more than there are keys."""
    found = {found[1] for key in keys if (found := re.match(pattern, key))}
    return next(index for index in range(len(keys) + 1) if str(index) not in found)
