"""Bases in diffusers' folder layout: unet/, vae/, text_encoder/ and tokenizer/ beside model_index.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPTokenizer

from velatura.base.base import Base
from velatura.base.families import Family, Prediction
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats import vocabulary
from velatura.formats.checkpoints import vae_file
from velatura.formats.checkpoints.build_models import build_text_encoder, build_unet, build_vae
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.ldm_config import (
    ModelConfig,
    determine_family,
    read_config_hints,
    text_config,
    unet_config,
    vae_config,
)
from velatura.formats.checkpoints.ldm_families import TEXT_ENCODER_LAYOUTS, check_input_channels
from velatura.formats.checkpoints.ldm_text import TEXT_MODEL_PREFIX
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSource, TensorSources, apply_sources
from velatura.tensors import DAMAGED_FILE_ERRORS, Contents, meta_tensors

INDEX_FILE = "model_index.json"
# whose classes a folder may name; none is ever called by its name
LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}
PIPELINE_PREFIX = "StableDiffusion"
EXTRA_CONDITION_FIELDS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")
# of each part, what its config.json must say as the shapes of its weights do
SIZE_FIELDS = {
    "unet": ("block_out_channels", "cross_attention_dim", "layers_per_block"),
    "vae": ("block_out_channels",),
    "text": ("hidden_size", "num_hidden_layers"),
}
MAX_CONFIG_LENGTH = 2**20  # characters; the longest has a few thousand


def sniff(path: Path) -> bool:
    """Whether this is a folder of a whole diffusers model."""
    return (path / INDEX_FILE).is_file() and (path / "unet").is_dir()


def read(path: Path, destination: Destination | None = None, *, vae: Contents | None = None) -> Base:
    """Read a base from its folder, in float32 on the CPU if nothing else is said.

    vae: another file whose autoencoder is taken instead.
    """
    _refuse_custom_code(path)
    if (path / "text_encoder_2").is_dir() and not (path / "text_encoder").is_dir():
        raise UnsupportedBase(f"{path} is the refiner of an SDXL, which only finishes pictures: open the SDXL itself")
    scheduler = _read_config(path / "scheduler", "scheduler_config.json")
    stored_unet_config = _read_config(path / "unet")
    try:
        if reason := _find_unsupported(stored_unet_config, scheduler):
            raise UnsupportedBase(f"{path} {reason}: open a plain Stable Diffusion instead")
        check_input_channels(str(path), stored_unet_config.get("in_channels", 4))
        return _build_base(path, destination or Destination(), vae, stored_unet_config, scheduler)
    except (OSError, StopIteration, StrictDataclassError, *DAMAGED_FILE_ERRORS) as error:
        raise BadFile(
            f"{path} is no whole Stable Diffusion folder ({_short_reason(error)}): download it again"
        ) from None


def _build_base(
    path: Path, destination: Destination, vae: Contents | None, stored_unet_config: ModelConfig, scheduler: ModelConfig
) -> Base:
    unet_contents = open_weights(path / "unet", "diffusion_pytorch_model")
    vae_contents = vae or open_weights(path / "vae", "diffusion_pytorch_model")
    encoders = [_read_text_encoder(path, index, destination) for index in range(1 + (path / "text_encoder_2").is_dir())]
    pooled_width: Any = encoders[-1].model.config.projection_dim
    unet_sources = {key: TensorSource(key) for key in unet_contents.tensors}
    unet_from_shapes = unet_config(apply_sources(unet_sources, meta_tensors(unet_contents.tensors)), pooled_width)
    unet_settings = _merge_config("unet", stored_unet_config, unet_from_shapes, path)
    check_input_channels(str(path), unet_settings["in_channels"])
    vae_sources = vae_file.sources(vae_contents)
    vae_from_shapes = vae_config(apply_sources(vae_sources, meta_tensors(vae_contents.tensors)))
    vae_settings = _merge_config("vae", _read_config(path / "vae"), vae_from_shapes, path)
    prediction_type: Prediction = scheduler.get("prediction_type", "epsilon")
    family = determine_family(unet_settings, vae_settings, prediction_type)
    return Base(
        path.name,
        family,
        unet=build_unet(unet_settings, unet_sources, unet_contents, destination),
        vae=build_vae(vae_settings, vae_sources, vae_contents, destination),
        text=TextEncoder(_set_read_layers(family, encoders)),
        schedule=_read_schedule(scheduler),
        source=unet_contents.path,
    )


def _read_text_encoder(path: Path, index: int, destination: Destination) -> ClipTextEncoder:
    """A text tower, the second of which gives a prompt as one vector too."""
    encoder_folder, tokenizer_folder = (
        f"{part}_{index + 1}" if index else part for part in ("text_encoder", "tokenizer")
    )
    contents = open_weights(path / encoder_folder, "model", "pytorch_model")
    has_projection = bool(index)
    sources = _text_sources(contents.tensors, has_projection=has_projection)
    from_shapes = text_config(apply_sources(sources, meta_tensors(contents.tensors)))
    config = _merge_config("text", _read_config(path / encoder_folder), from_shapes, path)
    model = build_text_encoder(config, sources, contents, destination, has_projection=has_projection)
    tokenizer_class: Any = CLIPTokenizer
    if not (path / tokenizer_folder).is_dir():
        return ClipTextEncoder(
            vocabulary.find_tokenizer(path / INDEX_FILE, {}, int(config["vocab_size"]), pads_with_zero=has_projection),
            model,
        )
    return ClipTextEncoder(tokenizer_class.from_pretrained(path / tokenizer_folder, local_files_only=True), model)


def _text_sources(keys: Iterable[str], *, has_projection: bool) -> TensorSources:
    weight_keys = [key for key in keys if not key.endswith("position_ids")]
    return {key if has_projection else key.removeprefix(TEXT_MODEL_PREFIX): TensorSource(key) for key in weight_keys}


def _set_read_layers(family: Family, encoders: list[ClipTextEncoder]) -> list[ClipTextEncoder]:
    """The towers with the layers that a base of this family reads; a folder keeps no layer that is not read."""
    layouts = TEXT_ENCODER_LAYOUTS["SDXL" if len(encoders) > 1 else "SD2" if family.name == "SD2" else "SD1"]
    return [
        replace(
            encoder,
            default_clip_skip=layout.default_clip_skip,
            has_final_norm=layout.has_final_norm,
            takes_clip_skip=layout.takes_clip_skip,
        )
        for encoder, layout in zip(encoders, layouts, strict=True)
    ]


def _merge_config(part: str, stored: ModelConfig, from_shapes: ModelConfig, path: Path) -> ModelConfig:
    """A part's settings: what the shapes tell, and of what config.json says only what they do not."""
    for key in SIZE_FIELDS[part]:
        if isinstance(stored[key], type(from_shapes[key])) and stored[key] != from_shapes[key]:
            mismatch = f"{key} {str(from_shapes[key])[:40]}, not {str(stored[key])[:40]}"
            raise BadFile(f"{path} has weights of {mismatch} in its {part}: its config.json belongs to another model")
    return read_config_hints(part, stored, from_shapes, str(path)) | from_shapes


