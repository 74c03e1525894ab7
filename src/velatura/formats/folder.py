"""Bases in diffusers' folder layout: unet/, vae/, text_encoder/ and tokenizer/ beside model_index.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from velatura.base.base import Base
from velatura.base.families import Family, recognise
from velatura.base.schedule import Schedule
from velatura.base.text import TextEncoder
from velatura.errors import BadFile
from velatura.tensors import open_tensors

Model = TypeVar("Model", bound=nn.Module)

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def sniff(path: Path) -> bool:
    """Whether this is a folder of a whole diffusers model."""
    return (path / "model_index.json").is_file() and (path / "unet").is_dir()


def read(path: Path) -> Base:
    """Read a base from its folder, in float32 on the CPU."""
    unet_config, vae_config = _config(path / "unet"), _config(path / "vae")
    scheduler = _config(path / "scheduler", "scheduler_config.json")
    try:
        family = _family(unet_config, vae_config, scheduler)
        with torch.device("meta"):
            unet = cast("UNet2DConditionModel", _untyped(UNet2DConditionModel).from_config(unet_config))
            vae = cast("AutoencoderKL", _untyped(AutoencoderKL).from_config(vae_config))
        text = CLIPTextModel(CLIPTextConfig(**_config(path / "text_encoder")))
        tokenizer: CLIPTokenizer = _untyped(CLIPTokenizer).from_pretrained(path / "tokenizer", local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadFile(f"{path} is no whole Stable Diffusion folder ({_said(error)}): download it again") from None
    weights = {"unet": _weights(path / "unet"), "vae": _weights(path / "vae"), "text": _weights(path / "text_encoder")}
    return Base(
        path.name,
        family,
        unet=_filled(unet, weights["unet"]),
        vae=_filled(vae, weights["vae"]),
        text=TextEncoder(tokenizer, _filled(text, weights["text"])),
        schedule=Schedule(scheduler["beta_start"], scheduler["beta_end"], scheduler["num_train_timesteps"]),
        source=weights["unet"],
    )


def _said(error: Exception) -> str:
    return f"without {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]


def _untyped(kind: type[object]) -> Any:
    """A class of a library that says nothing, or too much, of what its factories return."""
    return kind


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    try:
        found: object = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{folder / name} cannot be read ({error}): download the whole folder again") from None
    if not isinstance(found, dict):
        raise BadFile(f"{folder / name} is no table of settings: download the whole folder again")
    return cast("dict[str, Any]", found)


def _family(unet: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]) -> Family:
    """The family a folder's widths belong to, with its own scale and prediction; a new one where none fits."""
    blocks = unet["block_out_channels"]
    attends = [*map(str.__contains__, unet["down_block_types"], ["Attn"] * len(blocks)), True]
    widths = dict.fromkeys(width for width, has in zip([*blocks, blocks[-1]], attends, strict=True) if has)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = unet["sample_size"] * factor
    known = recognise(unet["cross_attention_dim"], widths)
    own = Family("unknown", unet["cross_attention_dim"], tuple(widths), factor, 1.0, pixels, "epsilon")
    return replace(
        known or own,
        latent_factor=factor,
        latent_scale=vae["scaling_factor"],
        default_pixels=pixels,
        prediction=scheduler.get("prediction_type", "epsilon"),
    )


def _weights(folder: Path) -> Path:
    """The one safetensors file of a part, the full one before its half."""
    found = sorted(folder.glob("*.safetensors"), key=lambda path: (".fp16." in path.name, path.name))
    if not found:
        raise BadFile(f"{folder} holds no .safetensors: download the folder with its safetensors weights")
    return found[0]


def _filled(model: Model, path: Path) -> Model:
    """Fill a model with the tensors of a file, in float32, refusing what is missing, left over or misshapen."""
    tensors = {_current(key): each.float() for key, each in open_tensors(path).tensors.items()}
    tensors = {key: each for key, each in tensors.items() if not key.endswith("position_ids")}
    expected = model.state_dict()
    if missing := expected.keys() - tensors.keys():
        raise BadFile(f"{path} lacks {min(missing)}: download it again")
    for key, tensor in tensors.items():
        _refuse_misfit(path, key, tensor, expected.get(key))
    model.load_state_dict(tensors, assign=True)
    return model


def _current(key: str) -> str:
    """A tensor's name today: CLIP's prefix went away, and the autoencoder's attention was named otherwise."""
    key = key.removeprefix("text_model.")
    parts = key.split(".")
    if "attentions" not in parts:
        return key
    return ".".join(OLD_ATTENTION.get(part, part) for part in parts)


def _refuse_misfit(path: Path, key: str, tensor: Tensor, expected: Tensor | None) -> None:
    if expected is None:
        raise BadFile(f"{path} holds {key[:80]}, which this model has no place for: download the whole folder again")
    if tensor.shape != expected.shape:
        shapes = f"{tuple(tensor.shape)}, not {tuple(expected.shape)}"
        raise BadFile(f"{path} has {key} of shape {shapes}: its config.json belongs to another model")
