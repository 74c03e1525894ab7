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
from velatura.base.schedule import Schedule
from velatura.base.text import TextEncoder, Tower
from velatura.errors import BadFile, UnknownName, UnsupportedBase, VelaturaWarning
from velatura.formats import prediction, vae_file, vocabulary
from velatura.formats.ema import EMA_PREFIX, averages, has_only_averages
from velatura.formats.ldm_config import (
    HINTS,
    TEXTS,
    Settings,
    checked_hints,
    family_of,
    hints_of,
    text_config,
    unet_config,
    vae_config,
)
from velatura.formats.ldm_keys import UNET_PREFIX, VAE_PREFIX, unet_from_ldm, unet_to_ldm, vae_to_ldm
from velatura.formats.ldm_kinds import (
    KINDS,
    LEFT_BY_TRAINING,
    V_MARKER,
    ZERO_SNR_MARKER,
    Place,
    kind_of,
    refuse_purpose,
)
from velatura.formats.model_spec import model_spec
from velatura.formats.parts import text_of, unet_of, vae_of
from velatura.formats.sources import Destination, Source, Sources, shapes
from velatura.tensors import UNREADABLE, Contents, StrPath, sketches, write_safetensors

Weights = Literal["last", "ema"]
WEIGHTS = get_args(Weights)

HINTS_KEY = "velatura.base"
FIRST_SD2_PIXELS = 512  # of those that predict noise


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
    held = contents_of(base)
    write_safetensors(path, held.tensors, {**held.metadata, **(metadata or {})}, dtype=dtype)


def contents_of(base: Base) -> Contents:
    """A base as the contents of the file that it would be written to: its own tensors, but for those that are joined.

    The path is the base's name, where no file is.
    """
    kind = _kind_to_write(base)
    tensors = {**unet_to_ldm(base.unet.state_dict()), **vae_to_ldm(base.vae.state_dict()), **_markers(base, kind)}
    for place, tower in zip(KINDS[kind], base.text.towers, strict=True):
        tensors |= place.written(tower.model.state_dict())
    return Contents(Path(base.name), tensors, model_spec(base.family, base.name) | _own_settings(base, kind))


def read(
    contents: Contents,
    to: Destination | None = None,
    *,
    vae: Contents | None = None,
    weights: Weights = "last",
) -> Base:
    """Read a checkpoint as a base of its file's stem, tensor by tensor, in float32 on the CPU if nothing else is said.

    vae: another file whose autoencoder is taken instead; weights: those of the last step, or their average.
    """
    name = contents.path.name
    if weights not in WEIGHTS:
        raise UnknownName.among("kind of weights", weights, WEIGHTS)
    kind = kind_of(name, contents.tensors.keys())
    try:
        plan = _Plan.of(contents, kind, vae or contents, weights)
        return plan.carried_out(to or Destination())
    except (StopIteration, StrictDataclassError, *UNREADABLE) as error:
        what = f"without {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise BadFile(f"{name} is no whole checkpoint ({what or type(error).__name__}): download it again") from None