def _short_reason(error: Exception) -> str:
    return f"without {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0][:160]


def _refuse_custom_code(path: Path) -> None:
    """Refuse a folder that asks for code: a pipeline of another kind, or a part of a library that is not known."""
    index = _read_config(path, INDEX_FILE)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or not pipeline.startswith(PIPELINE_PREFIX):
        raise UnsupportedBase(
            f"{path} is a {str(pipeline)[:60]!r}, not a {PIPELINE_PREFIX}Pipeline: open another folder"
        )
    for name, value in index.items():
        entry = cast("list[object]", value) if isinstance(value, list) else []
        if len(entry) == 2 and entry[0] is not None and entry[0] not in LIBRARIES:
            raise UnsupportedBase(f"{path} wants code of its own for {name[:40]!r}, which is never run: open another")


def _find_unsupported(unet: ModelConfig, scheduler: ModelConfig) -> str | None:
    """What makes a model another than is opened here, where it would fail at the first step or paint wrongly."""
    beta_schedule, prediction = scheduler["beta_schedule"], scheduler.get("prediction_type", "epsilon")
    addition_embed_type = unet.get("addition_embed_type")
    reasons = {
        "has a UNet that reads more than a prompt": any(unet.get(field) is not None for field in EXTRA_CONDITION_FIELDS)
        or addition_embed_type not in {None, "text_time"},
        f"has the noise schedule {beta_schedule!r}, not 'scaled_linear'": beta_schedule != "scaled_linear",
        "has a noise schedule of its own (trained_betas)": scheduler.get("trained_betas") is not None,
        f"predicts {prediction!r}, neither noise nor velocity": prediction not in get_args(Prediction),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _read_schedule(scheduler: Mapping[str, Any]) -> NoiseSchedule:
    start, end, steps = (scheduler[key] for key in ("beta_start", "beta_end", "num_train_timesteps"))
    if steps != len(NoiseSchedule()) or not 0 < start < end < 1:
        raise ValueError(f"a noise schedule of {steps} steps from {start} to {end}")
    return NoiseSchedule(start, end, steps, zero_snr=bool(scheduler.get("rescale_betas_zero_snr")))


def _read_config(folder: Path, name: str = "config.json") -> ModelConfig:
    try:
        text = (folder / name).read_text(encoding="utf-8")
        config: object = json.loads(text) if len(text) < MAX_CONFIG_LENGTH else None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{folder / name} cannot be read ({error}): download the whole folder again") from None
    if not isinstance(config, dict):
        raise BadFile(f"{folder / name} is no table of settings: download the whole folder again")
    if "auto_map" in config:
        raise BadFile(f"{folder / name} wants code of its own (auto_map), which is never run: do not trust it")
    return cast("ModelConfig", config)
