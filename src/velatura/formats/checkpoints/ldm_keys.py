"""Translate the names of a UNet's and an autoencoder's tensors: single-file checkpoints (LDM, SGM) and diffusers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.checkpoints.tensor_sources import TensorSource, as_matrix, identity

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

# LDM's names by diffusers'
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
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL's pooled text embedding and sizes
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION_MARK = ".attn_1."
VAE_ATTENTION_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# diffusers' names by any program's: LDM's, those of older versions of diffusers, and diffusers' own. Converters have
# written each of them below the names of LDM and of diffusers.
VAE_ATTENTION_SPELLINGS = {
    **{ldm_name: name for name, ldm_name in VAE_ATTENTION_NAMES.items()},
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
    "to_out": "to_out.0",
}
VAE_ATTENTION_KEY = re.compile(
    r"(?P<place>.*(?:\.attn_1\.|\.mid_block\.attentions\.\d+\.))(?P<module>[\w.]+)\.(?P<tensor>\w+)"
)

ModuleNames = Mapping[str, str]  # new names of modules by their old ones

MAX_LEVELS = 16  # also of layers in a level: twice as many as any UNet has, since each multiplies the names below


@dataclass(frozen=True)
class UNetLayout:
    """Block structure of a UNet.

    Attributes:
        layers: Residual blocks in a down block; an up block has one more.
        attends_down: For every level, True if its down block has attention; the first level has the highest resolution.
        attends_up: The same for the up blocks, from the lowest resolution to the highest.
    """

    layers: int
    attends_down: tuple[bool, ...]
    attends_up: tuple[bool, ...]

    @classmethod
    def from_diffusers(cls, keys: Iterable[str]) -> Self:
        """Read the layout off diffusers' names of a UNet's tensors."""
        key_set = set(keys)
        levels = range(count_indices(key_set, r"down_blocks\.(\d+)\."))
        layers = count_indices(key_set, r"down_blocks\.0\.resnets\.(\d+)\.")
        down = tuple(f"down_blocks.{level}.attentions.0.proj_in.weight" in key_set for level in levels)
        up = tuple(f"up_blocks.{level}.attentions.0.proj_in.weight" in key_set for level in levels)
        return cls(layers, down, up)

    @classmethod
    def from_ldm(cls, keys: Iterable[str]) -> Self:
        """Read the layout off LDM's names without their prefix; the first downsampler ends the first level.

        Raises:
            BadFile: More levels or layers than MAX_LEVELS.
        """
        key_set = set(keys)
        downsamplers = [index for index in range(len(key_set)) if f"input_blocks.{index}.0.op.weight" in key_set]
        layers = (downsamplers[0] if downsamplers else count_indices(key_set, r"input_blocks\.(\d+)\.")) - 1
        levels = range(len(downsamplers) + 1)
        if max(len(levels), layers) > MAX_LEVELS:
            raise BadFile(
                f"a UNet of {len(levels)} levels of {layers} layers is not a Stable Diffusion's: do not trust it"
            )
        down = tuple(f"input_blocks.{1 + level * (layers + 1)}.1.proj_in.weight" in key_set for level in levels)
        up = tuple(f"output_blocks.{level * (layers + 1)}.1.proj_in.weight" in key_set for level in levels)
        return cls(layers, down, up)

    def module_names(self) -> dict[str, str]:
        """Return LDM's names of the modules by diffusers'; modules inside an attention have the same names in both."""
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
    """Return the tensors of a diffusers UNet under LDM's names, with their prefix."""
    modules = UNetLayout.from_diffusers(state).module_names()
    return {UNET_PREFIX + name: state[key] for key, name in rename_keys(state, modules).items()}


def unet_from_ldm(keys: Iterable[str]) -> dict[str, TensorSource]:
    """Return the sources of a diffusers UNet's tensors in a checkpoint of these keys.

    Raises:
        BadFile: A key below the prefix is not a Stable Diffusion UNet's.
    """
    ldm_keys = keys_below(UNET_PREFIX, keys)
    modules = UNetLayout.from_ldm(ldm_keys).module_names()
    return {name: TensorSource(ldm_keys[key]) for key, name in rename_keys(ldm_keys, _invert(modules)).items()}


