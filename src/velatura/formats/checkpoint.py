"""A whole base in one .safetensors file under LDM's names, as A1111, ComfyUI and diffusers open them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from velatura.base.base import Base
from velatura.base.families import Family, Prediction
from velatura.base.schedule import Schedule
from velatura.base.text import TextEncoder, Tower
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats import vocabulary
from velatura.formats.ldm_config import (
    HINTS,
    TOLD,
    Settings,
    family_of,
    hints_of,
    text_config,
    unet_config,
    vae_config,
)
from velatura.formats.ldm_keys import UNET_PREFIX, VAE_PREFIX, unet_from_ldm, unet_to_ldm, vae_from_ldm, vae_to_ldm
from velatura.formats.ldm_text import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    clip_from_ldm,
    clip_to_ldm,
    open_clip_from_ldm,
    open_clip_to_ldm,
)
from velatura.formats.model_spec import PREDICTIONS, model_spec
from velatura.tensors import UNREADABLE, Contents, StrPath, write_safetensors

Model = TypeVar("Model", bound=nn.Module)

HINTS_KEY = "velatura.base"
OPEN_CLIP_LAYERS = 24  # in SD2's files, of which it reads 23


def sniff(contents: Contents) -> bool:
    """Whether the file holds a UNet, an autoencoder and a text tower under LDM's names."""
    text = (CLIP_PREFIX, OPEN_CLIP_PREFIX, SDXL_OPEN_CLIP_PREFIX)
    return all(any(key.startswith(each) for key in contents.tensors) for each in (UNET_PREFIX, VAE_PREFIX, text))


def write(base: Base, path: StrPath, metadata: Mapping[str, str] | None = None) -> None:
    """Write a base as one checkpoint in its own precision, at once or not at all.

    metadata goes into the header beside ModelSpec's fields. What the shapes of the tensors do not tell, and what is not
    the family's, goes there too, a vocabulary of the base's own among it: the tiny base needs that, an SD1 does not.
    """
    if not torch.equal(base.schedule.alphas_cumprod, Schedule().alphas_cumprod):
        raise UnsupportedBase(
            f"{base.name} has a noise schedule of its own, which no checkpoint can tell: keep it as a folder"
        )
    state: dict[str, Tensor] = base.text.model.state_dict()
    open_clip = base.family.name == "SD2"
    text = open_clip_to_ldm(state, layers=OPEN_CLIP_LAYERS) if open_clip else clip_to_ldm(state)
    tensors = {**unet_to_ldm(base.unet.state_dict()), **vae_to_ldm(base.vae.state_dict()), **text}
    write_safetensors(path, tensors, model_spec(base.family, base.name) | _own_settings(base) | dict(metadata or {}))


def read(contents: Contents) -> Base:
    """Read a checkpoint as a base of its file's stem, in float32 on the CPU."""
    name = contents.path.name
    if any(key.startswith(SDXL_OPEN_CLIP_PREFIX) for key in contents.tensors):
        raise UnsupportedBase(f"{name} is an SDXL, with a second text encoder: open a Stable Diffusion 1 or 2 instead")
    open_clip = any(key.startswith(OPEN_CLIP_PREFIX) for key in contents.tensors)
    try:
        unet, vae = unet_from_ldm(contents.tensors), vae_from_ldm(contents.tensors)
        layers = OPEN_CLIP_LAYERS - 1
        text = open_clip_from_ldm(contents.tensors, layers=layers) if open_clip else clip_from_ldm(contents.tensors)
        hints = _hints(contents, "SD2" if open_clip else "SD1")
        prediction = _prediction(contents, open_clip=open_clip)
        # shapes have the last word: what is built is never larger than what is in the file
        configs = hints["unet"] | unet_config(unet), hints["vae"] | vae_config(vae), hints["text"] | text_config(text)
        family = family_of(*configs[:2], prediction)
        _refuse_purpose(name, configs[0])
        with torch.device("meta"):
            empty = _unet(configs[0]), _vae(configs[1]), CLIPTextModel(CLIPTextConfig(**configs[2]))
        models = (_filled(model, state) for model, state in zip(empty, (unet, vae, text), strict=True))
        return _assembled(contents, family, *cast("tuple[Any, Any, Any]", tuple(models)))
    except (StopIteration, StrictDataclassError, *UNREADABLE) as error:
        what = f"without {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise BadFile(f"{name} is no whole checkpoint ({what or type(error).__name__}): download it again") from None


def _assembled(
    contents: Contents, family: Family, unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel
) -> Base:
    places = int(text.config.max_position_embeddings)
    embeddings: Any = text.embeddings
    embeddings.position_ids = torch.arange(places).expand((1, -1))  # no weight, so not in the file
    words, path = int(text.config.vocab_size), contents.path
    tokenizer = vocabulary.found(path, contents.metadata, words, pads_with_zero=family.name == "SD2")
    encoder = TextEncoder([Tower(tokenizer, text)])
    return Base(contents.path.stem, family, unet=unet, vae=vae, text=encoder, schedule=Schedule(), source=contents.path)


def _unet(config: Settings) -> nn.Module:
    untyped: Any = UNet2DConditionModel
    return untyped.from_config(config)


def _vae(config: Settings) -> nn.Module:
    untyped: Any = AutoencoderKL
    return untyped.from_config(config)


def _filled(model: Model, state: Mapping[str, Tensor]) -> Model:
    model.load_state_dict({key: each.float() for key, each in state.items()}, assign=True)
    return model


def _own_settings(base: Base) -> dict[str, str]:
    """What a reader cannot know from shapes and family."""
    hints = hints_of(base.unet, base.vae, base.text.model.config)
    settings = {} if hints == HINTS.get(base.family.name) else {HINTS_KEY: json.dumps(hints)}
    return settings | vocabulary.told(base.text.tokenizer)


def _hints(contents: Contents, family: str) -> dict[str, Settings]:
    """What the file itself says of what shapes do not tell, or else what its family has."""
    if HINTS_KEY not in contents.metadata:
        return HINTS[family]
    found: object = json.loads(contents.metadata[HINTS_KEY])
    parts = cast("dict[str, Settings]", found) if isinstance(found, dict) else {}
    if not all(isinstance(parts.get(each), dict) for each in ("unet", "vae", "text")):
        raise BadFile(f"{contents.path.name} has a damaged {HINTS_KEY} in its header: save the base again")
    return {part: {key: each for key, each in parts[part].items() if key in told} for part, told in TOLD.items()}


def _prediction(contents: Contents, *, open_clip: bool) -> Prediction:
    """What the UNet predicts; a file that does not say is taken for what its family's first one is."""
    said = contents.metadata.get("modelspec.prediction_type")
    if said is None:
        return "v_prediction" if open_clip else "epsilon"
    found = next((ours for ours, theirs in PREDICTIONS.items() if theirs == said), None)
    if found is None:
        raise UnsupportedBase(f"{contents.path.name} predicts {said!r}, neither noise nor velocity: open another base")
    return cast("Prediction", found)


def _refuse_purpose(name: str, unet: Settings) -> None:
    channels: int = unet["in_channels"]
    if channels != 4:
        raise UnsupportedBase(
            f"{name} has a UNet that reads {channels} channels, not 4 (inpainting, depth, editing): "
            "open a plain Stable Diffusion 1 or 2 instead"
        )