@dataclass(frozen=True)
class _Plan:
    """Where each part of a base is, and its settings; the autoencoder may be in a file of its own."""

    contents: Contents
    kind: str
    vae_contents: Contents
    unet: Sources
    vae: Sources
    texts: tuple[Sources, ...]
    settings: Mapping[str, Settings]
    prediction: Prediction | None

    @classmethod
    def of(cls, contents: Contents, kind: str, vae_contents: Contents, weights: Weights) -> _Plan:
        """Look at names and shapes alone, and refuse what no base can be made of."""
        held, name, predicted = sketches(contents.tensors), contents.path.name, prediction.told(contents)
        unet = _unet_sources(name, held, weights)
        vae = vae_file.sources(vae_contents)
        texts = tuple(place.sources(held) for place in KINDS[kind])
        _warn_of_leftovers(name, held, kind)
        told = [text_config(shapes(each, held)) for each in texts]
        pooled = int(told[-1].get("projection_dim", 0))
        hints = _hints(contents, kind)
        # shapes have the last word: what is built is never larger than what is in the file
        settings = {part: hints[part] | each for part, each in zip(TEXTS, told, strict=False)}
        settings["unet"] = hints["unet"] | unet_config(shapes(unet, held), pooled)
        settings["vae"] = hints["vae"] | vae_config(shapes(vae, sketches(vae_contents.tensors)))
        refuse_purpose(name, settings["unet"]["in_channels"])
        if kind != "SDXL" and "addition_embed_type" in settings["unet"]:
            raise UnsupportedBase(f"{name} has a UNet that reads more than a prompt: open a plain Stable Diffusion")
        return cls(contents, kind, vae_contents, unet, vae, texts, settings, predicted)

    def carried_out(self, to: Destination) -> Base:
        """Build the models and fill them."""
        path = self.contents.path
        family = family_of(self.settings["unet"], self.settings["vae"], "epsilon")
        unet = unet_of(self.settings["unet"], self.unet, self.contents, to)
        vae = vae_of(self.settings["vae"], self.vae, self.vae_contents, to)
        towers = [self._tower(index, place, to) for index, place in enumerate(KINDS[self.kind])]
        predicted = self.prediction or (prediction.tried(unet.eval()) if self.kind == "SD2" else None)
        family = replace(family, prediction=predicted or "epsilon")
        prediction.warn_of_configuration(path, family.prediction)
        if self.kind == "SD2" and predicted == "epsilon" and HINTS_KEY not in self.contents.metadata:
            family = replace(family, default_pixels=FIRST_SD2_PIXELS)
        schedule = Schedule(zero_snr=ZERO_SNR_MARKER in self.contents.tensors)
        text = TextEncoder(towers)
        return Base(path.stem, family, unet=unet, vae=vae, text=text, schedule=schedule, source=path)

    def _tower(self, index: int, place: Place, to: Destination) -> Tower:
        contents, settings = self.contents, self.settings[TEXTS[index]]
        model = text_of(settings, self.texts[index], contents, to, projected=place.projected)
        words = int(settings["vocab_size"])
        tokenizer = vocabulary.found(contents.path, contents.metadata, words, pads_with_zero=place.open_clip)
        return Tower(tokenizer, model, place.skip, place.final_norm, place.takes_clip_skip)


def _unet_sources(name: str, held: Mapping[str, Tensor], weights: Weights) -> Sources:
    if weights == "last" and not has_only_averages(held):
        return unet_from_ldm(held)
    averaged = averages(name, held.keys())
    return {ours: Source(averaged[each.key], each.change) for ours, each in unet_from_ldm(averaged).items()}


def _warn_of_leftovers(name: str, held: Iterable[str], kind: str) -> None:
    """Say what a file holds that no part of a base is made of, but what training is known to leave there."""
    known = (UNET_PREFIX, VAE_PREFIX, *(place.prefix for place in KINDS[kind]))
    left = sorted(
        key
        for key in held
        if not key.startswith(known) and key not in {V_MARKER, ZERO_SNR_MARKER} and not LEFT_BY_TRAINING.match(key)
    )
    if left:
        shown = ", ".join(repr(key[:60]) for key in left[:3])
        said = f"{name} holds {len(left)} tensors that no part of a base is made of ({shown}): they are left out"
        warnings.warn(said, VelaturaWarning, stacklevel=5)


def _kind_to_write(base: Base) -> str:
    """Under whose names a base is written; what no file can tell of it is refused."""
    if not torch.equal(base.schedule.alphas_cumprod, Schedule(zero_snr=base.schedule.zero_snr).alphas_cumprod):
        raise UnsupportedBase(
            f"{base.name} has a noise schedule of its own, which no checkpoint can tell: keep it as a folder"
        )
    if len(base.text.towers) > 1:
        return "SDXL"
    return "SD2" if base.family.name == "SD2" else "SD1"


def _markers(base: Base, kind: str) -> dict[str, Tensor]:
    """The empty tensors by which other programs know velocity, where they would take noise for granted."""
    marks = {
        V_MARKER: base.family.prediction == "v_prediction" and kind != "SD2",
        ZERO_SNR_MARKER: base.schedule.zero_snr,
    }
    return {name: torch.empty(0) for name, true in marks.items() if true}


def _own_settings(base: Base, kind: str) -> dict[str, str]:
    """What a reader cannot know from shapes and family."""
    hints = hints_of(base.unet, base.vae, [tower.model for tower in base.text.towers])
    settings = {} if hints == HINTS[kind] else {HINTS_KEY: json.dumps(hints)}
    return settings | vocabulary.told(base.text.tokenizer)


def _hints(contents: Contents, kind: str) -> Mapping[str, Settings]:
    """What the file itself says of what shapes do not tell, or else what its kind has."""
    if HINTS_KEY not in contents.metadata:
        return HINTS[kind]
    found: object = json.loads(contents.metadata[HINTS_KEY])
    return checked_hints(contents.path.name, found, HINTS[kind])