def vae_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a diffusers autoencoder under LDM's names, with their prefix.

    Matrices of its attention become 1 x 1 convolutions.
    """
    modules = _vae_modules(count_indices(state, r"decoder\.up_blocks\.(\d+)\."), state)
    tensors = {name: state[key] for key, name in rename_keys(state, modules).items()}
    return {
        VAE_PREFIX + name: tensor[..., None, None] if _is_attention_matrix(name, tensor) else tensor
        for name, tensor in tensors.items()
    }


def vae_from_ldm(keys: Iterable[str], prefix: str = VAE_PREFIX) -> dict[str, TensorSource]:
    """Return the sources of a diffusers autoencoder's tensors in a file of these keys.

    1 x 1 convolutions of its attention become matrices.

    Raises:
        BadFile: A key below the prefix is not a Stable Diffusion autoencoder's, or two keys name one tensor.
    """
    ldm_keys = rename_vae_attention(keys_below(prefix, keys))
    modules = _invert(_vae_modules(count_indices(ldm_keys, r"decoder\.up\.(\d+)\."), ldm_keys))
    names = rename_keys(ldm_keys, modules)
    return {
        name: TensorSource(ldm_keys[key], as_matrix if VAE_ATTENTION_MARK in key else identity)
        for key, name in names.items()
    }


def rename_vae_attention(file_keys: Mapping[str, str]) -> dict[str, str]:
    """Return a file's keys by today's names of a VAE, where its attention has the names of any program.

    Args:
        file_keys: The file's keys, by names in LDM's or in diffusers' words.

    Raises:
        BadFile: Two keys name one tensor.
    """
    renamed: dict[str, str] = {}
    for name, key in file_keys.items():
        current_name = current_vae_key(name)
        if current_name in renamed:
            raise BadFile(
                f"{renamed[current_name][:80]!r} and {key[:80]!r} name one tensor of a VAE twice: use another copy"
            )
        renamed[current_name] = key
    return renamed


def current_vae_key(key: str) -> str:
    """Return the name of a VAE's tensor with its attention as LDM or diffusers name it today; others unchanged."""
    match = VAE_ATTENTION_KEY.fullmatch(key)
    if match is None:
        return key
    name = VAE_ATTENTION_SPELLINGS.get(match["module"], match["module"])
    if match["place"].endswith(VAE_ATTENTION_MARK):
        name = VAE_ATTENTION_NAMES.get(name, name)
    return f"{match['place']}{name}.{match['tensor']}"


def rename_keys(keys: Iterable[str], modules: ModuleNames) -> dict[str, str]:
    """Return new names of tensors by their old ones.

    Args:
        keys: Names of tensors.
        modules: New names of modules by their old ones. The part of a key below the module is kept.

    Raises:
        BadFile: Neither a tensor's module nor a module around it is in the table.
    """
    names: dict[str, str] = {}
    for key in keys:
        module, rest = key, ""
        while module not in modules:
            module, dot, last = module.rpartition(".")
            if not dot:
                raise BadFile(f"{key[:80]!r} is not a tensor of a Stable Diffusion: open another checkpoint")
            rest = f".{last}{rest}"
        names[key] = modules[module] + rest
    return names


def _resnet_modules(diffusers_name: str, ldm_name: str) -> Iterator[tuple[str, str]]:
    return (
        (f"{diffusers_name}.{diffusers_part}", f"{ldm_name}.{ldm_part}")
        for diffusers_part, ldm_part in RESNET_NAMES.items()
    )


def _vae_modules(levels: int, keys: Iterable[str]) -> dict[str, str]:
    """Return LDM's names of an autoencoder's modules by diffusers'; LDM numbers the decoder's levels in reverse."""
    indices = {index for key in keys for index in re.findall(r"(?:resnets|block)\.(\d+)\.", key)}
    if max(levels, len(indices)) > MAX_LEVELS:
        raise BadFile(
            f"an autoencoder of {levels} levels of {len(indices)} layers is not a Stable Diffusion's: do not trust it"
        )
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    for level in range(levels):
        down = _vae_level_modules(f"encoder.down_blocks.{level}", f"encoder.down.{level}", indices)
        up = _vae_level_modules(f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}", indices)
        modules |= down | up
        modules[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        modules[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{levels - 1 - level}.upsample.conv"
    return modules | _vae_side_modules("encoder") | _vae_side_modules("decoder")


def _vae_level_modules(diffusers_name: str, ldm_name: str, indices: Iterable[str]) -> dict[str, str]:
    modules: dict[str, str] = {}
    for index in indices:
        modules |= _vae_resnet_modules(f"{diffusers_name}.resnets.{index}", f"{ldm_name}.block.{index}")
    return modules


def _vae_side_modules(side: Literal["encoder", "decoder"]) -> dict[str, str]:
    """Return the names of what the encoder and the decoder have once: their convolutions and their middle block."""
    modules = {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
    modules[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    for index in (0, 1):
        modules |= _vae_resnet_modules(f"{side}.mid_block.resnets.{index}", f"{side}.mid.block_{index + 1}")
    for diffusers_part, ldm_part in VAE_ATTENTION_NAMES.items():
        modules[f"{side}.mid_block.attentions.0.{diffusers_part}"] = f"{side}.mid.attn_1.{ldm_part}"
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
    """Return the keys that start with a prefix, by what follows the prefix."""
    return {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}


def count_indices(keys: Collection[str], pattern: str) -> int:
    """Count numbered modules: return the first number from 0 that no key has.

    Args:
        keys: Names of tensors.
        pattern: Regular expression for the beginning of a key, whose first group is the number of a module.
    """
    matches = (re.match(pattern, key) for key in keys)
    numbers = {match[1] for match in matches if match}
    return next(index for index in range(len(keys) + 1) if str(index) not in numbers)
