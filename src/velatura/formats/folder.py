"""Bases in diffusers' folder layout: unet/, vae/, text_encoder/ and tokenizer/ beside model_index.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from velatura.base.base import Base
from velatura.base.families import Family, Prediction, recognise
from velatura.base.schedule import Schedule
from velatura.base.text import TextEncoder, Tower
from velatura.errors import BadFile, UnsupportedBase
from velatura.tensors import UNREADABLE, open_tensors

Model = TypeVar("Model", bound=nn.Module)

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PURPOSES = {5: "depth", 7: "upscaling", 8: "editing by instruction", 9: "inpainting"}  # by the channels a UNet reads
CONDITIONS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)


def sniff(path: Path) -> bool:
    """Whether this is a folder of a whole diffusers model."""
    return (path / "model_index.json").is_file() and (path / "unet").is_dir()


def read(path: Path) -> Base:
    """Read a base from its folder, in float32 on the CPU."""
    unet_config, vae_config = _config(path / "unet"), _config(path / "vae")
    scheduler = _config(path / "scheduler", "scheduler_config.json")
    try:
        if reason := _why_foreign(unet_config, scheduler):
            raise UnsupportedBase(f"{path} {reason}: open a plain Stable Diffusion 1 or 2 instead")
        family = _family(unet_config, vae_config, scheduler)
        schedule = Schedule(scheduler["beta_start"], scheduler["beta_end"], scheduler["num_train_timesteps"])
        with torch.device("meta"):
            unet = cast("UNet2DConditionModel", _untyped(UNet2DConditionModel).from_config(unet_config))
            vae = cast("AutoencoderKL", _untyped(AutoencoderKL).from_config(vae_config))
        text = CLIPTextModel(CLIPTextConfig(**_config(path / "text_encoder")))
        tokenizer: CLIPTokenizer = _untyped(CLIPTokenizer).from_pretrained(path / "tokenizer", local_files_only=True)
    except (OSError, *UNREADABLE) as error:
        raise BadFile(f"{path} is no whole Stable Diffusion folder ({_said(error)}): download it again") from None
    unet_file, vae_file = (_weights(path / part, "diffusion_pytorch_model") for part in ("unet", "vae"))
    text_file = _weights(path / "text_encoder", "model")
    return Base(
        path.name,
        family,
        unet=_filled(unet, unet_file),
        vae=_filled(vae, vae_file),
        text=TextEncoder([Tower(tokenizer, _filled(text, text_file))]),
        schedule=schedule,
        source=unet_file,
    )


def _said(error: Exception) -> str:
    return f"without {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]


def _why_foreign(unet: dict[str, Any], scheduler: dict[str, Any]) -> str | None:
    """What makes a model another than is opened here, where it would fail at the first step or paint wrongly."""
    channels, betas = unet.get("in_channels", 4), scheduler["beta_schedule"]
    prediction = scheduler.get("prediction_type", "epsilon")
    reasons = {
        "is an SDXL, with a second text encoder": unet.get("addition_embed_type") == "text_time",
        f"is a model for {PURPOSES.get(channels, 'another purpose')} ({channels} channels, not 4)": channels != 4,
        "has a UNet that reads more than a prompt": any(unet.get(each) is not None for each in CONDITIONS),
        f"has the noise schedule {betas!r}, not 'scaled_linear'": betas != "scaled_linear",
        "has a noise schedule of its own (trained_betas)": scheduler.get("trained_betas") is not None,
        "has a noise schedule that ends in pure noise (rescale_betas_zero_snr)": bool(
            scheduler.get("rescale_betas_zero_snr")
        ),
        f"predicts {prediction!r}, neither noise nor velocity": prediction not in get_args(Prediction),
    }
    return next((reason for reason, true in reasons.items() if true), None)


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


def _weights(folder: Path, stem: str) -> Path:
    """The one safetensors file of a part by the name its library gives it, the full one before its half."""
    names = (f"{stem}.safetensors", f"{stem}.fp16.safetensors")
    if found := next((folder / name for name in names if (folder / name).is_file()), None):
        return found
    if any(folder.glob(f"{stem}*-of-*.safetensors")):
        raise BadFile(f"{folder} holds its weights in shards, not in one file: save them again as {names[0]}")
    others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))[:5]) or "no safetensors at all"
    raise BadFile(f"{folder} holds neither {' nor '.join(names)} but {others}: download the whole folder again")


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
        raise BadFile(f"{path} holds {key[:80]!r}, which this model has no place for: download the whole folder again")
    if tensor.shape != expected.shape:
        shapes = f"{tuple(tensor.shape)}, not {tuple(expected.shape)}"
        raise BadFile(f"{path} has {key} of shape {shapes}: its config.json belongs to another model")
