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
from velatura.base.schedule import Schedule
from velatura.base.text import TextEncoder, Tower
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats import vae_file, vocabulary
from velatura.formats.folder_weights import weights
from velatura.formats.ldm_config import Settings, family_of, hints_in, text_config, unet_config, vae_config
from velatura.formats.ldm_kinds import KINDS, refuse_purpose
from velatura.formats.ldm_text import LEVEL
from velatura.formats.parts import text_of, unet_of, vae_of
from velatura.formats.sources import Destination, Source, Sources, shapes
from velatura.tensors import UNREADABLE, Contents, sketches

INDEX = "model_index.json"
# whose classes a folder may name; none is ever called by its name
LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}
PIPELINE = "StableDiffusion"
CONDITIONS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")
# of each part, what its config.json must say as the shapes of its weights do
SIZES = {
    "unet": ("block_out_channels", "cross_attention_dim", "layers_per_block"),
    "vae": ("block_out_channels",),
    "text": ("hidden_size", "num_hidden_layers"),
}
LONGEST_CONFIG = 2**20  # characters; the longest has a few thousand


def sniff(path: Path) -> bool:
    """Whether this is a folder of a whole diffusers model."""
    return (path / INDEX).is_file() and (path / "unet").is_dir()


def read(path: Path, to: Destination | None = None, *, vae: Contents | None = None) -> Base:
    """Read a base from its folder, in float32 on the CPU if nothing else is said.

    vae: another file whose autoencoder is taken instead.
    """
    _refuse_foreign_classes(path)
    if (path / "text_encoder_2").is_dir() and not (path / "text_encoder").is_dir():
        raise UnsupportedBase(f"{path} is the refiner of an SDXL, which only finishes pictures: open the SDXL itself")
    scheduler = _config(path / "scheduler", "scheduler_config.json")
    unet_said = _config(path / "unet")
    try:
        if reason := _why_foreign(unet_said, scheduler):
            raise UnsupportedBase(f"{path} {reason}: open a plain Stable Diffusion instead")
        refuse_purpose(str(path), unet_said.get("in_channels", 4))
        return _read(path, to or Destination(), vae, unet_said, scheduler)
    except (OSError, StopIteration, StrictDataclassError, *UNREADABLE) as error:
        raise BadFile(f"{path} is no whole Stable Diffusion folder ({_said(error)}): download it again") from None


def _read(path: Path, to: Destination, vae: Contents | None, unet_said: Settings, scheduler: Settings) -> Base:
    unet_held = weights(path / "unet", "diffusion_pytorch_model")
    vae_held = vae or weights(path / "vae", "diffusion_pytorch_model")
    towers = [_tower(path, index, to) for index in range(1 + (path / "text_encoder_2").is_dir())]
    pooled: Any = towers[-1].model.config.projection_dim
    sources = {key: Source(key) for key in unet_held.tensors}
    unet_told = unet_config(shapes(sources, sketches(unet_held.tensors)), pooled)
    unet_settings = _settings("unet", unet_said, unet_told, path)
    refuse_purpose(str(path), unet_settings["in_channels"])
    vae_sources = vae_file.sources(vae_held)
    told = vae_config(shapes(vae_sources, sketches(vae_held.tensors)))
    vae_settings = _settings("vae", _config(path / "vae"), told, path)
    prediction: Prediction = scheduler.get("prediction_type", "epsilon")
    family = family_of(unet_settings, vae_settings, prediction)
    return Base(
        path.name,
        family,
        unet=unet_of(unet_settings, sources, unet_held, to),
        vae=vae_of(vae_settings, vae_sources, vae_held, to),
        text=TextEncoder(_as_read(family, towers)),
        schedule=_schedule(scheduler),
        source=unet_held.path,
    )


def _tower(path: Path, index: int, to: Destination) -> Tower:
    """A text tower, the second of which gives a prompt as one vector too."""
    name, tokens = (f"{part}_{index + 1}" if index else part for part in ("text_encoder", "tokenizer"))
    contents = weights(path / name, "model", "pytorch_model")
    projected = bool(index)
    sources = _text_sources(contents.tensors, projected=projected)
    told = text_config(shapes(sources, sketches(contents.tensors)))
    settings = _settings("text", _config(path / name), told, path)
    model = text_of(settings, sources, contents, to, projected=projected)
    untyped: Any = CLIPTokenizer
    if not (path / tokens).is_dir():
        return Tower(vocabulary.found(path / INDEX, {}, int(settings["vocab_size"]), pads_with_zero=projected), model)
    return Tower(untyped.from_pretrained(path / tokens, local_files_only=True), model)


