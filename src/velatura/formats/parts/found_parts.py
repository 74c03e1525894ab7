"""Look into a file or a folder for the models of a base that it holds: a UNet, text encoders, an autoencoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from velatura.errors import BadFile, UnsupportedBase, choose_number, quantity, warn
from velatura.formats.checkpoints import diffusers_folder, single_file, vae_file
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.ldm_config import ModelConfig
from velatura.formats.checkpoints.ldm_families import TRAINING_LEFTOVERS, V_MARKER, ZERO_SNR_MARKER
from velatura.formats.checkpoints.single_file import MAX_SHOWN_KEYS, WeightsKind
from velatura.formats.parts.model_part import ModelPart
from velatura.formats.parts.text_names import find_text_encoders
from velatura.formats.parts.unet_names import has_unet, unet_tensor_sources
from velatura.tensors import Contents, open_state_dict

TEXT_KINDS = ("text", "text_2")
CONFIG_FILE, SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
UNET_CLASS, VAE_CLASS = "UNet2DConditionModel", "AutoencoderKL"
# Beside a part: markers of the prediction, what only CLIP's training and its image encoder need, and other encoders
KNOWN_LEFTOVERS = re.compile(
    rf"(^|\.)({V_MARKER}|{ZERO_SNR_MARKER}|position_ids|logit_scale|attn_mask|text_projection(\.weight)?)$|"
    r"^(vision_model|visual|visual_projection|text_encoders\.\w+)\.|^(first_stage_model\.)?(loss|model_ema)\."
)
TEXT_FILES = (
    "model.safetensors",
    "model.fp16.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
DIFFUSERS_STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class FoundParts:
    """Models in a file or a folder, each read when it is asked for.

    Attributes:
        place: A checkpoint, the file of one model, a diffusers folder, or the folder of one model in it.
        weights: Which weights of a checkpoint's UNet to take.
    """

    place: Path
    weights: WeightsKind = "last"

    @classmethod
    def open(cls, place: Path, weights: WeightsKind = "last") -> FoundParts:
        """Open a file or a folder.

        Raises:
            BadFile: The folder's configuration asks for code of its own.
            UnsupportedBase: A folder with averaged weights, which it cannot have.
        """
        if place.is_dir() and weights != "last":
            raise UnsupportedBase(
                f"{place} is a folder, which holds one kind of weights: leave out weights={weights!r}"
            )
        found = cls(place, weights)
        if found.is_base_folder:
            diffusers_folder.refuse_custom_code(place)
        return found

    @property
    def is_base_folder(self) -> bool:
        """Return True for a whole model in diffusers' layout."""
        return self.place.is_dir() and diffusers_folder.sniff(self.place)

    @property
    def is_base(self) -> bool:
        """Return True if it holds a UNet and text encoders: what it holds fits together."""
        return self.unet is not None and bool(self.texts)

    @cached_property
    def contents(self) -> Contents:
        """Return the tensors of a file."""
        return open_state_dict(self.place)

    @property
    def has_unet(self) -> bool:
        """Return True if there is a UNet, whatever kind of model it is of."""
        if self.place.is_dir():
            return self._model_folder("unet", UNET_CLASS) is not None
        return has_unet(self.contents)

    @cached_property
    def unet(self) -> ModelPart | None:
        """Return the UNet, or None if there is none; raises the errors of `unet_tensor_sources`."""
        if self.place.is_dir():
            folder = self._model_folder("unet", UNET_CLASS)
            return None if folder is None else _folder_part("unet", folder)
        if not has_unet(self.contents):
            return None
        return ModelPart("unet", self.place, self.contents, unet_tensor_sources(self.contents, self.weights))

    @cached_property
    def vae(self) -> ModelPart | None:
        """Return the autoencoder, or None if there is none; raises the errors of `vae_file.sources`."""
        if self.place.is_dir():
            folder = self._model_folder("vae", VAE_CLASS)
            if folder is None:
                return None
            contents = open_weights(folder, DIFFUSERS_STEM)
            return ModelPart("vae", folder, contents, vae_file.sources(contents), _read_model_config(folder))
        if not vae_file.has_vae(self.contents):
            return None
        return ModelPart("vae", self.place, self.contents, vae_file.sources(self.contents))

    @cached_property
    def texts(self) -> list[ModelPart]:
        """Return the text encoders, in the order in which their hidden states are joined."""
        if not self.place.is_dir():
            encoders = find_text_encoders(self.contents.tensors.keys())
            kinds = TEXT_KINDS if len(encoders) == len(TEXT_KINDS) else ("text",) * len(encoders)
            return [
                ModelPart(kind, self.place, self.contents, sources)
                for kind, sources in zip(kinds, encoders, strict=True)
            ]
        if self.is_base_folder:
            names = [name for name in ("text_encoder", "text_encoder_2") if (self.place / name).is_dir()]
            return [_text_folder_part(kind, self.place / name) for kind, name in zip(TEXT_KINDS, names, strict=False)]
        if not any((self.place / name).is_file() for name in TEXT_FILES):
            return []
        return [_text_folder_part("text", self.place)]

    def warn_of_leftovers(self) -> None:
        """Warn of tensors in the file of a part that no model of a base has, and that training does not leave."""
        if self.place.is_dir():
            return
        if self.is_base:  # from which other parts may be taken
            if single_file.sniff(self.contents):
                single_file.warn_of_leftovers(self.contents)
            return
        parts = [part for part in (self.unet, self.vae, *self.texts) if part is not None]
        used = {source.key for part in parts for source in part.sources.values()}
        leftover = sorted(
            key
            for key in self.contents.tensors.keys() - used
            if not TRAINING_LEFTOVERS.match(key) and not KNOWN_LEFTOVERS.search(key)
        )
        if leftover:
            shown = ", ".join(repr(key[:60]) for key in leftover[:MAX_SHOWN_KEYS])
            warn(
                f"{self.place.name} holds {quantity(len(leftover), 'tensor')} that "
                f"{choose_number(len(leftover), 'belongs', 'belong')} to no part of a base ({shown}): "
                f"{choose_number(len(leftover), 'it is', 'they are')} ignored"
            )

    @property
    def scheduler(self) -> ModelConfig | None:
        """Return the configuration of the scheduler of a diffusers folder, None if there is none."""
        if not self.place.is_dir():
            return None
        folders = (self.place, self.place.parent)
        paths = [folder / "scheduler" / SCHEDULER_CONFIG for folder in folders]
        return next((diffusers_folder.read_config(path) for path in paths if path.is_file()), None)

    def _model_folder(self, name: str, class_name: str) -> Path | None:
        """Return the folder of a model: one in a diffusers folder, or the folder itself if it holds that model."""
        if (self.place / name).is_dir():
            return self.place / name
        if self.is_base_folder:
            return None
        if (self.place / CONFIG_FILE).is_file():
            stated_class = diffusers_folder.read_config(self.place / CONFIG_FILE).get("_class_name")
            return self.place if stated_class == class_name else None
        if not any(self.place.glob(f"{DIFFUSERS_STEM}*")):
            return None
        contents = open_weights(self.place, DIFFUSERS_STEM)
        holds = has_unet(contents) if class_name == UNET_CLASS else vae_file.has_vae(contents)
        return self.place if holds else None


