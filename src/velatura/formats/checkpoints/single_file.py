"""A whole base in one file under LDM's names, as A1111, ComfyUI and diffusers open and write it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from velatura.base.base import Base
from velatura.base.families import Prediction
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.errors import BadFile, UnknownName, UnsupportedBase, VelaturaWarning
from velatura.formats import vocabulary
from velatura.formats.checkpoints import prediction, vae_file
from velatura.formats.checkpoints.build_models import build_text_encoder, build_unet, build_vae
from velatura.formats.checkpoints.ema import EMA_PREFIX, find_ema_keys, has_only_ema
from velatura.formats.checkpoints.ldm_config import (
    CONFIG_HINTS,
    TEXT_PARTS,
    ModelConfig,
    check_config_hints,
    config_hints,
    determine_family,
    text_config,
    unet_config,
    vae_config,
)
from velatura.formats.checkpoints.ldm_families import (
    TEXT_ENCODER_LAYOUTS,
    TRAINING_LEFTOVERS,
    V_MARKER,
    ZERO_SNR_MARKER,
    TextEncoderLayout,
    check_input_channels,
    detect_family,
)
from velatura.formats.checkpoints.ldm_keys import UNET_PREFIX, VAE_PREFIX, unet_from_ldm, unet_to_ldm, vae_to_ldm
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSource, TensorSources, apply_sources
from velatura.formats.metadata import model_spec_fields
from velatura.tensors import DAMAGED_FILE_ERRORS, Contents, StrPath, meta_tensors, write_safetensors

WeightsKind = Literal["last", "ema"]
WEIGHTS_KINDS = get_args(WeightsKind)

CONFIG_HINTS_KEY = "velatura.base"
SD2_BASE_PIXELS = 512  # of those that predict noise


def sniff(contents: Contents) -> bool:
    """Whether the file holds a UNet under LDM's names, or its averaged weights."""
    return any(key.startswith((UNET_PREFIX, f"{EMA_PREFIX}diffusion_model")) for key in contents.tensors)


def write(
    base: Base, path: StrPath, metadata: Mapping[str, str] | None = None, *, dtype: torch.dtype | None = None
) -> None:
    """Write a base as one checkpoint in its own precision or another, at once or not at all.

    metadata goes into the header beside ModelSpec's fields. What the shapes of the tensors do not tell, and what is not
    the family's, goes there too, a vocabulary of the base's own among it: the tiny base needs that, an SD1 does not.
    """
    contents = checkpoint_contents(base)
    write_safetensors(path, contents.tensors, {**contents.metadata, **(metadata or {})}, dtype=dtype)


def checkpoint_contents(base: Base) -> Contents:
    """A base as the contents of the file that it would be written to: its own tensors, but for those that are joined.

    The path is the base's name, where no file is.
    """
    family_name = _family_to_write(base)
    tensors = {
        **unet_to_ldm(base.unet.state_dict()),
        **vae_to_ldm(base.vae.state_dict()),
        **_markers(base, family_name),
    }
    for layout, encoder in zip(TEXT_ENCODER_LAYOUTS[family_name], base.text.encoders, strict=True):
        tensors |= layout.to_checkpoint(encoder.model.state_dict())
    return Contents(
        Path(base.name), tensors, model_spec_fields(base.family, base.name) | _extra_metadata(base, family_name)
    )


def read(
    contents: Contents,
    destination: Destination | None = None,
    *,
    vae: Contents | None = None,
    weights: WeightsKind = "last",
) -> Base:
    """Read a checkpoint as a base of its file's stem, tensor by tensor, in float32 on the CPU if nothing else is said.

    vae: another file whose autoencoder is taken instead; weights: those of the last step, or their average.
    """
    name = contents.path.name
    if weights not in WEIGHTS_KINDS:
        raise UnknownName.with_suggestions("kind of weights", weights, WEIGHTS_KINDS)
    family_name = detect_family(name, contents.tensors.keys())
    try:
        plan = _LoadPlan.from_contents(contents, family_name, vae or contents, weights)
        return plan.build(destination or Destination())
    except (StopIteration, StrictDataclassError, *DAMAGED_FILE_ERRORS) as error:
        reason = f"without {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise BadFile(f"{name} is no whole checkpoint ({reason or type(error).__name__}): download it again") from None