def _text_sources(keys: Iterable[str], *, projected: bool) -> Sources:
    read = [key for key in keys if not key.endswith("position_ids")]
    return {key if projected else key.removeprefix(LEVEL): Source(key) for key in read}


def _as_read(family: Family, towers: list[Tower]) -> list[Tower]:
    """The towers with the layers that a base of this family reads; a folder keeps no layer that is not read."""
    places = KINDS["SDXL" if len(towers) > 1 else "SD2" if family.name == "SD2" else "SD1"]
    return [
        replace(tower, skip=place.skip, final_norm=place.final_norm, takes_clip_skip=place.takes_clip_skip)
        for tower, place in zip(towers, places, strict=True)
    ]


def _settings(part: str, said: Settings, told: Settings, path: Path) -> Settings:
    """A part's settings: what the shapes tell, and of what config.json says only what they do not."""
    for key in SIZES[part]:
        if isinstance(said[key], type(told[key])) and said[key] != told[key]:
            found = f"{key} {str(told[key])[:40]}, not {str(said[key])[:40]}"
            raise BadFile(f"{path} has weights of {found} in its {part}: its config.json belongs to another model")
    return hints_in(part, said, told, str(path)) | told


def _said(error: Exception) -> str:
    return f"without {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0][:160]


def _refuse_foreign_classes(path: Path) -> None:
    """Refuse a folder that asks for code: a pipeline of another kind, or a part of a library that is not known."""
    index = _config(path, INDEX)
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not kind.startswith(PIPELINE):
        raise UnsupportedBase(f"{path} is a {str(kind)[:60]!r}, not a {PIPELINE}Pipeline: open another folder")
    for name, each in index.items():
        parts = cast("list[object]", each) if isinstance(each, list) else []
        if len(parts) == 2 and parts[0] is not None and parts[0] not in LIBRARIES:
            raise UnsupportedBase(f"{path} wants code of its own for {name[:40]!r}, which is never run: open another")


def _why_foreign(unet: Settings, scheduler: Settings) -> str | None:
    """What makes a model another than is opened here, where it would fail at the first step or paint wrongly."""
    betas, prediction = scheduler["beta_schedule"], scheduler.get("prediction_type", "epsilon")
    reads_sizes = unet.get("addition_embed_type")
    reasons = {
        "has a UNet that reads more than a prompt": any(unet.get(each) is not None for each in CONDITIONS)
        or reads_sizes not in {None, "text_time"},
        f"has the noise schedule {betas!r}, not 'scaled_linear'": betas != "scaled_linear",
        "has a noise schedule of its own (trained_betas)": scheduler.get("trained_betas") is not None,
        f"predicts {prediction!r}, neither noise nor velocity": prediction not in get_args(Prediction),
    }
    return next((reason for reason, true in reasons.items() if true), None)


def _schedule(scheduler: Mapping[str, Any]) -> Schedule:
    start, end, steps = (scheduler[each] for each in ("beta_start", "beta_end", "num_train_timesteps"))
    if steps != len(Schedule()) or not 0 < start < end < 1:
        raise ValueError(f"a noise schedule of {steps} steps from {start} to {end}")
    return Schedule(start, end, steps, zero_snr=bool(scheduler.get("rescale_betas_zero_snr")))


def _config(folder: Path, name: str = "config.json") -> Settings:
    try:
        text = (folder / name).read_text(encoding="utf-8")
        found: object = json.loads(text) if len(text) < LONGEST_CONFIG else None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{folder / name} cannot be read ({error}): download the whole folder again") from None
    if not isinstance(found, dict):
        raise BadFile(f"{folder / name} is no table of settings: download the whole folder again")
    if "auto_map" in found:
        raise BadFile(f"{folder / name} wants code of its own (auto_map), which is never run: do not trust it")
    return cast("Settings", found)