def _folder_part(kind: str, folder: Path) -> ModelPart:
    """Return the model in a folder of diffusers'."""
    contents = open_weights(folder, DIFFUSERS_STEM)
    sources = unet_tensor_sources(contents)
    return ModelPart(kind, folder, contents, sources, _read_model_config(folder))


def _text_folder_part(kind: str, folder: Path) -> ModelPart:
    """Return the text encoder in a folder of transformers'."""
    contents = open_weights(folder, "model", "pytorch_model")
    encoders = find_text_encoders(contents.tensors.keys())
    if len(encoders) != 1:
        raise BadFile(f"{folder} holds {len(encoders)} CLIP text encoders, not one: give the folder of one")
    [sources] = encoders
    config = _read_model_config(folder)
    if config is not None and isinstance(
        config.get("text_config"), dict
    ):  # of a whole CLIP, which states only what is not the default
        from transformers import CLIPTextConfig

        config = CLIPTextConfig(**config["text_config"]).to_dict()
    return ModelPart(kind, folder, contents, sources, config, _tokenizer_folder(folder))


def _tokenizer_folder(folder: Path) -> Path | None:
    """Return the folder of a text encoder's tokenizer: its own, or the one beside it in a diffusers folder."""
    beside = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))
    candidates = (folder, *((beside,) if beside != folder else ()))
    return next((path for path in candidates if any((path / name).is_file() for name in TOKENIZER_FILES)), None)


def _read_model_config(folder: Path) -> ModelConfig | None:
    return diffusers_folder.read_config(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else None