@dataclass(frozen=True)
class _LoadPlan:
    """Where each part of a base is, and its settings; the autoencoder may be in a file of its own."""

    contents: Contents
    family_name: str
    vae_contents: Contents
    unet: TensorSources
    vae: TensorSources
    text_encoders: tuple[TensorSources, ...]
    configs: Mapping[str, ModelConfig]
    prediction: Prediction | None

    @classmethod
    def from_contents(
        cls, contents: Contents, family_name: str, vae_contents: Contents, weights: WeightsKind
    ) -> _LoadPlan:
        """Look at names and shapes alone, and refuse what no base can be made of."""
        tensors, name, prediction_type = (
            meta_tensors(contents.tensors),
            contents.path.name,
            prediction.read_prediction(contents),
        )
        unet = _unet_sources(name, tensors, weights)
        vae = vae_file.sources(vae_contents)
        text_encoders = tuple(layout.sources(tensors) for layout in TEXT_ENCODER_LAYOUTS[family_name])
        _warn_of_leftovers(name, tensors, family_name)
        text_configs = [text_config(apply_sources(sources, tensors)) for sources in text_encoders]
        pooled_width = int(text_configs[-1].get("projection_dim", 0))
        hints = _read_config_hints(contents, family_name)
        # shapes have the last word: what is built is never larger than what is in the file
        configs = {part: hints[part] | config for part, config in zip(TEXT_PARTS, text_configs, strict=False)}
        configs["unet"] = hints["unet"] | unet_config(apply_sources(unet, tensors), pooled_width)
        configs["vae"] = hints["vae"] | vae_config(apply_sources(vae, meta_tensors(vae_contents.tensors)))
        check_input_channels(name, configs["unet"]["in_channels"])
        if family_name != "SDXL" and "addition_embed_type" in configs["unet"]:
            raise UnsupportedBase(f"{name} has a UNet that reads more than a prompt: open a plain Stable Diffusion")
        return cls(contents, family_name, vae_contents, unet, vae, text_encoders, configs, prediction_type)

    def build(self, destination: Destination) -> Base:
        """Build the models and fill them."""
        path = self.contents.path
        family = determine_family(self.configs["unet"], self.configs["vae"], "epsilon")
        unet = build_unet(self.configs["unet"], self.unet, self.contents, destination)
        vae = build_vae(self.configs["vae"], self.vae, self.vae_contents, destination)
        encoders = [
            self._build_text_encoder(index, layout, destination)
            for index, layout in enumerate(TEXT_ENCODER_LAYOUTS[self.family_name])
        ]
        prediction_type = self.prediction or (
            prediction.detect_prediction(unet.eval()) if self.family_name == "SD2" else None
        )
        family = replace(family, prediction=prediction_type or "epsilon")
        prediction.warn_of_yaml_conflict(path, family.prediction)
        if (
            self.family_name == "SD2"
            and prediction_type == "epsilon"
            and CONFIG_HINTS_KEY not in self.contents.metadata
        ):
            family = replace(family, default_pixels=SD2_BASE_PIXELS)
        schedule = NoiseSchedule(zero_snr=ZERO_SNR_MARKER in self.contents.tensors)
        text = TextEncoder(encoders)
        return Base(path.stem, family, unet=unet, vae=vae, text=text, schedule=schedule, source=path)

    def _build_text_encoder(self, index: int, layout: TextEncoderLayout, destination: Destination) -> ClipTextEncoder:
        contents, config = self.contents, self.configs[TEXT_PARTS[index]]
        model = build_text_encoder(
            config, self.text_encoders[index], contents, destination, has_projection=layout.has_projection
        )
        vocab_size = int(config["vocab_size"])
        tokenizer = vocabulary.find_tokenizer(
            contents.path, contents.metadata, vocab_size, pads_with_zero=layout.is_open_clip
        )
        return ClipTextEncoder(
            tokenizer, model, layout.default_clip_skip, layout.has_final_norm, layout.takes_clip_skip
        )


def _unet_sources(name: str, tensors: Mapping[str, Tensor], weights: WeightsKind) -> TensorSources:
    if weights == "last" and not has_only_ema(tensors):
        return unet_from_ldm(tensors)
    ema_keys = find_ema_keys(name, tensors.keys())
    return {
        model_key: TensorSource(ema_keys[source.key], source.transform)
        for model_key, source in unet_from_ldm(ema_keys).items()
    }


def _warn_of_leftovers(name: str, keys: Iterable[str], family_name: str) -> None:
    """Say what a file holds that no part of a base is made of, but what training is known to leave there."""
    known_prefixes = (UNET_PREFIX, VAE_PREFIX, *(layout.prefix for layout in TEXT_ENCODER_LAYOUTS[family_name]))
    leftover_keys = sorted(
        key
        for key in keys
        if not key.startswith(known_prefixes)
        and key not in {V_MARKER, ZERO_SNR_MARKER}
        and not TRAINING_LEFTOVERS.match(key)
    )
    if leftover_keys:
        shown = ", ".join(repr(key[:60]) for key in leftover_keys[:3])
        message = (
            f"{name} holds {len(leftover_keys)} tensors that no part of a base is made of ({shown}): they are left out"
        )
        warnings.warn(message, VelaturaWarning, stacklevel=5)


def _family_to_write(base: Base) -> str:
    """Under whose names a base is written; what no file can tell of it is refused."""
    if not torch.equal(base.schedule.alphas_cumprod, NoiseSchedule(zero_snr=base.schedule.zero_snr).alphas_cumprod):
        raise UnsupportedBase(
            f"{base.name} has a noise schedule of its own, which no checkpoint can tell: keep it as a folder"
        )
    if len(base.text.encoders) > 1:
        return "SDXL"
    return "SD2" if base.family.name == "SD2" else "SD1"


def _markers(base: Base, family_name: str) -> dict[str, Tensor]:
    """The empty tensors by which other programs know velocity, where they would take noise for granted."""
    markers = {
        V_MARKER: base.family.prediction == "v_prediction" and family_name != "SD2",
        ZERO_SNR_MARKER: base.schedule.zero_snr,
    }
    return {name: torch.empty(0) for name, is_set in markers.items() if is_set}


def _extra_metadata(base: Base, family_name: str) -> dict[str, str]:
    """What a reader cannot know from shapes and family."""
    hints = config_hints(base.unet, base.vae, [encoder.model for encoder in base.text.encoders])
    metadata = {} if hints == CONFIG_HINTS[family_name] else {CONFIG_HINTS_KEY: json.dumps(hints)}
    return metadata | vocabulary.tokenizer_metadata(base.text.tokenizer)


def _read_config_hints(contents: Contents, family_name: str) -> Mapping[str, ModelConfig]:
    """What the file itself says of what shapes do not tell, or else what its kind has."""
    if CONFIG_HINTS_KEY not in contents.metadata:
        return CONFIG_HINTS[family_name]
    stored: object = json.loads(contents.metadata[CONFIG_HINTS_KEY])
    return check_config_hints(contents.path.name, stored, CONFIG_HINTS[family_name])
